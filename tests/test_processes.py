"""Two processes, one training: they end where one process does, whether weights are copied or divided among them."""

import copy
import itertools
import json
import os
import shutil
import socket
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from rerank.data import read_run
from rerank.engine import processes
from rerank.errors import InputError, TrainingError
from rerank.models.backbones import load_cross_encoder
from rerank.models.policy import FirstStageWeights, ScorePolicy
from rerank.rewards import ndcg
from rerank.training import loop
from rerank.training.checkpoint import latest_checkpoint
from rerank.training.clone import Clone
from rerank.training.log import Log
from rerank.training.loop import Context, Dev, fit
from rerank.training.refine import Refine
from rerank.training.schedule import Schedule
from rerank.training.sharding import Shards
from rerank.types import CandidateList, Ordering

SIZES = (6, 2, 9, 4, 7, 3, 5)
FAST = {"learning_rate": 1e-3, "head_learning_rate": 5e-3, "lists_per_step": 3, "steps": 8, "evaluations": 2}
FAST |= {"select": "last", "calibration": 0.1}  # a ranking loss alone leaves the last bias to rounding


def made_lists():
    """Seven lists of 2 to 9 candidates; texts of 1 to 12 words."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    lists = []
    for q, size in enumerate(SIZES):
        words = [[letters[(5 * q + 3 * i + j) % 26] for j in range((7 * i + q) % 12 + 1)] for i in range(size)]
        labels = [0] * size
        labels[(q + 1) % size], labels[(2 * q + 2) % size] = 1, 2
        lists.append(
            CandidateList(
                f"q{q}",
                f"{letters[q]} {letters[3 * q]}",
                tuple(f"q{q}-d{i}" for i in range(size)),
                tuple(" ".join(row) for row in words),
                features={"bm25": tuple(float(size - i) for i in range(size))},
                labels=tuple(labels),
                pool=tuple(g for g in labels if g > 0),
            )
        )
    return lists


def orderings(lists):
    return [Ordering(c.query_id, (*c.doc_ids[1:], c.doc_ids[0]), "t") for c in lists]


def made_policy(folder, first_stage=False, dropout=0.0):
    scorer, _ = load_cross_encoder(str(folder), max_length=48, precision="float32", device="cpu")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        torch.nn.init.normal_(scorer.model[-1].linear.weight, std=0.05)
    scorer.set_dropout(dropout)
    for name, parameter in scorer.named_parameters():
        # Softmax does not see the bias of keys: its gradient is rounding alone, and Adam makes steps of it.
        parameter.requires_grad_("key.bias" not in name)
    return ScorePolicy(scorer, FirstStageWeights({"bm25": 1.0}) if first_stage else None, budget=100)


def cloned(policy, context, **settings):
    lists = made_lists()
    return Clone(**{**FAST, **settings}).run(policy, lists, orderings(lists), context)


def refined(policy, context, **settings):
    return Refine(**{**FAST, "fit_first_stage": False, **settings}).run(policy, made_lists(), ndcg(10), context)


STAGES = {
    "clone": lambda policy, context: cloned(policy, context),
    "clone through the gradient cache": lambda policy, context: cloned(policy, context, graph_tokens=60),
    "clone a list a step": lambda policy, context: cloned(policy, context, lists_per_step=1),
    "refine": lambda policy, context: refined(policy, context, anchor=0.0),
    "refine with first-stage scores and an anchor": lambda policy, context: refined(
        policy, context, anchor=0.5, reset_reference=3, keep_entropy=True, graph_tokens=60
    ),
}
RANDOM = {
    "rloo with dropout": lambda policy, context: refined(policy, context, anchor=0.0, estimator="rloo", samples=4),
}


class Killed(Exception):
    """What stands for a kill."""


def trained(folder, out, name, stages, dropout=0.0, resume=False, killed_at=None):
    """Carry out one stage and write its report, curve and weights under `out`."""
    policy = made_policy(folder, "first-stage" in name, dropout)
    path = out / f"{name}.jsonl" if processes.is_main() else None
    log = Log(path)
    if killed_at is not None:
        log.advance = lambda step, facts: killed(step, killed_at)
    dev = Dev(made_lists(), ndcg(10), "nDCG@10")
    report = stages[name](policy, Context("stage", dev=dev, log=log, folder=out / "kept", resume=resume))
    log.close()
    if processes.is_main():
        (out / f"{name}.json").write_text(json.dumps(report))
        save_file({k: v.contiguous() for k, v in policy.state_dict().items()}, out / f"{name}.safetensors")
    return policy


def killed(step, at):
    if step == at:
        raise Killed


def resumed(folder, out):
    """A stage that is killed after its first checkpoint, and gone on with."""
    out.mkdir(exist_ok=True)
    clock = itertools.count(0, 100)  # a checkpoint at each evaluation
    before, loop.time = loop.time, types.SimpleNamespace(monotonic=lambda: float(next(clock)))
    with pytest.raises(Killed):
        trained(folder, out, "clone", STAGES, killed_at=6)
    assert latest_checkpoint(out / "kept").state["step"] == 4
    trained(folder, out, "clone", STAGES, resume=True)
    loop.time = before


def held(folder):
    """The share of the scorer's weights that this process holds when they are divided."""
    policy = made_policy(folder)
    divided = Shards(policy).policy.scorer
    here = sum(p.to_local().numel() for p in divided.parameters())
    return here / sum(p.numel() for p in policy.scorer.parameters())


