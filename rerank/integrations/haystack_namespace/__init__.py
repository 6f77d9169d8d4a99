"""rerank's ranker under the name that Haystack loads components by; see rerank/integrations/haystack.py."""

from rerank.integrations.haystack import RerankRanker

__all__ = ["RerankRanker"]
