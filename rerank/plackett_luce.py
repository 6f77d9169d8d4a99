r"""Plackett-Luce: the distribution over rankings that scores define.

    pi(y_1 ... y_K) = prod_r exp(s_{y_r}) / D_r,        D_r = sum of exp(s_d) over d not in y_1 ... y_{r-1}

Shapes: scores [B, N] with -inf where padded, mask [B, N], rankings [B, S, K] of candidate indices, best first.
Places beyond a list's length are ignored. All functions are differentiable in the scores unless they sample.

Entropy and KL of whole rankings are expectations over rankings, estimated from a few. What can be summed exactly, the
choice at a place given the places before, is: X_r below, which leaves a tenth of the deviation of -log pi or of the
log-ratio. By the grouping rule of entropy, with c the chance of the candidate that was placed,

    H_r  = -c log c - (1 - c) log(1 - c)                         + (1 - c) H_{r+1}
    KL_r =  c log(c / c') + (1 - c) log((1 - c) / (1 - c'))      + (1 - c) KL_{r+1}

so all places of a ranking cost one pass over its candidates, every term is at least 0 and nothing cancels. The
gradient of the expectation needs, beside that of X_r, the chance of coming to that place: log pi of the places before
times (X_r minus its mean over the other rankings). An estimate that is differentiated without it is wrong: that of the
plain log-ratio has an expected gradient of zero.

Sources: Plackett (1975); Luce (1959); Gumbel-top-k sampling as in Kool et al. (2019).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

# A padded candidate gets the smallest real score minus this much: it is never drawn before a real one in float32,
# and everything stays finite (with -inf a list shorter than K gives inf - inf).
PADDING_GAP = 60.0

# Arrival times above this have probability 4e-8 and count as this: float32 cannot tell 1 - u from 0 there.
LATEST = 17.0


def filled(scores: Tensor, mask: Tensor) -> Tensor:
    """Scores [B, N], at least float32, with finite values on the padding, below all real ones."""
    scores = scores if scores.dtype == torch.float64 else scores.float()
    lowest = scores.masked_fill(~mask, torch.inf).amin(-1, keepdim=True) if scores.shape[-1] else scores
    lowest = torch.where(lowest.isfinite(), lowest, torch.zeros_like(lowest))
    return torch.where(mask, scores, lowest.detach() - PADDING_GAP)


def best(scores: Tensor, mask: Tensor) -> Tensor:
    """The most likely ranking [B, N] (candidate indices; equal scores in first-stage order, padding last)."""
    return scores.float().masked_fill(~mask, -torch.inf).sort(dim=-1, descending=True, stable=True).indices


# ------------------------------------------------------------------------------------------------------------- drawing
def perturbed(scores: Tensor, mask: Tensor, n: int, generator: torch.Generator | None = None) -> Tensor:
    """`n` times the scores plus Gumbel noise, [B, n, N], -inf on the padding: sorted, each is a draw."""
    s = filled(scores.detach(), mask)[:, None, :]
    late = _arrivals((s.shape[0], n, s.shape[2]), s.device, generator).log_()
    return (s - late).masked_fill_(~mask[:, None, :], -torch.inf)


def sample(
    scores: Tensor, mask: Tensor, n: int, generator: torch.Generator | None = None, cutoff: int | None = None
) -> Tensor:
    """`n` exact draws of rankings, [B, n, N] with padding last; with a `cutoff` their first places, [B, n, cutoff].

    The first places are those of the whole rankings that the same generator would have drawn.
    """
    noisy = perturbed(scores, mask, n, generator)
    if cutoff is None or cutoff >= noisy.shape[-1]:
        return noisy.argsort(dim=-1, descending=True)
    return noisy.topk(cutoff, dim=-1).indices


def _arrivals(shape: tuple[int, ...], device: torch.device, generator: torch.Generator | None) -> Tensor:
    """Unit exponential times in float32, never 0 and never infinite."""
    if device.type == "cpu":
        # -log(1 - u) of a 53-bit u: as fine near 0, where rankings are decided, as torch's own draw and a quarter of
        # its time. (A float32 u would cut the tail of the Gumbel noise at 16.6.)
        times = torch.empty(shape, dtype=torch.float64).uniform_(generator=generator).float().neg_().log1p_().neg_()
    else:
        times = torch.empty(shape, device=device).exponential_(generator=generator)
    return times.clamp_(min=torch.finfo(torch.float32).tiny, max=LATEST)


# ------------------------------------------------------------------------------------------------------- probabilities
def remaining(scores: Tensor, rankings: Tensor) -> tuple[Tensor, Tensor]:
    """(log D_r of each place and of what is left after the last, [B, S, K + 1]; scores, -inf where placed, [B, S, N]).

    `scores` must be finite (`filled`). D is summed from the last place backwards: no cancellation, no sort.
    """
    wide = scores[:, None, :].expand(-1, rankings.shape[1], -1)
    rest = wide.scatter(-1, rankings, -torch.inf)
    tail = rest.logsumexp(-1, keepdim=True)
    return torch.cat([tail, wide.gather(-1, rankings).flip(-1)], -1).logcumsumexp(-1).flip(-1), rest


def step_log_probs(scores: Tensor, mask: Tensor, rankings: Tensor) -> Tensor:
    """log pi(y_r | y_1 ... y_{r-1}) of each place, [B, S, K]; 0 at places beyond the list's length."""
    s = filled(scores, mask)
    log_left, _ = remaining(s, rankings)
    steps = _ranked(s, rankings) - log_left[..., :-1]
    return steps.masked_fill(~_ranked(mask, rankings), 0.0)


