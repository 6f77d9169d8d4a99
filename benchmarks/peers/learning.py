"""The arms: each takes the same network file and training lists, and gives back a policy and what it cost.

Ours

    clone              RankNet on the teacher's orderings
    labels             LambdaRank on the grades
    refined            half of the steps as `clone`, half refinement (exact nDCG@10, log utility, no anchor)
    refined + first stage    `refined` with the first stage's scores as a residual, which CrossEncoder has no place for

sentence-transformers' CrossEncoderTrainer, bf16=True where the machine has it, its losses as they come

    st LambdaLoss      grades; NDCG-Loss2++ weights
    st ListNetLoss     grades (its target is their softmax)
    st RankNetLoss     grades
    st MarginMSELoss   the teacher's scores; a relevant candidate against each of the nine others
    st BCELoss         pairs, grade / highest grade; the negatives are the list's; pos_weight = their ratio, as its
                       documentation has it

Both: AdamW (beta 0.9, 0.98), weight decay .01, clipping at 1, a tenth of the steps warm-up and then linearly to 0 (by
the same function: transformers' own begins with a step at rate 0, which is much of a short training), dropout as the
network has it, the weights of the last step. Time is that of the whole call on our side, from the begin
of the loop to the end of the last step on theirs.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from speed.sides import peer_model

from rerank.composition import FIRST_STAGE
from rerank.engine.precision import compute_dtype
from rerank.models.backbones import load_cross_encoder
from rerank.models.cross_encoder import CrossEncoderScorer
from rerank.models.loading import load_policy, save_policy
from rerank.models.policy import FirstStageWeights, ScorePolicy
from rerank.rewards import ndcg
from rerank.teachers import Judged
from rerank.training import Clone, Context, Refine
from rerank.training.optimizing import rate_share
from rerank.types import CandidateList

from .material import Task
from .plan import DEPTH, HEAD_RATE, LISTS, MAX_LENGTH, MINI_BATCH

OURS = ("clone", "labels", "refined")
THEIRS = ("st LambdaLoss", "st ListNetLoss", "st RankNetLoss", "st MarginMSELoss", "st BCELoss")
WITH_FIRST_STAGE = "refined + first stage"
"""Trained at the rate that was chosen for `refined`."""
WARMUP = 0.1
ARMS = (*OURS, *THEIRS, WITH_FIRST_STAGE)


class Budget(NamedTuple):
    """What a training may use."""

    steps: int
    rate: float
    seed: int


class Learned(NamedTuple):
    """A trained policy and what it cost."""

    policy: ScorePolicy
    seconds: float
    """Of the clock."""
    processor_seconds: float
    """Of the processor: what they would be on a core of one's own."""


def start(folder: Path) -> Path:
    """The folder of MiniLM with mean pooling and one output that is 0 at first, in sentence-transformers' format."""
    if not (folder / "rerank.json").exists():
        scorer, _ = load_cross_encoder("minilm", max_length=MAX_LENGTH, device="cpu")
        save_policy(ScorePolicy(scorer), folder)
    return folder


def learn(arm: str, network: Path, given: Task, budget: Budget) -> Learned:
    """The arm, trained."""
    return _peer(arm, network, given, budget) if arm in THEIRS else _own(arm, network, given, budget)


