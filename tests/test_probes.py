"""Perturbation probes: what they change and leave alone, and the drop they cause."""

import logging
import math
import random
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rerank.errors import InputError, Mismatch
from rerank.evaluation.measures import evaluate
from rerank.evaluation.probes import PROBES, drop_of, perturbed
from rerank.evaluation.significance import bootstrap_interval, paired_t
from rerank.evaluation.typos import mistyped
from rerank.types import CandidateList, Run

DATA = Path(__file__).parents[2] / "shared" / "data"


def list_of(query_id, doc_ids, labels=None, query="which wing carries the load", pool=None, **features):
    return CandidateList(
        query_id=query_id,
        query=query,
        doc_ids=tuple(doc_ids),
        texts=tuple(f"text of {d}" for d in doc_ids),
        features=features or {"bm25": tuple(float(len(doc_ids) - i) for i in range(len(doc_ids)))},
        labels=None if labels is None else tuple(labels),
        pool=tuple(labels or ()) if pool is None else tuple(pool),
    )


@pytest.fixture
def lists():
    """Forty lists of twelve documents of their own, the first and the sixth relevant."""
    grades = [2, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0]
    return [list_of(f"q{i}", [f"d{i}-{j}" for j in range(12)], grades) for i in range(40)]


def qrels_of(lists):
    return {c.query_id: dict(zip(c.doc_ids, c.labels, strict=True)) for c in lists}


def ranked(lists, score):
    """The run of a model that gives each document of each list `score(query, doc id, place in the list)`."""
    scores = {c.query_id: {d: score(c.query, d, i) for i, d in enumerate(c.doc_ids)} for c in lists}
    return Run.from_scores(scores, "model")


def by_id(query, doc_id, place):
    """A pointwise model: what it thinks of a document hangs on the document alone."""
    return random.Random(doc_id).random()


def by_place(query, doc_id, place):
    """A model that repeats the order it is shown."""
    return -place


# shuffle


def test_shuffle_moves_every_list_and_keeps_each_document_with_what_belongs_to_it(lists):
    for before, after in zip(lists, perturbed("shuffle", lists), strict=True):
        assert after.doc_ids != before.doc_ids and sorted(after.doc_ids) == sorted(before.doc_ids)
        for values in ("texts", "labels"):
            assert dict(zip(after.doc_ids, getattr(after, values), strict=True)) == dict(
                zip(before.doc_ids, getattr(before, values), strict=True)
            )
        assert dict(zip(after.doc_ids, after.features["bm25"], strict=True)) == dict(
            zip(before.doc_ids, before.features["bm25"], strict=True)
        )
        assert (after.query, after.pool) == (before.query, before.pool)


def test_shuffle_moves_lists_of_two_and_leaves_out_those_of_one(caplog):
    pairs = [list_of(f"q{i}", ["a", "b"]) for i in range(20)]
    with caplog.at_level(logging.WARNING, "rerank.evaluation"):
        moved = perturbed("shuffle", [*pairs, list_of("alone", ["a"])])
    assert [c.doc_ids for c in moved] == [("b", "a")] * 20
    assert "probe shuffle: 1 of 21 queries cannot be changed" in caplog.text


def test_every_order_comes_about_as_often():
    seen = [perturbed("shuffle", [list_of(f"q{i}", "abc")])[0].doc_ids for i in range(1200)]
    counts = {order: seen.count(order) for order in set(seen)}
    # Five of the six orders; the identity turns into one of them, which is drawn twice as often.
    assert len(counts) == 5 and sorted(counts.values())[-1] == pytest.approx(400, abs=60)
    assert all(count == pytest.approx(200, abs=50) for count in sorted(counts.values())[:-1])


def test_a_model_that_ignores_order_loses_nothing_under_shuffle(lists):
    qrels = qrels_of(lists)
    drop = drop_of("shuffle", ranked(lists, by_id), ranked(perturbed("shuffle", lists), by_id), qrels, "ndcg@10")
    assert (drop.drop, drop.low, drop.high, drop.p, drop.moved) == (0, 0, 0, 1, 0)
    assert (drop.probe, drop.measure, drop.queries, drop.left_out) == ("shuffle", "nDCG@10", 40, 0)


