"""Names become objects: every spelling of a reward is the measure it says, a wrong one is named with the nearest."""

import math
import re
import sys
import types
from pathlib import Path

import pytest
import pytrec_eval
import torch
from tiny_language_models import folder_of

from rerank import plackett_luce
from rerank.composition import check_parts, dev_reward_of, policy_of, reward_named, reward_of
from rerank.errors import InputError, RecipeError, RerankError
from rerank.evaluation.measures import parse_measure
from rerank.lists import batch_of
from rerank.objective.expected import expected_reward, is_exact
from rerank.recipe import parse_recipe
from rerank.rewards import REWARDS, FunctionReward, headroom, ndcg
from rerank.training.refine import Refine
from rerank.types import CandidateList

GRADES = (0, 2, 0, 1, 3, 0, 1)
POOL = (*GRADES, 3, 2)
"""Two judged documents were not retrieved."""
DOCS = tuple(f"d{i}" for i in range(len(GRADES)))
BATCH = batch_of([CandidateList("q", "query", DOCS, DOCS, labels=GRADES, pool=POOL)])
ORDERS = [[0, 1, 2, 3, 4, 5, 6], [4, 1, 3, 6, 0, 2, 5], [5, 2, 0, 6, 3, 1, 4]]

MODULE = """
from rerank.rewards import FunctionReward, headroom, kendall, minimum, ndcg, reciprocal_rank, with_labels

def first_is_long(doc_ids, candidates):
    return float(len(doc_ids[0]))

exact = ndcg(cutoff=3)
combined = minimum([ndcg(cutoff=3), reciprocal_rank(cutoff=3)])
gained = headroom(ndcg(cutoff=3))
sampled = FunctionReward(first_is_long, "long", cutoff=1)
elsewhere = with_labels(sampled, {"q": {"d5": 1}})
number = 3
"""


@pytest.fixture
def rewards_module(tmp_path, monkeypatch):
    """A user's module `mine` in the current folder, as `rerank train` finds it."""
    (tmp_path / "mine.py").write_text(MODULE, encoding="utf8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(__import__("sys").modules, "mine", raising=False)


def values(reward, batch=BATCH, orders=ORDERS):
    return reward(torch.tensor([orders]), batch)[0].tolist()


def by_trec_eval(measure, cut=None, level=1):
    """The measure of each of ORDERS, among all judged documents."""
    qrels = dict(zip((*DOCS, "x1", "x2"), POOL, strict=True))
    found = []
    for order in ORDERS:
        run = {DOCS[d]: float(len(order) - i) for i, d in enumerate(order[:cut])}
        judge = pytrec_eval.RelevanceEvaluator({"q": qrels}, {measure}, relevance_level=level)
        found.append(next(iter(judge.evaluate({"q": run})["q"].values())))
    return found


# Spelled as ir_measures spells it


@pytest.mark.parametrize(
    ("name", "measure", "cut", "level"),
    [
        ("nDCG@5", "ndcg_cut.5", None, 1),
        ("nDCG", "ndcg", None, 1),
        ("RR", "recip_rank", None, 1),
        ("RR@2", "recip_rank", 2, 1),
        ("RR(rel=3)@4", "recip_rank", 4, 3),
        ("AP", "map", None, 1),
        ("AP(rel=2)", "map", None, 2),
        ("AP@3", "map_cut.3", None, 1),
        ("R@5", "recall.5", None, 1),
        ("R(rel=2)@5", "recall.5", None, 2),
        ("P@5", "P.5", None, 1),
        ("P(rel=3)@5", "P.5", None, 3),
        ("Success@1", "success.1", None, 1),
        ("Success(rel=3)@1", "success.1", None, 3),
        ("Rprec", "Rprec", None, 1),
    ],
)
def test_a_name_is_the_measure_that_trec_eval_computes(name, measure, cut, level):
    reward = reward_named(name, ideal="judged")
    assert is_exact(reward)
    assert values(reward) == pytest.approx(by_trec_eval(measure, cut, level), abs=1e-6)


def test_measures_that_trec_eval_lacks_are_their_formulas():
    gains = [0, 2, 0, 1]  # the first four candidates, in first-stage order
    dcg = sum(g / math.log2(i + 2) for i, g in enumerate(gains))
    assert values(reward_named("DCG@4"))[0] == pytest.approx(dcg)
    assert values(reward_named("RBP@4"))[0] == pytest.approx(0.2 * (0.8 + 0.8**3))
    stop = [(2**g - 1) / 16 for g in gains]
    err = stop[1] / 2 + (1 - stop[1]) * stop[3] / 4
    assert values(reward_named("ERR@4"))[0] == pytest.approx(err)


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("ndcg@10", "nDCG@10"),
        ("NDCG_cut_10", "nDCG@10"),
        (" nDCG @ 10 ", "nDCG@10"),
        ("mrr@10", "RR@10"),
        ("recip_rank", "RR"),
        ("map", "AP"),
        ("map(REL=2)@100", "AP(rel=2)@100"),
        ("map_cut_5", "AP@5"),
        ("recall@5", "R@5"),
        ("recall_5", "R@5"),
        ("precision@5", "P@5"),
        ("P_5", "P@5"),
        ("success_1", "Success@1"),
        ("rprec", "Rprec"),
        ("err@20", "ERR@20"),
    ],
)
def test_an_alias_is_the_measure_itself(alias, name):
    assert reward_named(alias).name == reward_named(name).name
    assert values(reward_named(alias)) == values(reward_named(name))


