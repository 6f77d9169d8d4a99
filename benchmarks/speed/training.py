"""Training: pairs per second of both sides on the same lists, from the begin of the loop to the end of its last step.

Set-up (loading, optimizer objects, dataset) and saving are not timed on either side, tokenization is on both. Lists
differ from step to step and from round to round, so nothing has been tokenized before. A smaller step of each side
goes before and is not counted; every timed run begins with the untrained checkpoint.

    sentence-transformers   CrossEncoderTrainer, LambdaLoss or ListNetLoss as they come, AdamW, clipping at 1, dropout
                            as configured, float32 (its default) and bf16=True where the machine has it; mini_batch_size
                            once by default (the number of lists in a batch) and once the fastest of a short trial
    ours                    Clone with lambda_rank or list_net on the same grades, default settings, auto and float32

Losses cost next to nothing beside the network; LambdaLoss weighs pairs by NDCG-Loss2++, ours by LambdaRank.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple, final

import torch

from rerank.engine.precision import compute_dtype
from rerank.models.loading import load_policy
from rerank.teachers import Judged
from rerank.training import Clone, Context
from rerank.types import CandidateList

from .material import TRAIN_LENGTH, Material, say, training_lists
from .plan import Plan
from .predicting import pairs_of
from .sides import counted, peer_model, synchronize, true_lengths

OUR_LOSS = {"lambda": "lambda_rank", "listnet": "list_net"}
RATE = 5e-5


class Timed(NamedTuple):
    """What one run took."""

    seconds: float
    with_graph: int
    """Tokens that went through the network with a graph, padding included."""
    without_graph: int


@final
class Clock:
    """Our loop's log, which keeps nothing but the time."""

    def __init__(self, device: str) -> None:
        self.device, self.began, self.ended = device, 0.0, 0.0

    @contextmanager
    def progress(self, title: str, total: int, done: int = 0) -> Iterator[None]:
        """The steps."""
        synchronize(self.device)
        self.began = time.perf_counter()
        yield

    def advance(self, step: int, facts: str) -> None:
        """A step is over."""
        synchronize(self.device)
        self.ended = time.perf_counter()

    def record(self, **facts: object) -> None:
        """Nothing."""

    def say(self, text: str) -> None:
        """Nothing; what the loop says (a skipped step) is no part of a good run, so it is shown."""
        say(f"  {text}")

    def close(self) -> None:
        """Nothing."""


def own_run(
    given: Material, lists: list[CandidateList], loss: str, per_step: int, precision: str, device: str
) -> Timed:
    """Our training, one pass over the lists."""
    policy = load_policy(str(given.checkpoint), device, precision, _length(given))
    clock = Clock(device)
    settings = Clone(
        loss=OUR_LOSS[loss],
        steps=len(lists) // per_step,
        lists_per_step=per_step,
        list_size=len(lists[0]),
        learning_rate=RATE,
        evaluations=1,
        select="last",
    )
    with counted(policy) as seen:
        report = settings.run(policy, lists, Judged()(lists), Context("speed", log=clock))  # type: ignore[arg-type]
    if report["skipped_steps"] or report["lists"] != len(lists):
        raise RuntimeError(f"our training did not do the work asked for: {report}")
    return Timed(clock.ended - clock.began, seen.with_graph, seen.without_graph)


def peer_run(
    given: Material,
    lists: list[CandidateList],
    loss: str,
    per_step: int,
    mini_batch: int | None,
    bf16: bool,
    device: str,
) -> Timed:
    """sentence-transformers' training, one pass over the lists."""
    from datasets import Dataset
    from sentence_transformers.cross_encoder import CrossEncoderTrainer, CrossEncoderTrainingArguments
    from sentence_transformers.cross_encoder.losses import LambdaLoss, ListNetLoss
    from transformers import PrinterCallback

    model = peer_model(given.checkpoint, _length(given), device)
    objective = {"lambda": LambdaLoss, "listnet": ListNetLoss}[loss](model, mini_batch_size=mini_batch)
    dataset = Dataset.from_dict(
        {
            "query": [c.query for c in lists],
            "docs": [list(c.texts) for c in lists],
            "labels": [list(c.labels or ()) for c in lists],
        }
    )
    times: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        arguments = CrossEncoderTrainingArguments(
            output_dir=folder,
            num_train_epochs=1,
            per_device_train_batch_size=per_step,
            learning_rate=RATE,
            bf16=bf16,
            use_cpu=device == "cpu",
            dataloader_pin_memory=device != "cpu",
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            disable_tqdm=True,
        )
        trainer = CrossEncoderTrainer(
            model=model, args=arguments, train_dataset=dataset, loss=objective, callbacks=[_stamps(times, device)]
        )
        trainer.remove_callback(PrinterCallback)
        with counted(model) as seen:
            trainer.train()
    if len(times) != 1 + len(lists) // per_step:
        raise RuntimeError(f"CrossEncoderTrainer made {len(times) - 1} steps of {len(lists) // per_step}")
    return Timed(times[-1] - times[0], seen.with_graph, seen.without_graph)


