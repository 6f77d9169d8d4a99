"""What a policy gradient costs and how wrong it is: `python benchmarks/estimators.py [--quick]`, about a minute.

Writes benchmarks/results/estimators.json and prints it as Markdown. In it

    accuracy    the exact gradient against enumeration, against its own fine grid, against 200,000 sampled rankings
    cost        its time beside sampling with PL-Rank at 200 rankings, the floor that its arithmetic sets, its memory
    estimators  error, cosine and time of every sampled estimator, and which of them no other beats in both
    failures    what is known to go wrong: GRPO on buried lists, StochasticRank as published
    parity      nDCG@10 of this package against trec_eval

Lists have 100 candidates, the reward is nDCG@10. graded: 30 % are relevant, grades 1 to 3, scores of deviation 1;
peaked: the same with deviation 3, a trained policy; buried: one relevant candidate, at score -3.
One measurement runs at a time; nothing else should.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import permutations

import torch
from record import RESULTS, stamp
from torch import Tensor

from rerank import plackett_luce
from rerank.lists import ListBatch
from rerank.objective.expected import FINE, Grid, expected_reward
from rerank.objective.nodes import nodes_of
from rerank.objective.sampled import ESTIMATORS
from rerank.rewards import average_precision, err, ndcg, reciprocal_rank

REWARD = ndcg(10)
SCENARIOS = ("graded", "peaked", "buried")
SAMPLES = (4, 8, 16, 64, 200, 1000)


def lists_of(scenario: str, n_lists: int, n: int = 100, seed: int = 0) -> tuple[Tensor, ListBatch]:
    """Scores [B, N] in float64 and the lists they belong to."""
    draw = torch.Generator().manual_seed(seed)
    scores = torch.randn(n_lists, n, generator=draw, dtype=torch.float64)
    grades = (torch.rand(n_lists, n, generator=draw) < 0.3) * torch.randint(1, 4, (n_lists, n), generator=draw)
    if scenario == "peaked":
        scores *= 3
    if scenario == "buried":
        grades = torch.zeros(n_lists, n).index_fill_(1, torch.tensor([0]), 1.0)
        scores[:, 0] = -3.0
    grades = grades.float()
    return scores, ListBatch(grades, torch.ones(n_lists, n, dtype=torch.bool), grades, ())


def exact_gradient(scores: Tensor, lists: ListBatch, grid: Grid | None = None, reward: object = REWARD) -> Tensor:
    """d E / d scores, [B, N]."""
    leaf = scores.clone().requires_grad_()
    return torch.autograd.grad(expected_reward(leaf, reward, lists, grid).sum(), leaf)[0]


def enumerated_gradient(scores: Tensor, lists: ListBatch, reward: Callable[..., Tensor]) -> Tensor:
    """The same by visiting all rankings."""
    rankings = torch.tensor(list(permutations(range(scores.shape[1])))).expand(len(scores), -1, -1)
    leaf = scores.clone().requires_grad_()
    chances = plackett_luce.log_prob(leaf, lists.mask, rankings).exp()
    return torch.autograd.grad((chances * reward(rankings, lists)).sum(), leaf)[0]


def far(found: Tensor, true: Tensor) -> float:
    """Largest distance of a list's gradient from the true one, relative to that one's length."""
    return float(((found.double() - true).norm(dim=-1) / true.norm(dim=-1)).max())


def milliseconds(*tasks: Callable[[], object], rounds: int) -> list[float]:
    """Median time of each task; they take turns, so that a slow moment of the machine meets them all."""
    times: list[list[float]] = [[] for _ in tasks]
    for turn in range(rounds + 1):
        for task, found in zip(tasks, times, strict=True):
            start = time.perf_counter()
            task()
            if turn:  # the first round warms up
                found.append((time.perf_counter() - start) * 1e3)
    return [statistics.median(found) for found in times]


# ------------------------------------------------------------------------------------------------------------ accuracy
def accuracy(quick: bool) -> dict[str, object]:
    """Relative gradient errors of the exact estimator."""
    found: dict[str, object] = {"enumeration": {}, "fine": {}, "samples": {}}
    for reward in (ndcg(3), reciprocal_rank(None), err(5), average_precision(None), average_precision(3)):
        scores, lists = lists_of("graded", 20, n=6, seed=1)
        keep = (lists.labels.amax(-1) > 0) & (lists.labels.amin(-1) == 0)
        scores, lists = scores[keep], ListBatch(*(part[keep] for part in lists[:3]), ())
        true = enumerated_gradient(scores, lists, reward)
        found["enumeration"][reward.name] = {
            "float32": far(exact_gradient(scores.float(), lists, None, reward), true),
            "float64": far(exact_gradient(scores, lists, None, reward), true),
            "fine": far(exact_gradient(scores, lists, FINE, reward), true),
        }
    for scenario in SCENARIOS:
        scores, lists = lists_of(scenario, 32)
        true = exact_gradient(scores, lists, FINE)
        found["fine"][scenario] = {
            "float32": far(exact_gradient(scores.float(), lists), true),
            "float64": far(exact_gradient(scores, lists), true),
        }
        found["samples"][scenario] = against_samples(scenario, 20_000 if quick else 200_000)
    return found


def against_samples(scenario: str, n_samples: int, n_lists: int = 4, at_once: int = 1000) -> dict[str, float]:
    """Relative distance to the mean of many estimates by PL-Rank-RB, and the distance that their noise explains."""
    scores, lists = lists_of(scenario, n_lists, seed=2)
    draw = torch.Generator().manual_seed(0)
    parts = torch.stack(
        [
            ESTIMATORS["pl_rank_rb"](scores.float(), REWARD, lists, at_once, draw).gradient.double()
            for _ in range(n_samples // at_once)
        ]
    )
    true = exact_gradient(scores, lists)
    noise = (parts.var(0).sum() / len(parts)).sqrt()
    distance = (parts.mean(0) - true).norm()
    return {"rankings": n_samples, "distance": float(distance / true.norm()), "noise": float(noise / true.norm())}


# ---------------------------------------------------------------------------------------------------------------- cost
def cost(quick: bool) -> dict[str, object]:
    """Milliseconds of 32 lists of 100 candidates, float32, by number of threads; and the memory of 1,000 candidates."""
    scores, lists = lists_of("graded", 32)
    scores = scores.float()
    draw = torch.Generator().manual_seed(0)
    found: dict[str, object] = {}
    for threads in (1, 2):
        torch.set_num_threads(threads)
        exact, sampled = milliseconds(
            lambda: exact_gradient(scores, lists),
            lambda: ESTIMATORS["pl_rank"](scores, REWARD, lists, 200, draw),
            rounds=7 if quick else 41,
        )
        found[f"threads {threads}"] = {"exact": exact, "pl_rank, 200 rankings": sampled, "ratio": exact / sampled}
    torch.set_num_threads(1)
    found["floor"] = floor(scores, lists)
    found["memory"] = [
        json.loads(
            subprocess.run([sys.executable, __file__, "--memory", str(k)], capture_output=True, check=True).stdout
        )
        for k in (10, 100)
    ]
    return found


def floor(scores: Tensor, lists: ListBatch) -> dict[str, float]:
    """Milliseconds that the multiplications and additions of the product tree take if nothing else did."""
    weight = REWARD.terms(lists)[0].weight.expand(len(scores), -1)
    n_nodes = len(nodes_of(scores, weight, lists.mask, Grid()).x)
    steps = sum(tree_steps(scores.shape[1], weight.shape[1]))
    a, b, out = (torch.rand(50, 512) for _ in range(3))  # 300 kB: stays in the cache
    one = milliseconds(lambda: [out.addcmul_(a, b) for _ in range(200)], rounds=9)[0] / (200 * out.numel())
    return {
        "nodes a list": n_nodes / len(scores),
        "million multiply-adds": steps * n_nodes / 1e6,
        "billion multiply-adds a second": 1e-6 / one,
        "milliseconds": steps * n_nodes * one,
    }


def tree_steps(n: int, degree: int) -> Iterator[int]:
    """Multiply-adds a node at each level of the tree: three products up, six correlations down, a pair of factors."""
    first, second = min(2, degree), 1
    while n > 1:
        n = (n + 1) // 2
        pairs = sum(min(first, degree - i) for i in range(first))
        mixed = sum(min(first, degree - i) for i in range(second))
        yield n * 3 * (pairs + 2 * mixed)
        first, second = min(2 * first - 1, degree), min(first + second - 1, degree)


def memory(cutoff: int) -> dict[str, float]:
    """MiB that the gradient of 32 lists of 1,000 candidates adds to this process, and its time."""
    torch.set_num_threads(1)
    scores, lists = lists_of("graded", 32, n=1000)
    reward = ndcg(cutoff)
    exact_gradient(scores[:1, :10].float(), ListBatch(*(part[:1, :10] for part in lists[:3]), ()), None, reward)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    exact_gradient(scores.float(), lists, None, reward)
    seconds = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"candidates": 1000, "cutoff": cutoff, "mebibytes": (after - before) / 1024, "milliseconds": seconds * 1e3}


# ---------------------------------------------------------------------------------------------------------- estimators
def estimators(quick: bool) -> dict[str, object]:
    """scenario -> estimator -> samples -> error, cosine, norm (all against the exact gradient) and milliseconds."""
    samples = SAMPLES[:4] if quick else SAMPLES
    found: dict[str, dict[str, dict[str, dict[str, float]]]] = {}
    for scenario in SCENARIOS:
        scores, lists = lists_of(scenario, 24, seed=3)
        true = exact_gradient(scores, lists, FINE)
        by_name = {
            name: {str(n): errors(name, n, scores.float(), lists, true, max(4, 400 // n)) for n in samples}
            for name in ESTIMATORS
        }
        by_name["exact"] = {"-": compared(exact_gradient(scores.float(), lists).double()[None], true)}
        for name, by_n in by_name.items():
            for n, figures in by_n.items():
                figures["milliseconds"] = time_of(name, n, scenario)
        found[scenario] = by_name
    return {"scenarios": found, "front": {scenario: front(by_name) for scenario, by_name in found.items()}}


def time_of(name: str, n: str, scenario: str) -> float:
    """Milliseconds for 32 lists, float32, one thread."""
    scores, lists = lists_of(scenario, 32)
    scores, draw = scores.float(), torch.Generator().manual_seed(0)
    if name == "exact":
        return milliseconds(lambda: exact_gradient(scores, lists), rounds=15)[0]
    estimator, n_samples = ESTIMATORS[name], int(n)
    rounds = 5 if n_samples > 100 else 11
    return milliseconds(lambda: estimator(scores, REWARD, lists, n_samples, draw), rounds=rounds)[0]


def errors(name: str, n: int, scores: Tensor, lists: ListBatch, true: Tensor, repetitions: int) -> dict[str, float]:
    """Error, cosine and norm of an estimator, over repeated draws."""
    draw = torch.Generator().manual_seed(4)
    estimates = [ESTIMATORS[name](scores, REWARD, lists, n, draw).gradient.double() for _ in range(repetitions)]
    return compared(torch.stack(estimates), true)


def compared(estimates: Tensor, true: Tensor) -> dict[str, float]:
    """Of estimates [R, B, N]: root mean square relative error, mean cosine, median length relative to the true one."""
    square = (estimates - true).square().sum(-1) / true.square().sum(-1)
    length = estimates.norm(dim=-1) / true.norm(dim=-1)
    # An estimate of exactly 0 points nowhere: cosine 0.
    cosine = torch.nn.functional.cosine_similarity(estimates, true.expand_as(estimates), dim=-1, eps=1e-30)
    return {
        "error": float(square.mean().sqrt()),
        "cosine": float(cosine.mean()),
        "norm": float(length.square().mean().sqrt()),
        "silent": float((length == 0).double().mean()),
    }


def front(by_name: dict[str, dict[str, dict[str, float]]]) -> list[str]:
    """The estimators that no other beats in both error and time, fastest first."""
    points = [(v["milliseconds"], v["error"], name, n) for name, by_n in by_name.items() for n, v in by_n.items()]
    kept, least = [], math.inf
    for _, error, name, n in sorted(points):
        if error < least:
            kept.append(name if n == "-" else f"{name} {n}")
            least = error
    return kept


# ------------------------------------------------------------------------------------------------------------ failures
def failures(quick: bool) -> dict[str, object]:
    """GRPO's direction and length on buried lists, and the bias of StochasticRank with the published mask."""
    scores, lists = lists_of("buried", 200, seed=5)
    true = exact_gradient(scores, lists, FINE)
    n_samples = 2_000 if quick else 12_000
    return {
        "buried, 16 rankings": {
            name: errors(name, 16, scores.float(), lists, true, 2 if quick else 5)
            for name in ("grpo", "rloo", "pl_rank", "stochastic_rank")
        },
        "stochastic_rank": [mask_bias(n, k, n_samples) for n, k in ((30, 8), (6, 5), (6, 6))],
    }