def test_every_reward_that_has_a_column_in_the_table_is_spelled_alike_in_both():
    for text in ("nDCG@10", "RR@10", "AP", "AP(rel=2)", "R@100", "P@10", "Success@1"):
        measure = parse_measure(text)
        assert reward_named(text).name == str(parse_measure(str(measure).replace("(rel=2)", "")))
        assert reward_named(text).cutoff == measure.cutoff


def test_every_reward_of_the_library_can_be_named():
    for name in REWARDS:
        assert reward_named(f"{name}@3").cutoff == 3


# Gain and ideal


def test_gain_reaches_ndcg_and_dcg_and_changes_them():
    linear, exponential = (values(reward_named("nDCG@5", gain)) for gain in ("linear", "exponential"))
    assert linear[0] != pytest.approx(exponential[0], abs=1e-3)
    assert values(reward_named("DCG@2", "exponential"))[0] == pytest.approx((2**2 - 1) / math.log2(3))
    assert values(reward_named("DCG@2", "linear"))[0] == pytest.approx(2 / math.log2(3))


@pytest.mark.parametrize("name", ["nDCG@5", "R@5", "AP", "Rprec"])
def test_the_ideal_of_refinement_is_over_the_candidates_and_that_of_dev_over_all_judged(name):
    refine = Refine(reward=name)
    candidates, judged = values(reward_of(refine)), values(dev_reward_of(refine))
    assert all(c >= j > 0 for c, j in zip(candidates[:2], judged[:2], strict=True))
    assert candidates[1] > judged[1], "what was not retrieved is missing from the best order of the candidates"
    assert values(reward_of(Refine(reward=name, ideal="judged"))) == judged
    if name == "nDCG@5":
        assert candidates[1] == pytest.approx(1.0), "the order by grade is ideal among the candidates"


def test_the_gain_of_a_refinement_is_that_of_dev_too():
    refine = Refine(reward="nDCG@5", gain="exponential")
    assert values(dev_reward_of(refine)) == values(reward_named("nDCG@5", "exponential", "judged"))


# Mixtures


def mixed(table):
    text = f'name = "x"\n[data]\ntrain = "a"\ntest = "b"\n[refine]\nreward = {table}\n'
    recipe = parse_recipe(text, Path())
    return recipe.refine_of(recipe.models[0])


def test_a_table_of_rewards_is_their_weighted_mean_and_exact():
    refine = mixed('{ "nDCG@10" = 0.7, "RR@10" = 0.3 }')
    reward, dev = reward_of(refine), dev_reward_of(refine)
    parts = [values(reward_named(name)) for name in ("nDCG@10", "RR@10")]
    wanted = [0.7 * a + 0.3 * b for a, b in zip(*parts, strict=True)]
    assert values(reward) == pytest.approx(wanted)
    assert values(dev)[1] < values(reward)[1]
    assert (reward.name, reward.cutoff) == ("0.7 nDCG@10 + 0.3 RR@10", 10)
    scores = torch.tensor([[0.3, 1.0, -0.5, 0.2, 0.9, 0.0, -1.0]])
    rankings = plackett_luce.sample(scores, BATCH.mask, 20_000, torch.Generator().manual_seed(0))
    sampled = reward(rankings, BATCH)
    error = float(sampled.std() / sampled.numel() ** 0.5)
    assert float(expected_reward(scores, reward, BATCH)) == pytest.approx(float(sampled.mean()), abs=4 * error)


