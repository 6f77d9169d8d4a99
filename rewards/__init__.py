"""What a ranking is worth: rewards of the field's measures, exact in expectation, and any function of your own.

    from rerank.rewards import FunctionReward, kendall, mixture, ndcg
    reward = ndcg(cutoff=10)
    reward = mixture({ndcg(cutoff=10): 0.8, kendall(teacher_orderings): 0.2})
    reward = FunctionReward(lambda doc_ids, candidates: float(doc_ids[0].startswith("guide-")))

factors     a reward as a sum of terms, from which its value and its exact expectation follow
ranking     nDCG, DCG, RR, Success, recall, precision, AP, R-precision, RBP, ERR
diversity   alpha-nDCG
agreement   rank-biased overlap and Kendall agreement with a teacher
combined    mixtures, the worst of several, a weight a list, gain over the first stage, other labels
function    any Python function
settings    what a reward may be made with

These files need torch and nothing else: they work with any trainer that has rankings as index tensors [B, S, K] and
lists with `.labels` [B, N], `.mask` [B, N], `.pool` [B, M], and `.lists` (records with `.query_id` and `.doc_ids`)
for the rewards that look things up by id.
"""

from .agreement import ClosedForm, kendall, rbo
from .combined import Combined, Relabelled, headroom, minimum, mixture, vector, with_labels
from .diversity import alpha_ndcg
from .factors import Factorised, Factors, value_by_rank, value_of
from .function import FunctionReward, RewardError
from .ranking import (
    REWARDS,
    average_precision,
    dcg,
    err,
    ndcg,
    precision,
    r_precision,
    rbp,
    recall,
    reciprocal_rank,
    success,
)

__all__ = [
    "REWARDS",
    "ClosedForm",
    "Combined",
    "Factorised",
    "Factors",
    "FunctionReward",
    "Relabelled",
    "RewardError",
    "alpha_ndcg",
    "average_precision",
    "dcg",
    "err",
    "headroom",
    "kendall",
    "minimum",
    "mixture",
    "ndcg",
    "precision",
    "r_precision",
    "rbo",
    "rbp",
    "recall",
    "reciprocal_rank",
    "success",
    "value_by_rank",
    "value_of",
    "vector",
    "with_labels",
]
