"""One model of a run: each of its arms is trained with each seed and ranks the test lists; one model is kept.

A finished arm is on disk (weights and facts), so a resumed run goes on with the next one.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from rerank.composition import FIRST_STAGE, dev_reward_of, policy_of, reading_of, reward_named, reward_of
from rerank.engine.processes import agreed, by_main
from rerank.errors import InputError, TrainingError
from rerank.experiment.arms import CLONE, REFINED, Arm, Task, arms_of, corruptible, questions
from rerank.experiment.calibrating import calibrate
from rerank.experiment.lists import Lists
from rerank.experiment.ranking import keep_run, ranked
from rerank.experiment.reranking import RETRIEVAL
from rerank.experiment.teaching import Orderings
from rerank.experiment.workspace import Workspace, write_json
from rerank.models.encoder import VectorStore
from rerank.models.language.generative import AnyPolicy
from rerank.models.loading import save_policy
from rerank.models.policy import ScorePolicy, with_rest
from rerank.randomness import generator
from rerank.recipe import Model, Recipe
from rerank.training.audit import audit
from rerank.training.checkpoint import Checkpoint, latest_checkpoint, save_checkpoint
from rerank.training.diagnosis import diagnose, weights_changed
from rerank.training.headroom import has_headroom
from rerank.training.loop import Context, Dev
from rerank.training.paid import name_of
from rerank.types import CandidateList, Reward, Run

AUDITED, DIAGNOSED = 128, 64
"""Judged lists that an audit, dev lists that a diagnosis looks at: a cross-encoder has to score them all."""
FEW_DEV = 8
"""Dev lists below which what they select is said to be chance."""
TRIED = 4
"""Judged lists that a reward is tried on before anything is learned."""


@final
@dataclass
class Trained:
    """What one model added to the run so far."""

    runs: dict[str, list[Run]] = field(default_factory=dict)
    """Arm -> its run of each seed."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Arm -> what it took, the mean over seeds."""
    diagnosis: dict[str, Any] = field(default_factory=dict)
    """Arm -> what training did (first seed)."""
    audit: dict[str, Any] = field(default_factory=dict)
    calibration: dict[str, Any] = field(default_factory=dict)
    against: list[tuple[str, str]] = field(default_factory=list)
    """Pairs of arms that the table tests."""
    groups: dict[str, str] = field(default_factory=dict)
    """Arm -> main, control or corrupted."""
    learned: dict[str, dict[int, dict[str, Any]]] = field(default_factory=dict)
    """Arm -> seed -> steps, the best of them, lists."""
    kept_seed: int | None = None
    """The seed of the refined model that is saved."""


def arm_name(model: Model, stage: str) -> str:
    """How the table calls an arm of a model."""
    return f"{model.name} {stage}" if model.name and stage != FIRST_STAGE else stage


def model_folder(out: Path, model: Model) -> Path:
    """Where a run in `out` keeps the refined model."""
    return out / "model" / model.name if model.name else out / "model"


def check_lists(recipe: Recipe, lists: Lists) -> None:
    """Nothing, when all models of a recipe can learn from its lists and rank them; told before a teacher is asked."""
    judged, ranked = lists.judged(), (*lists.dev, *lists.test.lists)
    if not any(has_headroom(c) for c in judged):
        raise InputError(
            f"none of the {len(judged)} judged training lists holds candidates of two different grades: there is "
            "nothing to learn from labels. Deepen the first stage (retrieval.depth), or check the judgements"
        )
    for model in recipe.models:
        refine = recipe.refine_of(model)
        refine.try_on(judged[:TRIED], reward_of(refine))
        if model.reads_lists:
            longest = max((len(_cut(c, model.depth)) for c in ranked), default=0)
            reading_of(model).windowing.plan(longest, model.window).close()


