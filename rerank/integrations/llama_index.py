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

from functools import partial
from typing import Any, ClassVar, final

from rerank.errors import InputError, need
from rerank.integrations.first_stage import OWN
from rerank.integrations.loading import written

try:
    from llama_index.core.callbacks import CBEventType, EventPayload
    from llama_index.core.instrumentation import get_dispatcher
    from llama_index.core.instrumentation.events.rerank import ReRankEndEvent, ReRankStartEvent
    from llama_index.core.postprocessor.types import BaseNodePostprocessor
    from llama_index.core.schema import MetadataMode, NodeWithScore, QueryBundle
    from pydantic import Field

    from rerank.integrations.settings import RankerSettings
except ModuleNotFoundError:
    need("llama_index.core.instrumentation.events.rerank", "llama-index")
    raise


@final
class RerankPostprocessor(RankerSettings, BaseNodePostprocessor):
    """The nodes best first, in the order of `Reranker.rank`, each with its score; those given are left as they are."""

    keep_retrieval_score: bool = False
    """Whether the retriever's score is kept, as `retrieval_score` in the metadata of a copy of the node."""
    first_stage: str | dict[str, str] | None = Field(default=None, frozen=True)
    """Retriever -> "score", for the node's own, or a metadata key; for a model that was trained with such scores."""

    first_stage_remedy: ClassVar[str] = "give first_stage='NAME', or {'NAME': 'METADATA KEY', ...}"

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
