"""Diagnosis: what training did to a policy, beyond the measure it was trained for.

    greedy, expected     the most likely ranking, and the policy as a distribution
    entropy by rank      which choices are still open (Plackett-Luce, nats)
    KL                   how far it went from a reference, over who is ranked first
    best@k               expected reward of the best of k sampled rankings: what the policy can still find. Training
                         that only sharpens raises best@1 and lowers best@k for large k
    distinct tops        different sets of top documents among the draws
    agreement            Kendall's tau-b with the teacher, and with the grades
    correlations         Spearman's rho within lists with length, input position and first-stage scores: shortcuts
    weights changed      share of single weights that moved by more than a tolerance

best@k of S draws is the mean of the largest over all subsets of k of them (unbiased, as pass@k of Chen et al. 2021).
Draws are keyed by query and made a chunk at a time; only their rewards and top sets are kept.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rerank import plackett_luce
from rerank.errors import InputError
from rerank.lists import ListBatch, batch_of
from rerank.models.language.generative import AnyPolicy
from rerank.training.paid import paid
from rerank.training.probing import drawn, expected_of, scores_of
from rerank.types import CandidateList, Ordering, Reward

logger = logging.getLogger("rerank.training")

AT_ONCE = 4
"""Lists whose rankings are drawn together."""
CHUNK = 64
"""Rankings of a list that are held at once."""
TOLERANCES = ("0", "1e-8", "1e-6", "1e-5", "1e-4", "1e-3")
"""Absolute changes of a weight that are counted; spelled as in the JSON."""


@torch.no_grad()
def diagnose(
    policy: AnyPolicy,
    lists: Sequence[CandidateList],
    reward: Reward,
    *,
    reference: AnyPolicy | None = None,
    orderings: Iterable[Ordering] = (),
    cutoff: int = 10,
    samples: int = 256,
    seed: int = 0,
    temperature: float = 1.0,
) -> dict[str, Any]:
    """The findings as JSON (see the module docstring); what does not apply is None. Nothing is trained."""
    if not lists:
        raise InputError("a diagnosis needs at least one list, not none")
    if cutoff < 1 or samples < 1:
        raise InputError(f"cutoff and samples must be at least 1, not {cutoff!r} and {samples!r}")
    if not 0 < temperature < math.inf:
        raise InputError(f"temperature must be greater than 0, not {temperature!r}")
    scores, batch = scores_of(policy, lists), batch_of(lists)
    tempered = scores / temperature
    greedy = paid(reward, plackett_luce.best(scores, batch.mask)[:, None], batch)
    facts = _sampled(tempered, batch, reward, cutoff, samples, seed)
    kl = None
    if reference is not None:
        kl = float(plackett_luce.top1_kl(tempered, scores_of(reference, lists) / temperature, batch.mask).mean())
    rows = [row[: len(c)].double().numpy() for row, c in zip(scores, lists, strict=True)]
    return {
        "lists": len(lists),
        "greedy": float(greedy.mean()),
        **facts,
        "kl": kl,
        "agreement": _agreement(rows, lists, orderings),
        "label_agreement": _mean([kendall_tau(row, c.labels) for row, c in zip(rows, lists, strict=True) if c.labels]),
        "correlations": _correlations(rows, lists),
        "weights_changed": None,
    }


def weights_changed(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> dict[str, Any]:
    """{"dtype", "tolerances": {"1e-6": share of single weights whose absolute change is more than that, ...}}.

    Differences are taken in float64. Only floating weights count. What is finer than the dtype can tell is no change:
    a step below half a unit in the last place leaves bfloat16 weights as they were.
    """
    if before.keys() != after.keys():
        name = sorted(before.keys() ^ after.keys())[0]
        raise InputError(f"the weights to compare are not of one model: {name!r} is in one of the two only")
    total, moved = 0, [0] * len(TOLERANCES)
    dtypes: dict[str, int] = {}
    for name, old in before.items():
        new = after[name]
        if new.shape != old.shape:
            raise InputError(f"weight {name!r} is {list(old.shape)} before and {list(new.shape)} after")
        if not old.is_floating_point():
            continue
        change = (new.detach().cpu().double() - old.detach().cpu().double()).abs()
        # A weight that became NaN has changed, although no comparison says so.
        moved = [n + int((~(change <= float(t))).sum()) for n, t in zip(moved, TOLERANCES, strict=True)]
        total += old.numel()
        dtype = str(new.dtype).removeprefix("torch.")
        dtypes[dtype] = dtypes.get(dtype, 0) + old.numel()
    names = sorted(dtypes, key=lambda dtype: -dtypes[dtype])
    shares = {t: n / total if total else 0.0 for t, n in zip(TOLERANCES, moved, strict=True)}
    return {"dtype": ", ".join(names), "tolerances": shares}


# ------------------------------------------------------------------------------------------------------------- samples
def best_of(rewards: Tensor, k: int) -> Tensor:
    """Expected largest of `k` rewards drawn without replacement from rewards [..., S], as [...], float64.

    The i-th smallest is the largest of C(i - 1, k - 1) of the C(S, k) subsets.
    """
    n = rewards.shape[-1]
    if not 1 <= k <= n:
        raise InputError(f"the best of {k} needs at least as many rewards and at least 1, not {n}")
    i = torch.arange(1, n + 1, dtype=torch.float64)
    log_ways = torch.where(i >= k, _log_choose(i - 1, k - 1), torch.full_like(i, -torch.inf))
    share = (log_ways - _log_choose(torch.tensor(float(n), dtype=torch.float64), k)).exp()
    return (rewards.double().sort(-1).values * share).sum(-1)


def _log_choose(n: Tensor, k: int) -> Tensor:
    """log C(n, k); of no meaning where n < k."""
    return torch.lgamma(n + 1) - math.lgamma(k + 1) - torch.lgamma((n - k).clamp(min=0) + 1)


def _sampled(scores: Tensor, batch: ListBatch, reward: Reward, cutoff: int, samples: int, seed: int) -> dict[str, Any]:
    """What draws tell: expected reward, entropy by rank, best@k and distinct top sets."""
    rewards, expected, distinct = [], [], []
    width = min(cutoff, batch.mask.shape[1])
    entropy, choices = torch.zeros(width, dtype=torch.float64), torch.zeros(width, dtype=torch.float64)
    for start in range(0, len(batch.lists), AT_ONCE):
        group = batch_of(batch.lists[start : start + AT_ONCE])
        rows = scores[start : start + AT_ONCE, : group.mask.shape[1]]
        found, tops, summed = _drawn_in_chunks(rows, group, reward, cutoff, samples, seed)
        rewards.append(found)
        expected.append(expected_of(rows, reward, group, found))
        distinct += tops
        entropy[: summed.shape[-1]] += summed.double().sum(0)
        left = group.mask.sum(-1, keepdim=True) - torch.arange(summed.shape[-1])
        choices[: summed.shape[-1]] += (left > 1).sum(0)
    all_rewards = torch.cat(rewards)
    ks = [2**e for e in range(samples.bit_length()) if 2**e <= samples]
    return {
        "expected": float(torch.cat(expected).mean()),
        "entropy_by_rank": [e / n for e, n in zip(entropy.tolist(), choices.tolist(), strict=True) if n],
        "best_at": {str(k): float(best_of(all_rewards, k).mean()) for k in ks},
        "distinct_top": sum(distinct) / len(distinct),
    }


def _drawn_in_chunks(
    scores: Tensor, batch: ListBatch, reward: Reward, cutoff: int, samples: int, seed: int
) -> tuple[Tensor, list[int], Tensor]:
    """(rewards [B, S], number of distinct top sets of each list, entropy of the choice at each rank [B, K])."""
    depth = getattr(reward, "cutoff", None)
    places = None if depth is None else max(depth, cutoff)
    rewards: list[Tensor] = []
    tops: list[set[tuple[int, ...]]] = [set() for _ in batch.lists]
    entropy = torch.zeros(len(batch.lists), min(cutoff, batch.mask.shape[1]))
    for number, start in enumerate(range(0, samples, CHUNK)):
        n = min(CHUNK, samples - start)
        rankings = drawn(scores, batch, n, places, seed, "diagnosis", number)
        rewards.append(paid(reward, rankings, batch))
        entropy += plackett_luce.choice_entropies(scores, batch.mask, rankings, cutoff)[0] * (n / samples)
        # Below a short list's end there are only places of padding, the same ones in every ranking.
        top = rankings[..., :cutoff].sort(-1).values
        for seen, rows in zip(tops, top, strict=True):
            seen.update(map(tuple, rows.unique(dim=0).tolist()))
    return torch.cat(rewards, 1), [len(seen) for seen in tops], entropy


# -------------------------------------------------------------------------------------------------------- correlations
def kendall_tau(first: Sequence[float] | np.ndarray, second: Sequence[float] | np.ndarray) -> float | None:
    """Kendall's tau-b of two columns, ties taken into account; None where one of them is constant."""
    from scipy.stats import kendalltau

    if not (_varies(first) and _varies(second)):
        return None
    return float(kendalltau(first, second).statistic)