def log_prob(scores: Tensor, mask: Tensor, rankings: Tensor) -> Tensor:
    """log pi of the first K places of rankings [B, S, K], as [B, S]."""
    return step_log_probs(scores, mask, rankings).sum(-1)


def decayed_sum(values: Tensor, decay: Tensor) -> Tensor:
    """out_r = values_r + decay_r * out_{r-1} along the last dimension (out before the first is 0), in log2(K) steps."""
    step = 1
    while step < values.shape[-1]:
        values = values + decay * pad(values[..., :-step], (step, 0))
        decay = decay * pad(decay[..., :-step], (step, 0))
        step *= 2
    return values


def _ranked(values: Tensor, rankings: Tensor) -> Tensor:
    return values[:, None, :].expand(-1, rankings.shape[1], -1).gather(-1, rankings)


# ------------------------------------------------------------------------------------------------- who is ranked first
def top1_log_probs(scores: Tensor, mask: Tensor) -> Tensor:
    """log-probability of each candidate being ranked first, [B, N]; -inf on the padding."""
    return filled(scores, mask).masked_fill(~mask, -torch.inf).log_softmax(-1).masked_fill(~mask, -torch.inf)


def top1_kl(scores: Tensor, reference: Tensor, mask: Tensor) -> Tensor:
    """KL(policy || reference) of the distribution over who is ranked first, [B]; exact, 0 for empty lists."""
    p, q = top1_log_probs(scores, mask), top1_log_probs(reference, mask)
    zero = torch.zeros_like(p)
    p, q = torch.where(mask, p, zero), torch.where(mask, q, zero)
    return (torch.where(mask, p.exp(), zero) * (p - q)).sum(-1)


def top1_entropy(scores: Tensor, mask: Tensor) -> Tensor:
    """Entropy in nats of the distribution over who is ranked first, [B]."""
    p = top1_log_probs(scores, mask)
    p = torch.where(mask, p, torch.zeros_like(p))
    return -(torch.where(mask, p.exp(), torch.zeros_like(p)) * p).sum(-1)


# ------------------------------------------------------------------------------------------------------ whole rankings
def entropy_by_rank(scores: Tensor, mask: Tensor, rankings: Tensor, cutoff: int) -> Tensor:
    """Entropy in nats of the choice at each of the first `cutoff` ranks, [K]; mean over lists and given rankings.

    Places at which fewer than two candidates are left are not counted. A figure to look at: its gradient leaves out
    how the scores change which rankings come up (`choice_entropies` has it).
    """
    found, choice = _choices(scores, None, mask, rankings[..., :cutoff])
    return found.sum((0, 1)) / choice.to(found.dtype).expand_as(found).sum((0, 1)).clamp(min=1.0)


def choice_entropies(scores: Tensor, mask: Tensor, rankings: Tensor, cutoff: int) -> tuple[Tensor, Tensor]:
    """(expected entropy in nats of the choice at each rank, [B, K]; False where a list has no choice left, [B, K]).

    Unbiased for rankings drawn from `scores`, and so is the gradient.
    """
    found, choice = _choices(scores, None, mask, rankings[..., :cutoff])
    return _expectation(found, step_log_probs(scores, mask, rankings[..., :cutoff])), choice[:, 0]


