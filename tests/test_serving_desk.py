"""A desk answers as `Reranker.rank` does, however many questions share its turns; what it cannot answer it refuses."""

import asyncio
import threading
import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rerank.errors import InputError
from rerank.models.calibration import Calibration
from rerank.models.policy import FirstStageWeights, ScorePolicy
from rerank.reranker import Reranker
from rerank.serving.asking import Question, Refusal
from rerank.serving.desk import Desk
from rerank.serving.limits import Limits
from rerank.serving.metrics import Metrics
from rerank.serving.reading import Reader
from rerank.serving.shelf import Shelf, aliases_of, named
from rerank.serving.works import Work, turn_of
from rerank.testing import NumberScorer
from rerank.types import CandidateList

POISON = "poison 13"


class Gate(torch.nn.Module):
    """Scores by numbers, and waits at every micro-batch until it is let through."""

    kind = "number"

    def __init__(self):
        super().__init__()
        self.numbers, self.open, self.sizes, self.at_gate = NumberScorer(), threading.Event(), [], threading.Event()
        self.open.set()

    @property
    def device(self):
        return self.numbers.device

    def body(self):
        return []

    def encode(self, lists):
        if any(POISON in text for candidates in lists for text in candidates.texts):
            raise RuntimeError("this text breaks the model")
        return self.numbers.encode(lists)

    def logits(self, items):
        self.at_gate.set()
        assert self.open.wait(20)
        self.sizes.append(len(items))
        return self.numbers.logits(items)


def question(*numbers, **more):
    return Question("which number is large", tuple(f"the number {number}" for number in numbers), **more)


@pytest.fixture
def gate():
    return Gate()


@pytest.fixture
def desk_of(gate):
    made = []

    def make(limits=None, calibration=None, first_stage=None, **more):
        policy = ScorePolicy(gate, first_stage)
        policy.calibration = calibration
        desk = Desk("numbers", Reranker(policy), limits or Limits(), Metrics(), **more)
        desk.start()
        made.append(desk)
        return desk

    yield make
    gate.open.set()
    assert all(desk.stop(20) for desk in made)


def ask(desk, *questions, seconds=20.0):
    """The answers, or refusals, of questions that are asked at once."""

    async def all_of_them():
        deadline = time.monotonic() + seconds
        asking = (desk.ask(one, f"r{i}", deadline) for i, one in enumerate(questions))
        return await asyncio.gather(*asking, return_exceptions=True)

    return asyncio.run(all_of_them())


def order(answer):
    return [hit.index for hit in answer.hits]


# ------------------------------------------------------------------------------------------------------------ answers
def test_many_questions_at_once_are_answered_as_rank_answers_each(desk_of):
    desk = desk_of(turn_tokens=7)
    questions = [question(*(37 * i * (k + 3) % 101 for k in range(1 + i % 9))) for i in range(40)]
    for asked, answer in zip(questions, ask(desk, *questions), strict=True):
        wanted = desk.reranker.rank(asked.query, asked.texts)
        assert order(answer) == [hit.index for hit in wanted]
        assert [hit.score for hit in answer.hits] == pytest.approx([hit.relevance for hit in wanted], abs=1e-12)


@given(numbers=st.lists(st.integers(0, 9), min_size=1, max_size=12), budget=st.integers(1, 400))
def test_whatever_turns_its_documents_fall_in_a_question_has_the_logits_of_one_pass(numbers, budget):
    reader = Reader(Reranker(ScorePolicy(NumberScorer())))
    asked = question(*numbers)
    work = Work.of(reader, asked, reader.reranker.candidates(asked.query, asked.texts), 0.0, 1.0)
    turns = 0
    while not work.over:
        for one, part in turn_of([work], budget):
            [found] = reader.read([part])
            one.give(found, 0.1)
        turns += 1
    assert work.future.result().tolist() == pytest.approx([0.05 * number for number in numbers])
    assert turns <= len(set(numbers))


def test_a_text_that_comes_twice_is_read_once_and_ties_in_input_order(desk_of, gate):
    [answer] = ask(desk_of(), question(5, 9, 5, 9, 5))
    assert order(answer) == [1, 3, 0, 2, 4]
    assert sum(gate.sizes) == 2


def test_no_documents_are_an_answer_without_hits_even_while_the_model_is_busy(desk_of, gate):
    desk = desk_of()
    gate.open.clear()
    [answer] = ask(desk, question())
    assert answer.hits == ()


def test_logits_come_on_request_and_have_the_same_order(desk_of):
    desk = desk_of()
    plain, raw = ask(desk, question(3, 99, 40), question(3, 99, 40, raw=True, top_n=2))
    assert order(raw) == order(plain)[:2] == [1, 2]
    assert [hit.score for hit in raw.hits] == pytest.approx([4.95, 2.0])


