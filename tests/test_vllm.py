"""Models on vLLM score and write as they do in process; vLLM itself is a stand-in here (`vllm_stub`)."""

import copy
import json
import math
import sys
from itertools import permutations

import pytest
import torch
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

pytest.importorskip("peft", reason="needs the extra lora")

import tiny_language_models as tiny
import vllm_stub

from rerank.errors import DataError, InputError, Mismatch, MissingDependency, NotFound, TrainingError
from rerank.models.language.answering import Writing
from rerank.models.language.generative import GenerativePolicy, GenerativeScorer
from rerank.models.language.listwise import ListwiseScorer
from rerank.models.language.loading import load_language_scorer, save_language_scorer
from rerank.models.language.model import adapt
from rerank.models.language.reading import Reading
from rerank.models.language.vllm import VllmScorer
from rerank.models.language.vllm_engine import EngineSettings, VllmEngine
from rerank.models.language.vllm_writing import VllmWriter, place_log_probs
from rerank.models.policy import ScorePolicy
from rerank.prompting.windows import Sliding
from rerank.randomness import generator
from rerank.types import CandidateList

READING = Reading(window=5, document_tokens=8, query_tokens=8)
NUMBERS = Reading(window=12, document_tokens=8, query_tokens=8, naming="numbers")


@pytest.fixture(autouse=True)
def vllm(monkeypatch):
    """The stand-in."""
    return vllm_stub.install(monkeypatch)


def model(kind="qwen3", **settings):
    return tiny.model(kind, heads=2, hidden=32, **settings)


def adapted(seed=1):
    """A model of the same base as `model()` with adapters that are not zero."""
    made = model()
    adapt(made, 4)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        for name, parameter in made.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.2)
    return made


def saved(scorer, folder, base=None):
    """A folder with a model, and what its `rerank.json` would say."""
    folder.mkdir()
    if base is not None:
        scorer.model.name_or_path = str(base)
    settings = {"kind": scorer.kind, **save_language_scorer(scorer, folder)}
    if scorer.kind == "generative":
        settings["writing"] = scorer.writing.as_dict()
    return json.loads(json.dumps(settings))


def listwise(made=None, reading=READING, chat=False):
    return ListwiseScorer(made or model(), tiny.tokenizer(chat), reading, "float32").eval()


def generative(made=None, reading=NUMBERS, writing=None, tokenizer=None):
    return GenerativeScorer(made or model(), tokenizer or tiny.tokenizer(), reading, "float32", writing).eval()


def digits():
    """A tokenizer that writes numbers digit by digit."""
    table = json.loads(tiny.tokenizer().backend_tokenizer.to_str())
    table["model"]["merges"] = []
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(table)), pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )


def scorer_on_vllm(folder, settings, **more):
    return VllmScorer.from_folder(str(folder), settings, "float32", settings=EngineSettings(**more))


def writer_on_vllm(folder, settings, **more):
    return VllmWriter.from_folder(str(folder), settings, "float32", settings=EngineSettings(**more))


@pytest.fixture
def scorers(tmp_path):
    """(in process, on vLLM)."""
    here = listwise()
    settings = saved(here, tmp_path / "m")
    return here, scorer_on_vllm(tmp_path / "m", settings)


def mixed_lists():
    return [*tiny.numbers(3, 5), *tiny.numbers(2, 2, seed=1, start=3), *tiny.numbers(1, 1, seed=2, start=5)]


# -------------------------------------------------------------------------------------------------------- one pass
@pytest.mark.parametrize("kind", ["qwen3", "llama"])
@pytest.mark.parametrize("chat", [False, True])
@torch.no_grad()
def test_logits_are_those_of_the_model_in_process(tmp_path, kind, chat):
    reading = Reading(window=5, document_tokens=8, query_tokens=8, chat=chat)
    here = listwise(model(kind), reading, chat)
    there = scorer_on_vllm(tmp_path / "m", saved(here, tmp_path / "m"))
    items = here.encode(mixed_lists())
    assert there.encode(mixed_lists()) == items
    wanted, found = here.logits(items), there.logits(items)
    assert found.dtype == torch.float32
    assert wanted.std() > 0.05
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)
    torch.testing.assert_close(found.diff(), wanted.diff(), rtol=0, atol=1e-4)