def ranking_entropy(scores: Tensor, mask: Tensor, rankings: Tensor, cutoff: int) -> Tensor:
    """Entropy in nats of the first `cutoff` places of a ranking, [B]; unbiased as `choice_entropies` is."""
    return choice_entropies(scores, mask, rankings, cutoff)[0].sum(-1)


def ranking_kl(scores: Tensor, reference: Tensor, mask: Tensor, rankings: Tensor, cutoff: int) -> Tensor:
    """KL(policy || reference) of the first `cutoff` places of a ranking, [B]; at least 0, no gradient to `reference`.

    Unbiased for rankings drawn from `scores`, and so is the gradient.
    """
    top = rankings[..., :cutoff]
    found, _ = _choices(scores, reference.detach(), mask, top)
    return _expectation(found, step_log_probs(scores, mask, top)).sum(-1)


def _choices(scores: Tensor, reference: Tensor | None, mask: Tensor, rankings: Tensor) -> tuple[Tensor, Tensor]:
    """(entropy, or KL to `reference`, of the choice at each place [B, S, K]; where there is one, [B, 1, K])."""
    s, n_places = filled(scores, mask), rankings.shape[-1]
    places = torch.arange(n_places, device=s.device)
    choice = places < (mask.sum(-1, keepdim=True) - 1)[:, None]
    log_left, rest = remaining(s, rankings)
    inside, outside = _split(s, log_left, rankings, choice)
    if reference is None:
        here, end = -(inside.exp() * inside + outside.exp() * outside), _last_entropy(rest, mask)
    else:
        other = filled(reference, mask).to(s.dtype)
        left, other_rest = remaining(other, rankings)
        inside2, outside2 = _split(other, left, rankings, choice)
        here = inside.exp() * (inside - inside2) + outside.exp() * (outside - outside2)
        end = _last_kl(rest, other_rest, mask)
    here = here.masked_fill(~choice, 0.0)
    decay = outside.exp().masked_fill(~choice, 0.0)
    # From the last place backwards; what follows the last place joins its term.
    here = torch.cat([here, end[..., None]], -1).flip(-1)
    return decayed_sum(here, pad(decay.flip(-1), (1, 0)))[..., 1:].flip(-1), choice


def _split(s: Tensor, log_left: Tensor, rankings: Tensor, choice: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities [B, S, K] at each place of the candidate placed there and of all others; -1 without a choice.

    The values are replaced before they are used: where nothing is left, log(1 - c) is -inf and its gradient NaN.
    """
    inside = torch.where(choice, _ranked(s, rankings) - log_left[..., :-1], -torch.ones_like(log_left[..., 1:]))
    after = torch.where(choice, log_left[..., 1:], torch.zeros_like(inside))
    return inside, after - torch.where(choice, log_left[..., :-1], torch.ones_like(inside))


def _last_entropy(rest: Tensor, mask: Tensor) -> Tensor:
    """Entropy [B, S] of the choice among what is left after the last place; 0 where nothing is."""
    log_p, left = _last_choice(rest, mask)
    return -(torch.where(left, log_p.exp(), torch.zeros_like(log_p)) * log_p).sum(-1)


def _last_kl(rest: Tensor, other: Tensor, mask: Tensor) -> Tensor:
    log_p, left = _last_choice(rest, mask)
    return (torch.where(left, log_p.exp(), torch.zeros_like(log_p)) * (log_p - _last_choice(other, mask)[0])).sum(-1)


def _last_choice(rest: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    left = rest.isfinite() & mask[:, None, :]
    log_p = torch.where(left, rest, torch.full_like(rest, -1e30)).log_softmax(-1)
    return torch.where(left, log_p, torch.zeros_like(log_p)), left  # before any product, or its gradient is 0 * inf


def _expectation(choices: Tensor, log_probs: Tensor) -> Tensor:
    """Mean over the rankings [B, K] of X_r [B, S, K], with the gradient of the expectation."""
    n = choices.shape[1]
    excess = choices.detach()
    if n > 1:
        excess = (excess - excess.mean(1, keepdim=True)) * (n / (n - 1))
    before = log_probs.cumsum(-1) - log_probs
    score = before * excess
    return (choices + score - score.detach()).mean(1)
