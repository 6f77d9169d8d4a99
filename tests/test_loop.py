"""The loop under bad luck: memory runs out, weights turn NaN, the thread that works ahead fails."""

import copy
import json
import logging
import threading

import pytest
import torch

from rerank.errors import InputError, TrainingError
from rerank.models.backbones import load_cross_encoder
from rerank.models.policy import ScorePolicy
from rerank.rewards import ndcg
from rerank.training.checkpoint import latest_checkpoint
from rerank.training.log import Log
from rerank.training.loop import Context, Dev, fit
from rerank.training.schedule import Schedule
from rerank.training.step import out_of_memory
from rerank.types import CandidateList

BUDGET = 400
SETTINGS = {"steps": 4, "lists_per_step": 3, "evaluations": 2, "select": "last", "graph_tokens": 1000}


def made_lists():
    lists = []
    for q, size in enumerate((6, 3, 8, 4)):
        texts = tuple(" ".join("abcdefgh"[(i + j + q) % 8] for j in range((7 * i + q) % 15 + 1)) for i in range(size))
        labels = tuple((i + q) % 3 for i in range(size))
        lists.append(CandidateList(f"q{q}", f"{q}", tuple(f"q{q}d{i}" for i in range(size)), texts, {}, labels, labels))
    return lists


@pytest.fixture
def policy(tiny_bert):
    """A cross-encoder without dropout: it does not tell how a step was cut."""
    scorer, _ = load_cross_encoder(str(tiny_bert), max_length=48, precision="float32", device="cpu")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        torch.nn.init.normal_(scorer.model[-1].linear.weight, std=0.05)
    scorer.set_dropout(0.0)
    for name, parameter in scorer.named_parameters():
        parameter.requires_grad_("key.bias" not in name)  # its gradient is rounding alone
    return ScorePolicy(scorer, None, budget=BUDGET)


def pushing(scores, batch, view, key):
    """An objective that moves every score, and draws from its key."""
    wanted = torch.rand(scores.shape, generator=torch.Generator().manual_seed(key % 2**31)) + batch.labels
    return (torch.where(batch.mask, scores, wanted) - wanted).square().sum(-1), {}


def still(scores, batch, view, key):
    return (torch.where(batch.mask, scores, batch.labels) - batch.labels).square().sum(-1), {}


def small_device(policy, monkeypatch, tokens, error=torch.OutOfMemoryError):
    """From now on the scorer fails where more than `tokens` tokens would be held for gradients; returns the calls."""
    logits, held, calls = policy.scorer.logits, [0], []

    def limited(items):
        size = sum(map(len, items))
        calls.append(size)
        if torch.is_grad_enabled():
            if held[0] + size > tokens:
                held[0] = 0
                raise error("the device is full: out of memory")
            held[0] += size
            found = logits(items)
            found.register_hook(lambda gradient: held.__setitem__(0, held[0] - size))
            return found
        return logits(items)

    monkeypatch.setattr(policy.scorer, "logits", limited)
    return calls


def curve(path):
    return [record["loss"] for record in map(json.loads, path.read_text().splitlines()) if "loss" in record]


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, MemoryError, RuntimeError])
def test_out_of_memory_the_step_is_redone_in_smaller_pieces_and_learns_the_same(
    error, policy, tmp_path, monkeypatch, caplog
):
    small = copy.deepcopy(policy)
    for name, one in (("large", policy), ("small", small)):
        if name == "small":
            small_device(one, monkeypatch, 120, error)
        log = Log(tmp_path / f"{name}.jsonl")
        with caplog.at_level(logging.WARNING, "rerank"):
            report = fit(one, made_lists(), still, lambda c: [], Schedule(**SETTINGS), Context("stage", log=log))
        log.close()
        assert (report["steps"], report["skipped_steps"]) == (4, 0)
    told = [r.getMessage() for r in caplog.records if "out of memory" in r.getMessage()]
    assert len(told) == 1, "said once, though it was halved several times"
    assert "200 tokens are scored and 500 kept" in told[0]
    assert small.budget == BUDGET, "the policy has its own budget again"
    assert curve(tmp_path / "small.jsonl") == pytest.approx(curve(tmp_path / "large.jsonl"), rel=1e-5)
    for name, value in policy.state_dict().items():
        torch.testing.assert_close(small.state_dict()[name], value, atol=1e-5, rtol=0)


def test_the_draws_of_a_step_that_is_redone_are_those_of_the_first_attempt(policy, monkeypatch):
    keys = []

    def objective(scores, batch, view, key):
        keys.append(key)
        return pushing(scores, batch, view, key)

    small_device(policy, monkeypatch, 350)
    settings = Schedule(**{**SETTINGS, "steps": 1, "evaluations": 1, "lists_per_step": 1, "graph_tokens": 401})
    fit(policy, made_lists()[:1], objective, lambda c: [], settings, Context("stage"))
    again = list(keys)
    keys.clear()
    monkeypatch.undo()
    fit(policy, made_lists()[:1], objective, lambda c: [], settings, Context("stage"))
    assert set(again) == set(keys)