def _stamps(times: list[float], device: str) -> Any:
    from transformers import TrainerCallback

    def stamp(*_: object, **__: object) -> None:
        synchronize(device)
        times.append(time.perf_counter())

    return type("Stamps", (TrainerCallback,), {"on_train_begin": stamp, "on_step_end": stamp})()


def training(given: Material, plan: Plan, device: str) -> tuple[dict[str, Any], dict[str, float]]:
    """(figures, ratios) of every shape and loss."""
    best, trial, problem = _best_mini_batch(given, plan, device)
    figures: dict[str, Any] = {"max_length": _length(given), "mini_batch_size": {"best": best, "trial": trial}}
    if problem:
        figures["missing"] = {"sentence-transformers": problem}
        say(f"train: sentence-transformers is not there: {problem}")
    ratios: dict[str, float] = {}
    first = 0
    for loss, rounds in plan.losses:
        for n_lists, documents in plan.shapes:
            name = f"{loss}, {n_lists} x {documents}"
            say(f"train {name}: {rounds} rounds of {plan.steps} steps")
            turns = [training_lists(given, n_lists * plan.steps, documents, first + 1000 * r) for r in range(rounds)]
            first += n_lists * plan.steps
            runs = _runs(given, loss, n_lists, None if problem else best, device)
            figures[name] = _measured(given, runs, turns)
            for side, found in figures[name]["sides"].items():
                for against, ratio in found.get("ratios", {}).items():
                    ratios[f"{name}: {side} / {against}"] = ratio
    return figures, ratios


def _runs(
    given: Material, loss: str, per_step: int, best: int | None, device: str
) -> dict[str, Callable[[list[CandidateList]], Timed]]:
    """side -> its training over given lists; without a best mini-batch only ours."""

    def theirs(size: int | None, bf16: bool) -> Callable[[list[CandidateList]], Timed]:
        return lambda lists: peer_run(given, lists, loss, per_step, size, bf16, device)

    found: dict[str, Callable[[list[CandidateList]], Timed]] = {}
    if best is not None:
        found["sentence-transformers float32, default"] = theirs(None, False)
        found["sentence-transformers float32, best"] = theirs(best, False)
        if compute_dtype("auto", torch.device(device)) == torch.bfloat16:
            found["sentence-transformers bfloat16, best"] = theirs(best, True)
    for precision in ("float32", "auto"):
        found[f"ours {precision}"] = partial(
            own_run, given, loss=loss, per_step=per_step, precision=precision, device=device
        )
    return found


def _measured(
    given: Material, runs: dict[str, Callable[..., Timed]], turns: list[list[CandidateList]]
) -> dict[str, Any]:
    times: dict[str, list[Timed]] = {name: [] for name in runs}
    for turn, lists in enumerate(turns):
        names = list(runs)
        for name in names if turn % 2 == 0 else names[::-1]:
            times[name].append(runs[name](lists))
        said = ", ".join(f"{name} {found[-1].seconds:.1f} s" for name, found in times.items())
        say(f"  round {turn + 1}: {said}")
    pairs = [pair for lists in turns for pair in pairs_of(lists)]
    lengths = true_lengths(given.checkpoint, pairs, _length(given))
    sides: dict[str, Any] = {}
    for name, found in times.items():
        seconds = [timed.seconds for timed in found]
        sides[name] = {
            "pairs a second": len(pairs) / sum(seconds),
            "seconds of each round": seconds,
            "tokens with graph": sum(timed.with_graph for timed in found),
            "tokens without graph": sum(timed.without_graph for timed in found),
            "computed tokens with graph a true token": sum(timed.with_graph for timed in found) / sum(lengths),
        }
        if name.startswith("ours"):
            sides[name]["ratios"] = {
                other: statistics.median(a.seconds / b.seconds for a, b in zip(times[other], found, strict=True))
                for other in times
                if not other.startswith("ours")
            }
    return {
        "pairs": len(pairs),
        "true tokens": sum(lengths),
        "mean length": sum(lengths) / len(lengths),
        "mean squared length": sum(n * n for n in lengths) / len(lengths),
        "sides": sides,
    }


def _best_mini_batch(given: Material, plan: Plan, device: str) -> tuple[int | None, dict[str, float], str | None]:
    """(the fastest mini_batch_size, pairs a second of each, why sentence-transformers cannot train); warms up, too."""
    own_run(given, training_lists(given, 1, plan.trial_documents, 20_000), "lambda", 1, "auto", device)
    speeds: dict[int, float] = {}
    try:
        for number, size in enumerate((plan.mini_batch_sizes[0], *plan.mini_batch_sizes)):  # the first is warm-up
            lists = training_lists(given, 1, plan.trial_documents, 20_000 + number)
            speeds[size] = plan.trial_documents / peer_run(given, lists, "lambda", 1, size, False, device).seconds
    except ImportError as error:
        return None, {}, f"{error} (pip install 'sentence-transformers[train]')"
    best = max(speeds, key=lambda size: speeds[size])
    return best, {str(size): speed for size, speed in speeds.items()}, None


def _length(given: Material) -> int:
    return min(TRAIN_LENGTH, given.tasks["trec_dl"].max_length)
