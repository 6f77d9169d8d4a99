"""Folders of a training run and of a bench, written the way those write them, from made-up runs."""

import json
import random

from rerank.evaluation import compare
from rerank.evaluation.across import Speed, across
from rerank.report.side_by_side import side_by_side
from rerank.types import Collection, Run


def diagnosed(lift, **others):
    """One arm's diagnosis in the form in which training writes it."""
    return {
        "lists": 64,
        "greedy": 0.5 + lift,
        "expected": 0.4 + lift,
        "entropy_by_rank": [3.0 - 0.1 * r for r in range(10)],
        "kl": lift or None,
        "best_at": {str(2**i): 0.4 + lift + 0.03 * i for i in range(9)},
        "distinct_top": 120.5,
        "agreement": 0.62,
        "label_agreement": 0.31,
        "correlations": {"length": -0.12, "position": -0.4, "bm25": 0.5},
        "weights_changed": {"dtype": "float32", "tolerances": {"0": 0.9999, "1e-6": 0.415}},
        **others,
    }


CALIBRATED = {
    "kind": "affine",
    "a": 1.312,
    "b": -0.774,
    "n": 1800,
    "base_rate": 0.2134,
    "ece_before": 0.1432,
    "ece": 0.0211,
    "brier_before": 0.1833,
    "brier": 0.1322,
    "bins": [{"predicted": p / 10, "observed": p / 10, "count": 100} for p in range(1, 10)],
    "thresholds": [
        {"precision": 0.8, "threshold": 0.72, "recall": 0.335},
        {"precision": 0.95, "threshold": None, "recall": None},
    ],
}
AUDIT = {"lists": 43, "saturated": 0.125, "headroom": 0.422, "advice": "Refine: there is headroom."}


def run_folder(folder, queries=12, hostile="", leave_out=(), seconds=True, seeds=1, most_bytes=4_000_000):
    """A run folder made the way a run makes it, from made-up runs."""
    rng = random.Random(1)
    ids = [f"{hostile}q{i}" for i in range(queries)]
    qrels = {q: {f"{hostile}d{j}": int(j < 3) for j in range(20)} for q in ids}
    model = f"light{hostile}"
    noise = {"clone": 1.5, "refined": 0.3, "labels": 0.5, "random reward": 1.6}
    runs = {
        f"{model} {arm}": [
            Run.from_scores({q: {d: g + rng.gauss(0, s) for d, g in grades.items()} for q, grades in qrels.items()})
            for _ in range(seeds)
        ]
        for arm, s in noise.items()
    }
    clone, refined, labels, corrupted = runs
    collection = Collection(
        {f"{hostile}d{j}": f"text {j} {hostile}" for j in range(20)}, {q: f"what is the text {q}" for q in ids}
    )
    spent = {refined: 135.0} if seconds else None
    against = [(refined, clone), (refined, labels), (labels, clone), (corrupted, clone)]
    table = compare(runs, qrels, ["nDCG@10", "RR@10"], against, seconds=spent)
    shown = side_by_side(
        {arm: r[0] for arm, r in runs.items()}, qrels, collection, "nDCG@10", clone, refined, 10, most_bytes
    )
    steps = [
        {"model": model, "stage": "clone", "step": s, "loss": 1 / s, "unknown": [1], "nDCG@10": s / 50}
        for s in range(1, 41)
    ]
    files = {
        "table.json": json.dumps(table.to_json()),
        "changes.json": json.dumps(shown.to_json()),
        "metrics.jsonl": "".join(json.dumps(s) + "\n" for s in steps),
        "diagnosis.json": json.dumps({"arms": {arm: diagnosed(0.05 * i) for i, arm in enumerate(runs)}}),
        "calibration.json": json.dumps({model: CALIBRATED}),
        "summary.json": json.dumps(
            {
                "title": f"A made-up run {hostile}",
                "command": f"rerank train recipe.toml {hostile}",
                "recipe": f"[data]\nid = 'made-up' {hostile}",
                "versions": {"rerank": "0.1.0"},
                "data": {f"test{hostile}": {"documents": 1200, "queries": 12, "judged": 12, "fingerprint": "9f2c"}},
                "notes": [f"a note {hostile}"],
                "groups": {clone: "main", refined: "main", labels: "control", corrupted: "corrupted"},
                "audit": {model: {**AUDIT, "advice": f"{AUDIT['advice']}{hostile}"}},
                "seeds": [0, 1],
                "seconds_total": 4000,
            }
        ),
    }
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        if name not in leave_out:
            (folder / name).write_text(content, encoding="utf-8")
    return table


