"""The one-pass listwise model: its logits are those of the language model, and everything learns through them."""

import copy
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_language_models import folder_of, model, numbers, other_model, settings_of, tokenizer

from rerank.engine.gradient_cache import backward
from rerank.errors import DataError, InputError, Mismatch, MissingDependency, NotFound
from rerank.models.backbones import load_listwise
from rerank.models.language.listwise import ListwiseScorer
from rerank.models.language.reading import Reading
from rerank.models.loading import load_policy, save_policy
from rerank.models.policy import FirstStageWeights, ScorePolicy, rerank_lists
from rerank.models.texts import ID
from rerank.objective.imitation import LOSSES
from rerank.objective.sampled import ESTIMATORS
from rerank.prompting.prompts import Prompt
from rerank.prompting.windows import Disjoint, Full, Sliding
from rerank.reranker import Reranker
from rerank.rewards import ndcg
from rerank.teachers import Judged
from rerank.testing import check_policy
from rerank.training import Clone, Context, Dev, Refine
from rerank.types import CandidateList

SHORT = Prompt(instruction="", request="", fenced=False)
"""A prompt of a few tokens, so that tests are quick."""


def reading(window=6, **settings):
    return Reading(**{"window": window, "document_tokens": 16, "query_tokens": 16, "prompt": SHORT, **settings})


def scorer(kind="qwen3", window=6, **settings):
    return ListwiseScorer(model(kind), tokenizer(), reading(window, **settings), "float32").eval()


def texts(*given, query="tea"):
    return CandidateList("q", query, tuple(f"d{i}" for i in range(len(given))), given)


LISTS = [texts("a cup", "green", "x"), texts("one"), texts("black tea", "milk", "37 cups", "water", "?", "a")]


