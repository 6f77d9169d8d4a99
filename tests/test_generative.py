"""Models that write their ranking: the mask, the distribution, its two ways of being computed, free text."""

import copy
import itertools
import logging
import random

import pytest
import tiny_language_models as tiny
import torch
from hostile_prompts import answer_text, faults_on, hostile_lists

from rerank.engine.batching import score_items
from rerank.errors import InputError, TrainingError
from rerank.models.language.answering import LEAST_GAP, Answering, Writing
from rerank.models.language.decoding import Pace, _agrees
from rerank.models.language.generative import GenerativePolicy, GenerativeScorer
from rerank.models.language.listwise import ListwiseScorer
from rerank.models.language.permutations import Free, Grammar, Permutation, Writer
from rerank.models.language.reading import Reading
from rerank.models.policy import rerank_lists
from rerank.prompting.prompts import Prompt
from rerank.prompting.windows import Disjoint, Sliding
from rerank.testing import check_policy, toy_lists
from rerank.types import CandidateList

BARE = Prompt(instruction="", request="", fenced=False)
TOKENIZER = tiny.tokenizer()
# "11" is the beginning of two others, and two of them have two tokens.
LONG_NAMES = ["11", "112", "1134", "2"]
TWELVE_NAMES = [*LONG_NAMES, "3", "45678", "6", "7", "88123", "999", "10", "5"]


def policy(kind="qwen3", naming="numbers", window=6, sharp=6.0, budget=None, windowing=None, **writing):
    """A tiny model whose preferences are `sharp` times those of random weights."""
    model = tiny.other_model(kind) if kind in tiny.OTHERS else tiny.model(kind, hidden=32)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(sharp)
    reading = Reading(
        window=window, naming=naming, prompt=BARE, document_tokens=8, query_tokens=8, windowing=windowing or Sliding()
    )
    scorer = GenerativeScorer(model, TOKENIZER, reading, "float32", Writing(**writing))
    return GenerativePolicy(scorer, budget).eval()


def with_long_names(made, names=LONG_NAMES):
    prompts = made.scorer.prompts
    prompts.names = names
    prompts.name_ids = [tuple(TOKENIZER(name, add_special_tokens=False)["input_ids"]) for name in names]
    made.scorer.answering = Answering(prompts, made.scorer.writing)
    return made


def lists_of(*sizes):
    return [tiny.numbers(1, n=n, seed=n, start=n)[0] for n in sizes]


def next_logits(made, ids):
    """Logits after a text, from the whole model without a cache."""
    with torch.no_grad():
        return made.scorer.model(input_ids=torch.tensor([ids])).logits[0, -1]


def by_hand(made, candidates, ranking):
    """The log-probability of writing a ranking, token by token, each from a pass of its own over all before it."""
    names = [tuple(TOKENIZER(n, add_special_tokens=False)["input_ids"]) for n in made.scorer.prompts.names]
    [prompt] = made.scorer.encode([candidates])
    ids = torch.frombuffer(bytearray(prompt.ids), dtype=torch.int32).tolist()
    close = TOKENIZER("]", add_special_tokens=False)["input_ids"]
    between = TOKENIZER("] > [", add_special_tokens=False)["input_ids"]
    left, total = list(range(len(candidates))), 0.0
    for chosen in ranking:
        target = (*names[chosen], close[0])
        for depth, token in enumerate(target):
            alive = [(*names[i], close[0]) for i in left if (*names[i], close[0])[:depth] == target[:depth]]
            allowed = sorted({name[depth] for name in alive})
            total += float(next_logits(made, ids)[allowed].log_softmax(0)[allowed.index(token)])
            ids = [*ids, token]
        ids = [*ids[:-1], *between]
        left.remove(chosen)
    return total


# ------------------------------------------------------------------------------------------------------------ the mask
def test_whatever_is_chosen_under_the_mask_is_a_permutation():
    draw = random.Random(0)
    for _ in range(300):
        n = draw.randint(1, 25)
        names = tuple({tuple(draw.choices((1, 2, 3), k=draw.randint(1, 4))) for _ in range(n)})
        grammar, places = Grammar(names, (9, 8), (9,)), draw.choice([None, 1, 3])
        mask = Permutation(grammar, range(len(names)), places)
        mask.begin()
        steps = 0
        while not mask.done:
            options = mask.options()
            assert len(options) > 1 and len(options) == len(set(options))
            mask.take(draw.choice(options))
            steps += 1
        assert sorted(mask.whole_order) == list(range(len(names)))
        assert len(mask.order) <= (places or len(names)) and steps <= 5 * len(names)


