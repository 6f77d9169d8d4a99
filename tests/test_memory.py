"""How much fits: what a forward pass keeps, what happens when it was too much."""

import logging

import pytest
import torch

from rerank.engine.memory import CPU_BUDGET, CPU_GRAPH_TOKENS, bytes_per_token, graph_tokens_on, scoring_budget
from rerank.models.backbones import load_cross_encoder
from rerank.models.policy import ScorePolicy
from rerank.types import CandidateList

TEXTS = tuple(f"text {i} " * (1 + i % 9) for i in range(60))


@pytest.fixture
def policy(tiny_bert):
    scorer, _ = load_cross_encoder(str(tiny_bert), 64, "mean", "float32", "cpu")
    torch.nn.init.normal_(scorer.model[-1].linear.weight)
    return ScorePolicy(scorer).eval()


def lists():
    return [CandidateList("q", "a query", tuple(map(str, range(len(TEXTS)))), TEXTS)]


class Full:
    """Memory that holds no more than so many tokens at once."""

    def __init__(self, scorer, room, error):
        self.scorer, self.room, self.error, self.tried = scorer, room, error, []
        self.inner = scorer.logits
        scorer.logits = self

    def __call__(self, items):
        self.tried.append(sum(map(len, items)))
        if self.tried[-1] > self.room:
            raise self.error
        return self.inner(items)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError()])
def test_scoring_goes_on_with_half_the_tokens_where_memory_is_full_and_says_so_once(policy, error, caplog):
    with torch.inference_mode():
        wanted = policy.scores(lists())
        Full(policy.scorer, 300, error)
        with caplog.at_level(logging.WARNING):
            found, again = policy.scores(lists()), policy.scores(lists())
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(again, wanted, atol=1e-5, rtol=1e-5)
    assert policy.budget <= 300
    assert [r.getMessage().split(";")[0] for r in caplog.records].count("out of memory") == 1


def test_what_does_not_fit_even_alone_is_an_error(policy):
    Full(policy.scorer, 5, MemoryError("no room"))
    with torch.inference_mode(), pytest.raises(MemoryError, match="no room"):
        policy.scores(lists())


def test_another_error_is_not_taken_for_full_memory(policy):
    full = Full(policy.scorer, 5, RuntimeError("shapes do not match"))
    with torch.inference_mode(), pytest.raises(RuntimeError, match="shapes"):
        policy.scores(lists())
    assert len(full.tried) == 1


def test_what_a_pass_keeps_grows_with_the_network_and_not_with_the_number_of_pairs(policy):
    items = policy.item_scorer.encode(lists())
    few, many = (bytes_per_token(policy.item_scorer, some) for some in (items[:6], items))
    assert few == pytest.approx(many, rel=0.35)
    hidden, layers = policy.scorer.network.config.hidden_size, policy.scorer.network.config.num_hidden_layers
    assert few > 4 * hidden * layers, "at least one vector a layer"


def test_a_cpu_has_fixed_numbers(policy):
    items = policy.item_scorer.encode(lists())
    assert graph_tokens_on(torch.device("cpu"), policy.item_scorer, items) == CPU_GRAPH_TOKENS
    assert scoring_budget(torch.device("cpu")) == CPU_BUDGET == ScorePolicy(policy.scorer).budget
