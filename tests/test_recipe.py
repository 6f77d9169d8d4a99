"""Recipes: every shipped one is read, and every mistake is named with its key, its value and what is allowed."""

import sys
from dataclasses import fields
from pathlib import Path

import pytest

from rerank.errors import InputError, NotFound, RecipeError
from rerank.evaluation.measures import parse_measure
from rerank.objective.sampled import ESTIMATORS
from rerank.recipe import CONTROLS, Model, load_recipe, parse_recipe
from rerank.training.schedule import Schedule

ROOT = Path(__file__).parents[1]
if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SHIPPED = sorted([*(ROOT / "rerank").glob("*.toml"), *(ROOT / "benchmarks" / "recipes").glob("*.toml")])

SMALLEST = """
name = "small"
[data]
train = "set#train"
test = "set#test"
"""


def parse(extra="", text=SMALLEST):
    return parse_recipe(text + extra, Path("folder"))


def refused(extra="", text=SMALLEST):
    with pytest.raises(RecipeError) as caught:
        parse(extra, text)
    return str(caught.value)


# What is shipped


def test_recipes_are_shipped():
    assert {"quickstart", "quickstart-small", "trec_dl", "scifact"} <= {path.stem for path in SHIPPED}


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_recipe_is_read_whole(path):
    recipe = load_recipe(path)
    assert recipe.base == path.parent
    assert recipe.text == path.read_text(encoding="utf8")
    written = tomllib.loads(recipe.text)
    assert recipe.name == written["name"]
    assert len(recipe.models) == len(written["models"])
    for model, table in zip(recipe.models, written["models"], strict=True):
        for stage, made in (("clone", recipe.clone_of(model)), ("refine", recipe.refine_of(model))):
            for key, value in {**written.get(stage, {}), **table.get(stage, {})}.items():
                assert getattr(made, key) == value, (stage, key)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_the_files_that_a_shipped_recipe_names_are_there(path):
    recipe = load_recipe(path)
    if "code#train" in recipe.text:
        pytest.skip("this recipe reads Python's own library")
    named = [line for line in recipe.text.replace('"', "\n").splitlines() if "../" in line]
    assert named
    data = (path.parent / "../../../shared/data").resolve()
    if not data.is_dir():
        pytest.skip("shared/data is not beside the checkout")
    for name in named:
        assert (path.parent / name.split("#")[0]).exists(), name


@pytest.mark.parametrize("name", ["trec_dl", "scifact"])
def test_a_recipe_for_a_known_collection_is_shorter_than_thirty_lines(name):
    lines = (ROOT / "benchmarks" / "recipes" / f"{name}.toml").read_text(encoding="utf8").splitlines()
    assert 0 < len([line for line in lines if line.strip() and not line.strip().startswith("#")]) < 30


# What a recipe means


def test_the_smallest_recipe_takes_the_defaults():
    recipe = parse()
    assert recipe.models == (Model(),)
    assert recipe.data.test.collection == "set#test"
    assert [source.collection for source in recipe.data.train] == ["set#train"]
    assert recipe.base == Path("folder")
    assert recipe.retrieval.retrievers == ("bm25", "dense")


@pytest.mark.parametrize(
    "train",
    [
        'train = "a"',
        'train = ["a"]',
        'train = { collection = "a" }',
        'train = [{ collection = "a" }]',
        '[[data.train]]\ncollection = "a"',
    ],
)
def test_a_source_is_a_text_a_table_or_a_list_of_these(train):
    text = f'name = "x"\n[data]\ntest = "t"\n{train}\n'
    (source,) = parse_recipe(text, Path()).data.train
    assert source.collection == "a"
    assert source.limit is None


