"""Corrupted lessons: what each keeps, what it breaks, and that it is a function of the seed and of nothing else."""

from collections import Counter
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rerank.lists import batch_of
from rerank.rewards import ndcg
from rerank.training.controls import inverted_labels, random_labels, shuffled_labels, shuffled_orderings
from rerank.types import CandidateList, Ordering

SHUFFLES = {"random": random_labels, "shuffled": shuffled_labels}
EVERY = {**SHUFFLES, "inverted": lambda lists, seed: inverted_labels(lists)}
grades = st.integers(-2, 4)
seeds = st.integers(0, 2**31)


def made_list(number, labels, size=None):
    size = len(labels) if labels is not None else size
    return CandidateList(
        query_id=f"q{number}",
        query=f"query {number}",
        doc_ids=tuple(f"q{number}-d{i}" for i in range(size)),
        texts=tuple(f"text {number} {i}" for i in range(size)),
        features={"bm25": tuple(float(size - i) for i in range(size))},
        labels=labels,
        pool=() if labels is None else (*labels, 3, 1),
    )


@st.composite
def some_lists(draw):
    rows = draw(st.lists(st.one_of(st.none(), st.lists(grades, max_size=6).map(tuple)), max_size=8))
    return [made_list(i, labels, 3) for i, labels in enumerate(rows)]


@st.composite
def some_orderings(draw):
    sizes = draw(st.lists(st.integers(0, 6), max_size=6))
    scored = draw(st.booleans())
    return [
        Ordering(
            f"q{i}",
            tuple(f"q{i}-d{j}" for j in range(size)),
            "teacher",
            tuple(float(size - j) for j in range(size)) if scored else None,
        )
        for i, size in enumerate(sizes)
    ]


def judged_of(lists):
    return [c for c in lists if c.labels is not None]


# What every lesson keeps


@pytest.mark.parametrize("name", list(EVERY))
@given(lists=some_lists(), seed=seeds)
def test_judged_lists_keep_everything_but_their_grades(name, lists, seed):
    before = list(lists)
    found = EVERY[name](lists, seed)
    assert lists == before
    assert [replace(c, labels=None, pool=()) for c in found] == [
        replace(c, labels=None, pool=()) for c in judged_of(lists)
    ]
    for one in found:
        assert len(one.labels) == len(one)
        assert one.pool == one.labels, "grades of other documents are no part of the lesson"


@pytest.mark.parametrize("name", list(EVERY))
@given(lists=some_lists(), seed=seeds)
def test_a_lesson_is_a_function_of_lists_and_seed_alone(name, lists, seed):
    assert EVERY[name](lists, seed) == EVERY[name](list(lists), seed)


@given(lists=some_lists(), seed=seeds)
def test_random_labels_are_as_many_of_each_grade_as_there_were(lists, seed):
    found = random_labels(lists, seed)
    assert Counter(g for c in found for g in c.labels) == Counter(g for c in judged_of(lists) for g in c.labels)


@given(lists=some_lists(), seed=seeds)
def test_shuffled_labels_are_each_lists_own(lists, seed):
    for before, after in zip(judged_of(lists), shuffled_labels(lists, seed), strict=True):
        assert Counter(after.labels) == Counter(before.labels)


@given(lists=some_lists(), seed=seeds)
def test_the_shuffle_of_a_list_does_not_depend_on_its_company(lists, seed):
    alone = [one for c in lists for one in shuffled_labels([c], seed)]
    assert alone == shuffled_labels(lists, seed)


@given(lists=some_lists())
def test_inverted_labels_are_the_grades_upside_down(lists):
    for before, after in zip(judged_of(lists), inverted_labels(lists), strict=True):
        assert len({b + a for b, a in zip(before.labels, after.labels, strict=True)}) <= 1
        if before.labels:
            assert after.labels[before.labels.index(max(before.labels))] == min(0, *before.labels)
            assert max(after.labels) == max(before.labels) + min(0, *before.labels) - min(before.labels)


def test_the_ranking_by_grade_is_the_worst_one_for_inverted_labels():
    (one,) = inverted_labels([made_list(0, (2, 1, 0, 0))])
    assert one.labels == (0, 1, 2, 2)
    rankings = torch.tensor([[[0, 1, 2, 3], [2, 3, 1, 0]]])
    best_before, best_now = ndcg(4)(rankings, batch_of([one]))[0].tolist()
    assert best_now == pytest.approx(1.0) and best_before < 0.75


# What the shuffles break


@pytest.mark.parametrize("name", list(SHUFFLES))
def test_another_seed_gives_another_lesson(name):
    lists = [made_list(i, (0, 0, 1, 2, 0, 0)) for i in range(20)]
    labels = {tuple(c.labels for c in SHUFFLES[name](lists, seed)) for seed in range(5)}
    assert len(labels) == 5
    assert tuple(c.labels for c in lists) not in labels


@pytest.mark.parametrize("name", list(SHUFFLES))
def test_every_candidate_is_as_likely_to_be_the_relevant_one(name):
    seen = [0] * 5
    for seed in range(1000):
        (one,) = SHUFFLES[name]([made_list(0, (1, 0, 0, 0, 0))], seed)
        seen[one.labels.index(1)] += 1
    # 1000 draws of chance 1/5: 200 expected, deviation 12.6.
    assert all(abs(count - 200) < 5 * 12.6 for count in seen)


def test_lists_of_equal_grades_are_not_all_shuffled_alike():
    lists = [made_list(i, (1, 0, 0, 0, 0, 0)) for i in range(30)]
    assert len({c.labels.index(1) for c in shuffled_labels(lists, 0)}) > 3


def test_random_labels_leave_some_lists_empty_and_give_others_several():
    lists = [made_list(i, (1, 0, 0, 0)) for i in range(100)]
    found = Counter(sum(c.labels) for c in random_labels(lists, 0))
    # Of 100 lists about 32 get none, 42 one, 26 more.
    assert 15 < found[0] < 50 and 10 < 100 - found[0] - found[1] < 45


# Orderings


@given(orderings=some_orderings(), seed=seeds)
def test_shuffled_orderings_keep_their_documents_query_teacher_and_the_scores_at_their_places(orderings, seed):
    found = shuffled_orderings(iter(orderings), seed)
    assert len(found) == len(orderings)
    for before, after in zip(orderings, found, strict=True):
        assert sorted(after.doc_ids) == sorted(before.doc_ids)
        assert replace(after, doc_ids=before.doc_ids) == before


@given(orderings=some_orderings(), seed=seeds)
def test_the_shuffle_of_an_ordering_is_a_function_of_its_query_and_the_seed(orderings, seed):
    together = shuffled_orderings(orderings, seed)
    assert together == [one for o in orderings for one in shuffled_orderings([o], seed)]


def test_another_seed_shuffles_orderings_otherwise_and_no_place_is_preferred():
    ordering = Ordering("q", tuple("abcde"), "teacher")
    first = Counter(shuffled_orderings([ordering], seed)[0].doc_ids[0] for seed in range(1000))
    assert set(first) == set("abcde")
    assert all(abs(count - 200) < 5 * 12.6 for count in first.values())


def test_no_lists_and_no_orderings_give_none():
    for lesson in EVERY.values():
        assert lesson([], 0) == []
    assert shuffled_orderings([], 0) == []