def mask_bias(n: int, cutoff: int, n_samples: int, n_lists: int = 8) -> dict[str, float]:
    """Relative error of the mean of many estimates: with the published mask, with the right one, and ours."""
    scores, lists = lists_of("graded", n_lists, n=n, seed=7)
    reward = ndcg(cutoff)
    true = exact_gradient(scores, lists, FINE, reward)
    [term] = reward.terms(lists)
    draw = torch.Generator().manual_seed(6)
    noisy = (
        plackett_luce.filled(scores, lists.mask)[:, None]
        - torch.empty(n_lists, n_samples, n).exponential_(generator=draw).log()
    )
    ours = ESTIMATORS["stochastic_rank"](scores, reward, lists, n_samples, draw).gradient
    means = {
        "published": by_mask(scores, term.gain, term.weight, noisy, published=True),
        "right": by_mask(scores, term.gain, term.weight, noisy, published=False),
        "ours": ours,
    }
    return {
        "n": n,
        "cutoff": cutoff,
        "rankings": n_samples,
        **{what: float((mean - true).norm() / true.norm()) for what, mean in means.items()},
    }


def by_mask(scores: Tensor, gain: Tensor, weight: Tensor, noisy: Tensor, published: bool) -> Tensor:
    """StochasticRank with Gumbel noise, spelled out: the density of standing level with the k-th best of the others.

    For d below place k that is the k-th of all, else the next. The reference code (2022, `gumbel_stochasticrank`)
    asks the second question the wrong way round: it adds the next for d at place k or below.
    """
    cutoff = min(len(weight), scores.shape[1] - 1)
    order = noisy.argsort(-1, descending=True)
    value, place = noisy.gather(-1, order), order.argsort(-1)
    worth = gain[:, None].expand_as(noisy).gather(-1, order)
    step = weight - torch.cat([weight[1:], weight.new_zeros(1)])
    total = torch.zeros_like(noisy)
    for k in range(cutoff):
        others = (place >= k) & (place < cutoff) if published else place <= k
        for there, index in ((place > k, k), (others, k + 1)):
            u = value[..., index : index + 1] - scores[:, None]
            density = (-u - (-u).exp()).exp()  # far below: exp(-inf) = 0
            total += there * density * step[k] * (gain[:, None] - worth[..., index : index + 1])
    return total.mean(1)