def test_a_table_of_files_is_a_collection_and_its_run_and_limit_stay_with_the_source():
    text = """
name = "x"
data.train = [{ beir = "a", split = "train", run = "r.trec", teachers = ["t.trec"], limit = 7 }, "b#train"]
data.test = { documents = "d.tsv", queries = "q.tsv", qrels = "q.txt", run = "s.trec" }
"""
    data = parse_recipe(text, Path()).data
    assert data.train[0].collection == {"beir": "a", "split": "train"}
    assert (data.train[0].run, data.train[0].teachers, data.train[0].limit) == ("r.trec", ("t.trec",), 7)
    assert data.train[1].collection == "b#train"
    assert data.test.collection == {"documents": "d.tsv", "queries": "q.tsv", "qrels": "q.txt"}


def test_a_model_s_own_settings_win_over_the_common_ones():
    recipe = parse(
        """
[clone]
steps = 10
list_size = 8
[refine]
reward = "RR@10"
[[models]]
name = "a"
clone = { steps = 20 }
[[models]]
name = "b"
refine = { reward = "P@5" }
control = { loss = "list_net" }
"""
    )
    a, b = recipe.models
    assert (recipe.clone_of(a).steps, recipe.clone_of(b).steps) == (20, 10)
    assert recipe.clone_of(a).list_size == recipe.clone_of(b).list_size == 8
    assert (recipe.refine_of(a).reward, recipe.refine_of(b).reward) == ("RR@10", "P@5")
    assert (recipe.control_of(a).loss, recipe.control_of(b).loss) == ("lambda_rank", "list_net")


def test_the_control_has_every_setting_of_refinement_that_both_know():
    recipe = parse(
        """
[refine]
steps = 17
lists_per_step = 5
list_size = 9
learning_rate = 3e-6
head_learning_rate = 2e-4
warmup = 0.3
evaluations = 2
select = "last"
plain_weight = 0.25
reward = "RR@10"
"""
    )
    (model,) = recipe.models
    refine, control = recipe.refine_of(model), recipe.control_of(model)
    for field in fields(Schedule):
        assert getattr(control, field.name) == getattr(refine, field.name), field.name
    assert control.loss == "lambda_rank"


def test_the_control_s_own_settings_win():
    recipe = parse("[refine]\nsteps = 17\n[control]\nsteps = 9\nloss = 'list_mle'\n")
    assert (recipe.control_of(Model()).steps, recipe.control_of(Model()).loss) == (9, "list_mle")


def test_a_control_without_the_anchor_of_refinement_has_no_reference_to_move():
    recipe = parse("[refine]\nanchor = 0.5\nreset_reference = 9\n[control]\nanchor = 0.0\n")
    assert recipe.refine_of(Model()).reset_reference == 9
    assert (recipe.control_of(Model()).anchor, recipe.control_of(Model()).reset_reference) == (0.0, 0)


def test_the_default_learning_rate_of_the_control_is_that_of_refinement():
    recipe = parse()
    assert recipe.control_of(Model()).learning_rate == recipe.refine_of(Model()).learning_rate
    assert recipe.control_of(Model()).learning_rate != recipe.clone_of(Model()).learning_rate


def test_whole_numbers_are_taken_for_real_ones():
    assert parse("[clone]\nepochs = 2\n").clone_of(Model()).epochs == 2.0


# Controls, seeds, calibration, candidates


def top(line):
    return parse(text=f"{line}\n{SMALLEST}")


@pytest.mark.parametrize("controls", ["labels", "standard", "all"])
def test_controls_may_be_a_set_by_its_name(controls):
    assert top(f'controls = "{controls}"').controls == controls


def test_a_larger_set_of_controls_holds_the_smaller():
    assert set(CONTROLS["labels"]) < set(CONTROLS["standard"]) < set(CONTROLS["all"])


