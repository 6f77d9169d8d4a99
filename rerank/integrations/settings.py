"""The settings of adapters that are pydantic models, as LangChain's and LlamaIndex's are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, field_serializer, field_validator, model_validator

from rerank.integrations.first_stage import FirstStage
from rerank.integrations.loading import LazyReranker, check_settings, written
from rerank.reranker import Reranker

Self = TypeVar("Self", bound="RankerSettings")


class RankerSettings(BaseModel):
    """Which reranker, how it is loaded, and what of its ranking is kept."""

    model: str | Reranker = Field(frozen=True)
    """A folder, an id on the hub, or a loaded reranker. Loaded when first used, then kept."""
    top_n: int | None = Field(default=None, ge=1, strict=True)
    """How many documents are kept; all by default."""
    min_probability: float | None = Field(default=None, ge=0.0, le=1.0)
    """Documents that are less probably relevant are dropped; for calibrated models."""
    scores: Literal["relevance", "logit"] = "relevance"
    """relevance: from 0 to 1, the probability where the model is calibrated; logit: the model's own number."""
    first_stage: str | dict[str, str] | None = Field(default=None, frozen=True)
    """Retriever -> where its score is, for a model that was trained with such scores."""
    device: str | None = Field(default=None, frozen=True)
    precision: str | None = Field(default=None, frozen=True)
    max_length: int | None = Field(default=None, frozen=True)
    backend: str | None = Field(default=None, frozen=True)
    reading: dict[str, Any] | None = Field(default=None, frozen=True)
    """These five as in `Reranker.from_pretrained`; None leaves it to decide."""

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid", validate_assignment=True)
    first_stage_remedy: ClassVar[str]
    """What to give where first-stage scores are missing."""

    _ranker: LazyReranker = PrivateAttr()

    def __init__(self, model: str | Path | Reranker | None = None, **settings: Any) -> None:
        super().__init__(model=model, **settings)

    @model_validator(mode="before")
    @classmethod
    def _known(cls, settings: Any) -> Any:
        return check_settings(settings, cls.model_fields)

    @field_validator("model", mode="before")
    @classmethod
    def _as_text(cls, model: Any) -> Any:
        return str(model) if isinstance(model, Path) else model

    @field_serializer("model", when_used="json")
    def _written(self, model: str | Reranker) -> str:
        return written(model)

    def model_post_init(self, context: Any, /) -> None:
        """Check how the model is to be loaded; nothing is read yet."""
        self._ranker = self._lazily()

    def model_copy(self: Self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """A copy, with the model of this one unless `update` wants another, or this one loaded otherwise."""
        made = super().model_copy(update=update, deep=deep)
        wanted = made._lazily()
        made._ranker = made._ranker if made._ranker == wanted else wanted
        return made

    def _lazily(self) -> LazyReranker:
        how = {"device": self.device, "precision": self.precision, "max_length": self.max_length}
        first_stage = FirstStage(self.first_stage, self.first_stage_remedy)
        return LazyReranker(self.model, first_stage, **how, backend=self.backend, reading=self.reading)