def test_a_model_that_repeats_the_order_shown_loses_measurably_under_shuffle(lists):
    plain, after = ranked(lists, by_place), ranked(perturbed("shuffle", lists), by_place)
    drop = drop_of("shuffle", plain, after, qrels_of(lists), "nDCG@10")
    a = np.array([*evaluate(plain, qrels_of(lists), ["nDCG@10"]).per_query["nDCG@10"].values()])
    b = np.array([*evaluate(after, qrels_of(lists), ["nDCG@10"]).per_query["nDCG@10"].values()])
    assert (drop.plain, drop.perturbed) == pytest.approx((a.mean(), b.mean()))
    assert drop.drop == pytest.approx(a.mean() - b.mean()) and drop.p == paired_t(a, b)
    assert (drop.low, drop.high) == bootstrap_interval(a - b)
    assert drop.low > 0 and drop.p < 0.001 and drop.moved == 1


# distract


def test_distract_adds_documents_of_other_lists_at_the_end_and_keeps_the_labels(lists):
    for before, after in zip(lists, perturbed("distract", lists, qrels=qrels_of(lists)), strict=True):
        n = len(before)
        assert after.subset(range(n)) == before
        added = after.doc_ids[n:]
        assert len(set(added)) == 20 and not any(d.startswith(f"d{before.query_id[1:]}-") for d in added)
        assert after.texts[n:] == tuple(f"text of {d}" for d in added)
        assert after.labels[n:] == (0,) * 20 and after.pool == before.pool
        assert all(math.isnan(v) for v in after.features["bm25"][n:])


def test_no_distractor_is_relevant_to_the_query_nor_a_candidates_text_under_another_id():
    asked = list_of("q", ["a", "b"], [1, 0])
    twin = replace(list_of("other", ["c", "twin", "found elsewhere", "judged"]))
    twin = replace(twin, texts=("text of c", "text of a", "relevant", "not relevant"))
    qrels = {"q": {"a": 1, "found elsewhere": 2, "judged": -1}}
    [first, _] = perturbed("distract", [asked, twin], qrels=qrels)
    assert sorted(first.doc_ids[2:]) == ["c", "judged"]
    assert dict(zip(first.doc_ids, first.labels, strict=True)) == {"a": 1, "b": 0, "c": 0, "judged": -1}


def test_distract_brings_back_no_document_that_is_barred():
    """A query of ArguAna is a document itself, and a candidate of other queries."""
    asked = list_of("q", ["a", "b"], [1, 0])
    other = list_of("other", ["c", "q", "excluded", "d"])
    barred = {"q": frozenset({"q", "excluded", "in no list"}), "other": {"a"}}
    qrels = {"q": {"a": 1, "excluded": -100}, "other": {}}
    [first, second] = perturbed("distract", [asked, other], qrels=qrels, barred=barred)
    assert sorted(first.doc_ids[2:]) == ["c", "d"] and second.doc_ids[4:] == ("b",)
    [first, _] = perturbed("distract", [asked, other], qrels=qrels)
    assert sorted(first.doc_ids[2:]) == ["c", "d", "excluded", "q"]


def test_distract_finds_all_that_fit_also_where_most_documents_do_not():
    """Equal texts make the first draw too short."""
    asked = list_of("q", ["a"], [1])
    others = [list_of(f"o{i}", [f"d{i}-{j}" for j in range(50)]) for i in range(4)]
    equal = [replace(c, texts=("text of a",) * 49 + (f"own {i}",)) for i, c in enumerate(others)]
    [first, *_] = perturbed("distract", [asked, *equal], distractors=4)
    assert sorted(first.doc_ids[1:]) == ["d0-49", "d1-49", "d2-49", "d3-49"]


def test_distract_says_what_it_cannot_do(caplog):
    known = list_of("q", ["a"], [1], pool=[1, 1])
    with caplog.at_level(logging.WARNING, "rerank.evaluation"):
        assert perturbed("distract", [known]) == []
        perturbed("distract", [known, list_of("r", ["b"])], qrels={"q": {"a": 1, "z": 1}})
    assert "without qrels a distractor may be relevant: 1 queries have relevant documents" in caplog.text
    assert "1 of 1 queries cannot be changed" in caplog.text
    assert "2 of 2 queries have fewer than 20 documents of others to add" in caplog.text
    assert caplog.text.count("without qrels") == 1