def test_controls_may_be_a_list_of_arms_and_the_default_is_the_labels():
    assert parse().controls == "labels"
    assert top('controls = ["longer clone", "refined grpo"]').controls == ("longer clone", "refined grpo")
    assert top("controls = []").controls == ()
    assert top(f"controls = {list(CONTROLS['all'])}").controls == CONTROLS["all"]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('controls = "standart"', "controls = 'standart' is not known; did you mean 'standard'? (known: all, labels"),
        ('controls = ["longer clones"]', "there is no arm 'longer clones'; did you mean 'longer clone'?"),
        ('controls = ["labels", "random rewards"]', "there is no arm 'random rewards'; did you mean 'random reward'?"),
        ('controls = ["clone"]', "there is no arm 'clone'"),
        ("controls = 3", "controls must be a list, not 3"),
        ("controls = [3]", "controls[0] = 3 must be a str"),
        ("seeds = 0", "seeds = 0 must be at least 1"),
        ("seeds = -2", "seeds = -2 must be at least 1"),
        ("seeds = 2.0", "seeds = 2.0 must be an int"),
        ("seeds = [1, 2]", "seeds = [1, 2] must be an int"),
        ('seed = "x"', "seed = 'x' must be an int"),
        ('calibrate = "affine"', "[calibrate] must be a table, not 'affine'"),
    ],
)
def test_wrong_controls_seeds_and_calibration_are_named(line, says):
    assert says in refused(text=f"{line}\n{SMALLEST}")


def test_seeds_and_calibration_are_taken_as_given():
    assert (parse().seeds, parse().calibrate.kind, parse().calibrate.level) == (1, "affine", 1)
    recipe = top("seeds = 3\ncalibrate = { kind = 'isotonic', level = 2 }")
    assert (recipe.seeds, recipe.calibrate.kind, recipe.calibrate.level) == (3, "isotonic", 2)
    assert parse("[calibrate]\nkind = 'none'\n").calibrate.kind == "none"


def with_test_source(table):
    return f'name = "x"\n[data]\ntrain = "a"\ntest = {table}\n'


def test_candidates_are_retrieved_unless_the_source_says_judged():
    assert parse().data.test.candidates == "retrieved"
    source = parse(text=with_test_source('{ collection = "b", candidates = "judged" }')).data.test
    assert (source.collection, source.candidates) == ("b", "judged")
    source = parse(text=with_test_source('{ beir = "b", split = "test", candidates = "judged" }')).data.test
    assert (source.collection, source.candidates) == ({"beir": "b", "split": "test"}, "judged")


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ('{ collection = "b", candidates = "all" }', "candidates = 'all' is not one of 'retrieved', 'judged'"),
        ('{ collection = "b", candidates = true }', "candidates = True is not one of"),
        ('{ collection = "b", candidates = "judged", run = "r.trec" }', "takes no run; drop run = 'r.trec'"),
    ],
)
def test_wrong_candidates_are_named(table, says):
    assert says in refused(text=with_test_source(table))


def test_a_band_an_anchor_and_a_mixture_are_taken_as_given():
    refine = parse("[refine]\nband = [0, 1]\nanchor = 'auto'\nreward = { 'nDCG@10' = 1, AP = 2 }\n").refine_of(Model())
    assert (refine.band, refine.anchor, refine.reward) == ((0.0, 1.0), "auto", {"nDCG@10": 1, "AP": 2})
    assert parse("[refine]\nanchor = 1\n").refine_of(Model()).anchor == 1.0


@pytest.mark.parametrize("estimator", ["auto", "exact", *ESTIMATORS])
def test_every_estimator_may_be_named(estimator):
    assert parse(f"[refine]\nestimator = '{estimator}'\n").refine_of(Model()).estimator == estimator


# What is refused


@pytest.mark.parametrize(
    ("extra", "key", "hint"),
    [
        ("sed = 1\n" + SMALLEST, "sed", "seed"),
        (SMALLEST + "[retrieval]\ndept = 5\n", "retrieval.dept", "depth"),
        (SMALLEST + "[clone]\nlearning_rat = 1e-4\n", "clone.learning_rat", "learning_rate"),
        (SMALLEST + "[refine]\nRewards = 'RR@10'\n", "refine.Rewards", "reward"),
        (SMALLEST + "[control]\nlos = 'list_mle'\n", "control.los", "loss"),
        (SMALLEST + "[teacher]\nkidn = 'fused'\n", "teacher.kidn", "kind"),
        (SMALLEST + "[[models]]\nmax_lenght = 9\n", "models[0].max_lenght", "max_length"),
        (SMALLEST + "[[models]]\nclone = { step = 9 }\n", "clone.step", "steps"),
        (SMALLEST + "[evaluation]\nmeasure = ['AP']\n", "evaluation.measure", "measures"),
        (SMALLEST + "dve = 0.2\n", "data.dve", "dev"),
    ],
)
def test_an_unknown_key_is_named_with_the_nearest_known_one(extra, key, hint):
    message = refused(text=extra)
    assert f"unknown key {key!r}" in message
    assert f"did you mean {hint!r}?" in message
    assert message.startswith("recipe: ")


