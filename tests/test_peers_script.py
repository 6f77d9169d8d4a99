"""benchmarks/peers.py: both sides learn from the same pairs by one schedule, and what is finished stays finished."""

import importlib.util
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch

from rerank.errors import Mismatch
from rerank.evaluation.measures import evaluate
from rerank.models.policy import ScorePolicy, rerank_lists
from rerank.teachers import Fused
from rerank.types import CandidateList, Run

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("datasets") is None, reason="CrossEncoderTrainer needs datasets (extra peers)"
)
PEERS = ("st LambdaLoss", "st ListNetLoss", "st RankNetLoss", "st MarginMSELoss", "st BCELoss")


@pytest.fixture(scope="module")
def parts():
    """The modules of benchmarks/peers."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        names = ("concluding", "journal", "learning", "material", "plan")
        yield {name: importlib.import_module(f"peers.{name}") for name in names}
    finally:
        sys.path.remove(str(BENCHMARKS))


@pytest.fixture(scope="module")
def script(parts):
    """benchmarks/peers.py itself, whose name is that of its folder of parts."""
    spec = importlib.util.spec_from_file_location("peers_script", BENCHMARKS / "peers.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def made_up(number, labels):
    ids = tuple(f"d{number}-{i}" for i in range(10))
    texts = tuple(f"text {i} of {number} {'word ' * (i % 4)}".strip() for i in range(10))
    features = {
        name: tuple(float((shift * i + number) % 11) for i in range(10)) for name, shift in (("bm25", 3), ("dense", 7))
    }
    features["first stage"] = tuple(10.0 - i for i in range(10))
    pool = tuple(labels)
    return CandidateList(f"q{number}", f"question {number}", ids, texts, features, tuple(labels), pool)


@pytest.fixture(scope="module")
def task(parts):
    """Eight lists with grades, one of them without anything to order."""
    lists = [made_up(n, [2 if i == n else 1 if i == n + 1 else 0 for i in range(10)]) for n in range(8)]
    orderings = list(Fused({"bm25": 1.0, "dense": 1.0})(lists))
    measured = [*lists[:3], made_up(8, [0] * 10)]
    run = Run({c.query_id: tuple((d, -float(i)) for i, d in enumerate(c.doc_ids)) for c in measured}, "first stage")
    qrels = {c.query_id: dict(zip(c.doc_ids, c.labels, strict=True)) for c in measured}
    split = parts["material"].Split(measured, qrels, run, run)
    return parts["material"].Task("made up", lists, orderings, split, split, {})


@pytest.fixture(scope="module")
def network(parts, tmp_path_factory):
    """A tiny random BERT with mean pooling and a fresh head."""
    from conftest import write_tiny_bert

    from rerank.models.backbones import load_cross_encoder
    from rerank.models.loading import save_policy

    folder = tmp_path_factory.mktemp("peers")
    scorer, fresh = load_cross_encoder(str(write_tiny_bert(folder / "encoder")), max_length=64, device="cpu")
    assert fresh
    save_policy(ScorePolicy(scorer), folder / "network")
    return folder / "network"


def pairs_in(rows):
    """The (query, text) pairs of a data set of theirs."""
    found = Counter()
    for row in rows:
        query, *others = (row[name] for name in rows.column_names if name not in ("label", "labels", "score"))
        for other in others:
            found.update((query, text) for text in ([other] if isinstance(other, str) else other))
    return found


@pytest.mark.parametrize("arm", PEERS)
def test_every_loss_of_theirs_gets_exactly_our_pairs_as_many_a_step(parts, task, network, arm):
    from speed.sides import peer_model

    rows, rows_a_step, _ = parts["learning"].SHAPES[arm](peer_model(network, 64, "cpu"), task)
    wanted = Counter((c.query, text) for c in task.train for text in c.texts)
    assert pairs_in(rows) == wanted
    assert rows_a_step * sum(wanted.values()) / len(rows) == parts["plan"].LISTS * parts["plan"].DEPTH


def test_margins_are_the_teachers_of_a_best_graded_candidate_against_the_others(parts, task, network):
    from speed.sides import peer_model

    rows, _, _ = parts["learning"].SHAPES["st MarginMSELoss"](peer_model(network, 64, "cpu"), task)
    for row, candidates, ordering in zip(rows, task.train, task.orderings, strict=True):
        said = dict(zip(ordering.doc_ids, ordering.scores, strict=True))
        texts = [row["positive"], *(row[f"negative_{i}"] for i in range(1, 10))]
        by_text = dict(zip(candidates.texts, candidates.doc_ids, strict=True))
        assert candidates.labels[candidates.texts.index(row["positive"])] == 2
        assert row["score"] == [said[by_text[text]] for text in texts]


def test_both_sides_have_one_schedule_and_one_rate_for_heads(parts, task, network, monkeypatch):
    learning = parts["learning"]
    rates = {"ours": [], "theirs": []}
    original = torch.optim.AdamW.step

    def step(self, *arguments, **settings):
        side = rates["ours" if len(self.param_groups) == 2 else "theirs"]
        side.append(sorted({round(group["lr"], 10) for group in self.param_groups}))
        return original(self, *arguments, **settings)

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    budget = learning.Budget(5, 3e-4, 1)
    for arm in ("labels", "st RankNetLoss"):
        learning.learn(arm, network, task, budget)
    assert len(rates["ours"]) == budget.steps
    assert rates["ours"] == rates["theirs"]


@pytest.mark.parametrize("arm", ["clone", "labels", "refined", "refined + first stage", *PEERS])
def test_every_arm_learns_something_and_says_what_it_took(parts, task, network, arm):
    found = parts["learning"].learn(arm, network, task, parts["learning"].Budget(2, 3e-4, 0))
    assert found.seconds > 0 < found.processor_seconds
    scores = rerank_lists(found.policy, task.test.lists[:1], arm)["served"].rankings["q0"]
    assert len({score for _, score in scores}) > 1  # the fresh head gave the same to all


def test_lists_that_are_not_scored_change_no_measure(script, task, network):
    from rerank.models.loading import load_policy

    policy = load_policy(str(network), "cpu", "float32", 64)
    torch.nn.init.normal_(list(policy.parameters())[-2], generator=torch.Generator().manual_seed(0))
    whole = rerank_lists(policy, task.test.lists, "whole")["served"]
    found = script.ranked(policy, task.test, "saved")
    names = ("nDCG@10", "AP", "RR@10")
    assert found.doc_ids("q8") == task.test.first_stage.doc_ids("q8")
    assert whole.doc_ids("q0") == found.doc_ids("q0") != task.test.first_stage.doc_ids("q0")
    assert evaluate(found, task.test.qrels, names).mean == evaluate(whole, task.test.qrels, names).mean


def test_a_journal_forgets_half_a_line_and_refuses_another_plan(parts, tmp_path):
    journal, plan, learning = parts["journal"], parts["plan"], parts["learning"]
    first = journal.Journal(tmp_path, plan.QUICK)
    learned = learning.Learned(None, 2.0, 1.0)
    first.add(journal.EQUAL_STEPS, "semeval", "clone", learning.Budget(2, 1e-4, 0), learned)
    whole = (tmp_path / "journal.jsonl").read_text()
    (tmp_path / "journal.jsonl").write_text(whole + whole[:20])
    again = journal.Journal(tmp_path, plan.QUICK)
    assert again.entries == first.entries
    again.add(journal.EQUAL_STEPS, "semeval", "labels", learning.Budget(2, 1e-4, 0), learned)
    assert [e["arm"] for e in journal.Journal(tmp_path, plan.QUICK).entries] == ["clone", "labels"]
    with pytest.raises(Mismatch, match="another plan"):
        journal.Journal(tmp_path, plan.FULL)


def test_the_rate_is_the_one_that_dev_liked_best(parts, tmp_path):
    journal, learning = parts["journal"], parts["learning"]
    book = journal.Journal(tmp_path, parts["plan"].QUICK)
    for rate, dev in ((1e-4, 0.5), (3e-4, 0.6), (1e-3, 0.4)):
        book.add(
            journal.TUNING, "semeval", "refined", learning.Budget(2, rate, 0), learning.Learned(None, 1, 1), dev=dev
        )
    book.add(journal.TUNING, "scifact", "refined", learning.Budget(2, 1e-3, 0), learning.Learned(None, 1, 1), dev=0.9)
    assert parts["concluding"].rate_of(book, "refined", "semeval") == 3e-4
    assert parts["concluding"].rate_of(book, learning.WITH_FIRST_STAGE, "semeval") == 3e-4  # has none of its own


def test_a_training_repeated_at_another_rate_counts_once(parts, tmp_path):
    journal, learning = parts["journal"], parts["learning"]
    book = journal.Journal(tmp_path, parts["plan"].QUICK)
    for rate in (1e-4, 3e-4):
        book.add(journal.EQUAL_STEPS, "semeval", "clone", learning.Budget(2, rate, 0), learning.Learned(None, 1, 1))
    assert [e["rate"] for e in book.of(journal.EQUAL_STEPS, collection="semeval")] == [3e-4]
