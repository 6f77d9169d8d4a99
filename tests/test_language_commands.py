"""Language models from the command line: a recipe, ranking in windows, robustness, a chat model as teacher."""

import json

import pytest
from chat_stub import Stub
from test_cli import run
from tiny_language_models import folder_of, numbers, settings_of
from typer.testing import CliRunner

from rerank import cli
from rerank.data import read_run, write_run
from rerank.types import Run

N = 6


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A language model with random weights."""
    return folder_of(tmp_path_factory.mktemp("base"), "qwen3", chat=True)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A BEIR folder whose relevant documents are the larger numbers, a first stage and a teacher."""
    folder = tmp_path_factory.mktemp("numbers")
    (folder / "qrels").mkdir()
    documents, queries, teacher, first = {}, {}, {}, {}
    for split, n_lists, seed in (("train", 240, 1), ("test", 40, 2)):
        lines = ["query-id\tcorpus-id\tscore"]
        for c in numbers(n_lists, N, seed=seed, highest=16, start=1000 * seed):
            queries[c.query_id] = c.query
            ids = [f"{c.query_id}-{i}" for i in range(N)]
            documents |= dict(zip(ids, c.texts, strict=True))
            lines += [f"{c.query_id}\t{d}\t{label}" for d, label in zip(ids, c.labels, strict=True)]
            first[c.query_id] = {d: float(N - i) for i, d in enumerate(ids)}
            teacher[c.query_id] = {d: float(text) for d, text in zip(ids, c.texts, strict=True)}
        (folder / f"qrels/{split}.tsv").write_text("\n".join(lines) + "\n")
    for name, texts in (("corpus", documents), ("queries", queries)):
        records = [json.dumps({"_id": key, "text": text}) for key, text in texts.items()]
        (folder / f"{name}.jsonl").write_text("\n".join(records) + "\n")
    write_run(Run.from_scores(first, "first"), folder / "first.trec")
    write_run(Run.from_scores(teacher, "teacher"), folder / "teacher.trec")
    return folder


RECIPE = """
name = "numbers"
controls = []
[data]
dev = 0.2
train = {{ collection = "{data}#train", run = "{data}/first.trec", teachers = ["{data}/teacher.trec"] }}
test = {{ collection = "{data}#test", run = "{data}/first.trec" }}
[retrieval]
retrievers = []
[teacher]
kind = "recorded"
[[models]]
kind = "{kind}"
backbone = "{base}"
window = 6
document_tokens = 4
precision = "float32"
first_stage = "off"
prompt = {{ instruction = "", request = "", fenced = false }}
clone = {{ loss = "list_mle", steps = {steps}, lists_per_step = 16, learning_rate = 3e-3, evaluations = 3 }}
refine = {{ steps = {refined}, lists_per_step = 8, learning_rate = 3e-4, evaluations = 2 }}
[evaluation]
measures = ["nDCG@10"]
"""


def recipe(folder, **values):
    path = folder / "recipe.toml"
    path.write_text(RECIPE.format(**values))
    return path


def means(out):
    table = json.loads((out / "table.json").read_text())
    return {name: cells["nDCG@10"]["mean"] for name, cells in table["arms"].items()}


def test_a_recipe_clones_and_refines_a_listwise_model_and_what_it_saves_ranks(base, data, tmp_path):
    out = tmp_path / "run"
    run("train", recipe(tmp_path, data=data, base=base, kind="listwise", steps=240, refined=10), "--out", out)
    found = means(out)
    assert found["clone"] > 0.88
    assert found["clone"] > found["first stage"] + 0.08
    assert found["refined"] >= found["clone"] - 0.02
    settings = settings_of(out / "model")
    assert (settings["kind"], settings["reading"]["window"]) == ("listwise", 6)

    ranked = tmp_path / "ranked.trec"
    asked = ("-c", f"{data}#test", "--run", data / "first.trec", "--precision", "float32")  # as in the recipe
    run("rank", out / "model", *asked, "--out", ranked)
    kept = read_run(out / "runs" / "refined.trec")
    assert {q: kept.doc_ids(q) for q in kept.rankings} == {q: read_run(ranked).doc_ids(q) for q in kept.rankings}
    # In windows smaller than the lists, and by another strategy.
    for windowing in ("sliding", "tournament"):
        other = tmp_path / f"{windowing}.trec"
        run("rank", out / "model", *asked, "--out", other, "--window", 4, "--windowing", windowing)
        assert all(len(r) == N for r in read_run(other).rankings.values())


