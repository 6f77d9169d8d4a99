"""The request of each dialect, as a model: what it may hold, and what is said where it does not.

A field that no model here has is ignored with a warning, as clients are newer than servers; those of `NEUTRAL` without
one, because ignoring them is what they ask for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar, final

from pydantic import BaseModel, ConfigDict, ValidationError

from rerank.errors import nearest
from rerank.serving.asking import Refusal
from rerank.serving.wire.bodies import dotted, named
from rerank.serving.wire.fields import (
    TOLD,
    Amiss,
    Documents,
    FirstStage,
    MaxTokens,
    MaybeText,
    MaybeTexts,
    MinProbability,
    Model,
    Place,
    Query,
    RankFields,
    RawScores,
    ReturnDocuments,
    Side,
    Texts,
    TopN,
    TopNOrAll,
    Truncate,
    UseActivation,
)

NEUTRAL: Mapping[str, tuple[Any, ...] | None] = {
    "priority": None,
    "relevant_spans": None,
    "user": None,
    "request_id": None,
    "truncation_direction": ("Right", "right"),
    "truncation_side": ("right",),
    "truncate_prompt_tokens": (-1,),
}
"""Fields of real clients that change nothing here, with the values for which that is so; None: whatever they hold."""

PAIRS = (("text_1", "text_2"), ("queries", "documents"), ("queries", "items"), ("data_1", "data_2"))
"""The names that the two sides of /score's pairs go by."""

FROZEN = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())
Request = TypeVar("Request", bound=BaseModel)


def _any_of(*fields: Sequence[str]) -> ConfigDict:
    """The part of a schema that asks for one of several sets of fields; the others may be there as null."""
    return ConfigDict(json_schema_extra={"anyOf": [{"required": list(names)} for names in fields]})


@final
class RerankRequest(BaseModel):
    """Cohere v1 and v2, Jina, vLLM."""

    model_config = FROZEN
    query: Query
    documents: Documents
    model: Model = None
    top_n: TopNOrAll = None
    return_documents: ReturnDocuments = None
    rank_fields: RankFields = None
    max_tokens_per_doc: MaxTokens = None
    use_activation: UseActivation = None
    raw_scores: RawScores = None
    min_probability: MinProbability = None
    first_stage: FirstStage = None


@final
class TeiRequest(BaseModel):
    """TEI (text-embeddings-inference)."""

    model_config = FROZEN
    query: Query
    texts: Texts
    truncate: Truncate = None
    raw_scores: RawScores = None
    return_text: ReturnDocuments = None
    model: Model = None
    top_n: TopN = None
    min_probability: MinProbability = None
    first_stage: FirstStage = None


@final
class InfinityRequest(BaseModel):
    """Infinity."""

    model_config = FROZEN
    query: Query
    documents: Texts
    model: Model = None
    top_n: TopN = None
    return_documents: ReturnDocuments = None
    raw_scores: RawScores = None
    min_probability: MinProbability = None
    first_stage: FirstStage = None


@final
class VoyageRequest(BaseModel):
    """Voyage."""

    model_config = FROZEN
    query: Query
    documents: Texts
    model: Model = None
    top_k: TopN = None
    return_documents: ReturnDocuments = None
    truncation: Truncate = None
    raw_scores: RawScores = None
    min_probability: MinProbability = None
    first_stage: FirstStage = None


@final
class WeaviateRequest(BaseModel):
    """Weaviate's reranker-transformers: documents, or one property."""

    model_config = FROZEN | _any_of(("documents",), ("property",))
    query: Query
    documents: MaybeTexts = None
    property: MaybeText = None


@final
class ScoreRequest(BaseModel):
    """vLLM's /score: pairs of texts under one of four pairs of names."""

    model_config = FROZEN | _any_of(*PAIRS)
    text_1: Side = None
    text_2: Side = None
    queries: Side = None
    documents: Side = None
    items: Side = None
    data_1: Side = None
    data_2: Side = None
    model: Model = None
    use_activation: UseActivation = None
    raw_scores: RawScores = None


def read(kind: type[Request], body: Mapping[str, Any]) -> Request:
    """The request that a body holds; Refusal 422 that says the first few problems of all of its fields."""
    try:
        return kind.model_validate(body)
    except ValidationError as error:
        problems, missing = _problems(error)
    given = f" (the body has {_listed(body)})" if missing else ""
    raise refused(problems, given) from None


def _problems(error: ValidationError) -> tuple[list[tuple[Place, str]], bool]:
    """([(place, problem)], whether a field is missing).

    Apart from `read`, whose frame the refusal holds: named there, an Amiss would hold itself, and with it the body.
    """
    problems: list[tuple[Place, str]] = []
    missing = False
    for one in error.errors(include_url=False, include_input=False):
        cause = one.get("ctx", {}).get("error")
        found = cause.found if isinstance(cause, Amiss) else [((), "is missing")]
        missing = missing or not isinstance(cause, Amiss)
        problems += [((*one["loc"], *place), problem) for place, problem in found]
    return problems, missing


def refused(problems: Iterable[tuple[Place, str]], given: str = "") -> Refusal:
    """The refusal that names the first few problems, each with its place."""
    said = [f"{dotted(place)}: {problem}" for place, problem in problems]
    more = f"; and {len(said) - TOLD} more problems" if len(said) > TOLD else ""
    return Refusal(422, "; ".join(said[:TOLD]) + more + given)


def ignored(kind: type[BaseModel], body: Mapping[str, Any]) -> tuple[str, ...]:
    """A warning for each field of a body that has no effect, for the first few of them; null says nothing."""
    known = set(kind.model_fields)
    unknown = [name for name, value in body.items() if name not in known and not _neutral(name, value)]
    warnings = [_warning(name, body[name], known) for name in unknown[:TOLD]]
    if len(unknown) > TOLD:
        warnings.append(f"and {len(unknown) - TOLD} more fields that are not known here")
    return tuple(warnings)


def _neutral(name: str, value: Any) -> bool:
    if value is None:
        return True
    values = NEUTRAL.get(name, ())
    return values is None or (isinstance(value, (str, int)) and value in values)


def _warning(name: str, value: Any, known: set[str]) -> str:
    if name in NEUTRAL:
        return f"{name} is {named(value)}, which has no effect here"
    hint = nearest(name[:40], known).split(" (known", 1)[0]
    return f"the field {dotted((name,))} is not known here and was ignored{hint}"


def _listed(body: Mapping[str, Any]) -> str:
    names = [dotted((name,)) for name, _ in zip(body, range(TOLD), strict=False)]
    more = f" and {len(body) - TOLD} more" if len(body) > TOLD else ""
    return f"{', '.join(names)}{more}" if names else "no field"