@pytest.mark.parametrize(
    ("extra", "says"),
    [
        ("[retrieval]\ndepth = '100'\n", "retrieval.depth = '100' must be an int"),
        ("[retrieval]\ndepth = 10.5\n", "retrieval.depth = 10.5 must be an int"),
        ("[retrieval]\ndepth = true\n", "retrieval.depth = True must be an int"),
        ("[retrieval]\nretrievers = 'bm25'\n", "retrieval.retrievers must be a list, not 'bm25'"),
        ("[retrieval]\nretrievers = [1]\n", "retrieval.retrievers[0] = 1 must be a str"),
        ("[retrieval]\nindex = 'flaf'\n", "retrieval.index = 'flaf' is not one of 'flat', 'hnsw', 'ivf'"),
        ("[retrieval]\nweights = 2\n", "retrieval.weights must be a table, not 2"),
        ("[teacher]\nkind = 'gpt'\n", "teacher.kind = 'gpt' is not one of"),
        ("[[models]]\nkind = 'bert'\n", "models[0].kind = 'bert' is not one of"),
        ("[models]\nkind = 'light'\n", "models must be a list"),
        ("[clone]\nsteps = 1.5\n", "clone.steps = 1.5 must be an int"),
        ("[clone]\nlearning_rate = 'fast'\n", "clone.learning_rate = 'fast' must be a number"),
        ("[clone]\nselect = 'first'\n", "clone.select = 'first' is not one of"),
        ("[clone]\nloss = 'ranknet'\n", "did you mean 'rank_net'?"),
        ("[clone]\nlist_size = 1\n", "list_size must be at least 2"),
        ("[clone]\nlists_per_step = 0\n", "lists_per_step must be at least 1"),
        ("[refine]\nanchor = -1\n", "anchor must be 'auto' or at least 0, not -1"),
        ("[refine]\nanchor = 'atuo'\n", "refine.anchor = 'atuo' must be a number; or else: "),
        ("[refine]\nanchor = 'atuo'\n", "refine.anchor = 'atuo' is not one of 'auto'"),
        ("[refine]\nestimator = 'grop'\n", "did you mean 'grpo'?"),
        ("[refine]\nestimator = 3\n", "refine.estimator = 3 must be a str"),
        ("[refine]\nutility = 'logg'\n", "utility"),
        ("[refine]\nreward = 3\n", "refine.reward = 3 must be a str; or else: refine.reward must be a table, not 3"),
        ("[refine]\nreward = ['AP', 'RR']\n", "refine.reward = ['AP', 'RR'] must be one reward, or a table"),
        ("[refine]\nreward = ['AP']\n", 'reward = { "nDCG@10" = 0.8, "RR@10" = 0.2 }'),
        ("[refine]\nanchor = 0.0\nreset_reference = 9\n", "reset_reference = 9 moves the reference of an anchor"),
        ("[refine]\ntemperature = 2\nkeep_entropy = true\n", "temperature = 2.0 fixes it: give one of the two"),
        ("[control]\nepochs = 3\n", "control.epochs = 3 has no effect: the control takes as many steps as refinement"),
        ("[refine]\nband = 0.5\n", "refine.band must be a list, not 0.5"),
        ("[refine]\nband = ['low', 0.5]\n", "refine.band[0] = 'low' must be a number"),
        ("[refine]\nband = [0.5]\n", "band must be two shares, low below high, such as [0.1, 0.98], not [0.5]"),
        ("[refine]\nband = [0.9, 0.1]\n", "band must be two shares"),
        ("[refine]\nband = [0.1, 2]\n", "band must be two shares"),
        ("[refine]\nsamples = 1\n", "samples must be at least 2, not 1"),
        ("[refine]\nsamples = 2.5\n", "refine.samples = 2.5 must be an int"),
        ("[refine]\nlist_clip = 0\n", "list_clip must be greater than 0"),
        ("[refine]\ntemperature = 0\n", "temperature must be greater than 0"),
        ("[refine]\ngain = 'square'\n", "refine.gain = 'square' is not one of 'linear', 'exponential'"),
        ("[refine]\nideal = 'all'\n", "refine.ideal = 'all' is not one of 'candidates', 'judged'"),
        ("[refine]\nfit_first_stage = 1\n", "refine.fit_first_stage = 1 must be a bool"),
        ("[clone]\nunranked = 'first'\n", "clone.unranked = 'first' is not one of 'ignore', 'last'"),
        ("[clone]\nentropy = 0\n", "entropy must be greater than 0 nats"),
        ("[clone]\npatience = 0\n", "patience must be at least 1 evaluation"),
        ("[clone]\nminutes = 0\n", "minutes must be greater than 0"),
        ("[clone]\nminutes = 'five'\n", "clone.minutes = 'five' must be a number"),
        ("[clone]\nentropy_floor = -1\n", "entropy_floor must be at least 0"),
        ("[clone]\ncalibration = nan\n", "calibration must be at least 0"),
        ("[clone]\nreset_reference = -5\n", "reset_reference must be at least 0"),
        ("[clone]\nkeep_entropy = 'yes'\n", "clone.keep_entropy = 'yes' must be a bool"),
        ("[calibrate]\nkind = 'platt'\n", "calibrate.kind = 'platt' is not one of 'affine', 'isotonic', 'none'"),
        ("[calibrate]\nlevel = 0\n", "calibrate.level = 0 must be at least 1"),
        ("[calibrate]\nlevel = 1.5\n", "calibrate.level = 1.5 must be an int"),
        ("[calibrate]\nlevels = 1\n", "unknown key 'calibrate.levels'; did you mean 'level'?"),
        ("calibrate = 'affine'\n", "unknown key 'data.calibrate'"),
        ("[refine]\nlearning_rate = nan\n", "learning_rate must be greater than 0"),
        ("[evaluation]\nmeasures = ['NDGC@10']\n", "nDCG"),
        ("[evaluation]\nmeasures = ['nDCG@0']\n", "nDCG@0"),
        ("seed = 'x'\n", "unknown key 'data.seed'"),
        ("[clone]\n[[clone.x]]\n", "unknown key 'clone.x'"),
    ],
)
def test_a_wrong_value_is_named_with_its_key_and_what_is_allowed(extra, says):
    assert says in refused(extra)