def test_a_recipe_clones_and_refines_a_generative_model(base, data, tmp_path):
    out = tmp_path / "run"
    run("train", recipe(tmp_path, data=data, base=base, kind="generative", steps=4, refined=2), "--out", out)
    assert set(means(out)) >= {"first stage", "clone", "refined"}
    saved, summary = settings_of(out / "model"), json.loads((out / "summary.json").read_text())
    assert saved["kind"] == "generative"
    # Neither expectations of a Plackett-Luce policy nor probabilities are claimed of a model that writes.
    assert "calibration" not in saved
    assert not summary["audit"]
    ranked = tmp_path / "ranked.trec"
    asked = ("-c", f"{data}#test", "--run", data / "first.trec", "--precision", "float32")  # as in the recipe
    run("rank", out / "model", *asked, "--out", ranked)
    kept = read_run(out / "runs" / "refined.trec")
    assert {q: kept.doc_ids(q) for q in kept.rankings} == {q: read_run(ranked).doc_ids(q) for q in kept.rankings}


def test_the_control_of_a_generative_model_is_trained_and_not_left_out(base, data, tmp_path):
    path = recipe(tmp_path, data=data, base=base, kind="generative", steps=1, refined=1)
    path.write_text(path.read_text().replace("controls = []", 'controls = "labels"'))
    run("train", path, "--out", tmp_path / "run")
    assert set(means(tmp_path / "run")) >= {"clone", "labels", "refined"}


def test_malformed_answers_stand_in_the_report(base, data, tmp_path):
    out, path = tmp_path / "run", recipe(tmp_path, data=data, base=base, kind="generative", steps=1, refined=1)
    path.write_text(
        path.read_text().replace("document_tokens = 4", "document_tokens = 4\nwriting = { constrained = false }")
    )
    run("train", path, "--out", out)
    assert "answers of the model were malformed" in (out / "report.html").read_text()


def test_any_language_model_ranks_as_it_is(base, tmp_path):
    (tmp_path / "texts.txt").write_text("7 cups\ngreen tea\nopen a file\n")
    found = run("rank", base, "-q", "tea", "-d", tmp_path / "texts.txt", "--window", 3)
    assert all(text in found for text in ("7 cups", "green tea", "open a file"))


def test_windows_are_of_language_models(tiny_bert, tmp_path):
    (tmp_path / "texts.txt").write_text("a\nb\n")
    result = CliRunner().invoke(
        cli.app, ["rank", str(tiny_bert), "-q", "a", "-d", str(tmp_path / "texts.txt"), "--window", "3"]
    )
    assert "say how a language model reads lists" in str(result.exception)


def test_robustness_is_measured_and_said(base, data, tmp_path):
    told = run(
        *("robustness", base, f"{data}#test", "--run", data / "first.trec", "--queries", 3, "--shuffles", 3),
        *("--json", tmp_path / "found.json"),
    )
    assert "3 lists of 6 candidates" in told
    assert "rankings of the same list shown in 3 orders agree with tau" in told
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["position_bias"]["shuffles"] == 3
    assert -1 <= found["position_bias"]["tau"] <= 1
    assert len(found["attacks"]) == 16
    assert all(attack["lists"] == 3 for attack in found["attacks"])