def test_weights_need_not_sum_to_one():
    assert values(reward_of(mixed('{ "nDCG@10" = 7, "RR@10" = 3 }'))) == pytest.approx(
        values(reward_of(mixed('{ "nDCG@10" = 0.7, "RR@10" = 0.3 }')))
    )


@pytest.mark.parametrize(
    "table", ["{}", '{ "nDCG@10" = 0 }', '{ "nDCG@10" = -1 }', '{ "AP" = "x" }', '{ "AP" = true }', '{ "AP" = nan }']
)
def test_a_mixture_without_sensible_weights_is_refused(table):
    with pytest.raises(InputError, match="names at least one reward, each with a weight above 0"):
        reward_of(mixed(table))


def test_a_wrong_name_in_a_mixture_is_named_with_the_nearest():
    with pytest.raises(InputError, match=r"'nDGC@10' is not a reward; did you mean 'nDCG'\?"):
        reward_of(mixed('{ "nDGC@10" = 1, "RR@10" = 1 }'))


# The user's own


def test_a_function_is_asked_for_one_ranking_of_one_list(rewards_module):
    reward = reward_named("mine:first_is_long")
    assert isinstance(reward, FunctionReward)
    assert not is_exact(reward)
    assert values(reward) == [2.0, 2.0, 2.0]
    assert reward.name == "mine:first_is_long"


@pytest.mark.parametrize(("name", "exact"), [("exact", True), ("combined", True), ("gained", True), ("sampled", False)])
def test_a_reward_object_is_taken_as_it_is(name, exact, rewards_module):
    import mine

    reward = reward_named(f"mine:{name}")
    assert reward is getattr(mine, name)
    assert is_exact(reward) is exact
    assert len(values(reward)) == 3


def test_a_sampled_reward_under_other_labels_is_taken_as_it_is(rewards_module):
    import mine

    assert reward_named("mine:elsewhere") is mine.elsewhere
    assert values(reward_named("mine:elsewhere")) == [2.0, 2.0, 2.0]


def test_a_reward_object_may_be_part_of_a_mixture(rewards_module):
    reward = reward_of(Refine(reward={"mine:exact": 1.0, "RR@10": 1.0}))
    parts = [values(reward_named(name)) for name in ("nDCG@3", "RR@10")]
    assert values(reward) == pytest.approx([(a + b) / 2 for a, b in zip(*parts, strict=True)])
    assert is_exact(reward)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("mine:nothing", "AttributeError: module 'mine' has no attribute 'nothing'"),
        ("nowhere:f", "ModuleNotFoundError: No module named 'nowhere'"),
        ("mine:", "cannot be imported"),
        ("mine:number", "'mine:number' is a int, not a function"),
    ],
)
def test_what_cannot_be_imported_or_called_says_why(name, says, rewards_module):
    with pytest.raises(InputError, match=re.escape(says)):
        reward_named(name)


# What is refused


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("nDGC@10", "nDCG"), ("RPP", "RBP"), ("Sucess@1", "Success"), ("nDCG10", "nDCG"), ("rprc", "Rprec")],
)
def test_a_wrong_name_is_named_with_the_nearest(name, nearest):
    with pytest.raises(InputError, match=rf"'{name}' is not a reward; did you mean '{nearest}'\?.*module:function"):
        reward_named(name)


@pytest.mark.parametrize("name", ["", "@10", "Judged@10", "nDCG@0", "nDCG@-1", "nDCG@1.5", "RR(rel=0)@10", "AP(2)"])
def test_what_is_no_reward_is_refused_with_all_that_are(name):
    with pytest.raises(InputError, match=r"is not a reward.*known: .*AP.*nDCG") as caught:
        reward_named(name)
    assert repr(name) in str(caught.value)


@pytest.mark.parametrize("name", ["nDCG(rel=2)@10", "DCG(rel=2)", "ERR(rel=1)@20"])
def test_a_lowest_grade_of_a_measure_that_has_none_is_not_ignored(name):
    with pytest.raises(InputError, match=r"leave \(rel=\.\.\.\) out"):
        reward_named(name)


@pytest.mark.parametrize("name", ["R", "P", "Success(rel=2)", "recall", "p"])
def test_a_reward_that_no_order_can_change_is_refused(name):
    with pytest.raises(InputError, match=r"cutoff|is not a reward"):
        reward_named(name)


# Before any work begins


JUDGED = """
[data]
train = { collection = "a", candidates = "judged" }
test = { collection = "b", run = "run.trec" }
"""


@pytest.fixture
def signed_reward(monkeypatch):
    """A module with a reward object that can be negative."""
    module = types.ModuleType("signed_reward")
    module.gain = headroom(ndcg(10))
    monkeypatch.setitem(sys.modules, "signed_reward", module)


