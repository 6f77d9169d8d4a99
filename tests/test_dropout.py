"""Dropout from raw bits: the shares, the scale, the gradient and the key of torch's own."""

import pytest
import torch
from torch import nn

from rerank.models.dropout import Dropout, dropped, quicken
from rerank.randomness import dropout_key

CPU = torch.device("cpu")


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_share_of_the_values_is_dropped_and_the_mean_stays(share, dtype):
    with dropout_key(1, CPU):
        found = dropped(torch.ones(1001, 999, dtype=dtype), share).float()
    error = 5 * (share * (1 - share) / found.numel()) ** 0.5
    assert float((found == 0).float().mean()) == pytest.approx(share, abs=error + 1 / 65536)
    assert found[found > 0].unique().numel() == 1
    assert float(found.max()) == pytest.approx(1 / (1 - share), rel=4e-3 if dtype == torch.bfloat16 else 1e-6)


def test_neighbouring_values_are_dropped_independently():
    with dropout_key(2, CPU):
        gone = (dropped(torch.ones(1_000_000), 0.3) == 0).float()
    for apart in (1, 2, 3, 4, 8):  # sixteen-bit parts of one 64-bit word are one to three apart
        assert float((gone[apart:] * gone[:-apart]).mean()) == pytest.approx(0.09, abs=0.002)


def test_the_gradient_is_that_of_what_was_kept():
    values = torch.randn(40, 7, dtype=torch.float64, requires_grad=True)

    def f(x):
        with dropout_key(3, CPU):
            return dropped(x, 0.4)

    assert torch.autograd.gradcheck(f, (values,))


def test_a_key_decides_what_is_dropped_and_leaves_the_global_stream_alone():
    before = torch.get_rng_state()
    found = []
    for key in (5, 5, 6):
        with dropout_key(key, CPU):
            found.append(dropped(torch.ones(10, 10), 0.5))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
    assert torch.equal(torch.get_rng_state(), before)


def test_a_network_gets_our_dropout_and_drops_nothing_outside_training():
    network = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Dropout(0.5), nn.ReLU()))
    quicken(network)
    inner = network[1][0]
    assert type(inner) is Dropout
    assert inner.p == 0.5
    values = torch.ones(3, 4)
    assert torch.equal(network[1].eval()(values), values)
    assert (network[1].train()(torch.ones(100, 100)) == 0).any()


def test_nothing_stays_nothing():
    assert dropped(torch.zeros(0, 3), 0.5).shape == (0, 3)
