"""What a ranking is worth: rewards of the field's measures, exact in expectation, and any function of your own.

    from rerank.rewards import ndcg, FunctionReward
    reward = ndcg(cutoff=10)
    reward = FunctionReward(lambda doc_ids, candidates: float(doc_ids[0].startswith("guide-")))

These files need torch and nothing else: they work with any trainer that has rankings as index tensors [B, S, K] and
lists with `.labels` [B, N], `.mask` [B, N] and `.pool` [B, M].
"""

from .factors import Factorised, Factors, value_of
from .function import FunctionReward, RewardError
from .ranking import REWARDS, dcg, err, ndcg, precision, rbp, recall, reciprocal_rank, success

__all__ = [
    "REWARDS",
    "Factorised",
    "Factors",
    "FunctionReward",
    "RewardError",
    "dcg",
    "err",
    "ndcg",
    "precision",
    "rbp",
    "recall",
    "reciprocal_rank",
    "success",
    "value_of",
]
