"""Scoring: pairs per second of both sides in turn on the same texts, what it does to the ranking, and the latency.

Each round takes its own share of the lists, so that no side ever meets a text that it has seen; the sides of a round
begin in another order each time. Ratios are speeds, ours / theirs: medians over rounds. All rounds together give the
scores from which differences and nDCG@10 are computed.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from rerank.engine.precision import compute_dtype
from rerank.errors import RerankError
from rerank.evaluation import evaluate
from rerank.types import CandidateList, Run

from .material import Material, Task, say, training_lists
from .plan import Plan
from .sides import Pairs, Side, counted, ours, peer, synchronize, true_lengths

PEER = "sentence-transformers float32"
MEASURE = "nDCG@10"


def predicting(given: Material, plan: Plan, device: str) -> tuple[dict[str, Any], dict[str, float]]:
    """(figures, ratios) of both tasks, and the latency of single queries."""
    figures: dict[str, Any] = {}
    ratios: dict[str, float] = {}
    for name, task in given.tasks.items():
        rounds = plan.rounds if name == "trec_dl" else plan.long_rounds
        say(f"predict {name}: {sum(map(len, task.lists))} pairs, max_length {task.max_length}, {rounds} rounds")
        figures[name] = _scored(given, task, plan, device, rounds)
        for side, found in figures[name]["sides"].items():
            for against, ratio in found.get("ratios", {}).items():
                ratios[f"{name}: {side} / {against}"] = ratio
    say("predict: single queries")
    figures["latency"] = latency(given, plan, device)
    for n, by_side in figures["latency"]["milliseconds"].items():
        for side, found in by_side.items():
            if side.startswith("ours"):
                ratios[f"{n} documents a query, p50: {side} / {PEER}"] = by_side[PEER]["p50"] / found["p50"]
    return figures, ratios


def makers(given: Material, max_length: int, device: str, best: int | None) -> dict[str, Callable[[], Side]]:
    """side -> what loads it; `best` is the batch size of sentence-transformers beside its default."""
    import torch

    path = given.checkpoint
    found = {PEER: lambda: peer(path, max_length, device)}
    if best is not None and best != 32:
        found[f"{PEER}, batches of {best}"] = lambda: peer(path, max_length, device, batch_size=best)
    if compute_dtype("auto", torch.device(device)) == torch.bfloat16:
        size = best or 32
        name = f"sentence-transformers bfloat16, batches of {size}"
        found[name] = lambda: peer(path, max_length, device, "bfloat16", size)
    found["ours float32"] = lambda: ours(path, max_length, device, "float32")
    found["ours auto"] = lambda: ours(path, max_length, device, "auto")
    if device == "cpu":
        exported = given.exported
        found["ours onnx float32"] = lambda: ours(exported, max_length, device, "float32", "onnx")
        found["ours onnx int8"] = lambda: ours(exported, max_length, device, "int8", "onnx")
    return found


def loaded(sides: dict[str, Callable[[], Side]]) -> tuple[dict[str, Side], dict[str, str]]:
    """(side -> loaded, side -> why it is not there)."""
    there, missing = {}, {}
    for name, load in sides.items():
        try:
            there[name] = load()
        except (ImportError, RerankError, TypeError) as error:
            missing[name] = f"{type(error).__name__}: {error}"
            say(f"  {name} is not there: {missing[name]}")
    return there, missing


def export(given: Material) -> str | None:
    """Nothing; writes the onnx files into the checkpoint's folder where they are not. Else why that cannot be done."""
    try:
        for precision in ("float32", "int8"):
            ours(given.exported, 128, "cpu", precision, "onnx")
    except (ImportError, RerankError, TypeError):
        say("predict: exporting to onnx")
    else:
        return None
    try:
        from rerank.models.exporting import export_onnx

        out = None if given.exported == given.checkpoint else given.exported
        export_onnx(str(given.checkpoint), out, int8=True)
    except (ImportError, RerankError, TypeError, OSError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def _scored(given: Material, task: Task, plan: Plan, device: str, rounds: int) -> dict[str, Any]:
    # Texts that are in no task, cut and padded alike: what warms up, and what finds the best batch size.
    others = pairs_of(training_lists(given, -(-plan.trial_pairs // 16), 16, first=10_000))[: plan.trial_pairs]
    if task is given.tasks["scifact"]:  # as long as its documents: four passages each
        others = [(others[i][0], " ".join(d for _, d in others[i : i + 4])) for i in range(0, len(others), 4)]
    best, trial = _best_batch(given, task.max_length, device, plan, others)
    sides, missing = loaded(makers(given, task.max_length, device, best))
    for side in sides.values():
        side.predict(others[:32])
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    tokens = dict.fromkeys(sides, 0)
    scores: dict[str, dict[str, np.ndarray]] = {name: {} for name in sides}
    for turn in range(rounds):
        share = task.lists[turn::rounds]
        for name in _turned(list(sides), turn):
            with counted(sides[name].network) as seen:
                start = time.perf_counter()
                found = sides[name].predict(pairs_of(share))
                synchronize(device)
                seconds[name].append(time.perf_counter() - start)
            tokens[name] += seen.total
            cuts = np.cumsum([len(c) for c in share])[:-1]
            scores[name] |= {c.query_id: part for c, part in zip(share, np.split(found, cuts), strict=True)}
        say(f"  round {turn + 1}: " + ", ".join(f"{name} {found[-1]:.1f} s" for name, found in seconds.items()))
    lengths = true_lengths(given.checkpoint, pairs_of(task.lists), task.max_length)
    return {
        "pairs": len(lengths),
        "distinct pairs": len(set(pairs_of(task.lists))),
        "max_length": task.max_length,
        "true tokens": sum(lengths),
        "mean length": sum(lengths) / len(lengths),
        "mean squared length": sum(n * n for n in lengths) / len(lengths),
        "batch size of sentence-transformers": {"default": 32, "best": best, "pairs a second in the trial": trial},
        "rounds": rounds,
        "sides": _figures(task, seconds, tokens, scores, len(lengths), sum(lengths)),
        "missing": missing,
    }


def _figures(
    task: Task,
    seconds: dict[str, list[float]],
    tokens: dict[str, int],
    scores: dict[str, dict[str, np.ndarray]],
    n_pairs: int,
    true_tokens: int,
) -> dict[str, dict[str, Any]]:
    """side -> figures."""
    level = {name: _ndcg(task, found) for name, found in scores.items()}
    figures: dict[str, dict[str, Any]] = {}
    for name in seconds:
        apart = max(float(np.abs(scores[name][q] - scores[PEER][q]).max()) for q in scores[PEER])
        figures[name] = {
            "pairs a second": n_pairs / sum(seconds[name]),
            "largest score difference": apart,
            "deviation of scores": float(np.std(np.concatenate(list(scores[name].values())))),
            MEASURE: level[name],
            f"{MEASURE} delta": level[name] - level[PEER],
            "computed tokens a true token": tokens[name] / true_tokens if tokens[name] else None,
            "seconds of each round": seconds[name],
        }
        if name.startswith("ours"):
            figures[name]["ratios"] = {
                other: statistics.median(a / b for a, b in zip(seconds[other], seconds[name], strict=True))
                for other in seconds
                if not other.startswith("ours")
            }
    return figures


def _ndcg(task: Task, scores: dict[str, np.ndarray]) -> float:
    by_doc = {c.query_id: dict(zip(c.doc_ids, scores[c.query_id].tolist(), strict=True)) for c in task.lists}
    before = Run({c.query_id: tuple((d, -float(i)) for i, d in enumerate(c.doc_ids)) for c in task.lists})
    return evaluate(Run.from_scores(by_doc, before=before), task.qrels, [MEASURE]).mean[MEASURE]


def _best_batch(
    given: Material, max_length: int, device: str, plan: Plan, pairs: Pairs
) -> tuple[int, dict[str, float]]:
    """(the fastest batch size of sentence-transformers, pairs a second of each)."""
    sides = {size: peer(given.checkpoint, max_length, device, batch_size=size) for size in plan.batch_sizes}
    speeds: dict[int, float] = {}
    for turn in range(2):  # the first turn warms up
        for size, side in sides.items():
            some = pairs if turn else pairs[: min(len(pairs), size)]
            start = time.perf_counter()
            side.predict(some)
            synchronize(device)
            speeds[size] = len(some) / (time.perf_counter() - start)
    return max(speeds, key=lambda size: speeds[size]), {str(size): speed for size, speed in speeds.items()}


def pairs_of(lists: Sequence[CandidateList]) -> list[tuple[str, str]]:
    """The (query, document) pairs of lists."""
    return [(c.query, text) for c in lists for text in c.texts]


def _turned(names: list[str], turn: int) -> list[str]:
    """The names from another place on each turn, forwards and backwards."""
    turned = names[turn % len(names) :] + names[: turn % len(names)]
    return turned if turn % 2 == 0 else turned[::-1]


def latency(given: Material, plan: Plan, device: str) -> dict[str, Any]:
    """Milliseconds of `rank` for one query with 20 and 100 documents, p50 and p95."""
    task = given.tasks["trec_dl"]
    found: dict[str, Any] = {"max_length": task.max_length, "queries": 0, "milliseconds": {}}
    for n in plan.latency_documents:
        sides, _ = loaded(makers(given, task.max_length, device, None))  # anew: no text has been seen
        lists = [c for c in task.lists if len(c) >= min(n, plan.depth)][: plan.latency_queries + 1]
        times: dict[str, list[float]] = {name: [] for name in sides}
        for number, candidates in enumerate(lists):
            for name in _turned(list(sides), number):
                start = time.perf_counter()
                sides[name].rank(candidates.query, list(candidates.texts[:n]))
                synchronize(device)
                if number:  # the first query warms up
                    times[name].append((time.perf_counter() - start) * 1e3)
        found["queries"] = max(map(len, times.values()), default=0)
        found["milliseconds"][str(min(n, plan.depth))] = {
            name: {"p50": float(np.percentile(t, 50)), "p95": float(np.percentile(t, 95))} for name, t in times.items()
        }
    return found