@final
class ModelTraining:
    """All arms and seeds of one model of a recipe."""

    def __init__(
        self, work: Workspace, model: Model, encoder: VectorStore | None, lists: Lists, orderings: Orderings
    ) -> None:
        self.work, self.model, self.encoder, self.lists, self.orderings = work, model, encoder, lists, orderings
        refine = work.recipe.refine_of(model)
        self.arms = self._arms(reward_of(refine))
        self.found = Trained(
            against=[(arm_name(model, a), arm_name(model, b)) for a, b in questions(self.arms)],
            groups={arm_name(model, arm.name): arm.group for arm in self.arms},
        )
        own = isinstance(refine.reward, str) and ":" in refine.reward
        # What a function of the user's own pays for need not be what is reported.
        reward = reward_named(work.recipe.evaluation.measures[0], ideal="judged") if own else dev_reward_of(refine)
        name = refine.reward if isinstance(refine.reward, str) else str(getattr(reward, "name", "mixture"))
        name = work.recipe.evaluation.measures[0] if own else name
        if own and refine.select == "best":
            work.note(
                f"{arm_name(model, REFINED)}: steps are selected by {name} on dev, not by {refine.reward}, which may "
                'pay for something else; select = "last" in [refine] keeps the last step'
            )
        self.dev = Dev([_cut(c, model.depth) for c in lists.dev[: model.dev_lists]], reward, name)
        if len(self.dev.lists) < FEW_DEV and refine.select == "best":
            work.note(
                f"only {len(self.dev.lists)} dev lists select weights and settings, which is little more than chance: "
                'raise data.dev, give more judged queries, or set select = "last" in [clone] and [refine]'
            )
        self.kept: float | None = None
        """What dev measured of the refined model that is saved; the best seed's is."""

    def _arms(self, reward: Reward) -> list[Arm]:
        """The arms of the recipe that say something about `reward`; the others are left out aloud."""
        wanted = arms_of(self.work.recipe)
        kept = corruptible(wanted, reward)
        if len(kept) < len(wanted):
            left = ", ".join(arm_name(self.model, arm.name) for arm in wanted if arm not in kept)
            self.work.note(
                f"left out: {left}. {name_of(reward)} pays by something else than the lists' labels, so it would stay "
                "true, at least in part, when these are corrupted"
            )
        return kept

    def leave_out(self, arm: Arm, why: str) -> None:
        """Go on without an arm that cannot be trained, for this seed and those to come."""
        self.work.note(f"{arm_name(self.model, arm.name)} is left out: {why}")
        self.arms = [other for other in self.arms if other is not arm]

    def seed(self, number: int) -> Trained:
        """Train all arms with seed `number` (0 is the first); what the model added to the run up to now."""
        recipe, model = self.work.recipe, self.model
        features = tuple(self.lists.test.lists[0].features)
        policy = policy_of(model, self.encoder, features, recipe.seed + number)
        one = _Seed(self, policy, number)
        for arm in self.arms:
            one.arm(arm)
            if arm.name == REFINED:
                self._keep(policy, one.views[REFINED].get("served", 0.0), recipe.seed + number)
        return self.found

    def _keep(self, policy: AnyPolicy, dev: float, seed: int) -> None:
        """Calibrate and save the refined policy, unless an earlier seed's was better on dev."""
        if self.kept is not None and dev <= self.kept:
            return
        self.kept, self.found.kept_seed = dev, seed
        by_main(lambda: self._save(policy))
        policy.calibration = None  # the arms that follow learn from uncalibrated weights

    def _save(self, policy: AnyPolicy) -> None:
        recipe, model, work = self.work.recipe, self.model, self.work
        test = [_cut(c, model.depth) for c in self.lists.test.lists]
        facts = calibrate(work, recipe.calibrate, policy, self.dev.lists, test)
        if facts is not None:
            self.found.calibration[model.name or "model"] = facts
        folder = model_folder(work.out, model)
        save_policy(policy, folder)
        write_json(folder / RETRIEVAL, asdict(recipe.retrieval))