def test_places_that_are_not_asked_for_follow_in_first_stage_order():
    made = policy(places=2)
    rollout = made.sample(lists_of(6), 20, torch.Generator().manual_seed(0))
    for ranking in rollout.rankings[0].tolist():
        assert ranking[2:] == sorted(ranking[2:])
    assert len({tuple(r[:2]) for r in rollout.rankings[0].tolist()}) > 3
    order = made.scores(lists_of(6))[0].argsort(descending=True).tolist()
    assert order[2:] == sorted(order[2:])


def test_what_an_answer_leaves_out_follows_in_first_stage_order_also_in_windows_that_are_shuffled():
    made, shown = policy(places=2, window=4, windowing=Disjoint(2)), []
    scores_of = made._scores
    made._scores = lambda writer, window: shown.append((window, scores_of(writer, window))) or shown[-1][1]
    made.scores(lists_of(12))
    orders = [[i for _, i in sorted(zip(scores, window, strict=True), reverse=True)] for window, scores in shown]
    assert all(order[2:] == sorted(order[2:]) for order in orders)
    assert any(
        [i for i in window if i in order[2:]] != order[2:] for (window, _), order in zip(shown, orders, strict=True)
    )
    free = policy(constrained=False)
    assert free.read(chosen(free, "2]</s>"), 3) == ((1, 0, 2), False)
    assert free.read(chosen(free, "2]</s>"), 3, (7, 1, 4)) == ((1, 2, 0), False)


@pytest.mark.parametrize("naming", ["numbers", "letters"])
def test_no_text_can_make_an_answer_malformed(naming):
    made = policy(naming=naming, window=20)
    assert faults_on(made, hostile_lists(150)) == {"answers": 150}


@pytest.mark.slow
def test_ten_thousand_random_prompts_give_no_malformed_answer():
    made = policy(window=20)
    assert faults_on(made, hostile_lists(10_000, seed=1)) == {"answers": 10_000}


def test_the_strict_reader_of_hostile_answers_can_fail():
    found = faults_on(policy(constrained=False), hostile_lists(20, most=6))
    assert found["answers"] == 20 and found["missing"] > 0


# ---------------------------------------------------------------------------------------------------- the distribution
@pytest.mark.parametrize("kind", ["qwen3", "llama"])
def test_all_rankings_of_names_of_several_tokens_have_probabilities_that_sum_to_one_and_are_drawn_so_often(kind):
    made = with_long_names(policy(kind, window=4, sharp=12.0 if kind == "qwen3" else 1.0))
    lists, n = lists_of(4), 4000
    every = torch.tensor(list(itertools.permutations(range(4))))
    with torch.no_grad():
        chances = made.log_probs(lists, every[None])[0].double().exp()
    assert float(chances.sum()) == pytest.approx(1.0, abs=1e-5)
    assert float(chances.max()) > 0.1  # not the uniform distribution
    drawn = made.sample(lists, n, torch.Generator().manual_seed(0)).rankings[0]
    share = (drawn[:, None] == every[None]).all(-1).double().mean(0)
    assert ((share - chances).abs() < 4.5 * (chances * (1 - chances) / n).sqrt() + 1e-4).all()


@pytest.mark.parametrize("kind", ["qwen3", "llama"])
def test_log_probabilities_are_those_of_passes_token_by_token(kind):
    made = with_long_names(policy(kind, window=4))
    [candidates] = lists_of(4)
    every = list(itertools.permutations(range(4)))[::5]
    found = made.log_probs([candidates], torch.tensor([every]))[0]
    assert found.tolist() == pytest.approx([by_hand(made, candidates, ranking) for ranking in every], abs=1e-4)