# -------------------------------------------------------------------------------------------------------------- parity
def parity(quick: bool) -> dict[str, float]:
    """nDCG@10 of 16 rankings of 1,000 lists: seconds of both, and the largest difference."""
    import pytrec_eval

    n_lists, n_rankings = (100, 4) if quick else (1000, 16)
    scores, lists = lists_of("graded", n_lists)
    draw = torch.Generator().manual_seed(8)
    sampled = plackett_luce.sample(scores.float(), lists.mask, n_rankings, draw)
    # Whole numbers that fall with the rank, so that trec_eval sees no ties.
    as_scores = (100 - sampled.argsort(-1)).float()
    start = time.perf_counter()
    ours = REWARD(as_scores.topk(10, dim=-1).indices, lists)
    middle = time.perf_counter()
    names = [f"d{d}" for d in range(scores.shape[1])]
    qrels = {f"q{b}": dict(zip(names, map(int, row), strict=True)) for b, row in enumerate(lists.labels.tolist())}
    largest = 0.0
    for s in range(n_rankings):
        run = {f"q{b}": dict(zip(names, row, strict=True)) for b, row in enumerate(as_scores[:, s].tolist())}
        found = pytrec_eval.RelevanceEvaluator(qrels, {"ndcg_cut.10"}).evaluate(run)
        theirs = torch.tensor([found[f"q{b}"]["ndcg_cut_10"] for b in range(n_lists)])
        largest = max(largest, float((theirs - ours[:, s]).abs().max()))
    end = time.perf_counter()
    return {
        "rankings": n_lists * n_rankings,
        "seconds": middle - start,
        "pytrec_eval seconds": end - middle,
        "ratio": (end - middle) / (middle - start),
        "largest difference": largest,
    }