def test_where_a_single_pair_does_not_fit_the_error_says_what_to_lower(policy, monkeypatch):
    small_device(policy, monkeypatch, 5)
    with pytest.raises(TrainingError, match=r"a single pair of \d+ tokens does not fit into memory. Lower max_length"):
        fit(policy, made_lists(), still, lambda c: [], Schedule(**SETTINGS), Context("stage"))
    assert policy.budget == BUDGET


def test_memory_that_runs_out_while_dev_is_measured_is_met_in_the_same_way(policy, monkeypatch, caplog):
    logits = policy.scorer.logits

    def limited(items):
        if not torch.is_grad_enabled() and sum(map(len, items)) > 100:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return logits(items)

    monkeypatch.setattr(policy.scorer, "logits", limited)
    dev = Dev(made_lists(), ndcg(10), "nDCG@10")
    settings = Schedule(**{**SETTINGS, "select": "best"})
    report = fit(policy, made_lists(), still, lambda c: [], settings, Context("stage", dev=dev))
    assert 0 < report["dev"] <= 1
    assert sum("out of memory" in r.getMessage() for r in caplog.records) == 1


def test_other_errors_are_no_lack_of_memory_and_come_through(policy, monkeypatch):
    assert not out_of_memory(RuntimeError("shapes do not match"))
    assert not out_of_memory(ValueError("out of memory"))
    assert out_of_memory(RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"))
    monkeypatch.setattr(policy.scorer, "logits", lambda items: torch.ones(2) @ torch.ones(3))
    with pytest.raises(RuntimeError, match=r"inconsistent tensor size|size mismatch"):
        fit(policy, made_lists(), still, lambda c: [], Schedule(**SETTINGS), Context("stage"))


# Numbers that are none


def test_after_five_bad_steps_the_best_weights_are_in_the_policy_and_on_disk_and_the_message_says_so(policy, tmp_path):
    calls = iter(range(100))

    def objective(scores, batch, view, key):
        losses, facts = still(scores, batch, view, key)
        return losses * (torch.nan if next(calls) >= 5 else 1.0), facts

    settings = Schedule(**{**SETTINGS, "steps": 20, "evaluations": 5})
    context = Context("stage", folder=tmp_path / "kept")
    before = copy.deepcopy(policy.state_dict())
    with pytest.raises(TrainingError, match=r"step 9.*best weights, those of step 8, also in .*kept.best") as error:
        fit(policy, made_lists(), objective, lambda c: [], settings, context)
    assert str(tmp_path) in str(error.value)
    found = latest_checkpoint(tmp_path / "kept" / "best")
    assert found.state == {"step": 8}
    for name, value in policy.state_dict().items():
        assert torch.equal(found.tensors["best"][name], value)
        assert value.isfinite().all()
    assert not all(torch.equal(value, before[name]) for name, value in policy.state_dict().items())


@pytest.mark.parametrize("select", ["best", "last"])
def test_weights_that_are_not_finite_are_never_handed_over(select, policy, tmp_path):
    def ruin(at, facts):
        if at == 3:
            with torch.no_grad():
                policy.scorer.model[-1].linear.weight.fill_(torch.inf)

    log = Log()
    log.advance = ruin
    dev = Dev(made_lists(), ndcg(10), "nDCG@10")
    settings = Schedule(**{**SETTINGS, "steps": 8, "evaluations": 4, "select": select})
    context = Context("stage", log=log, dev=dev, folder=tmp_path / "kept")
    with pytest.raises(TrainingError, match=r"not finite any more.*step 4.*best weights, those of step"):
        fit(policy, made_lists(), still, lambda c: [], settings, context)
    assert all(value.isfinite().all() for value in policy.state_dict().values())


def test_a_policy_that_is_not_finite_to_begin_with_is_refused(policy):
    with torch.no_grad():
        policy.scorer.model[-1].linear.bias.fill_(torch.nan)
    with pytest.raises(TrainingError, match="the weights given are not finite"):
        fit(policy, made_lists(), still, lambda c: [], Schedule(**SETTINGS), Context("stage"))


# The thread that works ahead


def test_an_error_in_choosing_the_candidates_is_raised_as_it_was_and_no_thread_is_left(policy):
    def important(candidates):
        raise InputError("this list has no important candidate")

    long = [c.subset(range(len(c))) for c in made_lists()]
    settings = Schedule(**{**SETTINGS, "list_size": 2})
    with pytest.raises(InputError, match="no important candidate"):
        fit(policy, long, still, important, settings, Context("stage"))
    assert not [t for t in threading.enumerate() if t.name == "rerank prefetch"]


def test_lists_are_tokenized_in_the_thread_while_the_step_before_is_computed(policy, monkeypatch):
    encode, names = policy.scorer.encode, []

    def noted(lists):
        names.append(threading.current_thread().name)
        return encode(lists)

    monkeypatch.setattr(policy.scorer, "encode", noted)
    fit(policy, made_lists(), still, lambda c: [], Schedule(**SETTINGS), Context("stage"))
    assert names == ["rerank prefetch"] * 4
