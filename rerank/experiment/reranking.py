"""A trained model at work on files: rank texts for one query, rerank a whole run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.console import Console

from rerank.composition import FIRST_STAGE, retrievers_of
from rerank.data import candidate_lists, load_collection, read_run, write_run
from rerank.data.formats import json_lines, numbered_lines
from rerank.errors import DataError, NotFound
from rerank.models.loading import backbone_path, load_encoder, load_policy
from rerank.models.policy import rerank_lists, with_rest
from rerank.recipe import Retrieval
from rerank.reranker import Ranked, Reranker
from rerank.retrieval.first_stage import features_for
from rerank.types import Collection, Run

RETRIEVAL = "retrieval.json"
"""In a model folder: the first stage that the model was trained with."""


def rank_texts(
    model: str,
    query: str,
    documents: Path,
    top_k: int,
    probabilities: bool = False,
    min_probability: float | None = None,
) -> list[Ranked]:
    """The best documents of a file (one text a line, or JSONL with ids and texts) for `query`."""
    if not documents.is_file():
        raise NotFound(f"there is no file {documents}")
    if documents.name.removesuffix(".gz").endswith(".jsonl"):
        texts = [_text(record, documents, line) for line, record in json_lines(documents)]
    else:
        texts = [text for _, text in numbered_lines(documents) if text.strip()]
    if not texts:
        raise DataError.at(documents, None, "it holds no text; give one document a line")
    reranker = Reranker.from_pretrained(model)
    return reranker.rank(query, texts, top_k, probabilities=probabilities, min_probability=min_probability)


def _text(record: dict[str, Any], path: Path, line: int) -> str:
    text = record.get("text", record.get("contents"))
    if not isinstance(text, str):
        raise DataError.at(path, line, f"there is no 'text'; the record has {sorted(record)}")
    return f"{record['title']} {text}" if isinstance(record.get("title"), str) else text


def rerank_run(
    model: str, collection: str, run: Path, out: Path, depth: int | None = None, console: Console | None = None
) -> Run:
    """Rerank the first `depth` documents of each query of `run`; the others stay below. Written to `out` as TREC."""
    policy = load_policy(model)
    loaded = load_collection(collection)
    first = read_run(run)
    features = {FIRST_STAGE: first}
    if policy.first_stage is not None and policy.first_stage.active:
        features |= retriever_scores(model, loaded, first, policy.first_stage.names)
    lists = candidate_lists(loaded, first, features)
    short = [c if depth is None else c.subset(range(min(depth, len(c)))) for c in lists]
    ranked = with_rest(rerank_lists(policy, short, out.stem)["served"], lists, out.stem)
    write_run(ranked, out)
    return ranked


def retriever_scores(model: str, collection: Collection, run: Run, names: tuple[str, ...]) -> dict[str, Run]:
    """The scores of the retrievers that the model was trained with, for the candidates of `run`."""
    wanted = [name for name in names if name != FIRST_STAGE]
    if not wanted:
        return {}
    file = Path(backbone_path(model)) / RETRIEVAL
    if not file.is_file():
        raise NotFound(
            f"{model} was trained with first-stage scores ({', '.join(wanted)}), but {file.name}, which says how they "
            "are made, is not in its folder: copy it from the run, or rank without a collection"
        )
    settings = json.loads(file.read_text(encoding="utf8"))
    retrieval = Retrieval(retrievers=tuple(wanted), language=settings["language"], index=settings["index"])
    encoder = load_encoder(settings["encoder"]) if "dense" in wanted else None
    return features_for(collection, run, retrievers_of(retrieval, collection, encoder))