class TestChatTeacher:
    """A model behind an endpoint orders the candidates of a run."""

    @pytest.fixture(autouse=True)
    def _client(self):
        pytest.importorskip("httpx2", reason="needs the extra chat")

    def test_it_teaches_and_what_it_said_is_kept(self, data, tmp_path):
        asked = ("teach", f"{data}#test", "--run", data / "first.trec", "--out", tmp_path / "o.jsonl")
        with Stub() as stub:
            chat = ("--teacher", "chat", "--url", stub.url, "--model", "stub", "--set", "concurrency=2")
            assert "40 requests for 40 lists (0 answers are there already)" in run(*asked, *chat, "--dry-run")
            assert not stub.bodies
            told = run(*asked, *chat)
            assert "40 orderings of 40 lists" in told
            assert "o.jsonl 40 lists; 40 answers asked for, 0 there already; tokens 4000 in, 800 out; " in told
            assert "cost" not in told
            assert len(stub.bodies) == 40
            assert run(*asked, *chat).endswith("o.jsonl")  # nobody was asked
            assert "40 answers are there already" in run(*asked, *chat, "--dry-run")
            assert len(stub.bodies) == 40
        first = json.loads((tmp_path / "o.jsonl").read_text().splitlines()[0])
        documents = {}
        for line in (data / "corpus.jsonl").read_text().splitlines():
            record = json.loads(line)
            documents[record["_id"]] = int(record["text"])
        assert first["doc_ids"] == sorted(first["doc_ids"], key=lambda d: -documents[d])
        assert (tmp_path / "o.answers.jsonl").exists()

    def test_where_it_orders_nothing_the_file_of_its_answers_is_named(self, base, data, tmp_path):
        with Stub(lambda number, body: "I cannot") as stub:
            asked = ["teach", f"{data}#test", "--run", str(data / "first.trec"), "--out", str(tmp_path / "o.jsonl")]
            result = CliRunner().invoke(cli.app, [*asked, "--teacher", "chat", "--url", stub.url, "--model", "stub"])
            assert "ordered none of the 40 lists; nothing was written" in str(result.exception)
            assert f"can be read in {tmp_path / 'o.answers.jsonl'}" in str(result.exception)
            text = RECIPE.format(data=data, base=base, kind="listwise", steps=2, refined=1)
            teacher = f'kind = "chat"\nchat = {{ url = "{stub.url}", model = "stub", again = 0 }}'
            text = text.replace('kind = "recorded"', teacher).replace(f', teachers = ["{data}/teacher.trec"]', "")
            (tmp_path / "r.toml").write_text(text)
            before = len(stub.bodies)
            result = CliRunner().invoke(cli.app, ["train", str(tmp_path / "r.toml"), "--out", str(tmp_path / "run")])
            assert f"can be read in {tmp_path / 'run' / 'answers.jsonl'}" in str(result.exception)
            # Neither the dev lists nor the test lists are asked about then.
            assert 0 < len(stub.bodies) - before < 240

    def test_a_recipe_clones_it(self, base, data, tmp_path):
        with Stub() as stub:
            text = RECIPE.format(data=data, base=base, kind="listwise", steps=2, refined=1)
            teacher = f'kind = "chat"\nchat = {{ url = "{stub.url}", model = "stub" }}'
            text = text.replace('kind = "recorded"', teacher).replace(f', teachers = ["{data}/teacher.trec"]', "")
            (tmp_path / "r.toml").write_text(text)
            run("train", tmp_path / "r.toml", "--out", tmp_path / "run")
        found = means(tmp_path / "run")
        assert found["teacher"] == pytest.approx(1.0)
        assert (tmp_path / "run/answers.jsonl").exists()

    @pytest.mark.parametrize(
        ("kind", "changes", "message"),
        [
            ("listwise", {"window = 6": 'window = 5\nwindowing = "full"'}, "6 candidates do not fit one window of 5"),
            ("listwise", {"window = 6": 'window = 5\nwindowing = { name = "sliding", stride = 5 }'}, "stride must be"),
            ("listwise", {'"stub"': '"stub", window = 5, windowing = "full"'}, "do not fit one window of 5"),
            ("listwise", {"document_tokens = 4": "document_tokens = 4000"}, "the model reads 4096: lower"),
            ("listwise", {"list_mle": "margin_mse"}, "an order without scores"),
            ("generative", {"evaluations = 2": 'evaluations = 2, estimator = "exact"'}, "estimator 'exact'"),
            ("generative", {"first_stage": "writing = { thinking = 4000 }\nfirst_stage"}, "thinking"),
        ],
    )
    def test_a_recipe_that_cannot_be_carried_out_is_refused_before_the_teacher_is_asked(
        self, kind, changes, message, base, data, tmp_path
    ):
        with Stub() as stub:
            text = RECIPE.format(data=data, base=base, kind=kind, steps=2, refined=1)
            teacher = f'kind = "chat"\nchat = {{ url = "{stub.url}", model = "stub" }}'
            text = text.replace('kind = "recorded"', teacher).replace(f', teachers = ["{data}/teacher.trec"]', "")
            for old, new in changes.items():
                assert text.count(old) == 1
                text = text.replace(old, new)
            (tmp_path / "r.toml").write_text(text)
            result = CliRunner().invoke(cli.app, ["train", str(tmp_path / "r.toml"), "--out", str(tmp_path / "run")])
            assert message in str(result.exception)
            assert not stub.bodies

    def test_a_list_that_does_not_fit_is_told_of_before_the_others_are_asked_about(self, base, data, tmp_path):
        first = read_run(data / "first.trec")
        last = list(first.rankings)[-1]
        rankings = {q: ranking if q == last else ranking[:4] for q, ranking in first.rankings.items()}
        write_run(Run(rankings, "first"), tmp_path / "first.trec")
        with Stub() as stub:
            asked = ("teach", f"{data}#test", "--run", str(tmp_path / "first.trec"), "--out", str(tmp_path / "o.jsonl"))
            chat = ("--teacher", "chat", "--url", stub.url, "--model", "m", "--set", "window=5")
            teach = CliRunner().invoke(cli.app, [*asked, *chat, "--set", "windowing=full"])
            text = RECIPE.format(data=data, base=base, kind="listwise", steps=2, refined=1)
            text = text.replace(f', teachers = ["{data}/teacher.trec"]', "").replace(
                f"{data}/first", f"{tmp_path}/first"
            )
            teacher = f'kind = "chat"\nchat = {{ url = "{stub.url}", model = "m", window = 5, windowing = "full" }}'
            (tmp_path / "r.toml").write_text(text.replace('kind = "recorded"', teacher))
            train = CliRunner().invoke(cli.app, ["train", str(tmp_path / "r.toml"), "--out", str(tmp_path / "run")])
            assert not stub.bodies
        for result in (teach, train):
            assert "6 candidates do not fit one window of 5" in str(result.exception)

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ((), "needs url"),
            (("--url", "http://localhost:1/v1"), "needs model"),
            (("--url", "ftp://x", "--model", "m"), "http"),
            (
                ("--url", "http://localhost:1/v1", "--model", "m", "--set", "widow=3"),
                "unknown key 'teacher.chat.widow'",
            ),
            (("--url", "http://localhost:1/v1", "--model", "m", "--set", "window"), "must be NAME=VALUE"),
        ],
    )
    def test_what_is_missing_or_wrong_is_said_before_anything_is_asked(self, given, message, data, tmp_path):
        asked = ["teach", f"{data}#test", "--run", str(data / "first.trec"), "--out", str(tmp_path / "o.jsonl")]
        result = CliRunner().invoke(cli.app, [*asked, "--teacher", "chat", *given])
        assert message in str(result.exception)
        assert not (tmp_path / "o.jsonl").exists()