@pytest.mark.parametrize("kind", ["qwen3", "llama"])
def test_scores_are_the_next_token_logits_of_the_whole_model_at_the_names(kind):
    one = scorer(kind)
    for item in one.encode(LISTS):
        ids = torch.from_numpy(np.frombuffer(item.ids, dtype=ID).astype(np.int64))[None]
        with torch.no_grad():
            whole = one.model(ids).logits[0, -1]
        names = tokenizer().convert_tokens_to_ids(list("ABCDEF"[: item.width]))
        torch.testing.assert_close(one.logits([item]), whole[names], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("direct", [True, False])
def test_a_batch_of_prompts_scores_as_each_prompt_alone(direct):
    one = scorer()
    assert one.following.direct  # found out when it was made
    one.following.direct = direct
    items = one.encode(LISTS)
    together = one.logits(items)
    torch.testing.assert_close(together, torch.cat([one.logits([item]) for item in items]), atol=1e-5, rtol=1e-4)
    assert [item.width for item in items] == [3, 1, 6]


def test_a_head_that_does_more_than_multiply_is_asked_through_the_whole_model():
    network = model()
    forward = network.forward
    network.forward = lambda *args, **kwargs: _halved(forward(*args, **kwargs))
    one = ListwiseScorer(network, tokenizer(), reading(), "float32")
    assert not one.following.direct
    torch.testing.assert_close(one.logits(one.encode(LISTS)), scorer().logits(one.encode(LISTS)) / 2)


def _halved(out):
    out.logits = out.logits / 2
    return out


def with_large_logits(network, items, size=22):
    """The model in bfloat16 with `size` added to each logit after the first item, as pretrained models have them."""
    ids = torch.from_numpy(np.frombuffer(items[0].ids, dtype=ID).astype(np.int64))[None]
    with torch.no_grad():
        hidden = network.base_model(ids).last_hidden_state[0, -1]
        network.get_output_embeddings().weight.add_(size * hidden / hidden.square().sum())
    return network.to(torch.bfloat16)


def test_scores_of_large_logits_do_not_tie_in_bfloat16():
    items = scorer(window=20).encode(numbers(1, n=20))
    one = ListwiseScorer(with_large_logits(model(), items), tokenizer(), reading(20), "bfloat16").eval()
    assert one.following.direct
    found = one.logits(items)
    assert float(found.detach().mean()) > 16
    assert len(found.unique()) == 20
    found.var().backward()
    rows = one.model.get_output_embeddings().weight.grad.abs().sum(1).nonzero()[:, 0]
    assert rows.tolist() == sorted(one.names.tolist())  # the head learns through its rows of the names


def test_a_soft_cap_is_put_on_logits_that_are_in_float32():
    network = other_model("gemma2")
    network.config.final_logit_softcapping = 2.0
    one = ListwiseScorer(network, tokenizer(), reading(), "float32").eval()
    assert one.following.direct
    [item] = one.encode(LISTS[:1])
    ids = torch.from_numpy(np.frombuffer(item.ids, dtype=ID).astype(np.int64))[None]
    with torch.no_grad():
        wanted = network(ids).logits[0, -1, one.names[:3]]
        torch.testing.assert_close(one.logits([item]), wanted, atol=1e-5, rtol=1e-5)
    assert float(wanted.abs().max()) > 0.5  # where the cap bends


def test_a_head_with_adapters_is_asked_through_the_whole_model():
    peft = pytest.importorskip("peft", reason="needs the extra lora")
    network = model()
    peft.inject_adapter_in_model(peft.LoraConfig(r=2, target_modules=["lm_head"]), network)
    assert not ListwiseScorer(network, tokenizer(), reading(), "float32").following.direct


def test_a_model_that_reads_in_both_directions_is_refused():
    with pytest.raises(InputError, match="RobertaForCausalLM reads in both directions"):
        ListwiseScorer(other_model("roberta"), tokenizer(), reading(), "float32")


def test_it_is_a_policy_by_contract():
    check_policy(ScorePolicy(scorer()), [c for c in numbers(3, n=4)])


def test_gradients_through_the_cache_are_the_plain_ones():
    found = []
    weights = torch.linspace(-1, 1, 10)
    for graph_tokens in (10**6, 1):
        one = scorer().train()
        items = one.encode(LISTS)
        backward(one, items, lambda flat: (flat * weights).square().sum(), 80, graph_tokens, key=1)
        found.append([p.grad.clone() for p in one.parameters() if p.grad is not None])
    for plain, cached in zip(*found, strict=True):
        torch.testing.assert_close(cached, plain, atol=1e-5, rtol=1e-4)


def test_checkpointing_changes_no_gradient(tmp_path):
    folder = str(folder_of(tmp_path / "base"))
    found = []
    for checkpointing in (False, True):
        one = load_listwise(folder, reading(), "float32", "cpu", checkpointing=checkpointing).train()
        one.logits(one.encode(LISTS)).sum().backward()
        found.append(one.model.get_input_embeddings().weight.grad)
    torch.testing.assert_close(found[1], found[0], atol=1e-6, rtol=1e-5)


# ------------------------------------------------------------------------------------------------------------ learning
def task(relevant_only_first=False, n=6):
    """Order by the number in the text; `relevant_only_first`: one relevant candidate, the highest."""
    lists, held_out = numbers(1500, n, seed=1, highest=16), numbers(60, n, seed=2, highest=16, start=5000)
    return (_only_first(lists), _only_first(held_out)) if relevant_only_first else (lists, held_out)


def _only_first(lists):
    return [replace(c, labels=tuple(int(label == len(c) - 1) for label in c.labels), pool=(1,)) for c in lists]


def learner(kind, n):
    return ScorePolicy(ListwiseScorer(model(kind), tokenizer(), reading(n, document_tokens=4), "float32"))


STEP = {"lists_per_step": 8, "learning_rate": 1e-2, "warmup": 0.0, "evaluations": 1, "select": "last"}
PACE = {"lists_per_step": 16, "learning_rate": 3e-3, "evaluations": 5}


@pytest.mark.parametrize("kind", ["qwen3", pytest.param("llama", marks=pytest.mark.slow)])
def test_it_learns_to_order_by_a_number_in_the_text_from_a_teacher(kind):
    lists, held_out = task()
    policy, dev = learner(kind, 6), Dev(held_out, ndcg(10), "nDCG@10")
    before = dev.measure(policy)["served"]
    Clone(loss="list_mle", steps=300, list_size=6, **PACE).run(
        policy, lists, Judged()(lists), Context("clone", dev=dev)
    )
    after = dev.measure(policy)["served"]
    assert before < 0.88
    assert after > 0.95


@pytest.mark.parametrize("kind", ["llama", pytest.param("qwen3", marks=pytest.mark.slow)])
def test_it_learns_by_refinement_alone_from_chance_to_nearly_all(kind):
    lists, held_out = task(relevant_only_first=True, n=8)
    policy, dev = learner(kind, 8), Dev(held_out, ndcg(10), "nDCG@10")
    before = dev.measure(policy)["served"]
    steps = {"llama": 400, "qwen3": 600}[kind]
    settings = Refine(steps=steps, list_size=8, anchor=0.0, **PACE)
    settings.run(policy, lists, ndcg(10), Context("refine", dev=dev))
    after = dev.measure(policy)["served"]
    assert 0.35 < before < 0.65
    assert after > 0.9


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_learns_through_it(loss):
    policy, lists = learner("qwen3", 5), numbers(8, n=5)
    before = copy.deepcopy(policy.state_dict())
    Clone(loss=loss, steps=1, list_size=5, **STEP).run(policy, lists, Judged()(lists), Context("clone"))
    assert any(not torch.equal(before[name], now) for name, now in policy.state_dict().items())


@pytest.mark.parametrize("estimator", ["exact", *ESTIMATORS])
def test_every_estimator_learns_through_it(estimator):
    policy, lists = learner("llama", 5), numbers(8, n=5)
    before = copy.deepcopy(policy.state_dict())
    settings = Refine(estimator=estimator, steps=1, list_size=5, anchor=0.1, **STEP)
    report = settings.run(policy, lists, ndcg(10), Context("refine"))
    assert report["estimator"] == estimator
    assert any(not torch.equal(before[name], now) for name, now in policy.state_dict().items())


def test_shuffled_candidates_keep_their_labels_and_first_stage_scores():
    from rerank.training.sampling import portions
    from rerank.training.schedule import Schedule

    features = {"bm25": (1.0, 2.0, 3.0, 4.0, 5.0)}
    lists = [replace(c, features=features) for c in numbers(6, n=5)]
    known = {
        (c.query_id, d): row
        for c in lists
        for d, *row in zip(c.doc_ids, c.texts, c.labels, *features.values(), strict=True)
    }
    steps = portions(scorer(), lists, lambda c: [], Schedule(steps=3, lists_per_step=4), (0, "m", "s"), 0)
    for portion in steps:
        for c in portion.lists:
            for d, *row in zip(c.doc_ids, c.texts, c.labels, c.features["bm25"], strict=True):
                assert known[c.query_id, d] == row


def test_candidates_are_shown_in_a_new_order_each_time_and_only_to_models_that_read_orders():
    from rerank.training.sampling import portions
    from rerank.training.schedule import Schedule

    lists = numbers(4, n=5)
    seen = {}
    for shuffle in (True, False):
        schedule = Schedule(steps=2, lists_per_step=4, shuffle=shuffle)
        steps = portions(scorer(), lists, lambda c: [], schedule, (0, "m", "s"), 0)
        seen[shuffle] = [{c.query_id: c.doc_ids for c in portion.lists} for portion in steps]
    plain = {c.query_id: c.doc_ids for c in lists}
    assert seen[False] == [plain, plain]
    assert seen[True][0] != plain
    assert seen[True][0] != seen[True][1]
    assert {q: set(ids) for q, ids in seen[True][0].items()} == {q: set(ids) for q, ids in plain.items()}


# ------------------------------------------------------------------------------------------------------- longer lists
@pytest.mark.parametrize("windowing", [Sliding(), Disjoint(2)])
def test_lists_longer_than_the_window_are_ranked_in_windows_with_a_score_for_each_candidate(windowing):
    policy = ScorePolicy(scorer(window=4, windowing=windowing))
    lists = numbers(3, n=11)
    with torch.no_grad():
        scores = policy.scores(lists)
    assert scores.shape == (3, 11)
    assert bool(scores.isfinite().all())
    run = rerank_lists(policy, lists, "windows")["served"]
    assert all(len(set(run.doc_ids(c.query_id))) == 11 for c in lists)
    again = rerank_lists(policy, lists[1:2], "alone")["served"]
    assert again.doc_ids("q1") == run.doc_ids("q1")  # what else is ranked does not matter


def test_a_list_that_fits_one_window_keeps_its_logits():
    policy = ScorePolicy(scorer())
    lists = numbers(3, n=5)
    with torch.no_grad():
        flat = policy.logits(policy.item_scorer.encode(lists))
        torch.testing.assert_close(policy.scores(lists).flatten(), flat, atol=0, rtol=0)


def test_training_on_lists_longer_than_the_window_says_what_to_do():
    lists = numbers(4, n=9)
    with pytest.raises(InputError, match=r"comes with 9 candidates at once; a prompt shows 1 to 6.*lower list_size"):
        Clone(steps=1).run(ScorePolicy(scorer()), lists, Judged()(lists), Context("clone"))


def test_full_windowing_refuses_what_does_not_fit():
    policy = ScorePolicy(scorer(windowing=Full()))
    with pytest.raises(InputError, match="9 candidates do not fit one window of 6"), torch.no_grad():
        policy.scores(numbers(1, n=9))


# ----------------------------------------------------------------------------------------------- adapters and folders
def test_a_saved_model_comes_back_with_its_scores_and_how_it_reads(tmp_path):
    one = scorer(windowing=Sliding(2), document_tokens=9)
    policy = ScorePolicy(one, FirstStageWeights({"bm25": 0.5}))
    save_policy(policy, tmp_path / "m")
    again = load_policy(str(tmp_path / "m"), "cpu", "float32")
    assert again.scorer.reading == one.reading
    assert again.first_stage.as_dict() == {"bm25": 0.5}
    with torch.no_grad():
        torch.testing.assert_close(again.logits(again.scorer.encode(LISTS)), policy.logits(one.encode(LISTS)))


def test_the_facade_ranks_and_pairs_of_one_query_are_read_together(tmp_path):
    save_policy(ScorePolicy(scorer()), tmp_path / "m")
    reranker = Reranker.from_pretrained(tmp_path / "m", "cpu", "float32")
    documents = ["a", "7 cups", "green tea", "x"]
    hits = reranker.rank("tea", documents)
    assert sorted(hit.index for hit in hits) == [0, 1, 2, 3]
    scores = reranker.predict([("tea", documents[0]), ("other", "y"), *(("tea", d) for d in documents[1:])])
    np.testing.assert_allclose(
        np.delete(scores, 1), [s for _, s in sorted((h.index, h.score) for h in hits)], atol=1e-5
    )


class TestAdapters:
    """LoRA: the base stays where it is."""

    @pytest.fixture(autouse=True)
    def _peft(self):
        pytest.importorskip("peft", reason="needs the extra lora")

    @pytest.fixture
    def base(self, tmp_path):
        return folder_of(tmp_path / "base")

    def adapted(self, base, precision="float32"):
        return load_listwise(str(base), reading(), precision, "cpu", lora=4)

    def trained(self, base):
        one = self.adapted(base)
        policy = ScorePolicy(one)
        lists = numbers(16, n=5)
        settings = Clone(steps=3, list_size=5, learning_rate=1e-2, warmup=0.0, evaluations=1)
        settings.run(policy, lists, Judged()(lists), Context("clone"))
        return policy

    def test_only_adapters_learn_and_only_they_are_states_and_copies(self, base):
        policy = self.trained(base)
        fresh = self.adapted(base)
        changed = {
            name
            for (name, now), (_, then) in zip(policy.scorer.named_parameters(), fresh.named_parameters(), strict=True)
            if not torch.equal(now, then)
        }
        assert changed
        assert all("lora_" in name for name in changed)
        assert all("lora_" in name for name in policy.state_dict())
        twin = copy.deepcopy(policy)
        base_of = [p for p in policy.parameters() if not p.requires_grad]
        assert all(a is b for a, b in zip(base_of, (p for p in twin.parameters() if not p.requires_grad), strict=True))
        learnt = next(p for p in twin.parameters() if p.requires_grad)
        with torch.no_grad():
            learnt.add_(1.0)
        assert not torch.equal(learnt, next(p for p in policy.parameters() if p.requires_grad))
        policy.load_state_dict(twin.state_dict())
        assert torch.equal(learnt, next(p for p in policy.parameters() if p.requires_grad))

    @pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
    def test_a_saved_adapter_comes_back_and_is_one_to_peft_too(self, base, tmp_path):
        import peft
        from transformers import AutoModelForCausalLM

        policy = self.trained(base)
        out = tmp_path / "out"
        save_policy(policy, out)
        assert not list(out.glob("*.safetensors"))  # the base is not written again
        assert settings_of(out)["base"] == str(base.resolve())
        again = load_policy(str(out), "cpu", "float32")
        with torch.no_grad():
            wanted = policy.eval().logits(policy.scorer.encode(LISTS))
            torch.testing.assert_close(again.logits(again.scorer.encode(LISTS)), wanted)
            theirs = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), out / "adapter").eval()
            item = again.scorer.encode(LISTS)[0]
            ids = torch.from_numpy(np.frombuffer(item.ids, dtype=ID).astype(np.int64))[None]
            names = tokenizer().convert_tokens_to_ids(["A", "B", "C"])
            torch.testing.assert_close(theirs(ids).logits[0, -1, names], wanted[:3], atol=1e-5, rtol=1e-4)

    def test_a_frozen_base_lies_in_the_compute_type_and_adapters_in_float32(self, base):
        one = self.adapted(base, "bfloat16")
        kinds = {(p.dtype, p.requires_grad) for p in one.parameters()}
        assert kinds == {(torch.bfloat16, False), (torch.float32, True)}

    def test_adapters_of_another_model_or_none_are_refused(self, base, tmp_path):
        policy = self.trained(base)
        save_policy(policy, tmp_path / "out")
        settings = settings_of(tmp_path / "out")
        other = folder_of(tmp_path / "other", layers=1)
        (tmp_path / "out/rerank.json").write_text(json.dumps(settings | {"base": str(other)}))
        with pytest.raises(Mismatch, match="does not fit its base model"):
            load_policy(str(tmp_path / "out"), "cpu", "float32")
        (tmp_path / "out/rerank.json").write_text(json.dumps(settings))
        (tmp_path / "out/adapter/adapter_model.safetensors").unlink()
        with pytest.raises(NotFound, match="the adapters are not all there"):
            load_policy(str(tmp_path / "out"), "cpu", "float32")

    def test_without_peft_the_extra_is_named(self, base, monkeypatch):
        monkeypatch.setitem(__import__("sys").modules, "peft", None)
        with pytest.raises(MissingDependency, match="lora"):
            self.adapted(base)