@torch.no_grad()
def test_longer_lists_are_ranked_by_windows_as_in_process(scorers):
    lists = tiny.numbers(3, 11)
    here, there = (ScorePolicy(scorer).eval() for scorer in scorers)
    assert isinstance(scorers[1].windowing, Sliding)
    torch.testing.assert_close(there.scores(lists), here.scores(lists), rtol=0, atol=1e-3)


@torch.no_grad()
def test_all_prompts_of_a_round_go_to_the_engine_at_once_and_equal_ones_once(scorers):
    _, there = scorers
    lists = mixed_lists()
    policy = ScorePolicy(there).eval()
    found = policy.scores([*lists, *lists])
    assert there.engine.llm.requests == [len(lists)]
    assert torch.equal(found[: len(lists)], found[len(lists) :])


@torch.no_grad()
def test_adapters_are_asked_for_beside_their_base_model(tmp_path):
    base = tiny.folder_of(tmp_path / "base", heads=2, hidden=32)
    here = listwise(adapted())
    there = scorer_on_vllm(tmp_path / "m", saved(here, tmp_path / "m", base))
    llm = there.engine.llm
    assert (llm.model_config.model, llm.enable_lora, llm.max_lora_rank) == (str(base), True, 8)
    items = here.encode(mixed_lists())
    torch.testing.assert_close(there.logits(items), here.logits(items), rtol=0, atol=1e-4)
    assert (there.logits(items) - listwise().logits(items)).abs().max() > 0.01


def test_the_engine_has_room_for_the_longest_prompt_and_no_more(tmp_path):
    here = listwise()
    there = scorer_on_vllm(tmp_path / "m", saved(here, tmp_path / "m"))
    longest = CandidateList("q", "y" * 50, tuple("abcde"), tuple("x" * 50 + letter for letter in "abcde"))
    [item] = there.encode([longest])
    assert there.logits([item]).shape == (5,)
    room = there.engine.llm.model_config.max_model_len
    assert len(item) < room == there.prompts.longest() + 1


def test_settings_reach_the_engine(tmp_path):
    settings = saved(listwise(), tmp_path / "m")
    given = {"gpu_memory_utilization": 0.4, "tensor_parallel_size": 2, "max_model_len": 2000, "sleeps": True}
    llm = VllmScorer.from_folder(
        str(tmp_path / "m"), settings, "bfloat16", "cuda", settings=EngineSettings(**given)
    ).engine.llm
    found = (llm.gpu_memory_utilization, llm.tensor_parallel_size, llm.model_config.max_model_len, llm.sleeps)
    assert found == (0.4, 2, 2000, True)
    assert llm.model_config.dtype == "bfloat16"


def test_a_window_beyond_what_vllm_gives_by_default_is_given_whole(tmp_path):
    wide = Reading(window=30, document_tokens=2, query_tokens=2)
    here = listwise(reading=wide)
    there = scorer_on_vllm(tmp_path / "m", saved(here, tmp_path / "m"))
    items = here.encode(tiny.numbers(1, 30))
    torch.testing.assert_close(there.logits(items), here.logits(items).detach(), rtol=0, atol=1e-4)


def test_nothing_of_it_learns_and_copies_share_the_engine(scorers, tmp_path):
    _, there = scorers
    assert (there.body(), list(there.parameters()), there.training) == ([], [], False)
    with pytest.raises(InputError, match="backend = 'torch'"):
        there.train()
    assert copy.deepcopy(there).engine is there.engine
    settings = there.copy_to(tmp_path / "copy")
    again = scorer_on_vllm(tmp_path / "copy", {"kind": "listwise", **settings})
    items = there.encode(tiny.numbers(2, 4))
    assert torch.equal(again.logits(items), there.logits(items))
    with pytest.raises(InputError, match="not loaded from a folder"):
        VllmScorer(there.engine, READING).copy_to(tmp_path / "more")