def test_rankllm_requests_come_back_as_rankllm_results(base, data, tmp_path):
    from rerank.data import load_collection, read_rankllm, write_rankllm

    requests, results = tmp_path / "requests.jsonl", tmp_path / "results.json"
    write_rankllm(read_run(data / "first.trec").top(4), _whole(load_collection, data), requests)
    run("rank", base, "--requests", requests, "--out", results, "--window", 4)
    written = json.loads(results.read_text())
    given = [json.loads(line) for line in requests.read_text().splitlines()]
    assert [r["query"] for r in written] == [r["query"] for r in given]
    for before, after in zip(given, written, strict=True):
        assert {c["docid"] for c in after["candidates"]} == {c["docid"] for c in before["candidates"]}
        scores = [c["score"] for c in after["candidates"]]
        assert scores == sorted(scores, reverse=True)
    collection, _ = read_rankllm(results)
    assert collection.documents
    assert not (tmp_path / "results.trec").exists()


HAND_MADE = [
    {
        "topic": {"set": "mine"},
        "query": {"text": "which is best", "qid": 2, "lang": "en"},
        "candidates": [
            {"docid": 1, "doc": {"title": "One", "text": "7", "url": "http://one"}, "judge": None},
            {"docid": "2", "doc": {"contents": "3"}},
            {"docid": "3", "doc": "11"},
        ],
    },
    {"query": {"text": "again", "qid": "3"}, "candidates": [], "note": 1.5},
    {
        "query": {"text": "which is better", "qid": "x"},
        "candidates": [{"docid": 1, "score": 9, "doc": "5"}, {"docid": "2", "score": 8.0, "doc": {"contents": "3"}}],
    },
]