# ------------------------------------------------------------------------------------------------------------ bad input
def test_a_model_without_a_tokenizer_is_refused(tmp_path):
    model().save_pretrained(tmp_path)
    with pytest.raises(NotFound, match="holds no tokenizer"):
        load_listwise(str(tmp_path), reading(), device="cpu")


def test_an_encoder_is_no_language_model(tiny_bert):
    with pytest.raises(InputError, match="is no causal language model"):
        load_listwise(str(tiny_bert), reading(), device="cpu")


def test_a_window_beyond_the_models_context_is_refused_when_it_is_loaded(tmp_path):
    folder = folder_of(tmp_path, context=64)
    with pytest.raises(InputError, match="the model reads 64: lower window or document_tokens"):
        load_listwise(str(folder), Reading(window=20), device="cpu")


def test_more_candidates_than_names_are_refused_when_it_is_loaded(tmp_path):
    with pytest.raises(InputError, match="a window of 60 candidates needs 60"):
        load_listwise(str(folder_of(tmp_path)), reading(60), device="cpu")


def test_numbers_for_names_are_for_models_that_write():
    with pytest.raises(InputError, match="naming = 'letters' is needed"):
        scorer(naming="numbers")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"window": "20"}, "window must be a whole number"),
        ({"windowing": {"name": "slidin"}}, "did you mean 'sliding'"),
        ({"windowing": {"name": "sliding", "stride": 0}}, "stride"),
        ({"widow": 3}, "did you mean 'window'"),
        ({"prompt": {"fenced": "no"}}, "prompt.fenced = 'no' must be true or false"),
        ({"prompt": 3}, "prompt must be a table"),
    ],
)
def test_a_damaged_settings_file_is_named_with_its_field(change, message, tmp_path):
    save_policy(ScorePolicy(scorer()), tmp_path)
    settings = settings_of(tmp_path)
    settings["reading"] |= change
    (tmp_path / "rerank.json").write_text(json.dumps(settings))
    with pytest.raises(DataError, match=f"rerank.json.*field 'reading'.*{message}"):
        load_policy(str(tmp_path), "cpu")


@pytest.mark.parametrize(
    ("option", "message"), [({"backend": "onnx"}, "backend = 'torch'"), ({"max_length": 9}, "leave max_length out")]
)
def test_what_only_cross_encoders_have_is_refused(option, message, tmp_path):
    save_policy(ScorePolicy(scorer()), tmp_path)
    with pytest.raises(InputError, match=f"is a language model.*{message}|a language model.*{message}"):
        load_policy(str(tmp_path), "cpu", **option)