def test_a_list_without_judgements_has_none_after_distract():
    assert [c.labels for c in perturbed("distract", [list_of("q", ["a"]), list_of("r", ["b"])])] == [None, None]


# n-1


def test_n_minus_1_takes_out_what_the_model_ranked_first_of_the_relevant(lists):
    plain = ranked(lists, lambda query, doc_id, place: place)  # the sixth document before the first
    for before, after in zip(lists, perturbed("n-1", lists, plain), strict=True):
        assert after.doc_ids == before.doc_ids[:5] + before.doc_ids[6:]
        assert after.labels == (2,) + (0,) * 10
        assert sorted(after.pool) == [*sorted(before.labels)[:-2], 2]
        assert after.texts == before.texts[:5] + before.texts[6:]


def test_n_minus_1_leaves_out_queries_without_a_second_relevant_candidate(caplog):
    lists = [list_of("none", "ab", [0, 0]), list_of("one", "ab", [0, 1], pool=[1, 1]), list_of("unjudged", "ab")]
    lists += [list_of("two", "ab", [1, 1]), list_of("not ranked", "ab", [1, 1])]
    plain = ranked(lists[:-1], by_place)
    with caplog.at_level(logging.WARNING, "rerank.evaluation"):
        kept = perturbed("n-1", lists, plain)
    assert [c.query_id for c in kept] == ["two"] and "4 of 5 queries cannot be changed" in caplog.text
    drop = drop_of("n-1", plain, ranked(kept, by_place), {c.query_id: {"a": 1, "b": 1} for c in lists}, "nDCG@10")
    assert (drop.queries, drop.left_out) == (1, 3)


def test_n_minus_1_compares_with_the_plain_ranking_without_the_document_and_its_judgement(lists):
    plain = ranked(lists, by_id)
    rest = perturbed("n-1", lists, plain)
    drop = drop_of("n-1", plain, ranked(rest, by_id), qrels_of(lists), "nDCG@10")
    assert (drop.drop, drop.moved, drop.queries) == (0, 0, 40)
    expected = evaluate(ranked(rest, by_id), qrels_of(rest), ["nDCG@10"]).mean["nDCG@10"]
    assert drop.plain == drop.perturbed == pytest.approx(expected)
    assert drop.plain < evaluate(plain, qrels_of(lists), ["nDCG@10"]).mean["nDCG@10"]


def test_n_minus_1_sees_a_model_whose_rest_does_not_keep_its_order(lists):
    plain = ranked(lists, by_place)
    rest = perturbed("n-1", lists, plain)
    turned = ranked(rest, lambda query, doc_id, place: place)
    drop = drop_of("n-1", plain, turned, qrels_of(lists), "RR")
    # The second relevant document was the sixth of twelve: fifth of eleven in order, seventh from the end.
    assert (drop.plain, drop.perturbed, drop.moved) == (pytest.approx(1 / 5), pytest.approx(1 / 7), 1)


def test_n_minus_1_needs_the_plain_run_and_whole_rankings(lists):
    with pytest.raises(InputError, match="give the plain run of the model"):
        perturbed("n-1", lists)
    plain = ranked(lists, by_id)
    with pytest.raises(Mismatch, match=r"query 'q0'.* rank both lists to their full length"):
        drop_of("n-1", plain, plain, qrels_of(lists), "nDCG@10")
    with pytest.raises(Mismatch, match="query 'q0': the perturbed ranking of 5 documents lacks 7 of the plain"):
        drop_of("n-1", plain, plain.top(5), qrels_of(lists), "nDCG@10")


# first-stage


