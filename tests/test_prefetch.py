"""The iterator that works ahead: same elements, same errors, and no thread left behind."""

import threading
import time

import pytest

from rerank.engine.prefetch import Prefetched
from rerank.errors import DataError, TrainingError


def threads():
    return [t for t in threading.enumerate() if t.name == "rerank prefetch"]


@pytest.mark.parametrize("ahead", [1, 3])
@pytest.mark.parametrize("n", [0, 1, 7])
def test_the_elements_and_their_order_are_those_of_the_iterable(n, ahead):
    with Prefetched(iter(range(n)), ahead) as found:
        assert list(found) == list(range(n))
        assert list(found) == []
    assert threads() == []


def test_the_next_element_is_made_while_the_present_one_is_worked_on_and_no_further_one():
    made = []

    def items():
        for i in range(5):
            made.append((i, threading.current_thread().name))
            yield i

    with Prefetched(items(), ahead=1) as found:
        assert next(found) == 0
        found.settle()
        time.sleep(0.05)
        assert made == [(0, "rerank prefetch"), (1, "rerank prefetch")]


def test_an_error_arrives_where_its_element_is_asked_for_as_it_was_raised():
    def items():
        yield 1
        raise DataError.at("file.tsv", 7, "no text")

    with Prefetched(items(), ahead=3) as found:
        assert next(found) == 1
        with pytest.raises(DataError, match=r"^file\.tsv:7: no text$"):
            next(found)
        with pytest.raises(DataError):
            next(found)
    assert threads() == []


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, MemoryError])
def test_a_worker_that_dies_does_not_leave_the_run_waiting(kind):
    def items():
        raise kind
        yield

    with Prefetched(items()) as found, pytest.raises(kind):
        next(found)


def test_a_thread_that_is_gone_without_a_word_is_noticed(monkeypatch):
    monkeypatch.setattr("rerank.engine.prefetch.LOOK", 0.01)
    monkeypatch.setattr(Prefetched, "_work", lambda self, items: None)
    with Prefetched(iter([1])) as found, pytest.raises(TrainingError, match="has died"):
        next(found)


def test_leaving_early_ends_the_thread():
    def items():
        i = 0
        while True:
            yield (i := i + 1)

    with pytest.raises(ZeroDivisionError), Prefetched(items(), ahead=2) as found:
        assert next(found) == 1
        raise ZeroDivisionError
    assert threads() == []


def test_settling_waits_for_the_element_under_way_and_not_for_those_that_nobody_wants():
    begun, go = threading.Event(), threading.Event()

    def items():
        yield 0
        begun.set()
        go.wait(10)
        yield 1
        yield 2

    with Prefetched(items()) as found:
        assert next(found) == 0
        begun.wait(10)
        settled = threading.Thread(target=found.settle)
        settled.start()
        settled.join(0.05)
        assert settled.is_alive(), "the second element is still being made"
        go.set()
        settled.join(10)
        assert not settled.is_alive()
        assert next(found) == 1
