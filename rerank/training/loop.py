"""The loop that both stages share; it knows schedules, gradients, selection and checkpoints, but no loss.

    for step: sample sub-lists -> views of scores -> objective -> backward -> clip -> step
    now and then: measure the dev lists, keep the best weights, checkpoint

The weights handed over are the best on the dev lists, those before the first step included: a stage never makes
its policy worse on dev. Everything random is keyed, so a resumed run ends with the same weights bit for bit.

Under several processes (`engine.processes`) all go through the same loop with the same weights; what is decided by a
clock is decided by the main one, which alone writes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from rerank.engine import processes
from rerank.engine.prefetch import Prefetched
from rerank.errors import InputError, TrainingError
from rerank.models.policy import ScorePolicy
from rerank.randomness import key_of
from rerank.training.checkpoint import (
    Checkpoint,
    latest_checkpoint,
    optimizer_tensors,
    remove_checkpoints,
    restore_optimizer,
    save_checkpoint,
)
from rerank.training.dev import Dev
from rerank.training.log import Log
from rerank.training.optimizing import all_finite, clipped, groups_of, rate_share
from rerank.training.sampling import Important, Portion, portions
from rerank.training.schedule import Schedule
from rerank.training.sharding import Shards
from rerank.training.step import Found, Objective, Room, WholeStep, gradients, sharded_gradients
from rerank.types import CandidateList

__all__ = ["Context", "Dev", "Moving", "fit"]

MAX_BAD_STEPS = 5


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
    objective: Objective | WholeStep,
    important: Important,
    schedule: Schedule,
    context: Context,
    moving: Moving | None = None,
) -> dict[str, Any]:
    """Train `policy` in place and leave its best dev weights in it; returns what is worth reporting."""
    if not lists:
        raise InputError(f"stage {context.stage!r} has no list to learn from")
    if processes.world() > 1:
        processes.agreed("the lists to learn from", (len(lists), key_of(*(c.query_id for c in lists))))
    state = _State(policy, schedule, context, schedule.total_steps(len(lists)), moving)
    names = (context.seed, context.model, context.stage)
    try:
        state.begin()
        coming = portions(policy.item_scorer, lists, important, schedule, names, state.step)
        with (
            context.log.progress(f"{context.model}: {context.stage}", state.total, state.step),
            Prefetched(coming) as steps,
        ):
            for portion in steps:
                began = time.monotonic()
                found = state.learn(portion, objective)
                if state.step + 1 in state.marks:
                    steps.settle()  # whoever scores dev lists shares the tokenizer with the thread
                state.after_step(found, portion.n_pairs / max(time.monotonic() - began, 1e-9))
                if state.ended:
                    break
        return state.finish()
    finally:
        state.room.restore()


class _State:
    """The mutable part of a stage: optimizer, step, best weights, checkpoints."""

    def __init__(
        self, policy: ScorePolicy, schedule: Schedule, context: Context, total: int, moving: Moving | None
    ) -> None:
        self.policy, self.schedule, self.context, self.total = policy, schedule, context, total
        self.moving = moving
        self.where = f"{context.model}: {context.stage}"
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
        self.measuring = 0.0
        """Seconds that the dev lists took."""
        self.ended = False
        self.room = Room(policy, schedule.graph_tokens)
        processes.equal_weights([*policy.parameters(), *policy.buffers()])
        self.shards = Shards(policy) if processes.sharded() else None
        self.learner = policy if self.shards is None else self.shards.policy
        """What is trained: the policy itself, or its copy that is divided among the processes."""
        self.optimizer = torch.optim.AdamW(groups_of(self.learner, schedule), betas=(0.9, 0.98), fused=True)
        self.rates = [group["lr"] for group in self.optimizer.param_groups]
        self.marks = {round(total * (i + 1) / schedule.evaluations) for i in range(schedule.evaluations)}

    @property
    def best_dev(self) -> float:
        return self.best_views.get("served", -math.inf)

    def begin(self) -> None:
        found = latest_checkpoint(self.context.folder) if self.context.resume and self.context.folder else None
        processes.agreed("the step to go on from", None if found is None else found.state["step"])
        if found is None:
            self.evaluate({}, self.context.start)
            return
        self.policy.load_state_dict(found.tensors["weights"])
        if self.shards is not None:
            self.shards.load(found.tensors["weights"])
        restore_optimizer(self.optimizer, found.tensors["optimizer"])
        self.best = dict(found.tensors["best"]) if "best" in found.tensors else None
        state = found.state
        self.step, self.best_views, self.best_step = state["step"], state["best_views"], state["best_step"]
        self.skipped, self.idle = state["skipped"], state["idle"]
        if self.moving is not None:
            self.moving.restore(found.tensors["moving"])
        self.context.log.say(f"{self.where} goes on at step {self.step} of {self.total}")

    def learn(self, portion: Portion, objective: Objective | WholeStep) -> Found:
        """One optimizer step; a step whose loss or gradient is not finite is skipped and counted, by all alike."""
        schedule, context = self.schedule, self.context
        self.learner.train()
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * rate_share(self.step, self.total, schedule.warmup)
        self.optimizer.zero_grad(set_to_none=True)
        key = key_of(context.seed, context.model, context.stage, self.step)
        if not callable(objective):
            found = objective.gradients(self.learner, portion, self.room, key, self.where)
        elif self.shards is not None:
            found = sharded_gradients(self.learner, self.shards, portion, objective, schedule.plain_weight, key)
        else:
            found = gradients(self.learner, portion, objective, schedule.plain_weight, self.room, key, self.where)
        norm = clipped(self.learner.parameters(), schedule.clip_norm)
        if not (math.isfinite(norm) and math.isfinite(found.loss)):
            self._skip(found.loss)
            return found
        self.bad_steps = 0
        self.optimizer.step()
        return found

    def _skip(self, loss: float) -> None:
        self.bad_steps += 1
        self.skipped += 1
        self.context.log.say(f"step {self.step}: the loss is {loss} or its gradient is not finite; the step is skipped")
        if self.bad_steps >= MAX_BAD_STEPS:
            self._give_up(f"{MAX_BAD_STEPS} steps in a row had a loss or gradient that is not finite")

    def _give_up(self, what: str) -> None:
        """TrainingError; the policy gets its best weights back, and the disk gets them too."""
        kept = "the policy has the weights that it began with"
        if self.best is not None:
            self.policy.load_state_dict(self.best)
            kept = f"the policy has its best weights, those of step {self.best_step}"
            if self.context.folder is not None:
                folder, best = self.context.folder / "best", Checkpoint({"best": self.best}, {"step": self.best_step})
                processes.by_main(lambda: save_checkpoint(folder, self.best_step, best))
                kept += f", also in {folder}"
        raise TrainingError(
            f"{what} (stage {self.context.stage!r}, step {self.step}). The stages before it are kept, and {kept}. "
            "Lower its learning rates, or set precision = 'float32'; a changed recipe needs a new --out"
        )

    def after_step(self, found: Found, pairs_per_second: float) -> None:
        self.step += 1
        record = {"loss": found.loss, "pairs_per_second": pairs_per_second, **found.facts}
        evaluated = self.step in self.marks
        every = self.schedule.reset_reference
        if self.shards is not None and (evaluated or (every and self.step % every == 0)):
            self.shards.update()
        if evaluated:
            self.evaluate(record)
        else:
            self.context.log.record(**self._names(), **record)
        if self.moving is not None:
            self.moving.after_step(self.step, evaluated)
        if evaluated:
            self.checkpoint()
        dev = f"dev {self.context.dev.name} {self.best_dev:.3f}  " if self.context.dev else ""
        self.context.log.advance(self.step, f"loss {found.loss:.3f}  {dev}{pairs_per_second:.0f} pairs/s")

    def evaluate(self, record: dict[str, float], known: Mapping[str, float] | None = None) -> None:
        if not all_finite(self.policy.state_dict().values()):
            self._give_up("the weights are not finite any more" if self.step else "the weights given are not finite")
        dev = self.context.dev
        measured: Mapping[str, float] = {} if not dev else known if known is not None else self._measure(dev)
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

    def _measure(self, dev: Dev) -> dict[str, float]:
        began = time.monotonic()
        found = self.room.fitting(lambda: dev.measure(self.policy), lambda: None, 1, self.where)
        self.measuring += time.monotonic() - began
        return found

    def checkpoint(self) -> None:
        limit, patience, folder = self.schedule.minutes, self.schedule.patience, self.context.folder
        late, due = processes.by_main(
            lambda: (
                limit is not None and time.monotonic() - self.began > 60 * limit,
                # Short stages are repeated sooner than saved; a minute is worth the disk.
                time.monotonic() - self.saved >= 60.0,
            )
        )
        self.ended = late or (patience is not None and self.idle >= patience)
        over = self.ended or self.step >= self.total  # what is over is not gone on with
        if folder is None or over or not due:
            return
        tensors = {"weights": self.policy.state_dict(), "optimizer": optimizer_tensors(self.optimizer)}
        if self.best is not None:
            tensors["best"] = self.best
        if self.moving is not None:
            tensors["moving"] = self.moving.tensors()
        state = {"step": self.step, "best_views": self.best_views, "best_step": self.best_step}
        state |= {"skipped": self.skipped, "idle": self.idle}
        processes.by_main(lambda: save_checkpoint(folder, self.step, Checkpoint(tensors, state)))
        self.saved = time.monotonic()

    def finish(self) -> dict[str, Any]:
        folder = self.context.folder
        if self.best is not None:
            self.policy.load_state_dict(self.best)
        self.policy.eval()
        learning = time.monotonic() - self.began - self.measuring
        if self.context.dev and self.measuring > max(60.0, 2 * learning):
            n = len(self.context.dev.lists)
            self.context.log.say(
                f"{self.where}: measuring {n} dev lists took {self.measuring:.0f} s, the rest {learning:.0f} s; fewer "
                "(dev_lists in [[models]]), less depth or fewer evaluations save time"
            )
        if folder is not None:
            processes.by_main(lambda: remove_checkpoints(folder))
        return {
            "steps": self.step,
            "best_step": self.best_step,
            "dev": self.best_dev if self.context.dev else None,
            "dev_views": self.best_views,
            "skipped_steps": self.skipped,
        }

    def _names(self) -> dict[str, Any]:
        return {"model": self.context.model, "stage": self.context.stage, "step": self.step}
