"""Our objectives as a loss of sentence-transformers' own trainer, for those who stay with it.

    loss = RerankLoss(model, "nDCG@10")
    CrossEncoderTrainer(model=model, train_dataset=data, loss=loss).train()

`data` is what their listwise losses take: a query, a list of documents, and a list of labels, one for each document. An
objective is

    a measure (nDCG@10, RR, AP, ERR@20 ...)      minus the utility of its exact expectation under Plackett-Luce
    a loss (rank_net, list_mle, list_net ...)    agreement with the labels, as grades or as a teacher's scores
    a reward of `rerank.rewards`, or your own    as a measure; from sampled rankings where no expectation is known

Memory is bounded by `mini_batch_size` pairs, however long the lists are: the scores of all pairs come first, without a
graph; then the loss and its gradient in the scores; then, when the trainer goes backward, each mini-batch again with
its graph, fed with its part of that gradient (gradient caching; Gao et al. 2021). That is one forward pass more; a
batch of no more pairs than one mini-batch takes one pass. Dropout is keyed by mini-batch, hence the same both times.

Left to their trainer: the tokens, the optimizer, the devices. What it has no place for is not here: first-stage scores,
the anchor to the clone, calibration, and a temperature that finds itself; `rerank train` has them.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, final

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from rerank.errors import InputError, nearest
from rerank.given import checked_text, is_number
from rerank.lists import ListBatch, mask_of
from rerank.objective.expected import expected_reward, is_exact
from rerank.objective.imitation import LOSSES
from rerank.objective.sampled import ESTIMATORS
from rerank.objective.utility import utility_named
from rerank.randomness import dropout_key, generator, key_of
from rerank.types import CandidateList, Reward

if TYPE_CHECKING:
    from sentence_transformers import CrossEncoder

logger = logging.getLogger("rerank.integrations")

MEASURE = re.compile(r"([A-Za-z]+)(?:@([1-9]\d*))?")
GRADED = ("nDCG", "DCG", "ERR")
"""Measures that take grades as they are; the others ask which documents have a grade of 1 or more."""
NEEDS_CUTOFF = ("R", "P", "Success")
"""Measures that are the same for every order of a list, where they look at all of it."""


class _Block(NamedTuple):
    """The pairs of one mini-batch: where they stand among all pairs, and what the model reads, on the CPU."""

    places: Tensor
    features: Mapping[str, Any]


@final
class RerankLoss(nn.Module):
    """A loss for `CrossEncoderTrainer`, called as its listwise losses are: the mean over the lists of a batch."""

    def __init__(
        self,
        model: CrossEncoder,
        objective: str | Reward = "nDCG@10",
        mini_batch_size: int | None = 32,
        *,
        utility: str = "auto",
        temperature: float = 1.0,
        estimator: str = "auto",
        samples: int = 16,
    ) -> None:
        """A loss that trains `model`.

        `mini_batch_size` is the number of pairs whose activations are held at once; None, 0 or less: of all pairs.
        The others are for measures and rewards: what is maximised of an expectation ("log", "linear", "power:A",
        "pass@K"; auto: log where it is exact), what scores are divided by (raise it where a trained model is so sure
        that nothing moves), and how an expectation that is not known is estimated, from how many rankings.
        """
        super().__init__()
        if model.num_labels != 1:
            raise InputError(f"a reranker has one output; this model has num_labels = {model.num_labels}")
        self.model: Any = model  # their trainer puts a wrapped one in its place, which has `preprocess` too
        self.mini_batch_size = _whole(mini_batch_size, "mini_batch_size")
        self.objective = objective if isinstance(objective, str) else str(getattr(objective, "name", objective))
        self.settings: dict[str, Any] = {}
        self._whole_grades = self._told = False
        if isinstance(objective, str) and objective in LOSSES:
            if (utility, temperature, estimator, samples) != ("auto", 1.0, "auto", 16):
                raise InputError(f"utility, temperature, estimator and samples are for measures, not for {objective}")
            self._objective = partial(_imitation, objective)
            return
        reward, self._whole_grades = _measure(objective) if isinstance(objective, str) else (objective, False)
        earned = _earned(reward, estimator, utility, temperature, samples)
        self.settings = {k: v for k, v in earned._asdict().items() if k != "reward"}
        self._objective = partial(_reinforcement, earned)

    def forward(
        self,
        inputs: Sequence[Sequence[Any]],
        labels: Sequence[Tensor],
        prompt: str | None = None,
        task: str | None = None,
    ) -> Tensor:
        """The mean loss of queries, each with a list of documents, and `labels`, a tensor for each query."""
        batch = _batch(inputs, labels, self._whole_grades)
        pairs = [(one.query, text) for one in batch.lists for text in one.texts]
        blocks = [
            _Block(torch.tensor(group), self.model.preprocess([pairs[i] for i in group], prompt=prompt, task=task))
            for group in _groups(pairs, self.mini_batch_size)
        ]
        # From the stream that their trainer seeds, saves and restores; an evaluation leaves it as it was.
        key = int(torch.randint(2**62, ())) if torch.is_grad_enabled() else 0
        if len(blocks) == 1 or not torch.is_grad_enabled():
            return self._loss(self._all(blocks, key), batch, key)
        with torch.no_grad():
            flat = self._all(blocks, key)
        flat.requires_grad_()
        loss = self._loss(flat, batch, key)
        (slope,) = torch.autograd.grad(loss, flat)
        found = loss.detach().requires_grad_()
        found.register_hook(lambda scale: self._backward(blocks, slope, scale, key))
        return found

    def get_config_dict(self) -> dict[str, Any]:
        """The settings, for the model card."""
        return {"objective": self.objective, "mini_batch_size": self.mini_batch_size, **self.settings}

    def _loss(self, flat: Tensor, batch: ListBatch, key: int) -> Tensor:
        """The mean over the lists that have something to teach; 0, with the graph, where none has."""
        batch = batch._replace(**{k: getattr(batch, k).to(flat.device) for k in ("labels", "mask", "pool")})
        scores = torch.full(batch.mask.shape, -torch.inf, device=flat.device).masked_scatter(batch.mask, flat)
        losses, counted = self._objective(scores, batch, key)
        if not self._told and not bool(counted.all()):
            self._told = True
            logger.warning(
                "%d of the %d lists of a batch have nothing to teach (no two grades that differ) and are left out, "
                "here and in later batches (said once)",
                *(int((~counted).sum()), len(counted)),
            )
        return losses[counted].mean() if bool(counted.any()) else flat.sum() * 0.0

    def _all(self, blocks: Sequence[_Block], key: int) -> Tensor:
        """Logits [n] of all pairs, in their own order."""
        found = torch.cat([self._logits(block, key, i) for i, block in enumerate(blocks)])
        order = torch.cat([block.places for block in blocks]).to(found.device)
        return torch.zeros_like(found).index_copy(0, order, found)

    def _logits(self, block: _Block, key: int, index: int) -> Tensor:
        from sentence_transformers.util import batch_to_device

        device = self.model.device
        features = batch_to_device(dict(block.features), device)  # a copy: a model writes its results into it
        with dropout_key(key_of(key, index), device):
            logits: Tensor = self.model(features)["scores"]
        return logits.reshape(-1).float()

    def _backward(self, blocks: Sequence[_Block], slope: Tensor, scale: Tensor, key: int) -> None:
        """Nothing; adds the gradients of all mini-batches, times `scale`, to those of the parameters."""
        inner = getattr(self.model, "_orig_mod", self.model)
        with torch.enable_grad():
            for i, block in enumerate(blocks):
                # Processes sum their gradients once, after the last mini-batch.
                waits = isinstance(inner, DistributedDataParallel) and i < len(blocks) - 1
                with inner.no_sync() if waits else nullcontext():
                    logits = self._logits(block, key, i)
                    if logits.requires_grad:
                        logits.backward(slope[block.places.to(slope.device)] * scale)


def _groups(pairs: Sequence[tuple[str, str]], size: int | None) -> Iterator[list[int]]:
    """Places of pairs, `size` at a time, those of like length together: little of a mini-batch is padding."""
    if size is None or len(pairs) <= size:
        yield list(range(len(pairs)))
        return
    order = sorted(range(len(pairs)), key=lambda i: -len(pairs[i][0]) - len(pairs[i][1]))
    yield from (order[start : start + size] for start in range(0, len(order), size))


# ------------------------------------------------------------------------------------------------------- the objective
class _Earned(NamedTuple):
    """What is maximised, and how."""

    reward: Reward
    estimator: str
    utility: str
    temperature: float
    samples: int


def _imitation(loss: str, scores: Tensor, batch: ListBatch, key: int) -> tuple[Tensor, Tensor]:
    """How far scores are from agreeing with the labels; documents of equal labels are tied."""
    values = batch.labels
    better = (values[:, None, :] > values[:, :, None]) & batch.mask[:, None, :]
    ranks = (better.sum(-1) + 1.0).masked_fill(~batch.mask, torch.inf)
    return LOSSES[loss](scores, ranks, batch.mask, values), torch.ones_like(batch.mask[:, 0])


def _reinforcement(earned: _Earned, scores: Tensor, batch: ListBatch, key: int) -> tuple[Tensor, Tensor]:
    """Minus the utility of what a ranking is expected to earn."""
    reward, estimator, name, temperature, samples = earned
    utility, tempered = utility_named(name), scores / temperature
    highest = batch.labels.masked_fill(~batch.mask, -torch.inf).amax(-1)
    lowest = batch.labels.masked_fill(~batch.mask, torch.inf).amin(-1)
    counted = highest > lowest if getattr(reward, "graded", False) else batch.mask.sum(-1) > 1
    if estimator == "exact":
        return -utility(expected_reward(tempered, reward, batch)), counted
    draw = generator("reward", key, device=scores.device)
    found = ESTIMATORS[estimator](tempered.detach(), reward, batch, samples, draw)
    expected = found.value.detach().requires_grad_()
    (slope,) = torch.autograd.grad(utility(expected).sum(), expected)
    # The loss has the value of the utility and the gradient of the estimate.
    moved = torch.where(batch.mask, tempered - tempered.detach(), torch.zeros_like(tempered))
    return -utility(found.value) - (moved * found.gradient * slope[:, None]).sum(-1), counted


def _measure(name: str) -> tuple[Reward, bool]:
    """(the reward of a measure, whether it wants whole grades)."""
    from rerank.rewards import REWARDS

    match = MEASURE.fullmatch(name.replace(" ", ""))
    found = {known.casefold(): known for known in REWARDS}.get(match[1].casefold()) if match else None
    if match is None or found is None:
        hint = nearest(name.split("@")[0], [*REWARDS, *LOSSES])
        raise InputError(f"objective {name!r} is neither a measure nor a loss{hint}; or give a reward of your own")
    if match[2] is None and found in NEEDS_CUTOFF:
        raise InputError(f"{found} without a cutoff is the same for every order of a list: write {found}@10")
    return REWARDS[found](cutoff=int(match[2]) if match[2] else None), found not in GRADED


def _earned(reward: Reward, estimator: str, utility: str, temperature: float, samples: int) -> _Earned:
    """The settings, checked, "auto" resolved."""
    if not callable(reward):
        raise InputError(f"objective must be the name of a measure or a loss, or a reward, not {reward!r:.80}")
    if not is_number(temperature) or not 0 < temperature < 1e6:
        raise InputError(f"temperature must be greater than 0, not {temperature!r}")
    if (_whole(samples, "samples") or 0) < 2:
        raise InputError(f"samples must be at least 2, not {samples!r}: each is compared with the others")
    known, exact = ["auto", "exact", *ESTIMATORS], is_exact(reward)
    if estimator not in known:
        raise InputError(f"estimator {estimator!r} is not known{nearest(str(estimator), known)}")
    if estimator == "exact" and not exact:
        raise InputError("the expectation of this reward is not known: give a sampled estimator, such as rloo")
    estimator = ("exact" if exact else "rloo") if estimator == "auto" else estimator
    signed = bool(getattr(reward, "signed", False))
    utility = ("log" if estimator == "exact" and not signed else "linear") if utility == "auto" else utility
    utility_named(utility)
    if signed and utility != "linear":
        raise InputError("this reward can be negative: only utility 'linear' is defined for it")
    return _Earned(reward, estimator, utility, temperature, samples)


# ----------------------------------------------------------------------------------------------------------- the lists
def _batch(inputs: Sequence[Sequence[Any]], labels: Any, whole_grades: bool) -> ListBatch:
    """The lists of a batch, checked, on the CPU."""
    if isinstance(labels, Tensor) or not all(isinstance(row, Tensor) and row.ndim == 1 for row in labels):
        raise InputError(f"labels: a tensor [n] for each query is needed, not one label for each row: {labels!r:.60}")
    if len(inputs) != 2:
        raise InputError(f"two columns are needed beside the labels, a query and its documents, not {len(inputs)}")
    lists = [_list(*row) for row in zip(*inputs, labels, range(len(labels)), strict=True)]
    if not any(map(len, lists)):
        raise InputError("this batch holds no document at all: drop the rows whose list of documents is empty")
    mask = mask_of(lists)
    grades = torch.zeros(mask.shape)
    known = [row.float().cpu() for row in labels]
    grades[mask] = torch.cat(known)
    if not bool(grades.isfinite().all()):
        row, place = (~grades.isfinite()).nonzero()[0].tolist()
        raise InputError(f"labels[{row}][{place}] is {float(grades[row, place])}; labels are finite numbers")
    if whole_grades and not bool((grades == grades.round()).all()):
        broken = grades[grades != grades.round()][0]
        raise InputError(
            f"a label is {float(broken):g}, and this measure asks which grades are 1 or more: give whole grades, or an "
            "objective that takes scores, such as nDCG@10, list_net or rank_net"
        )
    return ListBatch(grades, mask, grades, tuple(lists))


def _list(query: Any, texts: Any, labels: Tensor, row: int) -> CandidateList:
    if isinstance(texts, str) or not isinstance(query, str):
        kinds = f"{type(query).__name__} and {type(texts).__name__}"
        raise InputError(f"row {row}: a text, then a list of texts are needed, not {kinds}; the query comes first")
    if len(texts) != len(labels):
        raise InputError(f"row {row} has {len(texts)} documents and {len(labels)} labels")
    grades = labels.float().tolist()
    whole = tuple(map(int, grades)) if all(map(float.is_integer, grades)) else None
    known = tuple(checked_text(text, f"row {row}: document {i}") for i, text in enumerate(texts))
    return CandidateList(str(row), query, tuple(map(str, range(len(texts)))), known, labels=whole)


def _whole(value: Any, what: str) -> int | None:
    if value is None or (isinstance(value, int) and not isinstance(value, bool)):
        return value if value is not None and value > 0 else None
    raise InputError(f"{what} must be a whole number, not {value!r}")