def failures(folder, out):
    """What each process was told when something went wrong on one of them."""
    found = {}
    for name, objective in (("error", _fails_on_one), ("nan", _nan_on_one)):
        policy = made_policy(folder)
        before = copy.deepcopy(policy.state_dict())
        try:
            settings = Schedule(**{**FAST, "lists_per_step": 7})
            fit(policy, made_lists(), objective, lambda c: [], settings, Context(name, folder=out / name))
        except Exception as error:
            kept = all(torch.equal(v, before[k]) for k, v in policy.state_dict().items())
            found[name] = [type(error).__name__, str(error), kept]
    try:
        processes.agreed("their numbers", processes.rank())
    except TrainingError as error:
        found["differ"] = str(error)
    (out / f"failures-{processes.rank()}.json").write_text(json.dumps(found))


def _fails_on_one(scores, batch, view, key):
    if any(c.query_id == "q2" for c in batch.lists):
        raise InputError("the reward does not like q2")
    return scores.masked_fill(~batch.mask, 0.0).sum(-1), {}


def _nan_on_one(scores, batch, view, key):
    bad = torch.tensor([c.query_id == "q2" for c in batch.lists])
    return scores.masked_fill(~batch.mask, 0.0).sum(-1) * torch.where(bad, torch.nan, 1.0), {}