def parts(change, tmp_path):
    (tmp_path / "run.trec").write_text("q Q0 d 1 1 x\n")
    text = f'name = "x"\n{change}\n'
    if "data" not in change:
        text += '[data]\ntrain = "a#train"\ntest = "a#test"\n'
    check_parts(parse_recipe(text, tmp_path))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ('refine.reward = "nDGC@10"', "did you mean 'nDCG'"),
        ('models = [{ refine = { reward = { "RP@10" = 1 } } }]', "[refine] reward: 'RP@10' is not a reward"),
        ('refine = { reward = "RR", estimator = "pl_rank" }', "[refine] reward: pl_rank"),
        ('refine = { reward = { "AP" = 1, "RR" = 1 }, estimator = "reward_to_go" }', "is not one: use rloo"),
        ('refine = { reward = "math:sqrt", estimator = "exact" }', "the expectation of math:sqrt is not known"),
        ('refine = { reward = "signed_reward:gain", utility = "log" }', "headroom(nDCG@10) can be negative"),
        ('refine.reward = "math:sqrt"\nevaluation.measures = ["Judged@10"]', "'Judged@10' is not a reward"),
        ('teacher.kind = "recorded"', "needs teachers"),
        ('teacher.kind = "scored"', "needs teacher.model"),
        ("teacher.weights = { bm52 = 1.0 }", "no retriever 'bm52'; did you mean 'bm25'"),
        ('retrieval.retrievers = []\nteacher.kind = "judged"', "not every source has a run of its own"),
        (
            'retrieval.retrievers = []\nteacher.kind = "judged"\n' + JUDGED,
            "put in the order of retrieval.retrievers, which is empty",
        ),
        ('data = { train = { collection = "a", run = "no.trec" }, test = "b" }', "there is no file"),
    ],
)
def test_parts_that_cannot_be_made_are_told_before_any_work(change, says, tmp_path, signed_reward):
    with pytest.raises(RerankError, match=re.escape(says)):
        parts(change, tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        'refine.reward = "math:sqrt"',
        'refine.reward = "signed_reward:gain"',
        'refine = { reward = "R@5", estimator = "pl_rank" }',
        'refine = { reward = { "AP" = 1, "RR" = 1 }, estimator = "exact" }',
        'retrieval.retrievers = ["bm25"]\n' + JUDGED,
        'teacher = { kind = "fused", weights = { bm25 = 1.0 } }',
    ],
)
def test_parts_that_can_be_made_pass(change, tmp_path, signed_reward):
    parts(change, tmp_path)


# Language models: what cannot work is told before a teacher is asked, who may cost money


@pytest.fixture(scope="module")
def language(tmp_path_factory):
    """A language model that reads 1024 tokens."""
    return folder_of(tmp_path_factory.mktemp("language"), context=1024)


def language_parts(settings, kind, base, tmp_path, stages=""):
    sizes = "" if "document_tokens" in settings else "document_tokens = 4\nwindow = 6\n"
    model = f'[[models]]\nkind = "{kind}"\nbackbone = "{base}"\n{sizes}query_tokens = 8\n{settings}\n'
    (tmp_path / "run.trec").write_text("q Q0 d 1 1 x\n")
    data = '[data]\ntrain = { collection = "a", run = "run.trec" }\ntest = { collection = "b", run = "run.trec" }\n'
    check_parts(parse_recipe(f'name = "x"\nteacher.kind = "judged"\n{stages}\n{data}{model}', tmp_path))