def test_a_wrong_setting_of_one_model_is_told_before_any_work_begins():
    assert "clone.steps" in refused('[[models]]\nname = "a"\n[[models]]\nname = "b"\nclone = { steps = "x" }\n')


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "'name' is missing"),
        ("name = 'x'\n", "'data' is missing"),
        ("name = 'x'\n[data]\ntrain = 'a'\n", "'data.test' is missing"),
        ("name = 'x'\n[data]\ntest = 'a'\n", "'data.train' is missing"),
        ("name = 'x'\ndata = 3\n", "data] must be a table, not 3"),
        ("name = 3\n[data]\ntrain = 'a'\ntest = 'b'\n", "name = 3 must be a str"),
        ("name = 'x'\n[data]\ntrain = 3\ntest = 'b'\n", "data.train[0]] must be a table, not 3"),
        ("name = 'x'\n[data]\ntrain = { collection = 3 }\ntest = 'b'\n", "data.train[0].collection = 3 must be a str"),
    ],
)
def test_what_is_missing_or_of_another_shape_is_named(text, says):
    assert says in refused(text=text)


def test_models_need_different_names():
    assert "2 models need different names, got ['a', 'a']" in refused(
        '[[models]]\nname = "a"\n[[models]]\nname = "a"\n'
    )
    assert "2 models need different names" in refused("[[models]]\n[[models]]\nkind = 'light'\n")