@torch.no_grad()
def test_a_language_model_without_settings_is_asked_in_one_pass_in_its_chats_words(tmp_path):
    folder = tiny.folder_of(tmp_path / "plain", heads=2, hidden=32, chat=True)
    changes = {"window": 5, "document_tokens": 8, "query_tokens": 8}
    there = VllmScorer.from_folder(str(folder), {}, "float32", changes=changes)
    here = load_language_scorer(str(folder), {}, "float32", "cpu", changes).eval()
    assert there.reading == here.reading
    assert there.reading.chat
    items = here.encode(mixed_lists())
    assert there.encode(mixed_lists()) == items
    torch.testing.assert_close(there.logits(items), here.logits(items), rtol=0, atol=1e-4)


# ------------------------------------------------------------------------------------------------ what can go wrong
def test_without_vllm_the_line_that_installs_it_is_said(tmp_path, monkeypatch):
    settings = saved(listwise(), tmp_path / "m")
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(MissingDependency, match=r"pip install 'rerank\[vllm\]'"):
        scorer_on_vllm(tmp_path / "m", settings)


def test_a_name_without_a_logit_is_an_error_that_says_which(scorers):
    _, there = scorers
    # Before the restriction the most likely tokens of the whole vocabulary come back.
    there.engine.llm.model_config.logprobs_mode = "raw_logits"
    with pytest.raises(Mismatch, match=r"no logit for '[A-E]' \(token \d+\), one of 5"):
        there.logits(there.encode(tiny.numbers(1, 5)))


def test_a_logit_that_is_no_number_is_an_error(scorers):
    _, there = scorers
    with torch.no_grad():
        there.engine.llm.base.lm_head.weight[there.names[1]] = math.inf
    with pytest.raises(TrainingError, match="'B'"):
        there.logits(there.encode(tiny.numbers(1, 5)))


@pytest.mark.parametrize(
    ("changed", "match"),
    [
        ({"max_logprobs": 4}, "needs the logits of up to 5 tokens, and the engine gives 4"),
        ({"logprobs_mode": "processed_logprobs"}, "'processed_logprobs'; start it with 'processed_logits'"),
    ],
)
def test_an_engine_that_cannot_say_what_is_needed_is_refused(tmp_path, vllm, changed, match):
    saved(listwise(), tmp_path / "m")
    settings = {"logprobs_mode": "processed_logits", **changed}
    llm = vllm.LLM(str(tmp_path / "m"), **settings)
    with pytest.raises(Mismatch, match=match):
        VllmScorer(VllmEngine(llm, tiny.tokenizer()), READING)


def test_vllm_restricts_to_a_thousand_tokens_at_most(scorers):
    with pytest.raises(InputError, match="1024 at most, and 1025"):
        scorers[1].engine.check_options(1025)


def test_a_context_that_is_too_short_is_an_error_before_an_engine_starts(tmp_path, monkeypatch):
    here = listwise()
    settings = saved(here, tmp_path / "m")
    needed = here.prompts.longest() + 1
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(InputError, match=rf"up to {needed} tokens, and max_model_len is {needed - 1}"):
        scorer_on_vllm(tmp_path / "m", settings, max_model_len=needed - 1)
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    (tmp_path / "m" / "config.json").write_text(json.dumps(config | {"max_position_embeddings": needed - 1}))
    with pytest.raises(InputError, match=f"and the model reads {needed - 1}: lower window"):
        scorer_on_vllm(tmp_path / "m", settings)


@pytest.mark.parametrize(
    ("changed", "error", "match"),
    [
        ({"kind": "generative"}, InputError, "is a generative model, which is for VllmWriter"),
        ({"kind": "cross-encoder"}, InputError, "is no listwise model: .* use backend = 'torch'"),
        ({"reading": {"window": "many"}}, DataError, "field 'reading': .*'many'"),
        ({"reading": {"naming": "numbers", "window": 4, "document_tokens": 8}}, InputError, "naming = 'letters'"),
    ],
)
def test_a_folder_of_another_kind_is_refused(tmp_path, changed, error, match):
    settings = saved(listwise(), tmp_path / "m") | changed
    with pytest.raises(error, match=match):
        scorer_on_vllm(tmp_path / "m", settings)


def test_a_device_or_a_precision_that_vllm_does_not_take_is_refused(tmp_path):
    settings = saved(listwise(), tmp_path / "m")
    with pytest.raises(InputError, match="CUDA_VISIBLE_DEVICES"):
        VllmScorer.from_folder(str(tmp_path / "m"), settings, device="cuda:1")
    with pytest.raises(InputError, match="'int8' is not known"):
        VllmScorer.from_folder(str(tmp_path / "m"), settings, "int8")


