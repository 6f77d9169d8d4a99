"""The composition root: the only place where names become objects, and the only importer of concrete rewards, teachers,
retrievers and models."""

from __future__ import annotations

import importlib
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rerank.data import fingerprint
from rerank.errors import InputError, Mismatch, NotFound, RecipeError, nearest, need
from rerank.evaluation.measures import parse_measure
from rerank.models.backbones import backbone_path, is_ranker, language_model, load_cross_encoder, load_encoder
from rerank.models.encoder import VectorStore, named_failures
from rerank.models.language.answering import Answering, Writing
from rerank.models.language.generative import AnyPolicy, GenerativePolicy, GenerativeScorer
from rerank.models.language.listwise import ListwiseScorer
from rerank.models.language.model import context_of, is_language_model, load_tokenizer
from rerank.models.language.reading import Reading
from rerank.models.lora import add_lora
from rerank.models.policy import FirstStageWeights, ScorePolicy
from rerank.recipe import Model, Recipe, Retrieval, TeacherChoice
from rerank.training.refine import Refine
from rerank.training.written.meaning import check_cloning, check_refinement
from rerank.types import CandidateList, Collection, Retriever, Reward, Teacher

if TYPE_CHECKING:
    from rerank.teachers import ChatSettings

Gain = Literal["linear", "exponential"]
Ideal = Literal["candidates", "judged"]
SPELLING = re.compile(r"([A-Za-z]+)(?:\(rel=([1-9]\d*)\))?(?:@([1-9]\d*))?")
"""How a reward is spelled: `nDCG@10`, `RR(rel=2)@10`, `AP`, `ERR@20`."""

GRADED = ("nDCG", "DCG", "ERR")
"""Rewards that do not ask from which grade on a document is relevant."""
NEEDS_CUTOFF = ("R", "P", "Success")
"""Rewards of which document is above the cutoff, in whatever order."""

ANY_LIST = CandidateList("any", "any", ("a", "b"), ("a", "b"), labels=(1, 0), pool=(1,))
"""What a measure is tried on before there are lists."""

FIRST_STAGE = "first stage"
"""The feature that holds the score of the (fused) run itself."""


def reward_of(refine: Refine) -> Reward:
    """The reward that a refinement maximises: one measure or function, or a weighted mixture of several."""
    return _mixed(refine.reward, refine.gain, refine.ideal)


def dev_reward_of(refine: Refine) -> Reward:
    """The reward that selects on dev lists: as `reward_of`, with the ideal over all judged documents."""
    return _mixed(refine.reward, refine.gain, "judged")


def reward_named(name: str, gain: Gain = "linear", ideal: Ideal = "candidates") -> Reward:
    """The reward of a measure (`nDCG@10`, `AP`, ...) or of the user's own (`module:function`, `module:reward`)."""
    from rerank.rewards import REWARDS, FunctionReward, Relabelled

    if ":" in name:
        found = _imported(name)
        # A reward is asked for rankings of a batch, a function for one ranking of one list.
        exact = any(hasattr(found, kind) for kind in ("terms", "expected", "parts"))
        return found if exact or isinstance(found, (FunctionReward, Relabelled)) else FunctionReward(found, name)
    measure, level, cutoff = _spelled(name, REWARDS)
    settings: dict[str, Any] = {"cutoff": cutoff}
    settings |= {"gain": gain} if measure in ("nDCG", "DCG") else {}
    settings |= {"ideal": ideal} if measure in ("nDCG", "R", "AP", "Rprec") else {}
    settings |= {} if measure in GRADED else {"level": level}
    return REWARDS[measure](**settings)


def _spelled(name: str, known: Iterable[str]) -> tuple[str, int, int | None]:
    """(measure, lowest relevant grade, cutoff) of a reward; also of those that the table has no column for."""
    match = SPELLING.fullmatch(name.replace(" ", ""))
    found = {other.casefold(): other for other in known}.get(match[1].casefold()) if match else None
    if match is None or found is None:
        try:
            measure = parse_measure(name)
        except InputError:
            measure = None
        if measure is None or measure.name not in known:
            hint = nearest(re.split("[@(]", name)[0], list(known))  # a cutoff would hide how near the name is
            raise InputError(f"{name!r} is not a reward{hint}; or give your own as module:function")
        return measure.name, measure.rel, measure.cutoff
    if match[2] and found in GRADED:
        raise InputError(f"reward {name!r}: {found} does not depend on a lowest relevant grade; leave (rel=...) out")
    if match[3] is None and found in NEEDS_CUTOFF:
        raise InputError(f"reward {name!r} is the same for every order of a list without a cutoff: write {found}@10")
    return found, int(match[2] or 1), int(match[3]) if match[3] else None


