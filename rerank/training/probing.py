"""What a policy does on lists, without training it: its scores, rankings drawn from it, its expected reward."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rerank import plackett_luce
from rerank.lists import ListBatch, check_scores, mask_of
from rerank.models.language.generative import AnyPolicy
from rerank.objective.expected import expected_reward, is_exact
from rerank.randomness import generator
from rerank.types import CandidateList, Reward

AT_ONCE = 16
"""Lists that are scored, and whose rankings are drawn, together."""


@torch.no_grad()
def scores_of(policy: AnyPolicy, lists: Sequence[CandidateList], at_once: int = AT_ONCE) -> Tensor:
    """The policy's scores of lists as one tensor [B, N] on the CPU, -inf where padded; `at_once` lists a pass."""
    policy.eval()
    mask = mask_of(lists)
    out = torch.full(mask.shape, -torch.inf)
    for start in range(0, len(lists), at_once):
        found = policy.scores(lists[start : start + at_once]).float().cpu()
        out[start : start + at_once, : found.shape[1]] = found
    check_scores(out, mask)
    return out


def drawn(scores: Tensor, batch: ListBatch, samples: int, cutoff: int | None, *key: str | int) -> Tensor:
    """`samples` rankings of each list, [B, S, K]; the draws of a list are a function of `key` and its query alone."""
    width = batch.mask.shape[1]
    places = width if cutoff is None else min(cutoff, width)
    out = torch.arange(places).expand(len(batch.lists), samples, places).clone()
    for row, candidates in enumerate(batch.lists):
        n = len(candidates)
        draw = generator(*key, candidates.query_id)
        ranked = plackett_luce.sample(scores[row : row + 1, :n], batch.mask[row : row + 1, :n], samples, draw, places)
        out[row, :, : ranked.shape[-1]] = ranked[0]
    return out


def expected_of(scores: Tensor, reward: Reward, batch: ListBatch, rewards: Tensor) -> Tensor:
    """The expected reward [B] under the policy: exact where it is known, else the mean of the sampled `rewards`."""
    return expected_reward(scores, reward, batch).float() if is_exact(reward) else rewards.mean(1)