@pytest.mark.parametrize("naming", ["numbers", "letters"])
def test_a_tokenizer_that_puts_blanks_before_texts_writes_answers_without_them(naming):
    tokenizer = tiny.sentencepiece()
    model = tiny.model(hidden=32, vocabulary=len(tokenizer))
    reading = Reading(window=12, naming=naming, prompt=BARE, document_tokens=8, query_tokens=8)
    made = GenerativePolicy(GenerativeScorer(model, tokenizer, reading, "float32")).eval()
    [[writer]] = made.drafts(made.scorer.encode(lists_of(12)), None)
    said = answer_text(made, writer)
    natural = tokenizer(f"x\n{said}", add_special_tokens=False)["input_ids"]
    ids = torch.frombuffer(bytearray(writer.prompt), dtype=torch.int32).tolist()
    assert [*ids[-1:], *writer.fed] == natural[2 : 3 + len(writer.fed)]


@pytest.mark.parametrize("naming", ["numbers", "letters"])
@pytest.mark.parametrize("kind", ["qwen3", "llama"])
def test_one_pass_over_what_was_written_gives_the_log_probabilities_of_writing_it(kind, naming):
    made, lists = policy(kind, naming, window=12), lists_of(2, 12, 5, 1)
    rollout = made.sample(lists, 5, torch.Generator().manual_seed(0))
    found = made.log_probs(lists, rollout.rankings)
    assert (found - rollout.log_probs).abs().max() < 1e-4
    assert bool(rollout.valid.all()) and bool((rollout.log_probs[:3] < 0).all()) and bool((found[3] == 0).all())


def test_draws_do_not_depend_on_what_shares_a_batch():
    lists = lists_of(3, 6, 4)
    rollouts = [policy(budget=b).sample(lists, 7, torch.Generator().manual_seed(3)) for b in (100_000, 150)]
    assert torch.equal(rollouts[0].rankings, rollouts[1].rankings)
    assert (rollouts[0].log_probs - rollouts[1].log_probs).abs().max() < 1e-5
    scores = [policy(budget=b).scores(lists) for b in (100_000, 150)]
    assert torch.allclose(scores[0], scores[1], atol=1e-5)


@pytest.mark.parametrize("kind", ["mistral", "gemma2", "gemma3", "gpt_neo", "gpt_neox", "gpt2", "lfm2"])
@torch.no_grad()
def test_prompts_of_unequal_length_beyond_an_attention_window_are_written_to_as_each_alone(kind):
    made, lists = with_long_names(policy(kind, window=12, sharp=1.0), TWELVE_NAMES), lists_of(2, 12, 5, 11)
    lengths = [len(item) for item in made.scorer.encode(lists)]
    assert min(lengths) > 24 and len(set(lengths)) == 4
    rollout = made.sample(lists, 5, torch.Generator().manual_seed(0))
    assert (made.log_probs(lists, rollout.rankings) - rollout.log_probs).abs().max() < 1e-4
    assert rollout.log_probs.std() > 0.1
    for candidates, scores in zip(lists, made.scores(lists), strict=True):
        alone = made.scores([candidates])[0]
        assert torch.allclose(scores[: len(candidates)], alone, atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "pace"),
    [
        *((kind, Pace.ALL) for kind in ("qwen3", "llama", "gpt2", "gpt_neox")),
        *((kind, Pace.EVEN) for kind in ("mistral", "gemma2", "gemma3", "gpt_neo", "lfm2")),
    ],
)
def test_rows_read_each_its_own_only_where_attention_sees_all(kind, pace):
    assert policy(kind).scorer.pace is pace


@torch.no_grad()
def test_both_paces_write_the_same_where_attention_sees_all():
    made, lists = with_long_names(policy(window=12), TWELVE_NAMES), lists_of(2, 12, 5)
    found = []
    for made.scorer.pace in Pace:
        found.append(made.sample(lists, 5, torch.Generator().manual_seed(0)))
    assert torch.equal(found[0].rankings, found[1].rankings)
    assert torch.allclose(found[0].log_probs, found[1].log_probs, atol=1e-4)


def test_the_trial_tells_a_model_that_padding_leads_astray():
    following = policy("lfm2").scorer.following
    assert not _agrees(following, Pace.ALL) and _agrees(following, Pace.EVEN)


