"""The arms that a recipe may have: from which weights each one starts, and what it learns from there.

    untrained --Clone(teacher)--> clone --Refine(reward)------------> refined
                                        --Clone(Judged), as long----> labels        control: same labels, supervised
                                        --Clone(teacher), as long---> longer clone  control: same compute
                                        --Refine(corrupted labels)--> random reward, shuffled reward, inverted reward

`controls` in a recipe names the arms beside clone and refined: "labels", "standard", "all", or a list of names. All
arms see the same lists (`[refine] band` is applied once, to the clone and the true labels); those that follow the clone
take as many steps as refinement does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple

from rerank.composition import FIRST_STAGE, judged_teacher, reward_of
from rerank.models.language.generative import AnyPolicy
from rerank.recipe import CONTROLS, Model, Recipe
from rerank.training.clone import Clone
from rerank.training.controls import inverted_labels, random_labels, shuffled_labels, shuffled_orderings
from rerank.training.headroom import has_headroom, movable
from rerank.training.loop import Context
from rerank.training.refine import Refine
from rerank.types import CandidateList, Ordering, Reward

CLONE, REFINED, LABELS = "clone", "refined", "labels"
Group = Literal["main", "control", "corrupted"]
WITHOUT_ANCHOR: dict[str, Any] = {"anchor": 0.0, "reset_reference": 0}


class Task(NamedTuple):
    """What the arms of one model and seed learn from."""

    recipe: Recipe
    model: Model
    cloned: Sequence[CandidateList]
    judged: Sequence[CandidateList]
    orderings: Sequence[Ordering]
    seed: int
    out_of_band: int = 0
    """Judged lists that `[refine] band` left out."""

    @property
    def refine(self) -> Refine:
        """Refinement of `judged`, with its number of steps fixed, so that every arm takes as many."""
        settings = self.recipe.refine_of(self.model)
        return replace(settings, steps=settings.total_steps(sum(map(has_headroom, self.judged))), band=())

    def within_band(self, clone: AnyPolicy) -> Task:
        """The task without the judged lists that, as `clone` ranks them, lie outside of `[refine] band`."""
        settings = self.recipe.refine_of(self.model)
        reward = reward_of(settings)
        usable = movable(self.judged, reward)
        outside = {id(c) for c in usable} - {id(c) for c in settings.within_band(clone, usable, reward, self.seed)}
        return self._replace(judged=[c for c in self.judged if id(c) not in outside], out_of_band=len(outside))


Learn = Callable[[Task, AnyPolicy, Context], dict[str, Any]]


class Arm(NamedTuple):
    """One way to learn."""

    name: str
    start: str | None
    """The arm whose weights it begins with; None: the untrained policy."""
    group: Group
    learn: Learn
    meaning: str


def _clone(task: Task, policy: AnyPolicy, context: Context) -> dict[str, Any]:
    return task.recipe.clone_of(task.model).run(policy, task.cloned, task.orderings, context)


def _clone_shuffled(task: Task, policy: AnyPolicy, context: Context) -> dict[str, Any]:
    orderings = shuffled_orderings(task.orderings, task.seed)
    return task.recipe.clone_of(task.model).run(policy, task.cloned, orderings, context)


def _clone_longer(task: Task, policy: AnyPolicy, context: Context) -> dict[str, Any]:
    clone = task.recipe.clone_of(task.model)
    schedule = task.refine.shared() | WITHOUT_ANCHOR
    longer = Clone(loss=clone.loss, unranked=clone.unranked, fit_first_stage=False, **schedule)
    return longer.run(policy, task.cloned, task.orderings, context)


def _supervised(loss: str | None = None, tempered: bool = False) -> Learn:
    def learn(task: Task, policy: AnyPolicy, context: Context) -> dict[str, Any]:
        control = task.recipe.control_of(task.model)
        control = replace(control, steps=control.steps if control.steps is not None else task.refine.steps)
        control = control if loss is None else replace(control, loss=loss)
        control = replace(control, entropy=task.refine.entropy) if tempered else control
        return control.run(policy, task.judged, list(judged_teacher()(task.judged)), context)

    return learn


def _refined(labels: Callable[[Task], Sequence[CandidateList]] | None = None, **changes: Any) -> Learn:
    def learn(task: Task, policy: AnyPolicy, context: Context) -> dict[str, Any]:
        lists = task.judged if labels is None else labels(task)
        report = replace(task.refine, **changes).run(policy, lists, reward_of(task.refine), context)
        return {**report, "lists_out_of_band": task.out_of_band}

    return learn


_ARMS = (
    Arm(CLONE, None, "main", _clone, "learned from the teacher's orderings alone"),
    Arm(
        LABELS, CLONE, "control", _supervised(), "the control: the clone, then the same labels and steps through {loss}"
    ),
    Arm(REFINED, CLONE, "main", _refined(), "the clone, then {reward} by reinforcement learning"),
    Arm(
        "labels list_net", CLONE, "control", _supervised("list_net"), "the clone, then the same labels through list_net"
    ),
    Arm(
        "labels rank_net", CLONE, "control", _supervised("rank_net"), "the clone, then the same labels through rank_net"
    ),
    Arm("labels softmax", CLONE, "control", _supervised("softmax"), "the clone, then the same labels through softmax"),
    Arm(
        "labels tempered",
        CLONE,
        "control",
        _supervised(tempered=True),
        "the clone, then the same labels through {loss}, its scores divided by the temperature of refinement",
    ),
    Arm(
        "longer clone", CLONE, "control", _clone_longer, "the clone, then as many more steps on the teacher's orderings"
    ),
    Arm(
        "random reward",
        CLONE,
        "corrupted",
        _refined(lambda task: random_labels(task.judged, task.seed)),
        "refined for grades dealt out at random",
    ),
    Arm(
        "shuffled reward",
        CLONE,
        "corrupted",
        _refined(lambda task: shuffled_labels(task.judged, task.seed)),
        "refined for each list's own grades on other candidates",
    ),
    Arm(
        "inverted reward",
        CLONE,
        "corrupted",
        _refined(lambda task: inverted_labels(task.judged)),
        "refined for the worst candidates",
    ),
    Arm("shuffled teacher", None, "corrupted", _clone_shuffled, "a clone of orderings in an order that nobody meant"),
    Arm(
        "refined only",
        None,
        "control",
        _refined(fit_first_stage=True, **WITHOUT_ANCHOR),
        "refined without a clone before",
    ),
    Arm("refined rloo", CLONE, "control", _refined(estimator="rloo"), "the clone, then RLOO on sampled rankings"),
    Arm("refined grpo", CLONE, "control", _refined(estimator="grpo"), "the clone, then GRPO on sampled rankings"),
    Arm("labels refined", LABELS, "control", _refined(), "the label control, then refined"),
    Arm("labels longer", LABELS, "control", _supervised(), "the label control, then as many steps of the same again"),
)
ARMS = {arm.name: arm for arm in _ARMS}


def arms_of(recipe: Recipe) -> list[Arm]:
    """The arms of a recipe in the order in which they are trained: each after the one that it starts from."""
    controls = recipe.controls
    wanted = {CLONE, REFINED, *(CONTROLS[controls] if isinstance(controls, str) else controls)}
    wanted |= {ARMS[name].start for name in wanted} - {None}  # type: ignore[arg-type]
    return [arm for arm in _ARMS if arm.name in wanted]


def corruptible(arms: Sequence[Arm], reward: Reward) -> list[Arm]:
    """The arms without those that refine on corrupted labels, unless `reward` pays by the lists' labels alone.

    Any other reward would still pay for what is true, and what such an arm gains would prove nothing.
    """
    if getattr(reward, "graded", False):
        return list(arms)
    return [arm for arm in arms if arm.group != "corrupted" or arm.start is None]


def meaning_of(arm: Arm, refine: Refine, control: Clone) -> str:
    """What an arm is, in words."""
    reward = refine.reward if isinstance(refine.reward, str) else " + ".join(refine.reward)
    return arm.meaning.format(loss=control.loss, reward=reward)


def questions(arms: Sequence[Arm]) -> list[tuple[str, str]]:
    """The pairs of arms that the table tests: the main question of each arm first."""
    names = [arm.name for arm in arms]
    asked = [(REFINED, name) for name in names if ARMS[name].group == "control"]
    asked += [("labels refined", "labels longer"), ("labels refined", LABELS)]
    asked += [(REFINED, CLONE), (LABELS, CLONE), (CLONE, FIRST_STAGE), (REFINED, FIRST_STAGE)]
    # A corrupted lesson must not help: each is held against what it began with.
    asked += [(name, CLONE) for name in names if ARMS[name].group == "corrupted"]
    return [pair for pair in asked if all(name in names or name == FIRST_STAGE for name in pair)]
