"""What refinement can gain, told beforehand: by hand on small lists, by trec_eval on real ones, through the command."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import pytrec_eval
import torch
from typer.testing import CliRunner

from rerank import cli, plackett_luce
from rerank.data import read_qrels, read_run
from rerank.errors import InputError
from rerank.experiment.auditing import audit_run
from rerank.lists import batch_of
from rerank.models.backbones import load_cross_encoder
from rerank.models.loading import load_policy, save_policy
from rerank.models.policy import FirstStageWeights, ScorePolicy, rerank_lists
from rerank.rewards import FunctionReward, kendall, ndcg, reciprocal_rank
from rerank.testing import NumberScorer, every_ranking, toy_lists
from rerank.training.audit import Audit, audit, audit_scores, in_band
from rerank.types import CandidateList

DL = Path(__file__).parents[2] / "shared" / "data" / "trec-dl-19-20"
SECOND = 1 / math.log2(3)
"""What nDCG pays for the only relevant document at rank 2."""


def listed(labels, name="q", pool=None, numbers=None):
    """A list whose candidates, in first-stage order, name falling numbers (so that a NumberScorer keeps the order)."""
    n = len(labels) if labels is not None else 3
    numbers = list(range(n, 0, -1)) if numbers is None else numbers
    return CandidateList(
        query_id=name,
        query="query",
        doc_ids=tuple(f"d{i}" for i in range(n)),
        texts=tuple(f"number {number}" for number in numbers),
        labels=None if labels is None else tuple(labels),
        pool=tuple(labels or ()) if pool is None else tuple(pool),
    )


def many(labels, n=60, pool=None):
    return [listed(labels, f"q{i}", pool) for i in range(n)]


def audited(lists, reward=None, weight=1.0, **settings):
    return audit(ScorePolicy(NumberScorer(weight)), lists, reward or ndcg(10), **settings)


def best_first(doc_ids, candidates):
    """Pays for d2 in front, whatever the grades."""
    return 1.0 if doc_ids and doc_ids[0] == "d2" else 0.0


# by hand


def test_a_list_of_two_is_audited_as_by_hand():
    found = audited([listed([0, 1])], temperature=1.0, samples=200)
    (one,) = found.by_list
    wrong = 1 / (1 + math.exp(-1.0))  # scores 2 and 1
    assert one.greedy == pytest.approx(SECOND) and one.ideal == pytest.approx(1.0)
    assert one.expected == pytest.approx(wrong * SECOND + 1 - wrong, abs=1e-5)
    assert one.best == pytest.approx(1.0) and one.headroom == pytest.approx(1 - SECOND)
    assert one.share == pytest.approx(SECOND)
    deviation = (1 - SECOND) * math.sqrt(wrong * (1 - wrong))
    assert one.deviation == pytest.approx(deviation, rel=0.15)
    assert (one.candidates, one.relevant, one.judged) == (2, 1, True)


def test_the_expectation_is_the_mean_over_all_rankings_at_the_temperature():
    lists = toy_lists(6, 5, seed=3)
    batch = batch_of(lists)
    scores = torch.randn(batch.mask.shape, generator=torch.Generator().manual_seed(1))
    found = audit_scores(scores.masked_fill(~batch.mask, -torch.inf), batch, ndcg(3), temperature=0.5)
    for row, (one, c) in enumerate(zip(found.by_list, lists, strict=True)):
        alone = batch_of([c])
        rankings = every_ranking(alone.mask)
        chances = plackett_luce.log_prob(scores[row : row + 1, : len(c)].double() / 0.5, alone.mask, rankings).exp()
        assert one.expected == pytest.approx(float((chances * ndcg(3)(rankings, alone)).sum()), abs=1e-4)


def test_ceilings_count_the_relevant_documents_that_are_no_candidates():
    found = audited([listed([1, 0, 2], pool=(1, 2, 1, 1, 0))], ndcg(2))
    assert found.by_list[0].recall_ceiling == 0.5
    assert found.by_list[0].top_ceiling == 1.0, "two relevant candidates fill both places"
    missed = audited([listed([0, 0], pool=(0, 0, 3)), listed([0, 0], "p")])
    assert [one.recall_ceiling for one in missed.by_list] == [0.0, None]
    assert missed.recall_ceiling == 0.0


def test_a_list_is_saturated_at_the_edge_out_of_reach_or_nothing():
    lists = [
        listed([1, 0, 0], "solved"),
        listed([0, 1, 0], "edge"),
        listed([0, 0, 1], "far", numbers=[900, 800, 1]),
        listed([0, 0, 0], "nothing"),
        listed(None, "unjudged"),
    ]
    found = audited(lists, weight=0.1, temperature=0.1)
    assert [one.kind(0.98) for one in found.by_list] == ["saturated", "edge", "far", "nothing", "nothing"]
    shares = (found.saturated, found.at_the_edge, found.out_of_reach, found.without_relevant, found.unjudged)
    assert shares == (0.2, 0.2, 0.2, 0.2, 0.2)
    assert found.counted == 4, "the unjudged list has no part in the means"
    assert found.greedy == pytest.approx((1 + SECOND + 0.5 + 0) / 4)
    assert found.ideal == pytest.approx(0.75)
    assert found.headroom == pytest.approx(found.ideal - found.greedy)


def test_rare_luck_is_a_lone_success_and_steady_luck_is_not():
    rare = listed([0] * 99 + [1], numbers=[5] * 99 + [3])
    steady = listed([0, 1], "steady")
    first = reciprocal_rank(1)
    found = audited([rare, steady], first, temperature=1.0, samples=4000)
    lone, other = found.by_list
    assert lone.expected == pytest.approx(math.exp(-2) / (99 + math.exp(-2)), rel=1e-3)
    assert lone.lone_success and lone.best == 1.0 and not other.lone_success
    assert found.lone_success == 0.5
    none = audited([rare], first, temperature=0.1, samples=64)
    assert none.lone_success == 0.0, "no draw earned anything"


def test_a_reward_that_can_be_negative_knows_no_lone_success():
    class FromMinusOne:
        """RR@1 moved down: 0 is no longer nothing."""

        name, signed, graded = "moved", True, True

        def __call__(self, rankings, lists):
            return 2 * reciprocal_rank(1)(rankings, lists) - 1

    unsure = [listed([0, 0, 0, 1], f"q{i}") for i in range(3)]
    found = audited(unsure, FromMinusOne(), weight=0.0, temperature=1.0)
    assert all(one.expected < 0 < one.best for one in found.by_list)
    assert found.lone_success == 0.0 and found.at_the_edge == 1.0


def test_a_reward_that_does_not_look_at_grades_counts_unjudged_lists_and_takes_the_best_it_saw_for_ideal():
    found = audited([listed(None), listed([1, 0, 0], "p")], FunctionReward(best_first), weight=0.1, samples=500)
    assert not found.graded and found.counted == 2
    for one in found.by_list:
        assert (one.greedy, one.ideal, one.best) == (0.0, 1.0, 1.0)
    assert found.at_the_edge == 1.0
    # Its expectation is not known: the mean of the draws, near the chance of d2 in front.
    weights = [math.exp(0.1 * number / found.temperature) for number in (3, 2, 1)]
    assert found.expected == pytest.approx(weights[2] / sum(weights), abs=0.05)


# invariance


def test_what_is_found_of_a_list_depends_neither_on_its_company_nor_on_the_order():
    lists = toy_lists(40, 6, seed=5)
    together = audited(lists, ndcg(3), weight=-0.02, temperature=1.0)
    backwards = audited(lists[::-1], ndcg(3), weight=-0.02, temperature=1.0)
    alone = [audited([c], ndcg(3), weight=-0.02, temperature=1.0).by_list[0] for c in lists]
    for here, there, single in zip(together.by_list, backwards.by_list[::-1], alone, strict=True):
        assert (here.best, here.query_id) == (there.best, there.query_id) == (single.best, single.query_id)
        assert here.expected == pytest.approx(single.expected, abs=1e-6)
        assert here.deviation == pytest.approx(single.deviation, abs=1e-6)


def test_the_same_seed_finds_the_same_and_another_seed_draws_other_rankings():
    lists = toy_lists(8)
    assert audited(lists, seed=1, weight=-0.02) == audited(lists, seed=1, weight=-0.02)
    first, second = (audited(lists, seed=seed, weight=-0.02) for seed in (1, 2))
    assert [one.deviation for one in first.by_list] != [one.deviation for one in second.by_list]
    assert first.greedy == second.greedy and first.expected == second.expected


def test_scores_of_any_scale_are_audited_alike_as_the_temperature_follows_them():
    batch = batch_of(toy_lists(12, 6))
    scores = torch.randn(batch.mask.shape, generator=torch.Generator().manual_seed(2)).masked_fill(
        ~batch.mask, -torch.inf
    )
    small, large = audit_scores(scores, batch, ndcg(3)), audit_scores(scores * 8, batch, ndcg(3))
    assert large.temperature == pytest.approx(8 * small.temperature, rel=1e-3)
    assert large.expected == pytest.approx(small.expected, abs=1e-3)


def test_a_policy_is_left_in_evaluation_mode_with_its_weights_and_no_gradient():
    policy = ScorePolicy(NumberScorer(0.5))
    policy.train()
    audit(policy, toy_lists(), ndcg(3))
    assert not policy.training and policy.scorer.weight.grad is None and policy.scorer.weight.item() == 0.5


# edges


def test_lists_of_none_and_of_one_candidate_are_audited():
    found = audited([listed([]), listed([2], "one"), listed([0, 1], "two")])
    empty, one, _ = found.by_list
    assert (empty.greedy, empty.ideal, empty.recall_ceiling) == (0.0, 0.0, None)
    assert one.greedy == pytest.approx(1.0) and one.kind(0.98) == "saturated" and one.deviation == 0.0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"saturated": 0.0}, "saturated must be"),
        ({"samples": 1}, "samples must be at least 2"),
        ({"temperature": 0.0}, "temperature must be greater than 0"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        audited(toy_lists(), **settings)


def test_no_lists_and_scores_that_are_no_numbers_are_refused():
    with pytest.raises(InputError, match="at least one list"):
        audited([])
    with pytest.raises(InputError, match="candidate 1 is nan"):
        audit_scores(torch.tensor([[1.0, math.nan]]), batch_of([listed([0, 1])]), ndcg(3))


# the pass band


def test_the_band_keeps_the_lists_with_headroom_whose_share_lies_in_it():
    lists = [listed([1, 0, 0], "a"), listed([0, 1, 0], "b"), listed([0, 0, 1], "c"), listed([0, 0, 0], "d")]
    found = audited(lists)  # shares 1, .631, .5, and nothing to gain
    assert in_band(found, 0.0, 1.0) == [1, 2]
    assert in_band(found, 0.6, 0.98) == [1]
    assert in_band(found, 0.1, 0.55) == [2]
    assert in_band(found, 0.7, 0.9) == []
    with pytest.raises(InputError, match="from a low share to a high one"):
        in_band(found, 0.9, 0.1)


def test_the_share_is_of_what_the_reward_can_reach_not_of_one():
    half = listed([0, 1, 0], pool=(1, 1))
    found = audited([half], ndcg(10, ideal="judged"))
    assert found.ideal < 0.7
    assert found.by_list[0].share == pytest.approx(SECOND)


# advice


@pytest.mark.parametrize(
    ("lists", "weight", "advice"),
    [
        (many(None), 1.0, "Collect labels: none of 60 lists has judgements."),
        (many([0, 0, 0], 30) + many([0, 1, 0], 30), 1.0, "Deepen the first stage: 50 % of the judged lists hold no"),
        (many([0, 1, 0], pool=[1] * 10), 1.0, "Deepen the first stage: the relevant candidates fill only 10 %"),
        (many([0, 1, 0], 20), 1.0, "Collect labels: 20 lists with a relevant candidate are few"),
        (many([2, 1, 0]), 1.0, "Collect labels of harder queries: nDCG@10 is 1.000 of at most 1.000, and 100 %"),
        (many([0, 1, 0]), 1.0, "Refine: 100 % of the lists are at the edge, and nDCG@10 is 0.631 of at most 1.000."),
    ],
)
def test_the_advice_follows_from_the_numbers(lists, weight, advice):
    said = audited(lists, weight=weight).advice()
    assert said.startswith(advice)
    assert said.count(". ") == 0 and said.endswith("."), "one sentence"


def test_lists_out_of_reach_ask_for_a_longer_clone():
    said = audited(many([0, 1, 0]), weight=10.0, temperature=0.1).advice()
    assert said.startswith("Clone longer: of 60 lists with something to gain, only 0 are at the edge")


def test_a_deep_pool_does_not_ask_for_a_deeper_first_stage_where_the_cutoff_can_be_filled():
    lists = many([0] + [1] * 10, pool=[1] * 100)
    found = audited(lists)
    assert found.recall_ceiling == pytest.approx(0.1) and found.top_ceiling == 1.0
    assert found.advice().startswith("Refine")


def test_a_reward_of_your_own_is_never_sent_to_collect_judgements():
    assert audited(many(None), FunctionReward(best_first)).advice().startswith("Refine")


def test_a_reward_that_no_ranking_earns_is_to_be_checked_whether_it_looks_at_grades_or_not():
    for reward in (reciprocal_rank(10, level=3), kendall({}), FunctionReward(lambda doc_ids, candidates: 0.0)):
        found = audited(many([0, 1, 0]), reward)
        assert found.pays_nothing
        assert found.advice().startswith(f"Check the reward: no ranking of any list earns anything by {found.reward}")
    assert audited(many([0, 1, 0], 20), reciprocal_rank(10, level=3)).advice().startswith("Check the reward")
    assert not audited(many([2, 1, 0])).pays_nothing, "solved is not the same"
    assert audited(many([0, 0, 0])).advice().startswith("Deepen the first stage")


@pytest.mark.parametrize(
    ("reward", "says"),
    [
        (FunctionReward(lambda doc_ids, candidates: 1 / 0, "mine"), "reward mine: .* raised ZeroDivisionError"),
        (lambda rankings, lists: rankings[..., 0] / 0, "query 'q0' is not a finite number: mend the reward"),
        (lambda rankings, lists: [1.0], r"it must pay a tensor \[16, 2\], not list"),
        (lambda rankings, lists: rankings.shape[9], "reward function: IndexError"),
        (ndcg(10, gain="exponential"), "reward nDCG@10: a grade of 200 has no exponential gain"),
    ],
)
def test_a_fault_of_a_reward_is_an_input_error_that_names_it(reward, says):
    with pytest.raises(InputError, match=says):
        audited(many([0, 200, 0]), reward)


# json


def test_an_audit_goes_through_json_with_or_without_its_lists():
    found = audited(toy_lists(6), weight=-0.02)
    whole = json.loads(json.dumps(found.to_json(by_list=True), allow_nan=False))
    assert Audit.from_json(whole) == found
    short = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert "by_list" not in short and short["advice"] == found.advice()
    assert Audit.from_json(short) == replace(found, by_list=())
    assert Audit.from_json(short).advice() == found.advice()
    del short["headroom"]
    with pytest.raises(InputError, match="no 'headroom'"):
        Audit.from_json(short)


def test_the_means_of_no_judged_list_are_null_in_json():
    found = json.loads(json.dumps(audited(many(None, 2)).to_json(), allow_nan=False))
    assert found["greedy"] is None and found["recall_ceiling"] is None and found["unjudged"] == 1.0


# the command


TEXTS = {"a": "red", "b": "green light", "c": "blue sky over", "d": "yellow sun and sand", "e": "black"}


@pytest.fixture
def beir(tmp_path):
    """A collection of five documents with two judged queries and one that is not, and a run of all three."""
    folder = tmp_path / "beir"
    (folder / "qrels").mkdir(parents=True)
    corpus = [json.dumps({"_id": d, "title": "", "text": text}) for d, text in TEXTS.items()]
    (folder / "corpus.jsonl").write_text("\n".join(corpus))
    queries = [json.dumps({"_id": q, "text": text}) for q, text in (("1", "sun"), ("2", "sky"), ("3", "sea"))]
    (folder / "queries.jsonl").write_text("\n".join(queries))
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n1\td\t2\n1\tb\t1\n2\tc\t1\n2\te\t0\n")
    ranked = [f"{q} Q0 {d} {rank} {9 - rank} t" for q in "123" for rank, d in enumerate("abcd", start=1)]
    (folder / "run.trec").write_text("\n".join(ranked) + "\n")
    return folder


def said(*arguments):
    result = CliRunner().invoke(cli.app, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return " ".join(result.output.split())


def by_trec_eval(scores, qrels, measure):
    """Mean of a measure with only the candidates judged: the ideal is what they can reach."""
    within = {q: {d: g for d, g in grades.items() if d in scores[q]} for q, grades in qrels.items()}
    found = pytrec_eval.RelevanceEvaluator(within, {measure}).evaluate(scores)
    return sum(next(iter(by.values())) for by in found.values()) / len(found)


def test_the_command_audits_the_run_itself(beir, tmp_path):
    out = tmp_path / "audit.json"
    text = said("audit", f"{beir}#test", "--run", beir / "run.trec", "--json", out)
    assert "Audit of 2 lists against nDCG@10" in text and "at the edge" in text
    assert "Collect labels: 2 lists with a relevant candidate are few" in text
    found = Audit.from_json(json.loads(out.read_text()))
    scores = read_run(beir / "run.trec").scores
    qrels = read_qrels(beir / "qrels" / "test.tsv")
    assert found.greedy == pytest.approx(by_trec_eval(scores, qrels, "ndcg_cut.10"), abs=1e-4)
    assert [one.query_id for one in found.by_list] == ["1", "2"]


def test_the_command_audits_a_trained_model_on_the_candidates_of_the_run(beir, tmp_path, tiny_bert):
    scorer, _ = load_cross_encoder(str(tiny_bert), max_length=64, precision="float32", device="cpu")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        torch.nn.init.normal_(scorer.model[-1].linear.weight, std=0.3)
    save_policy(ScorePolicy(scorer), tmp_path / "model")
    out = tmp_path / "audit.json"
    arguments = ("audit", f"{beir}#test", "--run", beir / "run.trec", "--depth", 3)
    said(*arguments, "--model", tmp_path / "model", "--reward", "RR@10", "--json", out)
    found = Audit.from_json(json.loads(out.read_text()))
    assert (found.reward, [one.candidates for one in found.by_list]) == ("RR@10", [3, 3])
    texts, queries = TEXTS, {"1": "sun", "2": "sky"}
    lists = [CandidateList(q, queries[q], tuple("abc"), tuple(texts[d] for d in "abc")) for q in queries]
    scores = rerank_lists(load_policy(str(tmp_path / "model")), lists, "model")["served"].scores
    qrels = read_qrels(beir / "qrels" / "test.tsv")
    assert found.greedy == pytest.approx(by_trec_eval(scores, qrels, "recip_rank"), abs=1e-4)


def test_a_model_with_first_stage_scores_is_audited_on_a_run_with_queries_that_are_not_judged(
    beir, tmp_path, tiny_bert
):
    scorer, _ = load_cross_encoder(str(tiny_bert), max_length=64, precision="float32", device="cpu")
    save_policy(ScorePolicy(scorer, FirstStageWeights({"first stage": 0.0, "bm25": 1000.0})), tmp_path / "model")
    settings = {"language": "english", "index": "flat", "encoder": "minilm"}
    (tmp_path / "model" / "retrieval.json").write_text(json.dumps(settings))
    # BM25 finds "sun" in d and "sky" in c, each the best document of its query.
    found = audit_run(f"{beir}#test", beir / "run.trec", str(tmp_path / "model"), "RR@10")
    assert [(one.query_id, one.greedy) for one in found.by_list] == [("1", 1.0), ("2", 1.0)]
    assert audit_run(f"{beir}#test", beir / "run.trec", None, "RR@10").greedy == pytest.approx((1 / 2 + 1 / 3) / 2)


def test_a_collection_without_judgements_cannot_be_audited_and_unjudged_queries_are_counted(beir, caplog):
    with pytest.raises(InputError, match="no judgements"):
        audit_run(str(beir), beir / "run.trec")
    everything = beir / "qrels" / "all.tsv"
    everything.write_text("query-id\tcorpus-id\tscore\n1\td\t2\n")
    assert audit_run(f"{beir}#all", beir / "run.trec").lists == 1
    assert "2 queries of the run are not in" in caplog.text


# real data


@pytest.mark.skipif(not DL.is_dir(), reason="the data set trec-dl-19-20 is not in the folder shared/data")
def test_the_audit_of_bm25_on_trec_dl_agrees_with_trec_eval_and_finds_headroom():
    path = DL / "runs" / "dl20.firststage.bm25.trec"
    found = audit_run(f"{DL}#test", path)
    expected = by_trec_eval(read_run(path).scores, read_qrels(DL / "qrels" / "test.tsv"), "ndcg_cut.10")
    assert found.lists == 54
    assert found.greedy == pytest.approx(expected, abs=1e-4)
    assert found.ideal == pytest.approx(1.0, abs=1e-5)
    assert found.at_the_edge > 0.7 and found.recall_ceiling < found.top_ceiling
    assert found.advice().startswith("Refine")