class _Seed:
    """The arms of one seed, one after another in one policy whose weights change."""

    def __init__(self, training: ModelTraining, policy: AnyPolicy, number: int) -> None:
        self.training, self.policy, self.number = training, policy, number
        self.work, self.model, self.found = training.work, training.model, training.found
        self.dev = training.dev
        recipe, lists = self.work.recipe, training.lists
        cloned = [c for part in lists.train for c in part.lists]
        self.task = Task(recipe, self.model, cloned, lists.judged(), training.orderings.train, recipe.seed + number)
        self.starts = {arm.start for arm in training.arms}
        self.weights: dict[str | None, dict[str, Tensor]] = {None: _copied(policy)}
        self.active: dict[str | None, bool] = {None: policy.first_stage is not None and policy.first_stage.active}
        self.views: dict[str | None, dict[str, float]] = {}

    def arm(self, arm: Arm) -> None:
        """Train one arm (or load it where an interrupted run had finished it) and rank the test lists."""
        if arm.start not in self.weights:
            self.training.leave_out(arm, f"there is no {arm.start} to begin with")
            return
        name = arm_name(self.model, arm.name)
        self._start_from(arm.start)
        folder = self.work.out / "arms" / f"{name.replace(' ', '-')}{self._suffix()}"
        done = latest_checkpoint(folder) if self.work.resume else None
        agreed(f"whether {name} is finished", done is not None)
        diagnosed = self.number > 0 or (done is not None and "diagnosis" in done.state)
        before = None if diagnosed else copy.deepcopy(self.policy)
        try:
            facts = self._learn(arm, name, folder) if done is None else self._take(done, name, folder)
        except (InputError, TrainingError) as error:
            if arm.group == "main":
                raise
            self.training.leave_out(arm, str(error))
            return
        if before is not None:
            facts["diagnosis"] = self._diagnose(arm, before)
            self.work.log.record(model=self.model.name or "model", stage=arm.name, diagnosis=facts["diagnosis"])
            self._save(folder, facts)
        self.views[arm.name] = _views_after(self.policy, facts["dev_views"])
        if arm.name in self.starts:
            self.weights[arm.name] = _copied(self.policy)
            self.active[arm.name] = facts["first_stage"]
        if arm.name == CLONE:
            self.task = self.task.within_band(self.policy)
        self._add(name, arm, facts)

    def _start_from(self, start: str | None) -> None:
        self.policy.load_state_dict(self.weights[start])
        self._switch(self.active[start])

    def _switch(self, active: bool) -> None:
        if self.policy.first_stage is not None:
            self.policy.first_stage.active = active

    def _learn(self, arm: Arm, name: str, folder: Path) -> dict[str, Any]:
        """The facts of an arm that is trained now; saved before anything else is asked of it."""
        said = len(self.work.notes)
        began = time.monotonic()
        first = arm.name == REFINED and self.number == 0
        # An audit computes what a Plackett-Luce policy can expect, which a model that writes is not.
        audited = self._audit() if first and isinstance(self.policy, ScorePolicy) else None
        facts = arm.learn(self.task, self.policy, self._context(arm))
        if arm.start is None:
            self._choose_view(name, facts)
        facts["seconds"] = round(time.monotonic() - began, 1)
        facts["first_stage"] = self.policy.first_stage is not None and self.policy.first_stage.active
        if audited is not None:
            facts["audit"] = audited
        self._tell(name, arm, facts)
        self._tell_faults(name)
        facts["notes"] = self.work.notes[said:]
        self._save(folder, facts)
        return facts

    def _tell_faults(self, name: str) -> None:
        """Nothing; notes how many of the answers that were written since the last time were malformed."""
        faults = getattr(self.policy, "faults", None)
        if faults and faults["malformed"]:
            self.work.note(
                f"{name}: {faults['malformed']} of {faults['answers']} answers of the model were malformed; what they "
                "leave out follows in first-stage order, so a score near the first stage's says nothing of the model"
            )
        if faults:
            faults.clear()

    def _take(self, done: Checkpoint, name: str, folder: Path) -> dict[str, Any]:
        """The facts of an arm that an interrupted run had finished."""
        self.policy.load_state_dict(dict(done.tensors["weights"]))
        facts = dict(done.state)
        self._switch(facts["first_stage"])
        self.work.log.say(f"{name}: taken from {folder}")
        for text in facts.get("notes", ()):  # what was to be said about it is to be said again
            self.work.note(text)
        return facts

    def _save(self, folder: Path, facts: Mapping[str, Any]) -> None:
        made = Checkpoint({"weights": self.policy.state_dict()}, facts)
        by_main(lambda: save_checkpoint(folder, 0, made))

    def _context(self, arm: Arm) -> Context:
        work = self.work
        name = self.model.name or "model"
        stage = arm.name.replace(" ", "-")
        folder = work.out / "arms" / f"{name.replace(' ', '-')}-{stage}{self._suffix()}-unfinished"
        known = self.views.get(arm.start) if arm.start is not None else None
        label = arm.name if self.number == 0 else f"{arm.name} seed {self.number}"
        return Context(label, name, self.task.seed, folder, work.resume, work.log, self.dev, known)

    def _suffix(self) -> str:
        return f"-seed-{self.number}" if self.number else ""

    def _audit(self) -> dict[str, Any]:
        """What can be known of refinement before it begins: one forward pass over a sample of the judged lists."""
        judged = self.training.lists.judged()  # also those outside of the band
        order = torch.randperm(len(judged), generator=generator(self.task.seed, "audit")).tolist()[:AUDITED]
        some = [_cut(judged[i], self.model.depth) for i in sorted(order)]
        found = audit(self.policy, some, reward_of(self.task.refine), seed=self.task.seed)
        self.work.log.say(f"{arm_name(self.model, REFINED)}: audit: {found.advice()}")
        if found.pays_nothing:
            self.work.note(f"{arm_name(self.model, REFINED)}: {found.advice()}")
        return found.to_json()

    def _diagnose(self, arm: Arm, began: AnyPolicy) -> dict[str, Any]:
        """What the arm's training did to the policy, on dev lists."""
        found = diagnose(
            self.policy,
            self.dev.lists[:DIAGNOSED],
            reward_of(self.task.refine),
            reference=began if arm.start is not None else None,
            orderings=self.training.orderings.dev,
            seed=self.task.seed,
        )
        return found | {"weights_changed": weights_changed(began.state_dict(), self.policy.state_dict())}

    def _choose_view(self, name: str, facts: dict[str, Any]) -> None:
        """Switch the first-stage residual off where the plain scores rank the dev lists better."""
        if self.policy.first_stage is None or self.model.first_stage != "auto" or "plain" not in facts["dev_views"]:
            return
        measured = facts["dev_views"]
        self.policy.first_stage.active = measured["served"] >= measured["plain"]
        word = "on" if self.policy.first_stage.active else "off"
        self.work.note(
            f"{name}{self._suffix().replace('-', ' ')}: first-stage scores are {word} "
            f"(dev {self.dev.name} {measured['served']:.3f} with, {measured['plain']:.3f} without)"
        )

    def _tell(self, name: str, arm: Arm, facts: Mapping[str, Any]) -> None:
        seed = f" (seed {self.number})" if self.number else ""
        served = _views_after(self.policy, facts["dev_views"])["served"]  # of what is handed over
        self.work.log.say(
            f"{name}{seed}: dev {self.dev.name} {served:.3f} at step {facts['best_step']} of {facts['steps']}, "
            f"{facts['lists']} lists, {facts['seconds']:.0f} s"
        )
        plain = facts["dev_views"].get("plain", served)
        if arm.name == REFINED and plain < served - 0.05:
            self.work.note(
                f"{name}: without first-stage scores it ranks much worse (dev {self.dev.name} {plain:.3f} against "
                f"{served:.3f}): use it with them, or train it longer"
            )
        if facts["best_step"] == 0 and arm.group != "corrupted":
            given = "what it began with" if arm.start is None else f"the {arm.start}"
            self.work.note(f"{name}{seed}: no step beat {given} on the dev lists, so that itself is handed over")
        # A control's teacher is the labels.
        unordered = "their labels order nothing" if arm.group == "control" else "the teacher did not order them"
        for key, text in (
            ("lists_without_headroom", "lists have nothing to gain and were dropped"),
            ("lists_out_of_band", "lists lie outside the pass band and were left out"),
            ("lists_without_ordering", f"lists were left out: {unordered}"),
            ("skipped_steps", "steps were skipped: their loss was not finite"),
        ):
            if facts.get(key) and self.number == 0 and arm.group != "corrupted":
                self.work.note(f"{name}: {facts[key]} {text}")

    def _add(self, name: str, arm: Arm, facts: Mapping[str, Any]) -> None:
        """The arm's rankings of the test lists and its facts, added to what the model has found."""
        test, found = self.training.lists.test.lists, self.found
        with self.work.timed("rank the test lists"):
            views = ranked(self.policy, [_cut(c, self.model.depth) for c in test], name, self.work.log)
        for view, run in views.items():
            label = name if view == "served" else f"{name} alone"
            if view != "served" and arm.name != REFINED:
                continue
            whole = with_rest(run, test, label)
            found.runs.setdefault(label, []).append(whole)
            keep_run(self.work, whole, self.number)
        before = found.seconds.get(name, 0.0)
        found.seconds[name] = round(before + (facts["seconds"] - before) / (self.number + 1), 1)
        known = {key: facts[key] for key in ("steps", "best_step", "lists") if key in facts}
        found.learned.setdefault(name, {})[self.task.seed] = known
        if "diagnosis" in facts:
            found.diagnosis[name] = facts["diagnosis"]
        if "audit" in facts:
            found.audit[self.model.name or "model"] = facts["audit"]


def _copied(policy: AnyPolicy) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in policy.state_dict().items()}


def _views_after(policy: AnyPolicy, measured: Mapping[str, float]) -> dict[str, float]:
    """What dev measures of the policy as it stands, from the views of the stage before."""
    if policy.first_stage is not None and not policy.first_stage.active:
        return {"served": measured.get("plain", measured["served"])}
    return dict(measured)


def _cut(candidates: CandidateList, depth: int | None) -> CandidateList:
    return candidates if depth is None else candidates.subset(range(min(depth, len(candidates))))
