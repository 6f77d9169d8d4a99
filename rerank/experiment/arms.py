"""The arms of one model: clone, then from the clone the refined policy and its control, each with its runs.

    first stage --Clone(teacher)--> clone --Refine(reward)----------> refined
                                          --Clone(Judged), as long--> labels      the same labels, supervised

A finished arm is on disk (weights and facts), so a resumed run goes on with the next one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

from rerank.composition import dev_reward, judged_teacher, policy_of, reward_named
from rerank.data import write_run
from rerank.errors import InputError
from rerank.experiment.lists import Lists
from rerank.experiment.reranking import RETRIEVAL
from rerank.experiment.workspace import Workspace, write_json
from rerank.models.encoder import VectorStore
from rerank.models.loading import save_policy
from rerank.models.policy import ScorePolicy, rerank_lists, with_rest
from rerank.recipe import Model
from rerank.training.checkpoint import Checkpoint, latest_checkpoint, save_checkpoint
from rerank.training.loop import Context, Dev
from rerank.training.refine import has_headroom
from rerank.types import CandidateList, Ordering, Run

CLONE, REFINED, LABELS = "clone", "refined", "labels"


class Arms(NamedTuple):
    """What one model added to the run."""

    runs: dict[str, Run]
    against: list[tuple[str, str]]
    """Pairs of arms that the table tests."""
    seconds: dict[str, float]


def arm_name(model: Model, stage: str) -> str:
    """How the table calls a stage of a model."""
    return f"{model.name} {stage}" if model.name else stage


def train_arms(
    work: Workspace, model: Model, encoder: VectorStore | None, lists: Lists, orderings: Sequence[Ordering]
) -> Arms:
    """Train all arms of one model and rank the test lists with each; the refined policy is saved as the model."""
    recipe = work.recipe
    trainer = _Trainer(work, model, lists)
    features = tuple(lists.test.lists[0].features)
    policy = policy_of(model, encoder, features, recipe.seed)
    cloned = [c for part in lists.train for c in part.lists]
    judged = lists.judged()

    if not any(has_headroom(c) for c in judged):
        raise InputError(
            f"none of the {len(judged)} judged training lists holds candidates of two different grades: there is "
            "nothing to learn from labels. Deepen the first stage (retrieval.depth), or check the judgements"
        )
    clone, refine, control = recipe.clone_of(model), recipe.refine_of(model), recipe.control_of(model)
    trainer.arm(policy, CLONE, lambda context: clone.run(policy, cloned, orderings, context))
    start = {name: tensor.clone() for name, tensor in policy.state_dict().items()}
    supervised = list(judged_teacher()(judged))
    trainer.arm(policy, LABELS, lambda context: control.run(policy, judged, supervised, context))
    policy.load_state_dict(start)
    reward = reward_named(refine.reward)
    trainer.arm(policy, REFINED, lambda context: refine.run(policy, judged, reward, context))

    folder = work.out / "model" / model.name if model.name else work.out / "model"
    save_policy(policy, folder)
    write_json(folder / RETRIEVAL, asdict(recipe.retrieval))
    return Arms(trainer.runs, trainer.against(), trainer.seconds)


def keep_run(work: Workspace, run: Run) -> None:
    """Write what an arm ranked to `runs/ARM.trec`."""
    folder = work.out / "runs"
    folder.mkdir(exist_ok=True)
    write_run(run, folder / f"{run.name.replace(' ', '-')}.trec")


class _Trainer:
    def __init__(self, work: Workspace, model: Model, lists: Lists) -> None:
        self.work, self.model, self.lists = work, model, lists
        self.runs: dict[str, Run] = {}
        self.seconds: dict[str, float] = {}
        reward = work.recipe.refine_of(model).reward
        measure = reward if ":" not in reward else work.recipe.evaluation.measures[0]
        self.start: dict[str, float] | None = None
        self.dev = Dev([_cut(c, model.depth) for c in lists.dev[: model.dev_lists]], dev_reward(measure), measure)

    def arm(self, policy: ScorePolicy, stage: str, learn: Callable[[Context], dict[str, Any]]) -> None:
        """Train one arm in place (or load it where an interrupted run had finished it) and rank the test lists."""
        name = arm_name(self.model, stage)
        folder = self.work.out / "arms" / name.replace(" ", "-")
        done = latest_checkpoint(folder) if self.work.resume else None
        if done is None:
            began = time.monotonic()
            facts = learn(self._context(stage))
            if stage == CLONE:
                self._choose_view(policy, facts)
            facts["seconds"] = round(time.monotonic() - began, 1)
            save_checkpoint(folder, 0, Checkpoint({"weights": policy.state_dict()}, _with_view(facts, policy)))
            self._tell(name, stage, facts)
        else:
            policy.load_state_dict(dict(done.tensors["weights"]))
            facts = dict(done.state)
            if policy.first_stage is not None:
                policy.first_stage.active = facts["first_stage"]
            self.work.log.say(f"{name}: taken from {folder}")
        if stage == CLONE:
            self.start = _views_after(policy, facts["dev_views"])
        self.seconds[name] = facts["seconds"]
        self._rank(policy, name)

    def _context(self, stage: str) -> Context:
        work = self.work
        name = self.model.name or "model"
        folder = work.out / "arms" / f"{name}-{stage}-unfinished"
        return Context(stage, name, work.recipe.seed, folder, work.resume, work.log, self.dev, self.start)

    def _choose_view(self, policy: ScorePolicy, facts: dict[str, Any]) -> None:
        """Switch the first-stage residual off where the plain scores rank the dev lists better."""
        if policy.first_stage is None or self.model.first_stage != "auto":
            return
        measured = facts["dev_views"]
        policy.first_stage.active = measured["served"] >= measured["plain"]
        word = "on" if policy.first_stage.active else "off"
        self.work.note(
            f"{arm_name(self.model, 'scores')}: first-stage scores are {word} "
            f"(dev {self.dev.name} {measured['served']:.3f} with, {measured['plain']:.3f} without)"
        )

    def _tell(self, name: str, stage: str, facts: Mapping[str, Any]) -> None:
        self.work.log.say(
            f"{name}: dev {self.dev.name} {facts['dev']:.3f} at step {facts['best_step']} of {facts['steps']}, "
            f"{facts['lists']} lists, {facts['seconds']:.0f} s"
        )
        plain = facts["dev_views"].get("plain", facts["dev"])
        if stage == REFINED and plain < facts["dev"] - 0.05:
            self.work.note(
                f"{name}: without first-stage scores it ranks much worse (dev {self.dev.name} {plain:.3f} against "
                f"{facts['dev']:.3f}): use it with them, or train it longer"
            )
        if facts["best_step"] == 0:
            given = "the first stage with fitted weights" if stage == CLONE else "the clone"
            self.work.note(f"{name}: no step beat {given} on the dev lists, so that itself is handed over")
        for key, text in (
            ("lists_without_headroom", "lists have nothing to gain and were dropped"),
            ("lists_without_ordering", "lists were not ordered by the teacher and were left out"),
            ("skipped_steps", "steps were skipped: their loss was not finite"),
        ):
            if facts.get(key):
                self.work.note(f"{name}: {facts[key]} {text}")

    def _rank(self, policy: ScorePolicy, name: str) -> None:
        test = self.lists.test.lists
        with self.work.timed("rank the test lists"):
            views = rerank_lists(policy, [_cut(c, self.model.depth) for c in test], name)
        for view, run in views.items():
            arm = name if view == "served" else f"{name} alone"
            if view != "served" and not name.endswith(REFINED):
                continue
            self.runs[arm] = with_rest(run, test, arm)
            keep_run(self.work, self.runs[arm])

    def against(self) -> list[tuple[str, str]]:
        """The questions that the table answers about this model, the main one of each arm first."""
        clone, refined, labels = (arm_name(self.model, stage) for stage in (CLONE, REFINED, LABELS))
        return [(refined, labels), (refined, clone), (labels, clone), (clone, "first stage"), (refined, "first stage")]


def _views_after(policy: ScorePolicy, measured: Mapping[str, float]) -> dict[str, float]:
    """What dev measures of the policy as it stands, from the views of the stage before."""
    if policy.first_stage is not None and not policy.first_stage.active:
        return {"served": measured.get("plain", measured["served"])}
    return dict(measured)


def _with_view(facts: Mapping[str, Any], policy: ScorePolicy) -> dict[str, Any]:
    return {**facts, "first_stage": policy.first_stage is not None and policy.first_stage.active}


def _cut(candidates: CandidateList, depth: int | None) -> CandidateList:
    return candidates if depth is None else candidates.subset(range(min(depth, len(candidates))))