def test_scores_of_a_calibrated_model_are_its_probabilities_and_a_threshold_drops_hits(desk_of):
    desk = desk_of(calibration=Calibration("affine", a=2.0, b=-4.0))
    whole, kept = ask(desk, question(3, 99, 40), question(3, 99, 40, min_probability=0.4))
    assert [hit.score for hit in whole.hits] == pytest.approx(torch.sigmoid(torch.tensor([5.9, 0.0, -3.7])).tolist())
    assert order(kept) == [1, 2]


def test_first_stage_scores_are_added_as_in_process(desk_of):
    desk = desk_of(first_stage=FirstStageWeights({"bm25": 10.0}))
    given = {"bm25": (9.0, 1.0, 5.0)}
    with_scores, without = ask(desk, question(3, 99, 40, first_stage=given), question(3, 99, 40))
    wanted = desk.reranker.rank("which number is large", question(3, 99, 40).texts, first_stage=given)
    assert order(with_scores) == [hit.index for hit in wanted] != order(without)


def test_a_listwise_model_reads_the_lists_of_several_questions_whole(tmp_path):
    from tiny_language_models import folder_of

    reranker = Reranker.from_pretrained(folder_of(tmp_path / "lists"), precision="float32")
    desk = Desk("lists", reranker, Limits(), Metrics())
    desk.start()
    questions = [Question("a", ("b", "cc", "ddd")), Question("e", ("ff", "g")), Question("a", ("b", "b", "cc"))]
    for asked, answer in zip(questions, ask(desk, *questions), strict=True):
        assert order(answer) == [hit.index for hit in reranker.rank(asked.query, asked.texts)]
    assert desk.stop(10)


# -------------------------------------------------------------------------------------------------------------- turns
def work_of(size, due, apart=True):
    texts = tuple(f"{due} {i}" for i in range(size))
    candidates = CandidateList("q", "q", texts, texts)
    return Work(Question("q", texts), candidates, candidates, list(range(size)), [10] * size, apart, 0.0, 9.0, due)


def test_a_turn_takes_what_is_due_first_and_fills_its_budget():
    late, early = work_of(5, 2.0), work_of(3, 1.0)
    taken = [(work.due, len(part.candidates)) for work, part in turn_of([late, early], 60)]
    assert taken == [(1.0, 3), (2.0, 3)]


def test_a_document_beyond_the_budget_is_read_all_the_same():
    assert [len(part.candidates) for _, part in turn_of([work_of(3, 1.0)], 1)] == [1]


def test_a_list_that_is_read_whole_is_never_cut_and_waits_where_it_does_not_fit():
    lists = [work_of(5, 1.0, apart=False), work_of(5, 2.0, apart=False)]
    assert [len(part.candidates) for _, part in turn_of(lists, 60)] == [5]
    assert [len(part.candidates) for _, part in turn_of(lists, 100)] == [5, 5]


def test_one_at_a_time_is_one_question_in_a_turn():
    assert len(turn_of([work_of(2, float(i)) for i in range(5)], 1000, at_most=1)) == 1


def test_a_short_question_passes_a_long_one_and_the_long_one_is_not_starved(desk_of, gate):
    desk = desk_of(turn_tokens=60)
    done = []

    async def asking(name, asked):
        await desk.ask(asked, name, time.monotonic() + 20)
        done.append(name)

    async def all_of_them():
        gate.open.clear()
        long = asyncio.create_task(asking("long", question(*range(200))))
        await asyncio.to_thread(gate.at_gate.wait, 10)
        short = [asyncio.create_task(asking("short", question(i))) for i in range(3)]
        await asyncio.sleep(0.05)
        gate.open.set()
        await asyncio.gather(long, *short)

    asyncio.run(all_of_them())
    assert done == ["short"] * 3 + ["long"]


# ------------------------------------------------------------------------------------------------------------ refusals
def test_beyond_the_queue_a_question_is_refused_with_the_time_to_wait(desk_of, gate):
    desk = desk_of(Limits(queue=4))
    gate.open.clear()

    async def all_of_them():
        first = asyncio.create_task(desk.ask(question(1, 2, 3), "a", time.monotonic() + 20))
        await asyncio.to_thread(gate.at_gate.wait, 10)
        with pytest.raises(Refusal) as refused:
            await desk.ask(question(4, 5), "b", time.monotonic() + 20)
        gate.open.set()
        await first
        return refused.value

    refusal = asyncio.run(all_of_them())
    assert (refusal.status, refusal.kind) == (429, "Overloaded")
    assert "3 documents are waiting" in refusal.message and "4 may" in refusal.message
    assert int(refusal.all_headers()["Retry-After"]) >= 1


def test_one_question_larger_than_the_queue_is_answered_when_nothing_else_waits(desk_of):
    [answer] = ask(desk_of(Limits(queue=2)), question(1, 2, 3, 4))
    assert order(answer) == [3, 2, 1, 0]