def spearman_rho(first: Sequence[float] | np.ndarray, second: Sequence[float] | np.ndarray) -> float | None:
    """Spearman's rho of two columns over the rows where both are finite; None where one of them is constant."""
    from scipy.stats import spearmanr

    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    known = np.isfinite(a) & np.isfinite(b)
    if not (_varies(a[known]) and _varies(b[known])):
        return None
    return float(spearmanr(a[known], b[known]).statistic)


def _varies(column: Sequence[float] | np.ndarray) -> bool:
    return len(column) > 1 and bool(np.ptp(np.asarray(column, dtype=np.float64)) > 0)


def _agreement(
    rows: Sequence[np.ndarray], lists: Sequence[CandidateList], orderings: Iterable[Ordering]
) -> float | None:
    """Mean tau between scores and the teacher, over the candidates that the teacher ordered; None without any.

    Several orderings of one list count each for itself.
    """
    by_query: dict[str, list[Ordering]] = {}
    for ordering in orderings:
        by_query.setdefault(ordering.query_id, []).append(ordering)
    found = []
    for row, candidates in zip(rows, lists, strict=True):
        place = {doc_id: i for i, doc_id in enumerate(candidates.doc_ids)}
        for ordering in by_query.get(candidates.query_id, ()):
            ordered = [place[d] for d in ordering.doc_ids if d in place]
            found.append(kendall_tau(row[ordered], -np.arange(len(ordered))))
    if by_query and not found:
        logger.warning(
            "none of the %d queries with a teacher's ordering is among the %d lists: no agreement",
            len(by_query), len(lists),
        )  # fmt: skip
    return _mean(found)


def _correlations(rows: Sequence[np.ndarray], lists: Sequence[CandidateList]) -> dict[str, float | None]:
    """Mean over lists of rho between scores and length (characters), input position (1 = first), and features."""
    features = tuple(dict.fromkeys(name for c in lists for name in c.features))
    found: dict[str, list[float | None]] = {name: [] for name in ("length", "position", *features)}
    for row, c in zip(rows, lists, strict=True):
        found["length"].append(spearman_rho(row, [len(text) for text in c.texts]))
        found["position"].append(spearman_rho(row, range(1, len(c) + 1)))
        for name, values in c.features.items():
            found[name].append(spearman_rho(row, values))
    return {name: _mean(values) for name, values in found.items()}


def _mean(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return math.fsum(known) / len(known) if known else None
