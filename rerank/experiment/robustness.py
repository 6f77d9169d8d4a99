"""What moves a model's rankings that should not: the order in which candidates come, and texts that ask for a place."""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, final

from rerank.data import candidate_lists, load_collection, read_run
from rerank.errors import InputError
from rerank.evaluation.measures import evaluate
from rerank.evaluation.robustness import (
    ATTACKS,
    PLACES,
    Movement,
    Place,
    PositionBias,
    Trial,
    attacked,
    injected,
    mean_bias,
    movements,
    position_bias,
    shuffled,
)
from rerank.experiment.reranking import Loading, with_features
from rerank.models.language.generative import AnyPolicy
from rerank.models.policy import rerank_lists
from rerank.randomness import key_of
from rerank.types import CandidateList, Collection

if TYPE_CHECKING:
    from rich.table import Table

logger = logging.getLogger("rerank.experiment")

MEASURE = "nDCG@10"


@final
@dataclass(frozen=True)
class Robustness:
    """What was found of one model."""

    lists: int
    candidates: float
    """Of a list, the mean."""
    bias: PositionBias
    movements: Sequence[Movement]

    def to_json(self) -> dict[str, Any]:
        """All numbers; null where a figure is not defined."""
        found = {"lists": self.lists, "candidates": self.candidates, "position_bias": asdict(self.bias)}
        return _without_nan(found | {"attacks": [asdict(movement) for movement in self.movements]})

    def sentences(self) -> list[str]:
        """What the numbers say."""
        bias = self.bias
        order = "hardly matters" if bias.tau > 0.9 else "matters" if bias.tau > 0.6 else "decides much of the ranking"
        said = [
            f"the order in which candidates come {order}: rankings of the same list shown in {bias.shuffles} orders "
            f"agree with tau {bias.tau:.2f} and have the same first document in {100 * bias.same_first:.0f} % of pairs"
        ]
        moving = [m for m in self.movements if m.p_value < 0.05 and m.excess > 0]
        if not moving:
            return [*said, "no attack moved its document measurably more than neutral words of the same length did"]
        worst = max(moving, key=lambda m: m.excess)
        return [
            *said,
            f"{len(moving)} of {len(self.movements)} attacks move their document more than neutral words do; worst is "
            f"{worst.attack!r} at the {worst.place}, by {worst.excess:.1f} places (95 % interval "
            f"{worst.interval[0]:.1f} to {worst.interval[1]:.1f})",
        ]


def robustness_of(
    model: str,
    collection: str,
    run: Path,
    depth: int = 20,
    queries: int = 50,
    shuffles: int = 5,
    loading: Loading | None = None,
    seed: int = 0,
) -> Robustness:
    """How far `model` follows the order shown, and what the texts inside of candidates demand, on lists of `run`."""
    if shuffles < 2:
        raise InputError(f"--shuffles {shuffles}: two orders at least are needed to tell what an order does")
    loaded, first = load_collection(collection), read_run(run)
    policy = (loading or Loading()).policy(model)
    lists = [c for c in candidate_lists(loaded, first, depth=depth) if len(c) > 1]
    if not lists:
        raise InputError(f"no query of {run} has two candidates of {collection}: there is no order to look at")
    # By hash of their ids, so that more queries are a superset of fewer.
    chosen = sorted(sorted(lists, key=lambda c: key_of(seed, c.query_id))[:queries], key=lambda c: c.query_id)
    chosen = with_features(policy, model, loaded, first.top(depth), chosen)
    if not policy.in_order:
        logger.warning("%s reads one candidate at a time: the order shown can move nothing but ties", model)
    bias = mean_bias(_biases(policy, chosen, loaded, shuffles, seed))
    _tell_cut(policy, chosen)
    trials = [trial for candidates in chosen for trial in _trials(policy, candidates, seed)]
    return Robustness(len(chosen), sum(map(len, chosen)) / len(chosen), bias, movements(trials, seed))


def _biases(
    policy: AnyPolicy, lists: Sequence[CandidateList], collection: Collection, shuffles: int, seed: int
) -> Iterator[PositionBias]:
    for candidates in lists:
        shown = [shuffled(candidates, key_of(seed, "shown", candidates.query_id, i)) for i in range(shuffles)]
        runs = [rerank_lists(policy, [one], "shown")["served"] for one in shown]
        judged = {candidates.query_id: collection.qrels.get(candidates.query_id, {})}
        ndcg = None
        if any(grade > 0 for grade in judged[candidates.query_id].values()):
            ndcg = [evaluate(run, judged, MEASURE).per_query[MEASURE][candidates.query_id] for run in runs]
        given = [run.doc_ids(candidates.query_id) for run in runs]
        yield position_bias(given, [one.doc_ids for one in shown], ndcg)