def test_a_question_that_is_late_is_refused_and_read_no_further(desk_of, gate):
    desk = desk_of(turn_tokens=30)
    gate.open.clear()
    [refusal] = ask(desk, question(*range(50)), seconds=0.1)
    assert refusal.status == 504
    gate.open.set()
    [answer] = ask(desk, question(7))
    assert order(answer) == [0]
    assert sum(gate.sizes) < 20 and desk.waiting == 0


def test_a_question_whose_asker_left_is_read_no_further(desk_of, gate):
    desk = desk_of(turn_tokens=30)

    async def leaving():
        gate.open.clear()
        task = asyncio.create_task(desk.ask(question(*range(50)), "a", time.monotonic() + 20))
        await asyncio.to_thread(gate.at_gate.wait, 10)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        gate.open.set()
        return await desk.ask(question(1), "b", time.monotonic() + 20)

    assert order(asyncio.run(leaving())) == [0]
    assert sum(gate.sizes) < 20


def test_a_question_that_breaks_the_model_fails_alone(desk_of, gate, caplog):
    desk = desk_of()
    gate.open.clear()

    async def all_of_them():
        def asking(*numbers, text=()):
            asked = Question("q", (*(f"{n}" for n in numbers), *text))
            return asyncio.create_task(desk.ask(asked, "a", time.monotonic() + 20))

        first = asking(1)
        await asyncio.to_thread(gate.at_gate.wait, 10)
        rest = [asking(2, 3), asking(text=(POISON,)), asking(4, 5)]
        await asyncio.sleep(0.05)
        gate.open.set()
        return await asyncio.gather(first, *rest, return_exceptions=True)

    first, second, broken, third = asyncio.run(all_of_them())
    assert [order(answer) for answer in (first, second, third)] == [[0], [1, 0], [1, 0]]
    assert broken.status == 500 and "breaks the model" not in broken.message
    assert "breaks the model" in caplog.text


@pytest.mark.parametrize(
    ("limits", "asked", "status", "said"),
    [
        (Limits(documents=2), question(1, 2, 3), 413, "3 documents; at most 2"),
        (Limits(characters=10), Question("short", ("ok", "this is too long")), 413, "document 1 has 16 characters"),
        (Limits(characters=10), Question("this is too long", ("ok",)), 413, "the query has 16 characters"),
        (Limits(), question(1, min_probability=0.5), 422, "needs a calibrated model"),
        (Limits(), Question("a", ("b\ud800",)), 422, "lone surrogate"),
    ],
)
def test_what_is_not_allowed_is_refused_before_it_waits(limits, asked, status, said, desk_of, gate):
    desk = desk_of(limits)
    gate.open.clear()
    [refusal] = ask(desk, asked)
    assert refusal.status == status and said in refusal.message


def test_all_questions_of_one_request_are_taken_together_or_refused_together(desk_of, gate):
    desk = desk_of(Limits(queue=4))
    pairs = [question(i) for i in range(6)]

    async def both():
        deadline = time.monotonic() + 20
        answers = await desk.ask_all(pairs, "a", deadline)  # more than the queue holds, and nothing else waits
        gate.at_gate.clear()
        gate.open.clear()
        first = asyncio.create_task(desk.ask_all(pairs[:3], "b", deadline))
        await asyncio.to_thread(gate.at_gate.wait, 10)
        with pytest.raises(Refusal, match="3 documents are waiting"):
            await desk.ask_all(pairs[:2], "c", deadline)
        waiting = desk.waiting
        gate.open.set()
        return answers, await first, waiting

    answers, first, waiting = asyncio.run(both())
    assert [len(answer.hits) for answer in (*answers, *first)] == [1] * 9 and waiting == 3


def test_a_request_with_more_tokens_than_allowed_is_refused_even_when_its_last_turn_tells(tiny_bert):
    from sentence_transformers import CrossEncoder

    from rerank.models.cross_encoder import CrossEncoderScorer

    scorer = CrossEncoderScorer(CrossEncoder(str(tiny_bert), num_labels=1), 64, "float32")
    desk = Desk("tiny", Reranker(ScorePolicy(scorer)), Limits(tokens=200), Metrics())
    desk.start()
    few, many = ask(desk, Question("a", ("b c d",)), Question("a", tuple(f"b c d e f g h {i}" for i in range(40))))
    assert desk.stop(10) and 0 < few.tokens < 200
    assert many.status == 413 and "--max-tokens" in many.message


