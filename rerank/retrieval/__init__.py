"""First-stage retrieval: sparse, dense, fused. Importing it loads neither torch nor FAISS."""

from rerank.retrieval.bm25 import BM25, tokenize
from rerank.retrieval.dense import Dense
from rerank.retrieval.first_stage import FirstStage, build_first_stage, features_for
from rerank.retrieval.fusion import fuse_ranks, fuse_scores, reciprocal_rank_fusion, weighted_fusion

__all__ = [
    "BM25",
    "Dense",
    "FirstStage",
    "build_first_stage",
    "features_for",
    "fuse_ranks",
    "fuse_scores",
    "reciprocal_rank_fusion",
    "tokenize",
    "weighted_fusion",
]