def _mixed(reward: str | Mapping[str, float], gain: Gain, ideal: Ideal) -> Reward:
    from rerank.rewards import mixture

    if isinstance(reward, str):
        return reward_named(reward, gain, ideal)
    weights = dict(reward)
    if not weights or not all(_is_weight(w) for w in weights.values()):
        raise InputError(f"reward = {weights!r}: a mixture names at least one reward, each with a weight above 0")
    return mixture([(reward_named(name, gain, ideal), float(weight)) for name, weight in weights.items()])


def _is_weight(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < 1e6


def _imported(name: str) -> Any:
    module_name, _, attribute = name.partition(":")
    if os.getcwd() not in sys.path:  # `rerank` the command does not look in the current folder by itself
        sys.path.insert(0, os.getcwd())
    try:
        found = getattr(importlib.import_module(module_name), attribute)
    except Exception as error:  # a user's module may fail in any way; the cause is chained
        kind = type(error).__name__
        raise InputError(f"the function {name!r} cannot be imported from {os.getcwd()}: {kind}: {error}") from error
    if not callable(found):
        raise InputError(f"{name!r} is a {type(found).__name__}, not a function")
    return found


def retrievers_of(
    settings: Retrieval, collection: Collection, encoder: VectorStore | None, cache: Path | None = None
) -> list[Retriever]:
    """The retrievers of a recipe over the documents of `collection`; dense indexes are kept in the folder `cache`."""
    from rerank.retrieval.bm25 import BM25

    built: list[Retriever] = []
    for name in settings.retrievers:
        if name == "bm25":
            built.append(BM25.build(collection.documents, language=settings.language))
        elif name == "dense" and encoder is not None:
            built.append(_dense(settings, collection, encoder, cache))
        else:
            raise RecipeError(f"retrieval.retrievers: {name!r} is not known{nearest(name, ['bm25', 'dense'])}")
    return built


def _dense(settings: Retrieval, collection: Collection, encoder: VectorStore, cache: Path | None) -> Retriever:
    from rerank.retrieval.dense import Dense

    if cache is None:
        return Dense.build(collection.documents, encoder, kind=settings.index)
    bare = Collection(collection.documents, {}, name=collection.name)
    folder = cache / f"{settings.index}-{fingerprint(bare)}-{encoder.fingerprint[:16]}"
    try:
        dense = Dense.load(folder, collection.documents, encoder)
    except (NotFound, Mismatch):
        dense = Dense.build(collection.documents, encoder, kind=settings.index)
        dense.save(folder)
    else:
        encoder.add(list(collection.documents.values()), dense.vectors(list(collection.documents)))
    return dense


def check_parts(recipe: Recipe) -> None:
    """Raise what can be known to be wrong before any work: rewards, teachers, files, retrievers."""
    for model in recipe.models:
        refine = recipe.refine_of(model)
        _check_refinement(refine)
        if model.lora:
            need("peft", "lora")
        if model.reads_lists:
            _check_reading(model)
        if model.kind == "generative":
            _check_written(recipe, model)
        if isinstance(refine.reward, str) and ":" in refine.reward:
            reward_named(recipe.evaluation.measures[0])  # selects on dev in place of a reward of the user's own
    _check_sources(recipe)
    _check_teacher(recipe)


def _check_sources(recipe: Recipe) -> None:
    for source in (*recipe.data.train, recipe.data.test):
        for path in (source.run, *source.teachers):
            if path is not None and not (recipe.base / path).is_file():
                raise NotFound(f"data: there is no file {recipe.base / path}")
        if source.candidates == "judged" and not recipe.retrieval.retrievers:
            raise RecipeError("candidates = 'judged' are put in the order of retrieval.retrievers, which is empty")
        if source.run is None and not recipe.retrieval.retrievers:
            raise RecipeError("retrieval.retrievers is empty, and not every source has a run of its own")


def reading_of(model: Model, tokenizer: Any = None) -> Reading:
    """How a language model of a recipe reads lists; its tokenizer knows whether there is a chat template."""
    has_template = bool(getattr(tokenizer, "chat_template", None))
    return Reading.from_dict(
        {
            "window": model.window,
            "document_tokens": model.document_tokens,
            "query_tokens": model.query_tokens,
            "windowing": model.windowing,
            "naming": model.naming,
            "chat": has_template if model.chat == "auto" else model.chat,
            "prompt": model.prompt,
        }
    )


def writing_of(model: Model) -> Writing:
    """What a generative model of a recipe writes."""
    try:
        return Writing(**model.writing)
    except TypeError:
        known = [f.name for f in fields(Writing)]
        wrong = next(name for name in model.writing if name not in known)
        raise InputError(f"writing: {wrong!r} is not known{nearest(wrong, known)}") from None


def _check_reading(model: Model) -> None:
    where = f"model {model.name!r}" if model.name else "model"
    try:
        reading, writing = reading_of(model), writing_of(model)
        reading.windowing.plan(2, model.window).close()
        if writing.places is not None and writing.places > model.window:
            raise InputError(f"writing.places = {writing.places} is more than the window of {model.window} holds")
        if not is_language_model(backbone_path(model.backbone)):
            raise InputError(
                f"backbone = {model.backbone!r} is no causal language model, which kind = {model.kind!r} needs"
            )
        _check_prompts(model, writing)
    except InputError as error:
        raise RecipeError(f"{where}: {error}") from error


def _check_prompts(model: Model, writing: Writing) -> None:
    """Nothing, when a full prompt (and its answer) fits the model; its tokenizer and settings are read, no weights."""
    from transformers import AutoConfig

    path = backbone_path(model.backbone)
    tokenizer = load_tokenizer(path)
    reading = reading_of(model, tokenizer)
    with named_failures(path):
        context = context_of(AutoConfig.from_pretrained(path))
    if model.kind == "listwise":
        reading.prompts(tokenizer).check_context(context)
    else:
        Answering(reading.prompts(tokenizer, thinking=writing.thinking > 0), writing).check_context(context)


def _check_written(recipe: Recipe, model: Model) -> None:
    """Nothing, when the stages of a generative model ask for nothing that only models with scores can do."""
    refine = recipe.refine_of(model)
    for stage, check in (
        ("clone", lambda: check_cloning(recipe.clone_of(model))),
        ("refine", lambda: check_refinement(refine, reward_of(refine))),
        ("control", lambda: check_cloning(recipe.control_of(model))),
    ):
        try:
            check()
        except InputError as error:
            raise RecipeError(f"[{stage}] {error}") from error


def _check_refinement(refine: Refine) -> None:
    names = [refine.reward] if isinstance(refine.reward, str) else list(refine.reward)
    try:
        reward, _ = reward_of(refine), dev_reward_of(refine)
        refine.check(reward)
        # A reward of the user's own may know the lists of the run alone; it is tried on them (`experiment.training`).
        if not any(":" in name for name in names):
            refine.try_on([ANY_LIST], reward)
    except ValueError as error:
        raise RecipeError(f"[refine] reward: {error}") from error


def _check_teacher(recipe: Recipe) -> None:
    teacher, retrievers = recipe.teacher, recipe.retrieval.retrievers
    if teacher.kind == "recorded" and not any(source.teachers for source in recipe.data.train):
        raise RecipeError("teacher.kind = 'recorded' needs teachers = [...] in data.train: paths of recorded orderings")
    if teacher.kind == "scored" and teacher.model is None:
        raise RecipeError("teacher.kind = 'scored' needs teacher.model: a cross-encoder or bi-encoder")
    if teacher.kind == "chat":
        chat_settings(teacher)
    elif teacher.chat:
        raise RecipeError(f"[teacher.chat] is of kind = 'chat'; this teacher is of kind {teacher.kind!r}")
    if teacher.kind == "fused" and not retrievers:
        raise RecipeError("teacher.kind = 'fused' fuses the scores of retrieval.retrievers, which is empty")
    unknown = [name for name in teacher.weights if name not in retrievers]
    if unknown:
        raise RecipeError(f"teacher.weights: no retriever {unknown[0]!r}{nearest(unknown[0], retrievers)}")


def chat_settings(choice: TeacherChoice) -> ChatSettings:
    """The settings of a chat teacher; a wrong one is named."""
    from rerank.teachers import ChatSettings

    known = {f.name: f for f in fields(ChatSettings)}
    for name in choice.chat:
        if name not in known:
            raise RecipeError(f"unknown key 'teacher.chat.{name}'{nearest(name, known)}")
    for name in ("url", "model"):
        if not isinstance(choice.chat.get(name), str):
            raise RecipeError(f'[teacher.chat] needs {name}: url = "http://localhost:8000/v1", model = "NAME"')
    try:
        return ChatSettings(**choice.chat)
    except (InputError, TypeError) as error:
        raise RecipeError(f"[teacher.chat] {error}") from error


def teachers_of(
    choice: TeacherChoice, recordings: Sequence[Path], retrievers: Sequence[str] = (), answers: Path | None = None
) -> list[Teacher]:
    """The teachers of one source.

    `recordings` are the recorded orderings that it names, `retrievers` what `fused` fuses, `answers` the file in which
    a chat teacher keeps what it was told.
    """
    from rerank.teachers import Chat, Fused, Judged, Recorded, Scored

    if choice.kind == "recorded":
        return [Recorded(path, name=path.stem) for path in recordings]
    if choice.kind == "judged":
        return [Judged()]
    if choice.kind == "chat":
        return [Chat(chat_settings(choice), answers)]
    if choice.kind == "scored":
        if choice.model is None:
            raise RecipeError("teacher.kind = 'scored' needs teacher.model: a cross-encoder or bi-encoder")
        return [Scored(_scorer(choice.model), choice.model)]
    return [Fused(dict(choice.weights) or dict.fromkeys(retrievers, 1.0) or None)]


def judged_teacher() -> Teacher:
    """The teacher that orders by the labels: what makes cloning the supervised control."""
    from rerank.teachers import Judged

    return Judged()


def _scorer(name: str) -> Any:
    from rerank.reranker import Reranker

    return Reranker.from_pretrained(name) if is_ranker(name) else load_encoder(name)


def policy_of(model: Model, encoder: VectorStore | None, features: Sequence[str], seed: int) -> AnyPolicy:
    """The untrained policy of a recipe's model: its ranking is the first stage's own, unless its head is trained."""
    from rerank.randomness import seeded

    with seeded(seed, "initial weights", model.name):
        scorer, fresh = _scorer_of(model, encoder)
    if isinstance(scorer, GenerativeScorer):
        return GenerativePolicy(scorer)
    if model.first_stage == "off" or not features:
        return ScorePolicy(scorer, None)
    initial: Mapping[str, float] = {name: 1.0 if name == FIRST_STAGE and fresh else 0.0 for name in features}
    return ScorePolicy(scorer, FirstStageWeights(initial))


def _scorer_of(model: Model, encoder: VectorStore | None) -> tuple[Any, bool]:
    """(scorer, whether its ranking means nothing yet)."""
    if model.kind == "light":
        from rerank.models.light import LightScorer

        if encoder is None:
            raise RecipeError("a light model needs retrieval.encoder")
        return LightScorer(encoder, model.hidden), False  # it begins as cosine
    if model.reads_lists:
        network = language_model(model.backbone, model.precision, None, model.lora, model.checkpointing)
        reading = reading_of(model, network[1])
        if model.kind == "listwise":
            return ListwiseScorer(*network, reading, model.precision), False
        return GenerativeScorer(*network, reading, model.precision, writing_of(model)), False
    scorer, fresh = load_cross_encoder(
        model.backbone, model.max_length, model.pooling, model.precision, windows=model.windows
    )
    scorer.set_dropout(model.dropout)
    return (add_lora(scorer, model.lora) if model.lora else scorer), fresh