@pytest.mark.parametrize(
    "wrong",
    [
        {"gpu_memory_utilization": 0},
        {"gpu_memory_utilization": 1.1},
        {"tensor_parallel_size": 0},
        {"max_model_len": 1.5},
        {"tensor_parallel_size": True},
    ],
)
def test_settings_that_no_engine_has_are_named(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        EngineSettings(**wrong)


def test_adapters_that_are_not_all_there_are_named(tmp_path):
    base = tiny.folder_of(tmp_path / "base", heads=2, hidden=32)
    settings = saved(listwise(adapted()), tmp_path / "m", base)
    file = tmp_path / "m" / "adapter" / "adapter_config.json"
    for written in ("[]", "{", '{"r": 0}', '{"r": 600}'):
        file.write_text(written)
        with pytest.raises(DataError, match=r"adapter_config\.json"):
            scorer_on_vllm(tmp_path / "m", settings)
    file.unlink()
    with pytest.raises(NotFound, match="are not all there"):
        scorer_on_vllm(tmp_path / "m", settings)


# ---------------------------------------------------------------------------------------------------- written answers
def both(tmp_path, **settings):
    """The policy (in process, on vLLM) of one generative model."""
    here = generative(**settings)
    there = writer_on_vllm(tmp_path / "m", saved(here, tmp_path / "m"))
    if "tokenizer" in settings:  # what is read from the folder writes numbers as this one does
        assert there.prompts.name_ids == here.prompts.name_ids
    return GenerativePolicy(here).eval(), GenerativePolicy(there, there.budget).eval()


@pytest.mark.parametrize("tokenizer", [tiny.tokenizer, digits])
def test_the_same_random_numbers_write_the_same_rankings_as_in_process(tmp_path, tokenizer):
    here, there = both(tmp_path, tokenizer=tokenizer())
    lists = [*tiny.numbers(2, 12), *tiny.numbers(2, 3, seed=1, start=2)]
    wanted, found = (policy.sample(lists, 6, generator("draws", 3)) for policy in (here, there))
    assert torch.equal(found.rankings, wanted.rankings)
    torch.testing.assert_close(found.log_probs, wanted.log_probs, rtol=0, atol=1e-4)
    assert found.valid.all()
    assert len({tuple(row) for row in found.rankings[0].tolist()}) > 1


@torch.no_grad()
def test_the_greedy_ranking_and_its_scores_are_those_in_process(tmp_path):
    here, there = both(tmp_path, tokenizer=digits())
    lists = [*tiny.numbers(3, 12), *tiny.numbers(1, 20, seed=4, start=3)]
    torch.testing.assert_close(there.scores(lists), here.scores(lists), rtol=0, atol=1e-3)


@torch.no_grad()
def test_rollouts_are_permutations_with_the_log_probabilities_that_one_pass_gives_them(tmp_path):
    here, there = both(tmp_path, tokenizer=digits())
    lists = tiny.numbers(2, 12)
    assert [len(ids) for ids in there.scorer.prompts.name_ids] == [1] * 9 + [2] * 3
    rollouts = there.scorer.rollouts(lists, 5, seed=7)
    assert all(sorted(row) == list(range(12)) for rows in rollouts.rankings for row in rows)
    found = torch.tensor(rollouts.log_probs)
    assert found.shape == (2, 5, 12)
    assert (found[..., -1] == 0).all()  # the last name is forced
    wanted = here.log_probs(lists, torch.tensor(rollouts.rankings))
    torch.testing.assert_close(found.sum(-1), wanted, rtol=0, atol=1e-4)
    one_pass = here.scorer.logits([rollouts.writers[0][0].written()])
    stepwise = torch.tensor([w for weights in rollouts.writers[0][0].weighed for w in weights])
    torch.testing.assert_close(one_pass, stepwise, rtol=0, atol=1e-4)


def test_rankings_come_as_often_as_their_log_probabilities_say(tmp_path):
    n = 3000
    reading = Reading(window=4, document_tokens=8, query_tokens=8)
    here, there = both(tmp_path, made=model("llama"), reading=reading)
    lists = tiny.numbers(1, 4)
    counts = dict.fromkeys(permutations(range(4)), 0)
    for row in there.scorer.rollouts(lists, n, seed=1).rankings[0]:
        counts[row] += 1
    with torch.no_grad():
        chances = here.log_probs(lists, torch.tensor([list(counts)])).exp()[0].tolist()
    assert sum(chances) == pytest.approx(1, abs=1e-5)
    for count, chance in zip(counts.values(), chances, strict=True):
        assert abs(count - n * chance) < 4.5 * math.sqrt(n * chance * (1 - chance)) + 1


def test_at_another_temperature_log_probabilities_are_those_of_what_was_drawn_from(tmp_path):
    reading = Reading(window=4, document_tokens=8, query_tokens=8)
    _, there = both(tmp_path, made=model("llama"), reading=reading)
    lists = tiny.numbers(1, 4)
    rollouts = there.scorer.rollouts(lists, 2000, temperature=3.0, seed=1)
    one_pass = listwise(model("llama"), reading)
    with torch.no_grad():
        wanted = (one_pass.logits(one_pass.encode(lists)) / 3.0).log_softmax(0)
    firsts = [row[0] for row in rollouts.rankings[0]]
    for first, log_probs in zip(firsts[:50], rollouts.log_probs[0], strict=False):
        assert log_probs[0] == pytest.approx(wanted[first].item(), abs=1e-4)
    for candidate, chance in enumerate(wanted.exp().tolist()):
        assert abs(firsts.count(candidate) / 2000 - chance) < 4.5 * math.sqrt(chance * (1 - chance) / 2000)


def test_the_engine_has_room_for_the_longest_answer_to_the_longest_prompt(tmp_path):
    _, there = both(tmp_path, tokenizer=digits())
    texts = tuple("x" * 50 + str(i) for i in range(12))
    longest = CandidateList("q", "y" * 50, tuple(map(str, range(12))), texts)
    [[writer]] = there.scorer.rollouts([longest], 1).writers
    asked = len(writer.written()) + 1
    room = there.scorer.engine.llm.model_config.max_model_len
    assert asked <= room == there.scorer.prompts.longest() + there.scorer.answering.most_tokens


def test_answers_that_have_written_the_same_ask_once(tmp_path):
    _, there = both(tmp_path)
    lists = tiny.numbers(2, 6)
    rollouts = there.scorer.rollouts(lists, 40, seed=2)
    asked = there.scorer.engine.llm.requests
    assert asked[0] == 2
    # Later rounds ask for each distinct beginning; the last of six names is forced.
    assert len(asked) == 5
    for place in range(1, 5):
        assert asked[place] == sum(len({row[:place] for row in rows}) for rows in rollouts.rankings)


def test_draws_are_a_function_of_the_seed(tmp_path):
    _, there = both(tmp_path)
    lists = tiny.numbers(2, 6)
    first, again, other = (there.scorer.rollouts(lists, 8, seed=seed).rankings for seed in (1, 1, 2))
    assert first == again != other
    assert there.scorer.rollouts(lists[:1], 8, seed=1).rankings == first[:1]


def test_only_the_places_that_are_wanted_are_written(tmp_path):
    _, there = both(tmp_path, writing=Writing(places=2))
    rollouts = there.scorer.rollouts(tiny.numbers(1, 6), 4)
    assert len(there.scorer.engine.llm.requests) == 2
    for row, log_probs, writer in zip(*(part[0] for part in rollouts), strict=True):
        assert row[2:] == tuple(sorted(row[2:]))
        assert len(log_probs) == 2
        assert log_probs == place_log_probs(writer)


def test_lists_of_one_candidate_ask_nothing(tmp_path):
    _, there = both(tmp_path)
    rollouts = there.scorer.rollouts(tiny.numbers(1, 1), 3)
    assert (rollouts.rankings, there.scorer.engine.llm.requests) == ([[(0,)] * 3], [])


@pytest.mark.parametrize("writing", [Writing(thinking=5), Writing(constrained=False)])
def test_free_text_is_left_to_the_other_backend(tmp_path, writing):
    settings = saved(generative(writing=writing), tmp_path / "m")
    with pytest.raises(InputError, match="use backend = 'torch'"):
        writer_on_vllm(tmp_path / "m", settings)


def test_wrong_use_of_a_writer_is_named(tmp_path):
    settings = saved(generative(), tmp_path / "m")
    with pytest.raises(InputError, match="a listwise model, which is for VllmScorer"):
        writer_on_vllm(tmp_path / "m", settings | {"kind": "listwise"})
    with pytest.raises(DataError, match=r"field 'writing'.*speed"):
        writer_on_vllm(tmp_path / "m", settings | {"writing": {"speed": 1}})
    there = writer_on_vllm(tmp_path / "m", settings)
    lists = tiny.numbers(1, 3)
    with pytest.raises(InputError, match="weighs no given ones"):
        there.logits(there.encode(lists))
    for temperature in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(InputError, match="temperature must be above 0"):
            there.rollouts(lists, 1, temperature)


# ----------------------------------------------------------------------------------------------------- newer weights
def test_an_engine_takes_newer_weights_and_forgets_what_it_computed_with_the_old(tmp_path):
    _, there = both(tmp_path)
    lists = tiny.numbers(2, 5)
    before = there.scorer.rollouts(lists, 4, seed=1)
    newer = generative(model(seed=9))
    there.scorer.engine.take_weights_of(newer, tmp_path / "newer")
    found = there.sample(lists, 4, generator("draws"))
    wanted = GenerativePolicy(newer).eval().sample(lists, 4, generator("draws"))
    assert torch.equal(found.rankings, wanted.rankings)
    torch.testing.assert_close(found.log_probs, wanted.log_probs, rtol=0, atol=1e-4)
    assert there.scorer.rollouts(lists, 4, seed=1).log_probs != before.log_probs


def test_newer_adapters_in_the_same_folder_are_read_anew(tmp_path):
    base = tiny.folder_of(tmp_path / "base", heads=2, hidden=32)
    there = writer_on_vllm(tmp_path / "m", saved(generative(adapted(1)), tmp_path / "m", base))
    policy, lists = GenerativePolicy(there, there.budget).eval(), tiny.numbers(2, 5)
    for seed in (1, 2, 3):
        newer = generative(adapted(seed))
        if seed > 1:
            there.engine.take_weights_of(newer, tmp_path / "step")
        with torch.no_grad():
            wanted = GenerativePolicy(newer).eval().scores(lists)
        torch.testing.assert_close(policy.scores(lists), wanted, rtol=0, atol=1e-3)


def test_weights_that_the_engine_was_not_started_for_are_refused(tmp_path):
    base = tiny.folder_of(tmp_path / "base", heads=2, hidden=32)
    with_adapter = writer_on_vllm(tmp_path / "a", saved(generative(adapted()), tmp_path / "a", base)).engine
    plain = writer_on_vllm(tmp_path / "b", saved(generative(), tmp_path / "b")).engine
    with pytest.raises(Mismatch, match="give it adapters"):
        with_adapter.take_weights(tmp_path / "b")
    with pytest.raises(Mismatch, match="rank 4, and the engine was started for a model without adapters"):
        plain.take_adapter(tmp_path / "a" / "adapter")
    file = tmp_path / "a" / "adapter" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"r": 16}))
    with pytest.raises(Mismatch, match="rank 16, and the engine was started for adapters of rank up to 8"):
        with_adapter.take_adapter(tmp_path / "a" / "adapter")
    plain.llm.reset_prefix_cache = lambda: False
    with pytest.raises(Mismatch, match="kept what it had cached"):
        plain.take_weights(tmp_path / "b")


def test_an_engine_sleeps_while_a_model_trains_and_wakes_whatever_happened(tmp_path):
    there = scorer_on_vllm(tmp_path / "m", saved(listwise(), tmp_path / "m"), sleeps=True)
    items = there.encode(tiny.numbers(1, 5))
    before = there.logits(items)
    with there.engine.asleep(), pytest.raises(RuntimeError, match="asleep"):
        there.logits(items)
    with pytest.raises(KeyError), there.engine.asleep():
        raise KeyError("training failed")
    assert torch.equal(there.logits(items), before)
