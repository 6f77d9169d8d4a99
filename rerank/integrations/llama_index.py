"""A reranker for LlamaIndex: a node postprocessor.

    from rerank.integrations.llama_index import RerankPostprocessor

    postprocessor = RerankPostprocessor(model="runs/quickstart/model/light", top_n=3)
    for found in postprocessor.postprocess_nodes(nodes, query_str="who wrote Faust"):
        print(found.score, found.node.get_content())

It goes into `index.as_query_engine(node_postprocessors=[postprocessor])`, and takes its turn after the retriever.
What is read of a node is its text with the metadata that it shows to embeddings, as LlamaIndex' own rerankers do.
Extra: `llama-index`.

Scores are from 0 to 1, as in all adapters for applications: the probability of relevance where the model is calibrated,
else the logistic of the logit; `scores="logit"` gives logits. A model that was trained with first-stage scores gets
them from the nodes: `first_stage="bm25"` says that a node's own score is that of bm25, `{"bm25": "score", "dense":
"dense_score"}` that dense's is in the metadata (exclude it there from what embeddings see: it would be read as text).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal, final

from rerank.errors import InputError, need
from rerank.integrations.first_stage import OWN, FirstStage
from rerank.integrations.loading import LazyReranker, check_settings, written
from rerank.reranker import Reranker

try:
    from llama_index.core.callbacks import CBEventType, EventPayload
    from llama_index.core.instrumentation import get_dispatcher
    from llama_index.core.instrumentation.events.rerank import ReRankEndEvent, ReRankStartEvent
    from llama_index.core.postprocessor.types import BaseNodePostprocessor
    from llama_index.core.schema import MetadataMode, NodeWithScore, QueryBundle
    from pydantic import ConfigDict, Field, PrivateAttr, field_serializer, field_validator, model_validator
except ModuleNotFoundError:
    need("llama_index.core.instrumentation.events.rerank", "llama-index")
    raise


@final
class RerankPostprocessor(BaseNodePostprocessor):
    """The nodes best first, in the order of `Reranker.rank`, each with its score; those given are left as they are."""

    model: str | Reranker = Field(frozen=True)
    """A folder, an id on the hub, or a loaded reranker. Loaded when first used, then kept."""
    top_n: int | None = Field(default=None, ge=1, strict=True)
    """How many nodes are kept; all by default."""
    min_probability: float | None = Field(default=None, ge=0.0, le=1.0)
    """Nodes that are less probably relevant are dropped; for calibrated models."""
    scores: Literal["relevance", "logit"] = "relevance"
    """relevance: from 0 to 1, the probability where the model is calibrated; logit: the model's own number."""
    keep_retrieval_score: bool = False
    """Whether the retriever's score is kept, as `retrieval_score` in the metadata of a copy of the node."""
    first_stage: str | dict[str, str] | None = Field(default=None, frozen=True)
    """Retriever -> "score", for the node's own, or a metadata key; for a model that was trained with such scores."""
    device: str | None = Field(default=None, frozen=True)
    precision: str | None = Field(default=None, frozen=True)
    max_length: int | None = Field(default=None, frozen=True)
    backend: str | None = Field(default=None, frozen=True)
    reading: dict[str, Any] | None = Field(default=None, frozen=True)
    """These five as in `Reranker.from_pretrained`; None leaves it to decide."""

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid", validate_assignment=True)

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

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> RerankPostprocessor:
        """A copy, with the model of this one unless `update` wants another, or this one loaded otherwise."""
        made = super().model_copy(update=update, deep=deep)
        wanted = made._lazily()
        made._ranker = made._ranker if made._ranker == wanted else wanted
        return made

    def _lazily(self) -> LazyReranker:
        how = {"device": self.device, "precision": self.precision, "max_length": self.max_length}
        first_stage = FirstStage(self.first_stage, "give first_stage='NAME', or {'NAME': 'METADATA KEY', ...}")
        return LazyReranker(self.model, first_stage, **how, backend=self.backend, reading=self.reading)

    def to_dict(self, **settings: Any) -> dict[str, Any]:
        """The settings, as JSON holds them."""
        written(self.model)
        written_down: dict[str, Any] = super().to_dict(**settings)
        return written_down

    @classmethod
    def class_name(cls) -> str:
        """The name under which LlamaIndex writes it down."""
        return "RerankPostprocessor"

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        if query_bundle is None:
            raise InputError("a reranker needs the query: give query_str or query_bundle beside the nodes")
        if not nodes:
            return []
        query, top_n, name = query_bundle.query_str, self.top_n or len(nodes), self._ranker.name
        dispatcher = get_dispatcher(__name__)
        dispatcher.event(ReRankStartEvent(query=query_bundle, nodes=nodes, top_n=top_n, model_name=name))
        asked: dict[str, Any] = {EventPayload.NODES: nodes, EventPayload.MODEL_NAME: name}
        asked |= {EventPayload.QUERY_STR: query, EventPayload.TOP_K: top_n}
        with self.callback_manager.event(CBEventType.RERANKING, payload=asked) as event:
            found = self._best(nodes, query)
            event.on_end(payload={EventPayload.NODES: found})
        dispatcher.event(ReRankEndEvent(nodes=found))
        return found

    async def _apostprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        return await self._ranker.in_turn(partial(self._postprocess_nodes, nodes, query_bundle))

    def _best(self, nodes: list[NodeWithScore], query: str) -> list[NodeWithScore]:
        texts = [node.node.get_content(metadata_mode=MetadataMode.EMBED) for node in nodes]

        def column(place: str) -> list[Any]:
            return [node.score if place == OWN else node.node.metadata.get(place) for node in nodes]

        return [
            self._scored(nodes[hit.index], hit.relevance if self.scores == "relevance" else hit.score)
            for hit in self._ranker.rank(query, texts, self.top_n, self.min_probability, column)
        ]

    def _scored(self, given: NodeWithScore, score: float) -> NodeWithScore:
        """A new pair of the node, which is shared unless it has to remember the retriever's score, and its score."""
        node = given.node
        if self.keep_retrieval_score:
            node = node.model_copy(update={"metadata": {**node.metadata, "retrieval_score": given.score}})
        return NodeWithScore(node=node, score=score)
