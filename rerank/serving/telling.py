"""What a server says of itself: health, its models, TEI's /info, Weaviate's /meta."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from rerank.models.onnx import OnnxScorer
from rerank.serving.asking import Refusal
from rerank.serving.desk import Desk
from rerank.serving.shelf import ANY, Shelf


def health_of(shelf: Shelf) -> tuple[dict[str, Any], int, dict[str, str]]:
    """(body, status, headers) of /health: 200 where a question would be taken now, else 503."""
    try:
        shelf.check_open()
    except Refusal as refusal:
        return {"status": "not ready", "reason": refusal.message}, refusal.status, refusal.all_headers()
    return {"status": "ready", "models": list(shelf.desks)}, 200, {}


def models_of(shelf: Shelf) -> dict[str, Any]:
    """The models as OpenAI's and vLLM's /v1/models lists them, each with what it is; their aliases too.

    Refusal while there are none yet: an empty list would tell a client that its model is not served.
    """
    shelf.check_open()
    names = {name: name for name in shelf.desks}
    names |= {other: name for other, name in shelf.aliases.items() if name in shelf.desks and other != ANY}
    return {"object": "list", "data": [_listed(name, shelf.desks[own], shelf) for name, own in names.items()]}


def _listed(name: str, desk: Desk, shelf: Shelf) -> dict[str, Any]:
    waiting = desk.waiting
    share = min(1.0, waiting / shelf.limits.queue)
    # Infinity's own client reads its stats, and fails without them.
    stats = {"queue_fraction": share, "queue_absolute": waiting, "results_pending": waiting, "batch_size": 1}
    return {
        "id": name,
        "object": "model",
        "created": shelf.since,
        "owned_by": "rerank",
        "root": desk.name,
        **_facts(desk),
        "backend": "optimum" if isinstance(desk.reranker.policy.scorer, OnnxScorer) else "torch",
        "capabilities": ["rerank"],
        "stats": stats,
    }


def info_of(shelf: Shelf) -> dict[str, Any]:
    """The fields of TEI's /info, and ours."""
    shelf.check_open()
    first = next(iter(shelf.desks.values()))
    labels = {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
    return {
        "model_id": first.name,
        "model_sha": None,
        "model_dtype": _facts(first)["precision"],
        "model_type": {"reranker": labels},
        "max_concurrent_requests": shelf.limits.queue,
        "max_input_length": _facts(first)["max_length"] or 0,
        "max_batch_tokens": first.turns.turn_tokens,
        "max_batch_requests": first.turns.at_most,
        "max_client_batch_size": shelf.limits.documents,
        "auto_truncate": True,
        "tokenization_workers": 1,
        "version": version("rerank"),
        "limits": {name: value for name, value in vars(shelf.limits).items()},
        "models": [{"id": name, **_facts(desk)} for name, desk in shelf.desks.items()],
    }


def meta_of(shelf: Shelf) -> dict[str, Any]:
    """What Weaviate asks its reranker at start."""
    return {"model": models_of(shelf)["data"], "version": version("rerank")}


def _facts(desk: Desk) -> dict[str, Any]:
    scorer = desk.reranker.policy.scorer
    return {
        "kind": scorer.kind,
        "calibrated": desk.calibrated,
        "first_stage": list(desk.reranker.wants),
        "max_length": desk.reader.longest,
        "device": str(getattr(scorer, "device", "cpu")),
        "precision": str(getattr(scorer, "precision", "float32")),
    }