@pytest.mark.parametrize("text", ["name = ", "{}", "name = 'x'\nname = 'y'\n", "[data\n", "\x00"])
def test_what_is_not_toml_says_so_and_where(text):
    assert refused(text=text).startswith("recipe: this is not TOML: ")


def test_a_file_is_named_in_the_message(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(SMALLEST + "[clone]\nx = 1\n", encoding="utf8")
    with pytest.raises(RecipeError, match=r"mine\.toml: unknown key 'clone\.x'"):
        load_recipe(path)
    for missing in (tmp_path / "no.toml", tmp_path):
        with pytest.raises(NotFound, match="there is no recipe"):
            load_recipe(missing)


def test_a_file_that_is_not_utf8_is_named(tmp_path):
    path = tmp_path / "latin.toml"
    path.write_bytes("name = 'ä'\n".encode("latin-1"))
    with pytest.raises(InputError, match=r"latin\.toml"):
        load_recipe(path)


def test_every_default_measure_is_known():
    for measure in parse().evaluation.measures:
        assert str(parse_measure(measure)) == measure


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ('name = "../x"', "name = '../x' must be letters"),
        ("models = []", "must each hold one at least"),
        ('models = [{ name = "a b" }, { name = "a-b" }]', "need different names"),
        ('models = [{ name = "../x" }]', "a name is letters"),
        ('models = [{ kind = "light", backbone = "other" }]', "takes its encoder from retrieval.encoder"),
        ("models = [{ dropout = 7.0 }]", "dropout = 7.0"),
        ("models = [{ max_length = 0 }]", "max_length = 0"),
        ('models = [{ precision = "fp8" }]', "precision 'fp8'"),
        ("evaluation.measures = []", "must each hold one at least"),
        ('retrieval.retrievers = ["bm26"]', "retrieval.retrievers"),
        ("retrieval.weights = { bm25 = nan }", "retrieval.weights.bm25 = nan"),
        ("clone = { warmup = -3.0 }", r"\[clone\] warmup must be from 0 to 1"),
        ("refine = { entropy = nan }", r"\[refine\] entropy"),
        ("clone = { epochs = 1e300 }", r"\[clone\] epochs"),
    ],
)
def test_a_value_that_cannot_work_is_told_at_once(change, message, tmp_path):
    name = "" if change.startswith("name") else 'name = "x"\n'
    text = f'{name}{change}\n[data]\ntrain = "a#train"\ntest = "a#test"\n'
    with pytest.raises(RecipeError, match=message):
        parse_recipe(text, tmp_path)


@pytest.mark.parametrize("dev", ["0.0", "1.5", "nan"])
def test_a_dev_share_that_is_no_share_is_named(dev, tmp_path):
    with pytest.raises(RecipeError, match=r"data\.dev"):
        parse_recipe(f'name = "x"\n[data]\ntrain = "a#train"\ntest = "a#test"\ndev = {dev}\n', tmp_path)


def test_a_limit_below_one_is_named(tmp_path):
    text = 'name = "x"\n[data]\ntrain = { collection = "a#train", limit = -3 }\ntest = "a#test"\n'
    with pytest.raises(RecipeError, match="limit = -3 must be at least 1"):
        parse_recipe(text, tmp_path)


def test_a_recipe_with_a_byte_order_mark_is_read(tmp_path):
    path = tmp_path / "bom.toml"
    path.write_text('name = "x"\n[data]\ntrain = "a#train"\ntest = "a#test"\n', encoding="utf-8-sig")
    assert load_recipe(path).name == "x"


# What would have no effect


def models_of(*tables, top="", stages=""):
    listed = ", ".join(tables)
    return f"{top}\nmodels = [{listed}]\n{SMALLEST}{stages}"