def test_first_stage_takes_the_lists_of_the_other_where_they_differ(lists):
    other = [c.subset(range(11, 2, -1)) for c in lists[:30]] + lists[30:35] + [list_of("new", "ab")]
    swapped = perturbed("first-stage", lists, other=other)
    assert swapped == other[:30]
    drop = drop_of("first-stage", ranked(lists, by_id), ranked(swapped, by_id), qrels_of(lists), "nDCG@10")
    assert (drop.queries, drop.left_out, drop.moved) == (30, 10, 0)
    with pytest.raises(InputError, match="needs `other`"):
        perturbed("first-stage", lists)


def test_queries_that_only_the_other_first_stage_answers_are_left_out_aloud(lists, caplog):
    plain, other = ranked(lists[:10], by_id), ranked(lists[5:15], by_place)
    with caplog.at_level(logging.WARNING, "rerank.evaluation"):
        drop = drop_of("first-stage", plain, other, qrels_of(lists), "nDCG@10")
    assert (drop.queries, drop.left_out) == (5, 5)
    assert "the first stage has nothing for 5 queries of the other" in caplog.text
    with pytest.raises(Mismatch, match="the plain run 'model' lacks query 'q10'"):
        drop_of("shuffle", plain, other, qrels_of(lists), "nDCG@10")


# typos


@pytest.mark.parametrize(
    "query",
    [
        "B-17 GPT4 x86_64 3.14 2024",  # digits and names
        "os.path.join foo/bar user@host",  # dots, slashes
        "getUserName NATO iPhone",  # capitals beyond the first letter
        "the cat sat",  # words of three
        "量子力学的历史 مرحبا بالعالم नमस्ते दुनिया שלום",  # scripts without capitals
        "",
    ],
)
def test_what_is_no_word_of_four_letters_is_left_alone(query):
    assert mistyped(query, random.Random(0)) is None


def test_typos_leave_out_what_they_cannot_change_and_say_how_much(caplog):
    lists = [list_of("a", "ab", query="量子力学"), list_of("b", "ab", query="quantum mechanics")]
    with caplog.at_level(logging.WARNING, "rerank.evaluation"):
        [changed] = perturbed("typos", lists)
    assert "probe typos: 1 of 2 queries cannot be changed" in caplog.text
    assert changed.query != "quantum mechanics" and replace(changed, query="quantum mechanics") == lists[1]


def test_words_beside_names_are_changed_and_names_are_not():
    for i in range(200):
        changed = mistyped("does COVID-19 affect (Straße) in os.path, Übung 42?", random.Random(i))
        fixed = re.fullmatch(r"(\S+) COVID-19 (\S+) \((\S+)\) in os\.path, (\S+) 42\?", changed)
        assert fixed, changed
        words = ("does", "affect", "Straße", "Übung")
        assert sum(a != b for a, b in zip(words, fixed.groups(), strict=True)) == 2


def test_a_query_all_in_capitals_is_mistyped_in_capitals():
    assert {mistyped("WING FLUTTER", random.Random(i)).isupper() for i in range(50)} == {True}


def test_both_slips_of_a_single_word_stay_inside_it():
    for i in range(300):
        assert re.fullmatch(r"is\[\w{3,7}\]it", mistyped("is[flaps]it", random.Random(i)))
        assert re.fullmatch(r"the \w{3,7} 42", mistyped("the flaps 42", random.Random(i)))


def distance(a, b):
    """Edits from a to b, a swap of neighbours counting as one (Damerau 1964, restricted)."""
    rows = [list(range(len(b) + 1))]
    for i, x in enumerate(a, 1):
        row = [i]
        for j, y in enumerate(b, 1):
            best = min(rows[-1][j] + 1, row[-1] + 1, rows[-1][j - 1] + (x != y))
            if i > 1 and j > 1 and x == b[j - 2] and a[i - 2] == y:
                best = min(best, rows[-2][j - 2] + 1)
            row.append(best)
        rows.append(row)
    return rows[-1][-1]


@settings(max_examples=300, deadline=None)
@given(st.text(st.sampled_from("abcdefg ÄöжЩωß42._-'(é\u0301名"), max_size=40), st.integers(0, 9))
def test_a_mistyped_query_is_one_or_two_slips_away_and_keeps_its_blanks(query, key):
    changed = mistyped(query, random.Random(key))
    if changed is None:
        return
    assert 1 <= distance(query, changed) <= 4  # two swaps in one word may overlap
    assert [len(t) > 0 for t in changed.split(" ")] == [len(t) > 0 for t in query.split(" ")]
    for before, after in zip(query.split(), changed.split(), strict=True):
        assert before == after or not re.search(r"[\d_\u0301]", before)