@pytest.mark.parametrize(
    ("weights", "given", "said"),
    [
        (None, {"bm25": (1.0, 2.0)}, "bm25 had no effect; this model was trained without"),
        ({"bm25": 1.0}, {"bm25": (1.0, 2.0), "dens": (1.0, 2.0)}, "dens had no effect; this model reads bm25"),
        ({"bm25": 1.0}, None, "was trained with first-stage scores, and ranks worse without them: bm25"),
        ({"bm25": 1.0}, {"bm25": (1.0, 2.0)}, None),
        (None, None, None),
    ],
)
def test_first_stage_scores_without_effect_and_those_that_are_missed_are_told(weights, given, said, desk_of):
    desk = desk_of(first_stage=FirstStageWeights(weights) if weights else None)
    [answer] = ask(desk, question(1, 2, first_stage=given))
    assert [said in warning for warning in answer.warnings] == ([True] if said else [])


def test_a_turn_is_as_long_as_the_model_is_fast_between_two_bounds(desk_of):
    desk = desk_of()
    sizes = {}
    for rate in (1.0, 6000.0, 1e9):
        desk.turns.rate = rate
        sizes[rate] = desk.turns.turn_tokens
    assert sizes == {1.0: 1024, 6000.0: 1500, 1e9: 2 * desk.reranker.policy.budget}


def test_the_time_that_another_model_takes_is_waiting_and_no_reading(gate, desk_of):
    lock = threading.Lock()
    desk = desk_of(device=lock)
    lock.acquire()
    threading.Timer(0.3, lock.release).start()
    [answer] = ask(desk, question(1, 2))
    assert answer.waited > 0.25 > answer.scoring


def test_what_is_left_when_the_time_to_end_is_over_is_refused(desk_of, gate):
    desk = desk_of(turn_tokens=30)
    gate.open.clear()

    async def ending():
        task = asyncio.create_task(desk.ask(question(*range(50)), "a", time.monotonic() + 20))
        await asyncio.to_thread(gate.at_gate.wait, 10)
        threading.Timer(0.3, gate.open.set).start()
        ended = await asyncio.to_thread(desk.stop, 0.1)
        with pytest.raises(Refusal, match="ended before this was read") as refused:
            await task
        return ended, refused.value.status

    assert asyncio.run(ending()) == (True, 503)


def test_a_desk_that_ends_answers_what_waits_first(desk_of, gate):
    desk = desk_of(turn_tokens=30)
    gate.open.clear()

    async def ending():
        tasks = [asyncio.create_task(desk.ask(question(i, 5), "a", time.monotonic() + 20)) for i in range(4)]
        await asyncio.to_thread(gate.at_gate.wait, 10)
        ended = asyncio.create_task(asyncio.to_thread(desk.stop, 10))
        gate.open.set()
        return await asyncio.gather(ended, *tasks)

    ended, *answers = asyncio.run(ending())
    assert ended and all(len(answer.hits) == 2 for answer in answers) and not desk.alive


# -------------------------------------------------------------------------------------------------------------- shelf
def a_shelf(names=("a", "b"), aliases=()):
    models = [named(f"{name}=nowhere/{name}") for name in names]
    shelf = Shelf(models, aliases_of(aliases, models), Limits())
    shelf.fill({name: Reranker(ScorePolicy(NumberScorer())) for name in names})
    return shelf


def test_a_model_is_found_by_name_path_and_alias_and_the_first_where_none_is_named():
    shelf = a_shelf(aliases=("rerank-v3.5=b",))
    found = [shelf.desk_of(name).name for name in (None, "", "a", "b", "nowhere/b", "rerank-v3.5")]
    shelf.close()
    assert found == ["a", "a", "a", "b", "b", "b"]


def test_an_unknown_model_is_refused_with_the_names_there_are_unless_a_star_stands_for_it():
    shelf, any_name = a_shelf(), a_shelf(aliases=("*=b",))
    with pytest.raises(Refusal, match=r"no model 'c'.*known: a, b") as refused:
        shelf.desk_of("c")
    assert refused.value.status == 404
    assert any_name.desk_of("c").name == "b"
    shelf.close()
    any_name.close()


def test_before_its_models_are_loaded_and_once_it_ends_a_shelf_refuses_with_the_time_to_wait():
    empty, ended = Shelf([named("a")], {}, Limits()), a_shelf()
    ended.close()
    for shelf, said in ((empty, "being loaded"), (ended, "ending")):
        with pytest.raises(Refusal, match=said) as refused:
            shelf.desk_of("a")
        assert refused.value.status == 503 and "Retry-After" in refused.value.all_headers()


@pytest.mark.parametrize("alias", ["a", "=a", "x=c", "b=a"])
def test_an_alias_that_names_no_model_or_hides_one_is_refused(alias):
    with pytest.raises(InputError, match="--alias"):
        aliases_of([alias], [named("a=1"), named("b=2")])


def test_two_models_of_one_name_are_refused():
    with pytest.raises(InputError, match="same name"):
        aliases_of([], [named("a=1"), named("a=2")])