GENERATIVE = 'kind = "generative", name = "g", backbone = "b"'
CROSS = '{ name = "c" }'


@pytest.mark.parametrize(
    "setting", ["plain_weight = 0.1", "first_stage_learning_rate = 0.1", "head_learning_rate = 0.1"]
)
@pytest.mark.parametrize("stage", ["clone", "refine", "control"])
def test_settings_of_heads_and_first_stages_are_refused_where_no_model_has_one(stage, setting):
    name = setting.partition(" ")[0]
    says = f"[{stage}] {name} = 0.1 has no effect: a generative model has neither a head nor first-stage scores"
    own = f"{{ {GENERATIVE}, {stage} = {{ {setting} }} }}"
    assert says in refused(text=models_of(own))
    assert says in refused(text=models_of(own, CROSS))
    plain = f"{{ {GENERATIVE} }}"
    assert says in refused(text=models_of(plain, stages=f"[{stage}]\n{setting}\n"))
    parse(text=models_of(plain, CROSS, stages=f"[{stage}]\n{setting}\n"))  # shared: the other model heeds it
    default = {"plain_weight": 0.5, "first_stage_learning_rate": 1e-2, "head_learning_rate": 1e-3}[name]
    parse(text=models_of(plain, stages=f"[{stage}]\n{name} = {default}\n"))


@pytest.mark.parametrize(("stage", "value"), [("clone", "false"), ("refine", "true")])
def test_fitting_a_first_stage_that_a_model_has_not_is_refused(stage, value):
    says = f"[{stage}] fit_first_stage = {value.capitalize()} has no effect"
    assert says in refused(text=models_of(f"{{ {GENERATIVE}, {stage} = {{ fit_first_stage = {value} }} }}"))
    assert "first_stage = 'on' adds first-stage scores" in refused(
        text=models_of(f'{{ {GENERATIVE}, first_stage = "on" }}')
    )
    parse(text=models_of(f'{{ {GENERATIVE}, first_stage = "off" }}'))


def test_a_price_of_malformed_answers_is_refused_where_none_can_be_written():
    price = "refine = { malformed_price = 0.1 }"
    says = (
        "[refine] malformed_price = 0.1 has no effect: only a generative model with writing = { constrained = false }"
    )
    assert says in refused(text=models_of(f"{{ {GENERATIVE}, {price} }}"))
    assert says in refused(text=models_of(f'{{ name = "c", {price} }}'))
    free = f"{{ {GENERATIVE}, writing = {{ constrained = false }}, {price} }}"
    recipe = parse(text=models_of(free))
    assert recipe.refine_of(recipe.models[0]).malformed_price == 0.1
    assert says in refused(text=models_of(CROSS, top=price))
    parse(text=models_of(CROSS, free, top=price))


@pytest.mark.parametrize("kind", ["chat", "recorded"])
def test_a_loss_of_margins_needs_a_teacher_with_scores(kind):
    margins = 'clone = { loss = "margin_mse" }'
    says = f"a teacher of kind '{kind}' gives an order without scores: take rank_net, list_mle or list_net"
    assert says in refused(text=models_of(CROSS, top=f'{margins}\nteacher.kind = "{kind}"'))
    assert says in refused(text=models_of(f'{{ name = "c", {margins} }}', top=f'teacher.kind = "{kind}"'))
    parse(text=models_of(CROSS, top=f'{margins}\nteacher.kind = "scored"'))
    parse(text=models_of(CROSS, top=f'control = {{ loss = "margin_mse" }}\nteacher.kind = "{kind}"'))  # of labels


def test_the_control_of_a_generative_model_has_no_anchor_which_is_one_of_scores():
    recipe = parse(text=models_of(f"{{ {GENERATIVE}, refine = {{ anchor = 0.3, reset_reference = 5 }} }}"))
    assert recipe.refine_of(recipe.models[0]).anchor == 0.3
    control = recipe.control_of(recipe.models[0])
    assert (control.anchor, control.reset_reference) == (0.0, 0)