def test_a_model_that_cannot_go_on_from_what_it_read_is_refused_and_ranks_in_one_pass():
    with pytest.raises(InputError, match=r"MambaForCausalLM cannot go on writing.*use kind = 'listwise'"):
        policy("mamba")
    lists = lists_of(2, 6, 4)
    reading = Reading(window=6, prompt=BARE, document_tokens=8, query_tokens=8)
    scorer = ListwiseScorer(tiny.other_model("mamba"), TOKENIZER, reading, "float32").eval()
    with torch.no_grad():
        together = scorer.logits(scorer.encode(lists)).split([2, 6, 4])
        for candidates, logits in zip(lists, together, strict=True):
            assert torch.allclose(scorer.logits(scorer.encode([candidates])), logits, atol=1e-4)
    assert together[1].std() > 0.05


def test_padding_comes_last_in_rankings_of_lists_of_unequal_length():
    rankings = policy().sample(lists_of(3, 6), 4, torch.Generator().manual_seed(0)).rankings
    assert (rankings[0, :, 3:] == torch.tensor([3, 4, 5])).all()


def test_the_first_choice_is_what_one_forward_pass_over_the_same_prompt_says():
    made, lists = policy(naming="letters"), lists_of(6, 4)
    one_pass = ListwiseScorer(made.scorer.model, TOKENIZER, made.scorer.reading, "float32")
    with torch.no_grad():
        wanted = one_pass.logits(one_pass.encode(lists)).split([6, 4])
    for candidates, logits in zip(lists, wanted, strict=True):
        [[writer]] = made.drafts(made.scorer.encode([candidates]), None)
        assert torch.tensor(writer.weighed[0]) == pytest.approx(logits.log_softmax(0), abs=1e-5)
        # And in the one pass that learns: the options of the first choice come first.
        with torch.no_grad():
            found = made.scorer.logits([writer.written()])[: len(candidates)]
        assert found == pytest.approx(logits.log_softmax(0), abs=1e-5)


# ---------------------------------------------------------------------------------------------------------- the scores
@pytest.mark.parametrize("naming", ["numbers", "letters"])
def test_sorting_by_the_scores_gives_what_is_written_greedily(naming):
    made = policy(naming=naming, window=12)
    for candidates in lists_of(12, 5):
        [scores] = made.scores([candidates]).tolist()
        [prompt] = made.scorer.encode([candidates])
        ids = torch.frombuffer(bytearray(prompt.ids), dtype=torch.int32).tolist()
        mask = Permutation(made.scorer.answering.grammar, range(len(candidates)))
        ids += mask.begin()
        while not mask.done:
            logits, options = next_logits(made, ids), mask.options()
            ids += mask.take(max(options, key=lambda token: float(logits[token])))
        order = list(mask.whole_order)
        assert sorted(range(len(candidates)), key=lambda i: -scores[i]) == order
        falling = [scores[i] for i in order]
        assert all(a - b > 0.9 * LEAST_GAP for a, b in itertools.pairwise(falling))


def test_the_scores_of_a_pair_are_the_log_odds_of_naming_one_before_the_other():
    made, [pair] = policy(naming="letters", window=2), lists_of(2)
    with torch.no_grad():
        first, second = made.log_probs([pair], torch.tensor([[[0, 1], [1, 0]]]))[0].tolist()
    [scores] = made.scores([pair]).tolist()
    assert scores[0] - scores[1] == pytest.approx(first - second, abs=1e-4)
    assert max(scores) == pytest.approx(max(first, second), abs=1e-4)


def test_a_list_that_is_longer_than_the_window_is_ranked_by_windows():
    made, [candidates] = policy(window=4), lists_of(11)
    run = rerank_lists(made, [candidates], "written")["served"]
    assert sorted(run.doc_ids(candidates.query_id)) == sorted(candidates.doc_ids)
    assert run.tie_rate() == 0.0
    with pytest.raises(InputError, match="window"):
        made.log_probs([candidates], torch.arange(11)[None, None])


@pytest.mark.parametrize("places", [None, 2])
def test_it_keeps_the_contract_of_policies(places):
    if places is None:
        check_policy(policy(window=8))
    with_two = policy(places=places)
    lists = [c.subset(range(min(3, len(c)))) for c in toy_lists()]
    assert with_two.scores(lists).shape == with_two.all_views(lists)[0].shape