def worker(folder, out):
    """What each of the two processes does."""
    with processes.started():
        assert processes.world() == 2
        for again in (out, out / "again"):
            again.mkdir(exist_ok=True)
            for name in RANDOM:
                trained(folder, again, name, RANDOM, dropout=0.1)
        for name in STAGES:
            trained(folder, out, name, STAGES)
        os.environ["RERANK_SHARD"] = "full"
        (out / "sharded").mkdir(exist_ok=True)
        for name in STAGES:
            trained(folder, out / "sharded", name, STAGES)
        resumed(folder, out / "sharded" / "resumed")
        (out / f"held-{processes.rank()}").write_text(str(held(folder)))
        del os.environ["RERANK_SHARD"]
        resumed(folder, out / "resumed")
        failures(folder, out)


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def launched(arguments, n=2, timeout=240, **env):
    """Run `python *arguments` in `n` processes that know of each other; (code, output) of each."""
    shared = {**os.environ, "WORLD_SIZE": str(n), "LOCAL_WORLD_SIZE": str(n), "MASTER_ADDR": "127.0.0.1"}
    shared |= {"MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **env}
    started = [
        subprocess.Popen(
            [sys.executable, *map(str, arguments)],
            env={**shared, "RANK": str(i), "LOCAL_RANK": str(i)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for i in range(n)
    ]
    try:
        return [(p.returncode, out) for p in started for out in [p.communicate(timeout=timeout)[0]]]
    finally:
        for p in started:
            p.kill()


@pytest.fixture(scope="module")
def two(tiny_bert, tmp_path_factory):
    """The folder in which two processes wrote what they learnt."""
    out = tmp_path_factory.mktemp("two")
    for code, text in launched([Path(__file__), tiny_bert, out]):
        assert code == 0, text
    return out


@pytest.fixture(scope="module")
def one(tiny_bert, tmp_path_factory):
    """The folder in which one process wrote the same."""
    out = tmp_path_factory.mktemp("one")
    for name in STAGES:
        trained(tiny_bert, out, name, STAGES)
    return out


def curve(out, name):
    lines = [json.loads(line) for line in (out / f"{name}.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("seconds", "pairs_per_second")} for line in lines]


def assert_near(found, wanted, by):
    """Equal but for numbers, which may be `by` apart."""
    assert found.keys() == wanted.keys()
    for key, value in wanted.items():
        if isinstance(value, dict):
            assert_near(found[key], value, by)
        else:
            assert found[key] == (pytest.approx(value, rel=by, abs=by) if isinstance(value, float) else value), key


@pytest.mark.parametrize("name", STAGES)
@pytest.mark.parametrize("how", [".", "sharded"])
def test_two_processes_learn_what_one_does(name, how, one, two):
    wanted, found = curve(one, name), curve(two / how, name)
    assert len(wanted) == len(found) > FAST["steps"]
    for a, b in zip(wanted, found, strict=True):
        assert_near(b, a, 1e-5)
    before, after = load_file(one / f"{name}.safetensors"), load_file(two / how / f"{name}.safetensors")
    assert before.keys() == after.keys()
    far = max(float((before[k] - after[k]).abs().max()) for k in before)
    assert far <= 1e-5, max(before, key=lambda k: float((before[k] - after[k]).abs().max()))
    report = json.loads((one / f"{name}.json").read_text())
    assert report["best_step"] > 0, "something was learnt"
    assert_near(json.loads((two / how / f"{name}.json").read_text()), report, 1e-6)


@pytest.mark.parametrize("how", [".", "sharded"])
def test_a_stage_that_was_killed_on_two_processes_ends_with_the_same_bits(how, two):
    whole, again = (load_file(two / how / place / "clone.safetensors") for place in (".", "resumed"))
    assert all(torch.equal(value, again[k]) for k, value in whole.items())
    steps = [r["step"] for r in curve(two / how / "resumed", "clone")]
    assert steps == [0, 1, 2, 3, 4, 5, 6, 5, 6, 7, 8], "it went on at its checkpoint"


def test_divided_weights_are_held_by_halves(two):
    assert [float((two / f"held-{i}").read_text()) for i in range(2)] == pytest.approx([0.5, 0.5], abs=0.02)


def test_the_processes_of_a_stage_with_dropout_and_draws_repeat_to_the_bit_and_learn(two, tiny_bert):
    (name,) = RANDOM
    first, again = (load_file(out / f"{name}.safetensors") for out in (two, two / "again"))
    assert all(torch.equal(value, again[k]) for k, value in first.items())
    fresh = made_policy(tiny_bert).state_dict()
    assert not all(torch.equal(value, fresh[k]) for k, value in first.items())


def told(two):
    return [json.loads((two / f"failures-{i}.json").read_text()) for i in range(2)]


def test_an_error_on_one_process_is_raised_on_all(two):
    for found in told(two):
        assert found["error"][:2] == ["InputError", "the reward does not like q2"]


def test_a_loss_that_is_no_number_on_one_process_skips_the_step_on_all_and_keeps_the_weights(two):
    for found in told(two):
        kind, message, kept = found["nan"]
        assert kind == "TrainingError"
        assert "5 steps in a row" in message
        assert f"also in {two / 'nan' / 'best'}" in message
        assert kept
    (folder,) = (two / "nan" / "best").iterdir()
    assert load_file(folder / "best.safetensors").keys() == load_file(two / "clone.safetensors").keys()


def test_processes_that_differ_say_in_what(two):
    for found in told(two):
        assert "differ in their numbers: [0, 1]" in found["differ"]


def test_a_process_that_ends_is_missed_by_the_other_at_once(tmp_path):
    script = tmp_path / "one_ends.py"
    script.write_text(
        "import sys\n"
        "from rerank.engine import processes\n"
        "from rerank.errors import TrainingError\n"
        "with processes.started():\n"
        "    if processes.rank() == 1:\n"
        "        import os; os._exit(9)\n"
        "    try:\n"
        "        processes.by_all(lambda: 1)\n"
        "    except TrainingError as error:\n"
        "        print(error, flush=True); os = __import__('os'); os._exit(4)\n"
    )
    (code, text), (dead, _) = launched([script], timeout=60)
    assert (code, dead) == (4, 9), text
    assert "process 0 of 2 lost the others" in text
    assert "--resume" in text


RECIPE = """
name = "two"
[data]
dev = 0.25
train = { collection = "DATA/semeval2016-cqa-questions#train", limit = 20 }
test = { collection = "DATA/semeval2016-cqa-questions#test", limit = 19 }
[retrieval]
retrievers = ["bm25"]
depth = 6
[teacher]
kind = "judged"
[[models]]
kind = "cross-encoder"
backbone = "BERT"
max_length = 48
precision = "float32"
clone = { steps = 4, lists_per_step = 3, select = "last", evaluations = 2, calibration = 0.1 }
refine = { steps = 4, lists_per_step = 3, select = "last", evaluations = 2, calibration = 0.1 }
[evaluation]
measures = ["nDCG@10"]
"""


@pytest.mark.slow
def test_a_recipe_on_two_processes_is_the_recipe_on_one_also_when_it_is_resumed(tiny_bert, tmp_path):
    data = Path(__file__).parents[2] / "shared" / "data"
    if not (data / "semeval2016-cqa-questions").is_dir():
        pytest.skip("semeval2016-cqa-questions is not in the folder shared/data beside the checkout")
    recipe = tmp_path / "two.toml"
    recipe.write_text(RECIPE.replace("DATA", data.as_posix()).replace("BERT", tiny_bert.as_posix()))
    command = ["-m", "rerank", "train", recipe, "--out"]
    ((code, text),) = launched([*command, tmp_path / "one"], n=1)
    assert code == 0, text
    (main, said), (other, silent) = launched([*command, tmp_path / "two"])
    assert (main, other) == (0, 0), said + silent
    assert "The report:" in said
    assert "The report:" not in silent, "one process talks"
    assert_same_run(tmp_path / "one", tmp_path / "two")
    refusals = launched([*command, tmp_path / "two"])
    assert [code for code, _ in refusals] == [2, 2]
    assert "already holds a run" in refusals[0][1]
    for done in (tmp_path / "two" / "arms").glob("refined*"):
        shutil.rmtree(done)
    for code, text in launched([*command, tmp_path / "two", "--resume"]):
        assert code == 0, text
    assert_same_run(tmp_path / "one", tmp_path / "two", resumed=True)


def assert_same_run(one, two, resumed=False):
    files = [sorted(p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()) for out in (one, two)]
    assert files[0] == files[1]
    for file in sorted((one / "runs").glob("*.trec")):
        wanted, found = read_run(file).scores, read_run(two / "runs" / file.name).scores
        assert wanted.keys() == found.keys()
        for query_id, by_doc in wanted.items():
            assert found[query_id] == pytest.approx(by_doc, abs=1e-4), file.name
    if not resumed:
        losses = [[r["loss"] for r in curve(out, "metrics") if "loss" in r] for out in (one, two)]
        assert len(losses[0]) == 3 * 4
        assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_one_process_pays_nothing(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setenv("LOCAL_RANK", "0")
    with processes.started():
        assert not torch.distributed.is_initialized()
        assert (processes.world(), processes.rank(), processes.is_main()) == (1, 0, True)
        assert processes.by_main(lambda: 3) == processes.main_first(lambda: 3) == 3
        assert processes.by_all(lambda: 3) == [3]
        assert not processes.sharded()
        with pytest.raises(ZeroDivisionError):
            processes.by_all(lambda: 1 / 0)


def test_an_unknown_sharding_names_the_known(monkeypatch):
    monkeypatch.setenv("RERANK_SHARD", "half")
    with pytest.raises(InputError, match="'half'; 'full' divides"):
        processes.sharded()


@given(costs=st.lists(st.integers(1, 500), max_size=40), n=st.integers(1, 8))
def test_lists_are_dealt_once_each_and_no_hand_is_heavier_by_more_than_one_list(costs, n):
    hands = processes.dealt(costs, n)
    assert sorted(i for hand in hands for i in hand) == list(range(len(costs)))
    assert all(hand == sorted(hand) for hand in hands)
    totals = [sum(costs[i] for i in hand) for hand in hands]
    assert max(totals) - min(totals) <= max(costs, default=0)


if __name__ == "__main__":
    worker(Path(sys.argv[1]), Path(sys.argv[2]))