def test_a_single_word_takes_both_slips():
    distances = [distance("flutter", mistyped("flutter", random.Random(i))) for i in range(200)]
    assert distances.count(2) > 150 and min(distances) >= 1


def test_two_slips_are_made_in_two_words_where_there_are_two():
    seen = [mistyped("aeroelastic flutter", random.Random(i)).split() for i in range(300)]
    for first, second in seen:
        assert distance("aeroelastic", first) == 1 and distance("flutter", second) == 1
    lengths = {len(first) - len("aeroelastic") for first, _ in seen}
    assert lengths == {-1, 0, 1}, "letters are left out, swapped or replaced, and doubled"
    assert len({first for first, _ in seen}) > 25


# All of them.


@pytest.mark.parametrize("probe", PROBES)
def test_a_probe_is_a_function_of_its_inputs_and_leaves_them_as_they_are(probe, lists):
    before = [replace(c) for c in lists]
    plain, other = ranked(lists, by_id), [c.subset(range(11, -1, -1)) for c in lists]
    first = perturbed(probe, lists, plain, 3, other=other)
    turned = perturbed(probe, lists[::-1], plain, 3, other=other)
    assert lists == before
    # Features of added documents are NaN, so what is written is compared.
    assert sorted(map(repr, first)) == sorted(map(repr, turned))
    if probe not in ("n-1", "first-stage"):
        assert list(map(repr, perturbed(probe, lists, plain, 4))) != list(map(repr, first))


@pytest.mark.parametrize("probe", ["shuffle", "n-1", "typos"])
def test_a_part_of_the_lists_is_perturbed_as_in_the_whole(probe, lists):
    plain = ranked(lists, by_id)
    assert perturbed(probe, lists[7:9], plain) == perturbed(probe, lists, plain)[7:9]


def test_an_unknown_probe_is_an_error_that_names_the_known(lists):
    with pytest.raises(InputError, match="unknown probe 'shufle'; did you mean 'shuffle'"):
        perturbed("shufle", lists)
    with pytest.raises(InputError, match="unknown probe 'n1'; did you mean 'n-1'"):
        drop_of("n1", Run({}), Run({}), {}, "nDCG@10")
    with pytest.raises(InputError, match="0 distractors were asked for"):
        perturbed("distract", lists, distractors=0)


def test_a_probe_that_could_change_nothing_has_no_drop(lists):
    drop = drop_of("typos", ranked(lists, by_id), Run({}), qrels_of(lists), "nDCG@10")
    assert drop.queries == 0 and drop.left_out == 40 and all(map(math.isnan, drop[2:8])) and math.isnan(drop.moved)


def test_queries_without_judgements_do_not_count(lists):
    plain, after = ranked(lists, by_id), ranked(perturbed("shuffle", lists[:20]), by_id)
    judged = qrels_of(lists[10:30])
    drop = drop_of("shuffle", plain, after, judged, "nDCG@10")
    assert (drop.queries, drop.left_out) == (10, 10)


def test_real_queries_are_mistyped_by_hand_sized_slips():
    """The queries of SciFact: nearly all can be mistyped, each by two slips, and no number or name changes."""
    folder = DATA / "scifact"
    if not folder.is_dir():
        pytest.skip("no data set scifact beside the checkout (shared/data/scifact)")
    from rerank.data import load_collection

    queries = load_collection(f"{folder}#test").queries
    changed = {q: mistyped(text, random.Random(q)) for q, text in queries.items()}
    assert sum(text is None for text in changed.values()) <= len(queries) * 0.01
    for q, text in changed.items():
        if text is None:
            continue
        assert 1 <= distance(queries[q], text) <= 2
        named = [t for t in queries[q].split() if re.search(r"\d", t)]
        assert [t for t in text.split() if re.search(r"\d", t)] == named