# --------------------------------------------------------------------------------------------------------------- paper
def table(columns: list[str], rows: list[list[object]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for row in rows:
        cells = [f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in row]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def markdown(content: dict) -> str:
    """All figures as Markdown."""
    accuracy, cost, failures = content["accuracy"], content["cost"], content["failures"]
    rows = [[f"6 candidates, {n}, by enumeration", *v.values()] for n, v in accuracy["enumeration"].items()]
    rows += [[f"100 candidates, {n}, by the fine grid", *v.values()] for n, v in accuracy["fine"].items()]
    out = ["Exact gradient, largest error relative to the length of a list's gradient\n"]
    out.append(table(["against", "float32", "float64", "fine grid, float64"], [[*row, ""][:4] for row in rows]))
    rows = [[name, *v.values()] for name, v in accuracy["samples"].items()]
    out.append(table(["against the mean of samples", "rankings", "distance", "expected of their noise"], rows))
    rows = [[name, *figures.values()] for name, figures in cost.items() if name.startswith("threads")]
    out.append(table(["32 lists x 100, K = 10", "exact ms", "PL-Rank 200 ms", "ratio"], rows))
    out.append(records([{"the floor of exact": "", **cost["floor"]}]))
    out.append(records(cost["memory"]))
    for scenario, by_name in content["estimators"]["scenarios"].items():
        counts = list(by_name["rloo"])
        rows = [
            [name, *("{error:.3g} / {cosine:.3f} / {milliseconds:.3g}".format(**figures) for figures in by_n.values())]
            for name, by_n in by_name.items()
        ]
        rows = [row + [""] * (len(counts) + 1 - len(row)) for row in rows]
        out.append(table([f"{scenario}: error / cosine / ms", *counts], rows))
        out.append(f"Not beaten in both: {', '.join(content['estimators']['front'][scenario])}\n")
    out.append(records([{"buried, 16 rankings": name, **v} for name, v in failures["buried, 16 rankings"].items()]))
    out.append(records([{"bias of": "StochasticRank", **figures} for figures in failures["stochastic_rank"]]))
    out.append(records([{"nDCG@10": "torch and trec_eval", **content["parity"]}]))
    return "\n".join(out)


def records(rows: list[dict[str, object]]) -> str:
    """A Markdown table with a column for each key."""
    return table(list(rows[0]), [list(row.values()) for row in rows])


def main() -> None:
    """Measure, write, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer samples: is it in order?")
    parser.add_argument("--memory", type=int, metavar="CUTOFF", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.memory:
        print(json.dumps(memory(given.memory)))
        return
    torch.set_num_threads(1)
    start = time.perf_counter()
    content: dict[str, object] = {
        **stamp(),
        "torch": torch.__version__,
        "quick": given.quick,
    }
    for part in (cost, accuracy, estimators, failures, parity):
        content[part.__name__] = part(given.quick)
        print(f"{part.__name__}: {time.perf_counter() - start:.0f} s", file=sys.stderr)
    content["seconds"] = time.perf_counter() - start
    path = RESULTS / "estimators.json"
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf8")
    print(markdown(content))


if __name__ == "__main__":
    main()