def test_writing_leaves_training_mode_as_it_was():
    made = policy().train()
    made.scores(lists_of(3))
    assert made.training and made.scorer.model.training


def test_broken_weights_are_told_and_never_ranked_with():
    made = policy()
    with torch.no_grad():
        made.scorer.model.get_output_embeddings().weight.fill_(torch.nan)
    with pytest.raises(TrainingError, match="not finite"):
        made.scores(lists_of(3))
    with pytest.raises(TrainingError, match="not finite"):
        made.sample(lists_of(3), 2, torch.Generator().manual_seed(0))


def test_copies_share_what_is_not_learned_and_write_the_same():
    made = policy()
    for parameter in made.scorer.model.base_model.parameters():
        parameter.requires_grad_(False)
    made.scorer.settle()
    copied = copy.deepcopy(made)
    own, other = (dict(p.named_parameters()) for p in (made, copied))
    shared = [name for name in own if own[name] is other[name]]
    assert len(shared) == len(list(made.scorer.model.base_model.parameters()))
    with torch.no_grad():
        copied.scorer.model.get_output_embeddings().weight.neg_()
    assert copied.scores(lists_of(6))[0].argsort().tolist() != made.scores(lists_of(6))[0].argsort().tolist()
    assert copied.scorer.following.model is copied.scorer.model


# ----------------------------------------------------------------------------------------------------------- free text
def test_a_free_answer_that_is_malformed_is_repaired_counted_and_said_once(caplog):
    made = policy(constrained=False, answer_tokens=12)
    with caplog.at_level(logging.WARNING):
        rollout = made.sample(lists_of(5, 4), 10, torch.Generator().manual_seed(0))
        made.sample(lists_of(5), 2, torch.Generator().manual_seed(1))
    assert sum("malformed" in record.message for record in caplog.records) == 1
    assert made.faults["answers"] == 22 and made.faults["malformed"] >= int((~rollout.valid).sum()) > 0
    assert (rollout.rankings.sort(-1).values == torch.arange(5)).all()
    with caplog.at_level(logging.WARNING):
        made.tell_faults()
    assert f"{made.faults['malformed']} of 22 answers were malformed" in caplog.text


def chosen(made, text, n=3):
    """A free answer in which the model chose the tokens of `text` as far as it was asked."""
    writer = made.scorer.answering.writer(made.scorer.encode(lists_of(n))[0])
    for token in TOKENIZER(text, add_special_tokens=False)["input_ids"]:
        if not writer.done and writer.options() is None:
            writer.take(token, (0.0,))
    return writer


def test_a_free_answer_is_read_strictly():
    made = policy(constrained=False)
    assert made.read(chosen(made, "2] > [3] > [1]</s>"), 3) == ((1, 2, 0), True)
    assert made.read(chosen(made, "2] > [3] > [1]\n"), 3) == ((1, 2, 0), True)
    assert made.read(chosen(made, "2] > [2] > [1]</s>"), 3) == ((1, 0, 2), False)
    assert made.read(chosen(made, "0] > [3] > [1]</s>"), 3) == ((2, 0, 1), False)
    assert made.faults == {"answers": 4, "malformed": 2, "unknown": 1, "repeated": 1, "missing": 2}


def test_the_tokens_of_a_free_answer_belong_to_the_places_that_they_write():
    made = policy(constrained=False)
    written = chosen(made, "2] > [3] > [1]</s>").written()
    assert [choice.place for choice in written.choices] == [0] * 2 + [1] * 6 + [2] * 7
    assert all(choice.whole for choice in written.choices)


def test_a_thought_ends_where_the_model_closes_it_and_the_answer_is_masked():
    made = policy(thinking=40)
    for text in ("12 is more</think>", "7 <answer>"):
        writer = chosen(made, text)
        n = len(TOKENIZER(text, add_special_tokens=False)["input_ids"])
        assert len(writer.choices) == n and [c.unit for c in writer.choices] == list(range(n))
        assert TOKENIZER.decode(writer.fed) == text + "\n[" and len(writer.options()) == 3
    writer = chosen(made, "a thought without an end" * 5)
    assert len(writer.choices) == 40 and TOKENIZER.decode(writer.fed).endswith("</think>\n[")
    assert TOKENIZER.decode(chosen(made, "well</s>").fed) == "well</think>\n["