def in_any_order(record):
    """A result without what ranking decides: the order of its candidates, and their scores."""
    bare = [json.dumps({k: v for k, v in c.items() if k != "score"}, sort_keys=True) for c in record["candidates"]]
    return {**record, "candidates": sorted(bare)}


@pytest.mark.parametrize("name", ["r.jsonl", "r.json"])
def test_results_are_the_requests_own_records_with_their_candidates_in_a_new_order(name, base, tmp_path, caplog):
    requests, results = tmp_path / "requests.json", tmp_path / name
    requests.write_text(json.dumps(HAND_MADE))
    run("rank", base, "--requests", requests, "--out", results, "--window", 4)
    text = results.read_text()
    written = json.loads(text) if name == "r.json" else [json.loads(line) for line in text.splitlines()]
    assert [in_any_order(r) for r in written] == [in_any_order(r) for r in HAND_MADE]
    assert written[1] == HAND_MADE[1]
    assert "1 requests have no candidates, first request 2 (query '3')" in caplog.text
    # The ids "1" of two requests are two documents: each list is ranked as if it stood alone.
    for number in (0, 2):
        (tmp_path / "alone.jsonl").write_text(json.dumps(HAND_MADE[number]))
        alone = tmp_path / f"alone-{number}.jsonl"
        run("rank", base, "--requests", tmp_path / "alone.jsonl", "--out", alone, "--window", 4)
        assert json.loads(alone.read_text()) == written[number]
        scores = [c["score"] for c in written[number]["candidates"]]
        assert scores == sorted(scores, reverse=True)


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([HAND_MADE[1]], "request 1 (query '3') has no candidates"),
        ([{**HAND_MADE[0], "note": 12345678}], "request 1 (query '2') holds a number that no float can be"),
    ],
)
def test_requests_that_cannot_be_ranked_are_named(records, message, base, tmp_path):
    (tmp_path / "q.json").write_text(json.dumps(records).replace("12345678", "1e999"))
    asked = ["rank", str(base), "--requests", str(tmp_path / "q.json"), "--out", str(tmp_path / "r.json")]
    assert message in str(CliRunner().invoke(cli.app, asked).exception)
    assert [p.name for p in tmp_path.iterdir()] == ["q.json"]


def _whole(load_collection, data):
    return load_collection(str(data))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("--out", "r.trec"), "give a name that ends in .json or .jsonl"),
        (("--out", "r.json", "--run", "x.trec"), "bring their own texts"),
        ((), "--requests and --out"),
    ],
)
def test_rankllm_requests_take_a_json_file_and_nothing_else(given, message, base, tmp_path):
    result = CliRunner().invoke(cli.app, ["rank", str(base), "--requests", str(tmp_path / "q.jsonl"), *given])
    assert message in str(result.exception)