@pytest.mark.parametrize("kind", ["listwise", "generative"])
@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ('windowing = { name = "sliding", stride = 6 }', "stride must be from 1 to 5, below the window of 6"),
        ('windowing = "slidng"', "did you mean 'sliding'"),
        ("document_tokens = 200\nwindow = 6", "and the model reads 1024: lower"),
        ("document_tokens = 4\nwindow = 1", "window = 1 must be at least 2"),
        ("chat = true", "the tokenizer has no chat template"),
        ('prompt = { request = "{n:d} {mark}" }', "prompt.request names {n:d}; it may name {mark}, {n} and {form}"),
        ('prompt = { request = "{mark!z}" }', "prompt.request names {mark!z}"),
        ('prompt = { instruction = "{mark:>9999999999}" }', "prompt.instruction names {mark:>9999999999}"),
        ('prompt = { request = "{mark:{n}}" }', "prompt.request names {mark:{n}}"),
        ('prompt = { request = "{form.upper} {mark}" }', "prompt.request names {form.upper}"),
    ],
)
def test_a_reading_that_cannot_work_is_told_before_any_work(settings, says, kind, language, tmp_path):
    with pytest.raises(RecipeError, match=re.escape(says)):
        language_parts(settings, kind, language, tmp_path)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ("writing = { thinking = 900 }", "lower window, document_tokens or thinking"),
        ("writing = { places = 7 }", "writing.places = 7 is more than the window of 6 holds"),
        ("writing = { thinkin = 5 }", "did you mean 'thinking'"),
        ('refine = { estimator = "exact" }', "[refine] estimator 'exact' is not for a model that writes its ranking"),
        ('refine = { utility = "log" }', "[refine] utility 'log' needs exact expectations"),
        ("refine = { entropy = 0.3 }", "[refine] entropy = 0.3 is a setting of models that give scores"),
        ("refine = { temperature = 2.0 }", "[refine] temperature = 2.0"),
        ("refine = { list_clip = 2.0 }", "[refine] list_clip = 2.0"),
        ("clone = { anchor = 1.0 }", "[clone] anchor = 1.0"),
        ('clone = { loss = "list_net" }', "[clone] loss 'list_net' is for models that give scores"),
        ('control = { loss = "lambda_rank" }', "[control] loss 'lambda_rank' is for models that give scores"),
        ("control = { calibration = 0.5 }", "[control] calibration = 0.5"),
    ],
)
def test_stages_that_a_generative_model_cannot_learn_in_are_told_before_any_work(settings, says, language, tmp_path):
    with pytest.raises(RecipeError, match=re.escape(says)):
        language_parts(settings, "generative", language, tmp_path)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("listwise", "refine = { entropy = 0.3 }"),
        ("generative", 'naming = "numbers"\nwriting = { thinking = 5, places = 6 }'),
        ("generative", "writing = { constrained = false }\nrefine = { malformed_price = 0.2, anchor = 0.1 }"),
    ],
)
def test_language_models_that_can_be_made_pass(kind, settings, language, tmp_path):
    language_parts(settings, kind, language, tmp_path)


def test_no_weights_are_read_to_check_a_language_model(language, tmp_path):
    import shutil

    bare = Path(shutil.copytree(language, tmp_path / "bare"))
    (bare / "model.safetensors").unlink()
    language_parts("", "listwise", bare, tmp_path)


@pytest.mark.parametrize(
    ("chat", "says"),
    [
        ('extra = "x"', "[teacher.chat] extra = 'x' must be a table"),
        ('windowing_settings = "x"', "[teacher.chat] windowing_settings = 'x' must be a table"),
        ("windowing_settings = { stride = 20 }", "[teacher.chat] windowing 'sliding': stride must be from 1 to 19"),
        ('tokenizer = "nowhere"', "[teacher.chat] tokenizer = 'nowhere' is no folder"),
        ("window = 1", "[teacher.chat] window must be a whole number of at least 2"),
    ],
)
def test_settings_of_a_chat_teacher_that_cannot_work_are_told_before_any_work(chat, says, tmp_path):
    table = f'teacher.kind = "chat"\n[teacher.chat]\nurl = "http://localhost:1/v1"\nmodel = "m"\n{chat}'
    with pytest.raises(RecipeError, match=re.escape(says)):
        parts(table, tmp_path)


@pytest.mark.parametrize(("setting", "found"), [("", True), ("chat = false", False), ("chat = true", True)])
def test_a_language_model_is_asked_in_its_chats_words_where_it_has_some(setting, found, tmp_path):
    folder = folder_of(tmp_path / "lm", chat=True)
    prompt = 'prompt = { instruction = "", request = "", fenced = false }'
    text = f'[[models]]\nkind = "listwise"\nbackbone = "{folder}"\nwindow = 4\n{prompt}\n{setting}\n'
    recipe = parse_recipe('name = "x"\n[data]\ntrain = "a"\ntest = "b"\n' + text, tmp_path)
    policy = policy_of(recipe.models[0], None, (), 0)
    assert policy.scorer.reading.chat is found


def test_a_chat_template_that_is_asked_for_and_not_there_is_told_before_any_work(tmp_path):
    folder = folder_of(tmp_path / "lm", chat=False)
    text = f'[[models]]\nkind = "listwise"\nbackbone = "{folder}"\nchat = true\n'
    with pytest.raises(RecipeError, match="the tokenizer has no chat template"):
        check_parts(parse_recipe('name = "x"\n[data]\ntrain = "a"\ntest = "b"\n' + text, tmp_path))