@pytest.mark.parametrize("constrained", [True, False])
def test_thoughts_have_log_probabilities_of_their_own_which_one_pass_gives_again(constrained):
    made = policy(thinking=9, constrained=constrained, window=4)
    prompts = made.scorer.encode(lists_of(4, 3))
    noise = torch.rand(2, 3, made.scorer.answering.most_choices, generator=torch.Generator().manual_seed(0))
    writers = [writer for of_list in made.drafts(prompts, list(noise.double())) for writer in of_list]
    with torch.no_grad():
        flat = score_items(made.scorer, [writer.written() for writer in writers], 300)
    stepwise = torch.tensor([w for writer in writers for weights in writer.weighed for w in weights])
    assert (flat - stepwise).abs().max() < 1e-4
    assert all(sum(c.whole for c in writer.choices) >= 9 for writer in writers)
    if constrained:
        assert [sorted(writer.answer.whole_order) for writer in writers] == [[0, 1, 2, 3]] * 3 + [[0, 1, 2]] * 3
        assert answer_text(made, writers[0]).partition("</think>")[2].count("[") == 4


@pytest.mark.parametrize("places", [None, 2])
def test_the_log_probability_of_a_free_ranking_is_that_of_its_text(places):
    made, [candidates] = policy(constrained=False, places=places, sharp=1.0), lists_of(3)
    text = "3] > [1] > [2]</s>" if places is None else "3] > [1]</s>"
    [prompt] = made.scorer.encode([candidates])
    ids = torch.frombuffer(bytearray(prompt.ids), dtype=torch.int32).tolist()
    wanted = 0.0
    for token in TOKENIZER(text, add_special_tokens=False)["input_ids"]:
        wanted += float(next_logits(made, ids).log_softmax(0)[token])
        ids.append(token)
    found = made.log_probs([candidates], torch.tensor([[[2, 0, 1]]]))
    assert float(found.detach()) == pytest.approx(wanted, abs=1e-4)
    with torch.no_grad():
        first = made.log_probs([candidates], torch.tensor([[[2]]]))
    assert float(first) > wanted  # a beginning is likelier than the whole


def test_a_policy_that_thinks_has_no_log_probability_of_a_ranking_alone():
    with pytest.raises(InputError, match="thoughts"):
        policy(thinking=3).log_probs(lists_of(3), torch.arange(3)[None, None])


def test_free_text_without_an_end_stops_at_its_limit():
    writer = Writer(b"\0\0\0\0", [Free(5, lambda tokens: False, frozenset({2}))])
    while not writer.done:
        writer.take(7)
    assert writer.fed == [7] * 5 and len(writer.written()) == 5


# ----------------------------------------------------------------------------------------------------------- bad input
@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"places": 0}, "places must be a whole number"),
        ({"thinking": -1}, "thinking must be"),
        ({"thinking": True}, "thinking must be"),
        ({"answer_tokens": 0, "constrained": False}, "answer_tokens must be"),
        ({"answer_tokens": 10}, "set constrained = false"),
        ({"constrained": "yes"}, "true or false"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, said):
    with pytest.raises(InputError, match=said):
        Writing(**settings)


def test_an_answer_that_does_not_fit_the_models_context_is_refused():
    reading = Reading(window=6, naming="numbers", prompt=BARE, document_tokens=8, query_tokens=8)
    model = tiny.model(hidden=32, context=200)
    GenerativeScorer(model, TOKENIZER, reading, "float32")
    with pytest.raises(InputError, match="with its answer has up to"):
        GenerativeScorer(model, TOKENIZER, reading, "float32", Writing(thinking=100))


def test_equal_candidates_are_written_in_the_order_in_which_they_come():
    """Exact ties at the first token fall to the candidate that was shown first."""
    made = policy(naming="letters")
    with torch.no_grad():
        made.scorer.model.get_output_embeddings().weight.zero_()
    [scores] = made.scores([CandidateList("q", "q", ("a", "b", "c"), ("x", "y", "z"))]).tolist()
    assert scores[0] > scores[1] > scores[2]