# ---------------------------------------------------------------------------------------------------------------- ours
def _own(arm: str, network: Path, given: Task, budget: Budget) -> Learned:
    policy = load_policy(str(network), "cpu", "auto", MAX_LENGTH)
    if arm == WITH_FIRST_STAGE:
        initial = {name: float(name == FIRST_STAGE) for name in given.train[0].features}
        policy = ScorePolicy(policy.scorer, FirstStageWeights(initial))
    settings: dict[str, Any] = {
        "lists_per_step": LISTS,
        "list_size": DEPTH,
        "learning_rate": budget.rate,
        "head_learning_rate": HEAD_RATE,
        "warmup": WARMUP,
        "evaluations": 1,
        "select": "last",
    }
    began, worked = time.perf_counter(), time.process_time()
    if arm == "labels":
        settings |= {"loss": "lambda_rank", "steps": budget.steps}
        found = Clone(**settings).run(policy, given.train, Judged()(given.train), Context("labels", seed=budget.seed))
    else:
        cloning = budget.steps if arm == "clone" else budget.steps - budget.steps // 2
        clone = Clone(**settings, steps=cloning)
        found = clone.run(policy, given.train, given.orderings, Context("clone", seed=budget.seed))
        if arm != "clone":
            refine = Refine(**settings, steps=budget.steps // 2, anchor=0.0)
            refine.run(policy, given.train, ndcg(10), Context("refine", seed=budget.seed))
    if found["skipped_steps"] or found["lists"] != len(given.train):
        raise RuntimeError(f"{arm} did not do the work asked for: {found}")
    return Learned(policy, time.perf_counter() - began, time.process_time() - worked)


# -------------------------------------------------------------------------------------------------------------- theirs
def _peer(arm: str, network: Path, given: Task, budget: Budget) -> Learned:
    from transformers import PrinterCallback

    model = peer_model(network, MAX_LENGTH, "cpu")
    rows, rows_a_step, loss = SHAPES[arm](model, given)
    stamps: list[tuple[float, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        trainer = _trainer_class()(
            model=model,
            args=_arguments(folder, rows_a_step, budget),
            train_dataset=rows,
            loss=loss,
            callbacks=[_stamping(stamps)],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    if len(stamps) != 1 + budget.steps:
        raise RuntimeError(f"{arm}: CrossEncoderTrainer made {len(stamps) - 1} steps of {budget.steps}")
    (began, worked), (ended, stopped) = stamps[0], stamps[-1]
    return Learned(ScorePolicy(CrossEncoderScorer(model, MAX_LENGTH)), ended - began, stopped - worked)


def _trainer_class() -> Any:
    """CrossEncoderTrainer with our schedule."""
    from sentence_transformers.cross_encoder import CrossEncoderTrainer
    from torch.optim.lr_scheduler import LambdaLR

    def create_scheduler(self: Any, num_training_steps: int, optimizer: Any = None) -> Any:
        self.lr_scheduler = LambdaLR(
            optimizer or self.optimizer, lambda step: rate_share(step, num_training_steps, WARMUP)
        )
        return self.lr_scheduler

    return type("Trainer", (CrossEncoderTrainer,), {"create_scheduler": create_scheduler})


def _arguments(folder: str, rows_a_step: int, budget: Budget) -> Any:
    from sentence_transformers.cross_encoder import CrossEncoderTrainingArguments

    return CrossEncoderTrainingArguments(
        output_dir=folder,
        max_steps=budget.steps,
        per_device_train_batch_size=rows_a_step,
        dataloader_drop_last=True,
        learning_rate=budget.rate,
        learning_rate_mapping={r"^model\.2\.": HEAD_RATE},
        weight_decay=0.01,
        adam_beta2=0.98,
        seed=budget.seed,
        bf16=compute_dtype("auto", torch.device("cpu")) == torch.bfloat16,
        use_cpu=True,
        dataloader_pin_memory=False,
        save_strategy="no",
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )


def _stamping(stamps: list[tuple[float, float]]) -> Any:
    from transformers import TrainerCallback

    def stamp(*_: object, **__: object) -> None:
        stamps.append((time.perf_counter(), time.process_time()))

    return type("Stamps", (TrainerCallback,), {"on_train_begin": stamp, "on_step_end": stamp})()


Shape = Callable[[Any, Task], tuple[Any, int, Any]]


def _listwise(name: str) -> Shape:
    def shape(model: Any, given: Task) -> tuple[Any, int, Any]:
        from datasets import Dataset
        from sentence_transformers.cross_encoder import losses

        columns: dict[str, list[Any]] = {
            "query": [c.query for c in given.train],
            "docs": [list(c.texts) for c in given.train],
            "labels": [list(map(float, c.labels or ())) for c in given.train],
        }
        return Dataset.from_dict(columns), LISTS, getattr(losses, name)(model, mini_batch_size=MINI_BATCH)

    return shape


def _margins(model: Any, given: Task) -> tuple[Any, int, Any]:
    from datasets import Dataset
    from sentence_transformers.cross_encoder.losses import MarginMSELoss

    said = {o.query_id: dict(zip(o.doc_ids, o.scores or (), strict=True)) for o in given.orderings}
    columns: dict[str, list[Any]] = {"query": [c.query for c in given.train]}
    orders = [_relevant_first(c) for c in given.train]
    for place in range(DEPTH):
        name = "positive" if place == 0 else f"negative_{place}"
        columns[name] = [c.texts[order[place]] for c, order in zip(given.train, orders, strict=True)]
    columns["score"] = [
        [said[c.query_id][c.doc_ids[i]] for i in order] for c, order in zip(given.train, orders, strict=True)
    ]
    return Dataset.from_dict(columns), LISTS, MarginMSELoss(model)


def _relevant_first(candidates: CandidateList) -> list[int]:
    """All indices, that of the first candidate with the highest grade in front."""
    labels = candidates.labels or ()
    best = labels.index(max(labels))
    return [best, *(i for i in range(len(labels)) if i != best)]


def _pairs(model: Any, given: Task) -> tuple[Any, int, Any]:
    from datasets import Dataset
    from sentence_transformers.cross_encoder.losses import BinaryCrossEntropyLoss

    highest = max(max(c.labels or (0,)) for c in given.train)
    rows = [(c.query, t, g / highest) for c in given.train for t, g in zip(c.texts, c.labels or (), strict=True)]
    positive = sum(worth for *_, worth in rows)
    queries, texts, worths = (list(column) for column in zip(*rows, strict=True))
    loss = BinaryCrossEntropyLoss(model, pos_weight=torch.tensor((len(rows) - positive) / positive))
    return Dataset.from_dict({"query": queries, "text": texts, "label": worths}), LISTS * DEPTH, loss


SHAPES: dict[str, Shape] = {
    "st LambdaLoss": _listwise("LambdaLoss"),
    "st ListNetLoss": _listwise("ListNetLoss"),
    "st RankNetLoss": _listwise("RankNetLoss"),
    "st MarginMSELoss": _margins,
    "st BCELoss": _pairs,
}
