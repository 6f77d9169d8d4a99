"""The loop that both stages share; it knows schedules, gradients, selection and checkpoints, but no loss.

    for step: sample sub-lists -> views of scores -> objective -> backward -> clip -> step
    now and then: measure the dev lists, keep the best weights, checkpoint

The weights handed over are the best on the dev lists, those before the first step included: a stage never makes
its policy worse on dev. Everything random is keyed, so a resumed run ends with the same weights bit for bit.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from rerank import plackett_luce
from rerank.engine.gradient_cache import backward
from rerank.errors import InputError, TrainingError
from rerank.lists import ListBatch, batch_of
from rerank.models.policy import ScorePolicy
from rerank.randomness import generator, key_of
from rerank.training.checkpoint import (
    Checkpoint,
    latest_checkpoint,
    optimizer_tensors,
    remove_checkpoints,
    restore_optimizer,
    save_checkpoint,
)
from rerank.training.log import Log
from rerank.training.paid import paid
from rerank.training.schedule import Schedule
from rerank.types import CandidateList, Reward

MAX_BAD_STEPS = 5


class Dev(NamedTuple):
    """Held-out lists and the reward that selects on them."""

    lists: Sequence[CandidateList]
    reward: Reward
    name: str
    """How the measure is spelled in logs, e.g. `nDCG@10`."""

    def measure(self, policy: ScorePolicy) -> dict[str, float]:
        """Mean reward of the most likely ranking, for the served view and, where it differs, `"plain"`."""
        policy.eval()
        totals: dict[str, float] = {}
        with torch.inference_mode():
            for start in range(0, len(self.lists), 16):
                group = self.lists[start : start + 16]
                batch = batch_of(group)
                for view, scores in zip(("served", "plain"), policy.all_views(group).cpu(), strict=False):
                    rankings = plackett_luce.best(scores, batch.mask)[:, None, :]
                    totals[view] = totals.get(view, 0.0) + float(paid(self.reward, rankings, batch).sum())
        return {view: total / len(self.lists) for view, total in totals.items()}


@dataclass(frozen=True)
class Context:
    """Where a stage runs: its names, seed, folder, log and dev lists."""

    stage: str
    model: str = "model"
    seed: int = 0
    folder: Path | None = None
    """Where checkpoints go; None keeps none."""
    resume: bool = False
    log: Log = field(default_factory=Log)
    dev: Dev | None = None
    start: Mapping[str, float] | None = None
    """What `dev` measures of the weights that the stage starts from, where that is known."""

    def resumable(self) -> bool:
        """Whether an interrupted attempt at this stage left a checkpoint to go on from."""
        return self.resume and self.folder is not None and latest_checkpoint(self.folder) is not None


Objective = Callable[[Tensor, ListBatch, int, int], tuple[Tensor, dict[str, float]]]
"""(scores [B, N], the lists, index of the view, key for draws) -> (loss of each list [B], facts for the log)."""

Important = Callable[[CandidateList], Sequence[int]]
"""Indices of the candidates that a sample of the list must hold, most important first."""


class Moving(Protocol):
    """What a stage carries along beside the weights (the anchor's reference, temperatures)."""

    def after_step(self, step: int, evaluated: bool) -> None:
        """Called after each step."""
        ...

    def tensors(self) -> dict[str, Tensor]:
        """Its state, for a checkpoint."""
        ...

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Take up what `tensors` gave."""
        ...


def fit(
    policy: ScorePolicy,
    lists: Sequence[CandidateList],
    objective: Objective,
    important: Important,
    schedule: Schedule,
    context: Context,
    moving: Moving | None = None,
) -> dict[str, Any]:
    """Train `policy` in place and leave its best dev weights in it; returns what is worth reporting."""
    if not lists:
        raise InputError(f"stage {context.stage!r} has no list to learn from")
    state = _State(policy, schedule, context, schedule.total_steps(len(lists)), moving)
    state.begin()
    with context.log.progress(f"{context.model}: {context.stage}", state.total, state.step):
        for step_lists in _batches(lists, important, schedule, context, state.step, state.total):
            pairs = sum(len(c) for c in step_lists)
            began = time.monotonic()
            loss, facts = _step(state, step_lists, objective)
            state.after_step(loss, facts, pairs / max(time.monotonic() - began, 1e-9))
            if state.ended:
                break
    return state.finish()


class _State:
    """The mutable part of a stage: optimizer, step, best weights, checkpoints."""

    def __init__(
        self, policy: ScorePolicy, schedule: Schedule, context: Context, total: int, moving: Moving | None
    ) -> None:
        self.policy, self.schedule, self.context, self.total = policy, schedule, context, total
        self.moving = moving
        self.step = 0
        self.bad_steps = 0
        self.skipped = 0
        self.best: dict[str, Tensor] | None = None
        self.best_views: dict[str, float] = {}
        """What dev measured of the best weights so far, view by view."""
        self.best_step = 0
        self.idle = 0
        """Evaluations since the best one."""
        self.began = self.saved = time.monotonic()
        self.ended = False
        self.optimizer = torch.optim.AdamW(_groups(policy, schedule), betas=(0.9, 0.98), fused=True)
        self.rates = [group["lr"] for group in self.optimizer.param_groups]
        self.marks = {round(total * (i + 1) / schedule.evaluations) for i in range(schedule.evaluations)}

    @property
    def best_dev(self) -> float:
        return self.best_views.get("served", -math.inf)

    def begin(self) -> None:
        found = latest_checkpoint(self.context.folder) if self.context.resume and self.context.folder else None
        if found is None:
            self.evaluate({}, self.context.start)
            return
        self.policy.load_state_dict(found.tensors["weights"])
        restore_optimizer(self.optimizer, found.tensors["optimizer"])
        self.best = dict(found.tensors["best"]) if "best" in found.tensors else None
        state = found.state
        self.step, self.best_views, self.best_step = state["step"], state["best_views"], state["best_step"]
        self.skipped, self.idle = state["skipped"], state["idle"]
        if self.moving is not None:
            self.moving.restore(found.tensors["moving"])
        self.context.log.say(f"{self.context.model}: {self.context.stage} goes on at step {self.step} of {self.total}")

    def set_rate(self) -> None:
        warm = max(1, round(self.total * self.schedule.warmup))
        share = min((self.step + 1) / warm, (self.total - self.step) / max(1, self.total - warm))
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * share

    def after_step(self, loss: float, facts: dict[str, float], pairs_per_second: float) -> None:
        self.step += 1
        record = {"loss": loss, "pairs_per_second": pairs_per_second, **facts}
        evaluated = self.step in self.marks
        if evaluated:
            self.evaluate(record)
        else:
            self.context.log.record(**self._names(), **record)
        if self.moving is not None:
            self.moving.after_step(self.step, evaluated)
        if evaluated:
            self.checkpoint()
        dev = f"dev {self.context.dev.name} {self.best_dev:.3f}  " if self.context.dev else ""
        self.context.log.advance(self.step, f"loss {loss:.3f}  {dev}{pairs_per_second:.0f} pairs/s")

    def evaluate(self, record: dict[str, float], known: Mapping[str, float] | None = None) -> None:
        dev = self.context.dev
        measured: Mapping[str, float] = {} if not dev else known if known is not None else dev.measure(self.policy)
        if dev:
            record[dev.name] = measured["served"]
            if "plain" in measured:
                record[f"{dev.name} plain"] = measured["plain"]
        self.idle += 1
        if not dev or self.schedule.select == "last" or measured["served"] > self.best_dev:
            self.idle = 0
            self.best_views = dict(measured)
            self.best_step = self.step
            self.best = {k: v.detach().clone() for k, v in self.policy.state_dict().items()}
        self.context.log.record(**self._names(), **record)

    def checkpoint(self) -> None:
        limit, patience = self.schedule.minutes, self.schedule.patience
        self.ended = limit is not None and time.monotonic() - self.began > 60 * limit
        self.ended = self.ended or (patience is not None and self.idle >= patience)
        # What is over is not gone on with. Short stages are repeated sooner than saved; a minute is worth the disk.
        over = self.ended or self.step >= self.total
        if self.context.folder is None or over or time.monotonic() - self.saved < 60.0:
            return
        tensors = {"weights": self.policy.state_dict(), "optimizer": optimizer_tensors(self.optimizer)}
        if self.best is not None:
            tensors["best"] = self.best
        if self.moving is not None:
            tensors["moving"] = self.moving.tensors()
        state = {"step": self.step, "best_views": self.best_views, "best_step": self.best_step}
        state |= {"skipped": self.skipped, "idle": self.idle}
        save_checkpoint(self.context.folder, self.step, Checkpoint(tensors, state))
        self.saved = time.monotonic()

    def finish(self) -> dict[str, Any]:
        if self.best is not None:
            self.policy.load_state_dict(self.best)
        self.policy.eval()
        if self.context.folder is not None:
            remove_checkpoints(self.context.folder)
        return {
            "steps": self.step,
            "best_step": self.best_step,
            "dev": self.best_dev if self.context.dev else None,
            "dev_views": self.best_views,
            "skipped_steps": self.skipped,
        }

    def _names(self) -> dict[str, Any]:
        return {"model": self.context.model, "stage": self.context.stage, "step": self.step}


def _step(state: _State, lists: list[CandidateList], objective: Objective) -> tuple[float, dict[str, float]]:
    """One optimizer step; a step whose loss or gradient is not finite is skipped and counted."""
    policy, schedule, context = state.policy, state.schedule, state.context
    policy.train()
    state.set_rate()
    state.optimizer.zero_grad(set_to_none=True)
    key = key_of(context.seed, context.model, context.stage, state.step)
    total = 0.0
    facts: dict[str, float] = {}
    for number, (group, items) in enumerate(_fitting(policy, lists, schedule.graph_tokens)):

        def loss_of(flat: Tensor, group: list[CandidateList] = group, number: int = number) -> Tensor:
            views = policy.views(flat, group)
            batch = batch_of(group, flat.device)
            shares = [1.0] if len(views) == 1 else [1.0 - schedule.plain_weight, schedule.plain_weight]
            out = torch.zeros((), device=flat.device)
            for index, (scores, share) in enumerate(zip(views, shares, strict=True)):
                if share == 0.0:
                    continue
                losses, found = objective(scores, batch, index, key_of(key, number, index))
                out = out + share * losses.sum() / len(lists)
                # The served view is what the log speaks of; where it has no share, the plain one.
                for name, value in found.items() if index == 0 or shares[0] == 0.0 else ():
                    facts[name] = facts.get(name, 0.0) + value * len(group) / len(lists)
            return out

        loss = backward(policy.pair_scorer, items, loss_of, policy.budget, schedule.graph_tokens, key_of(key, number))
        total += float(loss)
    norm = nn.utils.clip_grad_norm_(policy.parameters(), schedule.clip_norm)
    if not (torch.isfinite(norm) and total == total and abs(total) != float("inf")):
        _count_bad_step(state, total)
        return total, facts
    state.bad_steps = 0
    state.optimizer.step()
    return total, facts


def _count_bad_step(state: _State, loss: float) -> None:
    state.bad_steps += 1
    state.skipped += 1
    state.context.log.say(f"step {state.step}: the loss is {loss} or its gradient is not finite; the step is skipped")
    if state.bad_steps >= MAX_BAD_STEPS:
        raise TrainingError(
            f"{MAX_BAD_STEPS} steps in a row had a loss or gradient that is not finite (stage {state.context.stage!r}, "
            f"step {state.step}). The stages before it are kept. Lower its learning rates, or "
            "set precision = 'float32'; a changed recipe needs a new --out"
        )


def _fitting(
    policy: ScorePolicy, lists: list[CandidateList], graph_tokens: int
) -> Iterator[tuple[list[CandidateList], list[Sized]]]:
    """Groups of whole lists, with their items, whose activations fit at once; a longer list stands alone."""
    group: list[CandidateList] = []
    held: list[Sized] = []
    used = 0
    for candidates in lists:
        items = policy.pair_scorer.encode([candidates])
        cost = sum(map(len, items))
        if group and used + cost > graph_tokens:
            yield group, held
            group, held, used = [], [], 0
        group.append(candidates)
        held.extend(items)
        used += cost
    if group:
        yield group, held


def _batches(
    lists: Sequence[CandidateList], important: Important, schedule: Schedule, context: Context, start: int, total: int
) -> Iterator[list[CandidateList]]:
    """The sub-lists of each step from `start` on; which ones depends on the seed and the step alone."""
    per_step = min(schedule.lists_per_step, len(lists))
    names = (context.seed, context.model, context.stage)
    for step in range(start, total):
        chosen = []
        for position in range(step * per_step, (step + 1) * per_step):
            epoch, place = divmod(position, len(lists))
            order = torch.randperm(len(lists), generator=generator(*names, "order", epoch))
            index = int(order[place])
            draw = generator(*names, "candidates", epoch, index)
            chosen.append(sublist(lists[index], important(lists[index]), schedule.list_size, draw))
        yield chosen


def sublist(candidates: CandidateList, important: Sequence[int], size: int, draw: torch.Generator) -> CandidateList:
    """At most `size` candidates in first-stage order: up to half of them the important ones, the rest a fair sample."""
    if len(candidates) <= size:
        return candidates
    kept = list(important)[: size // 2]
    taken = set(kept)
    others = [i for i in torch.randperm(len(candidates), generator=draw).tolist() if i not in taken]
    return candidates.subset(sorted(kept + others[: size - len(kept)]))


def _groups(policy: ScorePolicy, schedule: Schedule) -> list[dict[str, Any]]:
    """Optimizer groups: the transformer at its own rate, heads and first-stage weights faster."""
    body = {id(p) for p in policy.pair_scorer.body()}
    residual = set() if policy.first_stage is None else {id(p) for p in policy.first_stage.parameters()}
    everything = [p for p in policy.parameters() if p.requires_grad]
    parts = [
        ([p for p in everything if id(p) in body], schedule.learning_rate, schedule.weight_decay),
        (
            [p for p in everything if id(p) not in body and id(p) not in residual],
            schedule.head_learning_rate,
            schedule.weight_decay,
        ),
        ([p for p in everything if id(p) in residual], schedule.first_stage_learning_rate, 0.0),
    ]
    return [{"params": ps, "lr": rate, "weight_decay": decay} for ps, rate, decay in parts if ps]