def _trials(policy: AnyPolicy, candidates: CandidateList, seed: int) -> Iterator[Trial]:
    """One candidate of the list, any but the best, attacked in every way.

    Where an attack would be cut off with the end of a document, the document is shortened first: before, after and with
    neutral words alike.
    """
    first = _ranks(policy, [candidates])[0]
    below = [i for i, doc_id in enumerate(candidates.doc_ids) if first[doc_id] > 1]
    index = random.Random(key_of(seed, "attacked", candidates.query_id)).choice(below)
    doc_id = candidates.doc_ids[index]
    candidates = _with_room(policy, candidates, index)
    before = _ranks(policy, [candidates])[0]
    ways: list[tuple[str, Place]] = [(attack, place) for attack in ATTACKS for place in PLACES]
    changed = [
        attacked(candidates, index, attack, place, neutral) for attack, place in ways for neutral in (False, True)
    ]
    ranks = _ranks(policy, changed)
    for i, (attack, place) in enumerate(ways):
        after, neutral = ranks[2 * i][doc_id], ranks[2 * i + 1][doc_id]
        yield Trial(candidates.query_id, attack, place, before[doc_id], after, neutral)


class _Room(NamedTuple):
    """What a model reads of the documents of a list."""

    tokenizer: Any
    tokens: int
    attack: int
    """Tokens of the longest attack on this list."""

    @classmethod
    def of(cls, policy: AnyPolicy, query: str) -> _Room | None:
        """None for a light model, whose encoder cuts texts by rules of its own."""
        scorer: Any = policy.scorer
        if hasattr(scorer, "prompts"):
            tokenizer, tokens = scorer.prompts.tokenizer, scorer.prompts.document_tokens
        elif hasattr(scorer, "pairs"):
            tokenizer = scorer.pairs.tokenizer
            tokens = scorer.pairs.max_length - scorer.pairs.n_special - len(_ids(tokenizer, query))
        else:
            return None
        texts = [injected(attack, query, neutral) for attack in ATTACKS for neutral in (False, True)]
        return cls(tokenizer, tokens, max(len(_ids(tokenizer, f"\n{text}\n")) for text in texts))


def _with_room(policy: AnyPolicy, candidates: CandidateList, index: int) -> CandidateList:
    """The list whose candidate at `index` leaves the model room to read the longest attack, as far as that fits."""
    room = _Room.of(policy, candidates.query)
    if room is None:
        return candidates
    ids, kept = _ids(room.tokenizer, candidates.texts[index]), max(0, room.tokens - room.attack)
    if len(ids) <= kept:
        return candidates
    shortened = room.tokenizer.decode(ids[:kept])
    return replace(candidates, texts=(*candidates.texts[:index], shortened, *candidates.texts[index + 1 :]))


def _tell_cut(policy: AnyPolicy, lists: Sequence[CandidateList]) -> None:
    """Nothing; says in how many lists no document has room for the longest attack."""
    rooms = [_Room.of(policy, candidates.query) for candidates in lists]
    cut = sum(room is not None and room.attack > room.tokens for room in rooms)
    if cut:
        logger.warning(
            "in %d of %d lists the longest attack is longer than what the model reads of a document, and is cut",
            *(cut, len(lists)),
        )


def _ids(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]


def _ranks(policy: AnyPolicy, lists: Sequence[CandidateList]) -> list[Mapping[str, int]]:
    """Rank of each document of each list, 1 the best."""
    runs = [rerank_lists(policy, [candidates], "ranks")["served"] for candidates in lists]
    return [
        {doc_id: rank for rank, doc_id in enumerate(run.doc_ids(c.query_id), 1)}
        for run, c in zip(runs, lists, strict=True)
    ]


def robustness_table(found: Robustness) -> Table:
    """The numbers, for the terminal."""
    from rich import box
    from rich.table import Table as RichTable

    title = f"{found.lists} lists of {found.candidates:.0f} candidates, each with one of them attacked"
    table = RichTable(box=box.SIMPLE_HEAD, title=title)
    table.add_column("attack", no_wrap=True)
    table.add_column("at the", no_wrap=True)
    for name in ("gains", "neutral", "difference (95 %)", "first"):
        table.add_column(name, justify="right", no_wrap=True)
    for m in found.movements:
        table.add_row(
            *(m.attack, m.place, f"{m.gained:+.1f}", f"{m.gained_neutral:+.1f}"),
            *(f"{m.excess:+.1f} ({m.interval[0]:+.1f} to {m.interval[1]:+.1f})", f"{100 * m.first:.0f} %"),
        )
    table.caption = (
        "places gained, with an attack and with neutral words as long; how many came first. What is said below takes "
        "all rows as tests of one question (Holm), the intervals do not"
    )
    return table


def _without_nan(found: dict[str, Any]) -> dict[str, Any]:
    """The same with null for NaN, which JSON does not have."""
    text = json.dumps(found)
    return json.loads(text, parse_constant=lambda _: None)
