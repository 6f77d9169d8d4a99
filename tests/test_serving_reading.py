"""How questions are read: what a kind of model cuts and counts, what it refuses to cut, and what shares a turn."""

import pytest
import tiny_language_models as tiny
import torch

from rerank.models.backbones import load_cross_encoder, load_encoder
from rerank.models.language.listwise import ListwiseScorer
from rerank.models.language.reading import Reading
from rerank.models.light import LightScorer
from rerank.models.policy import ScorePolicy
from rerank.reranker import Reranker
from rerank.serving.asking import Question, Refusal
from rerank.serving.reading import Reader
from rerank.serving.works import Work, turn_of
from rerank.testing import NumberScorer

KINDS = ("cross-encoder", "light", "listwise")
LONG = "a b c d e f g h " * 30
LENGTHS = {"cross-encoder": 64, "light": 128, "listwise": 20 + 30}


@pytest.fixture(scope="module")
def readers(tiny_bert):
    scorers = {
        "cross-encoder": load_cross_encoder(str(tiny_bert), 64, precision="float32", device="cpu")[0],
        "light": LightScorer(load_encoder(str(tiny_bert), "float32", "cpu"), 8),
        "listwise": ListwiseScorer(
            tiny.model(), tiny.tokenizer(), Reading(window=8, document_tokens=30, query_tokens=20), "float32"
        ),
        "number": NumberScorer(),
    }
    return {kind: Reader(Reranker(ScorePolicy(scorer))) for kind, scorer in scorers.items()}


def work_of(reader, question, due=0.0):
    candidates = reader.reranker.candidates(question.query, question.texts)
    work = Work.of(reader, question, candidates, 0.0, 60.0)
    work.due = due
    return work


def done(reader, *works, budget=10_000):
    """The works, read turn by turn, and what shared each turn."""
    turns = []
    while left := [work for work in works if not work.over]:
        parts = turn_of(left, budget)
        turns.append([works.index(work) for work, _ in parts])
        for (work, _), found in zip(parts, reader.read([part for _, part in parts]), strict=True):
            work.give(found, 0.1)
    return turns


@pytest.mark.parametrize("kind", KINDS)
def test_a_question_that_is_not_to_be_cut_is_refused_with_the_number_of_the_document_as_it_was_asked(kind, readers):
    question = Question("q", ("a", "a", "b", "a", LONG, LONG), truncate=False)
    with pytest.raises(Refusal, match=r"^document 4 ") as refused:
        done(readers[kind], work_of(readers[kind], question))
    assert refused.value.status == 422
    assert "truncation was turned off" in refused.value.message
    assert str(LENGTHS[kind] if kind != "listwise" else 30) in refused.value.message


@pytest.mark.parametrize("kind", KINDS)
def test_a_long_query_is_refused_as_well_where_nothing_is_to_be_cut(kind, readers):
    with pytest.raises(Refusal, match="query"):
        done(readers[kind], work_of(readers[kind], Question(LONG, ("a",), truncate=False)))


@pytest.mark.parametrize("kind", KINDS)
def test_what_fits_is_read_though_nothing_is_to_be_cut_and_scores_as_always(kind, readers):
    whole, cut = (work_of(readers[kind], Question("q", ("a b", "c"), truncate=truncate)) for truncate in (False, True))
    done(readers[kind], whole, cut)
    assert torch.equal(whole.future.result(), cut.future.result())
    assert readers[kind].notes(whole.question) == ()


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_model_tells_how_much_it_reads(kind, readers):
    assert readers[kind].longest == LENGTHS[kind]


def test_a_model_that_cannot_tell_what_it_cuts_says_so(readers):
    assert readers["number"].longest is None
    [note] = readers["number"].notes(Question("q", ("a",), truncate=False))
    assert note.startswith("truncate: false has no effect")


@pytest.mark.parametrize("budget", [1, 10, 10_000])
def test_the_tokens_of_a_light_model_are_those_of_its_encoder_each_text_once(budget, readers):
    tokenizer = readers["light"].texts.encoder.model.tokenizer
    texts = ("a b c", "d", LONG)
    work = work_of(readers["light"], Question("q r", texts))
    done(readers["light"], work, budget=budget)
    assert work.tokens == sum(min(128, len(tokenizer(text)["input_ids"])) for text in ("q r", *texts))
    again = work_of(readers["light"], Question("q r", texts))
    readers["light"].reranker.forget()
    done(readers["light"], again)
    assert again.tokens == work.tokens


def test_the_tokens_of_a_language_model_are_those_of_the_texts_as_they_are_shown(readers):
    tokenizer = tiny.tokenizer()
    work = work_of(readers["listwise"], Question("q r", ("a b c", "d", LONG, "d")))
    done(readers["listwise"], work)
    lengths = [len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in ("q r", "a b c", "d", "d")]
    assert work.tokens == sum(lengths) + 30


@pytest.mark.parametrize("kind", KINDS)
def test_questions_that_share_a_turn_have_the_logits_that_they_have_alone(kind, readers):
    words = ("a b", "c " * 30, "d", "e f g h " * 6)
    questions = [Question(f"q {i}", words[i % 4 :] + words[: i % 3]) for i in range(9)]
    together = [work_of(readers[kind], question) for question in questions]
    alone = [work_of(readers[kind], question) for question in questions]
    assert done(readers[kind], *together) == [list(range(9))]
    assert len(done(readers[kind], *alone, budget=1)) > 9 - 1
    for one, other in zip(together, alone, strict=True):
        torch.testing.assert_close(one.future.result(), other.future.result(), atol=1e-5, rtol=1e-4)