SETS = ("alpha", "beta", "gamma")


def bench_folder(folder, hostile="", sets=SETS, queries=30):
    """A bench's folder: three arms on each set, the second of two models missing from the last."""
    arms = {"bm25": 1.6, f"light{hostile} on bm25": 0.4, "wide on bm25": 1.0}
    light = f"light{hostile} on bm25"
    tables, published, probes, speed, ties = {}, {}, {}, {}, {}
    for number, name in enumerate(sets):
        rng = random.Random(number)
        qrels = {f"{name}-{i}": {f"d{j}": int(j < 3) for j in range(20)} for i in range(queries)}
        own = dict(list(arms.items())[: 2 if name == "gamma" else 3])
        runs = {
            arm: Run.from_scores(
                {q: {d: g + rng.gauss(0, s) for d, g in grades.items()} for q, grades in qrels.items()}
            )
            for arm, s in own.items()
        }
        against = [(arm, other) for arm, other in [(light, "bm25"), ("wide on bm25", "bm25")] if arm in own]
        tables[name] = compare(runs, qrels, ["nDCG@10", "RR@10"], against)
        collection = Collection({f"d{j}": f"text {j} {hostile}" for j in range(20)}, {q: f"what is {q}" for q in qrels})
        target = folder / "sets" / name
        target.mkdir(parents=True)
        told = side_by_side(runs, qrels, collection, "nDCG@10", "bm25", light)
        (target / "changes.json").write_text(json.dumps(told.to_json()), encoding="utf-8")
        measured = tables[name].arms["bm25"]["nDCG@10"].mean
        source = "https://example.org/figures" if number else f"a book {hostile}"
        published[name] = [
            {"arm": "bm25", "measure": "nDCG@10", "value": measured - 0.05 * number, "what": "flat", "source": source}
        ]
        drop = {"plain": 0.6, "perturbed": 0.55, "drop": 0.05, "low": 0.02, "high": 0.08, "p": 0.001}
        probes[name] = {light: [{"probe": "typos", "measure": "nDCG@10", **drop, "queries": 30, "moved": 0.4}]}
        speed[name] = {light: Speed(30, 600, 3.0 + number, 0.08 + 0.01 * number, 0.2)}
        ties[name] = {light: 0.01 * number, "bm25": 0.0}
    found = across(
        f"made up{hostile}", tables, ties=ties, speed=speed, published=published, probes=probes,
        groups={"alpha": "", "beta": "pair", "gamma": "pair"},
    )  # fmt: skip
    summary = {
        "title": f"made up{hostile}",
        "command": f"rerank bench {hostile}",
        "data": {name: {"documents": 20, "queries": 30, "judged": 30, "fingerprint": "9f2c"} for name in sets},
        "models": {f"light{hostile}": {"where": f"a/folder{hostile}", "identity": "77aa"}},
        "hardware": {"processor": "made of sand"},
        "versions": {"rerank": "0.1.0"},
        "commit": "abc123",
        "missing": [{"set": "gamma", "arm": "wide on bm25", "problem": f"it does not answer {hostile}"}],
        "notes": [f"a note {hostile}"],
        "seconds_total": 12.0,
    }
    (folder / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    (folder / "results.json").write_text(json.dumps(found.to_json()), encoding="utf-8")
    return found
