"""Lists as padded tensors: values, padding, and what is refused."""

import math

import pytest
import torch

from rerank.errors import InputError
from rerank.lists import batch_of, check_scores, features_of, mask_of, pad, ranks_of
from rerank.types import CandidateList, Ordering, Run


def candidates(n, **fields):
    ids = tuple(f"d{i}" for i in range(n))
    return CandidateList(fields.pop("query_id", "q"), "text", ids, ids, **fields)


def test_rows_are_filled_up_with_the_value():
    assert pad([[1, 2], [], [3]], -1.0).tolist() == [[1, 2], [-1, -1], [3, -1]]
    assert pad([[1]], 0.0, width=3).tolist() == [[1, 0, 0]]
    assert pad([], 0.0).shape == (0, 0)


def test_the_mask_is_true_for_candidates_only():
    assert mask_of([candidates(2), candidates(0), candidates(3)]).tolist() == [
        [True, True, False],
        [False, False, False],
        [True, True, True],
    ]
    assert mask_of([]).shape == (0, 0) and mask_of([candidates(0)]).shape == (1, 0)


def test_a_batch_holds_grades_masks_and_pools_and_the_lists_themselves():
    lists = [candidates(2, labels=(0, 3), pool=(3, 1, 0)), candidates(1), candidates(3, labels=(1, 0, -1), pool=(1,))]
    batch = batch_of(lists)
    assert batch.labels.tolist() == [[0, 3, 0], [0, 0, 0], [1, 0, -1]]
    assert batch.pool.tolist() == [[3, 1, 0], [0, 0, 0], [1, 0, 0]]
    assert torch.equal(batch.mask, mask_of(lists))
    assert batch.lists == tuple(lists)


def test_the_labels_are_the_pool_of_a_list_that_tells_none():
    batch = batch_of([candidates(2, labels=(0, 3), pool=()), candidates(2, pool=())])
    assert batch.pool.tolist() == [[0, 3], [0, 0]]


def test_a_batch_of_nothing_is_empty():
    batch = batch_of([])
    assert batch.labels.shape == batch.mask.shape == batch.pool.shape == (0, 0)


def test_features_have_mean_zero_and_deviation_one_within_each_list():
    lists = [candidates(4, features={"bm25": (1.0, 5.0, 2.0, 8.0)}), candidates(2, features={"bm25": (30.0, 10.0)})]
    found = features_of(lists, ["bm25"])[..., 0]
    deviation = math.sqrt(7.5)  # of 1, 5, 2, 8 around 4
    assert found[0].tolist() == pytest.approx([(x - 4) / deviation for x in (1, 5, 2, 8)])
    assert found[1].tolist() == pytest.approx([1, -1, 0, 0])


def test_features_do_not_depend_on_the_unit_or_the_company_of_a_list():
    one = candidates(3, features={"f": (0.1, 0.7, 0.2)})
    scaled = candidates(3, features={"f": (10.0, 70.0, 20.0)})
    alone = features_of([one], ["f"])
    assert torch.allclose(features_of([scaled], ["f"]), alone, atol=1e-6)
    wide = features_of([one, candidates(5, features={"f": (1.0, 2.0, 3.0, 4.0, 5.0)})], ["f"])
    assert torch.allclose(wide[0, :3], alone[0], atol=1e-6) and (wide[0, 3:] == 0).all()


def test_a_candidate_that_was_not_found_stands_half_a_deviation_below_the_worst():
    found = features_of([candidates(3, features={"f": (1.0, math.nan, 3.0)})], ["f"])
    assert found[0, :, 0].tolist() == pytest.approx([-1.0, -1.5, 1.0])


@pytest.mark.parametrize("values", [(2.0, 2.0, 2.0), (math.nan, math.nan, math.nan)])
def test_a_feature_that_tells_nothing_is_zero(values):
    assert features_of([candidates(3, features={"f": values})], ["f"]).abs().max() == 0


def test_several_features_stand_side_by_side_in_the_order_asked():
    both = candidates(2, features={"a": (1.0, 0.0), "b": (0.0, 1.0)})
    assert features_of([both], ["b", "a"]).tolist() == [[[-1.0, 1.0], [1.0, -1.0]]]
    assert features_of([both], []).shape == (1, 2, 0)


def test_a_missing_feature_is_named_with_those_that_are_there():
    with pytest.raises(InputError, match=r"query 'q7' has no first-stage score 'dense'; its lists have \['bm25'\]"):
        features_of([candidates(1, query_id="q7", features={"bm25": (1.0,)})], ["dense"])


def test_ranks_count_from_one_and_the_unordered_are_infinite():
    ordering = Ordering("q", ("d2", "elsewhere", "d0"), "teacher")
    assert ranks_of(ordering, candidates(3)) == [3.0, math.inf, 1.0]


def test_scores_must_fit_their_mask_and_be_finite_where_it_is_true():
    mask = torch.tensor([[True, False]])
    check_scores(torch.tensor([[1.0, -math.inf]]), mask)
    with pytest.raises(InputError, match=r"scores \[1, 3\] and mask \[1, 2\]"):
        check_scores(torch.zeros(1, 3), mask)
    with pytest.raises(InputError, match=r"scores \[2\] and mask \[2\] must both be"):
        check_scores(torch.zeros(2), torch.ones(2, dtype=torch.bool))
    with pytest.raises(InputError, match="the score of list 0, candidate 0 is inf"):
        check_scores(torch.tensor([[math.inf, 0.0]]), mask)


def test_a_subset_keeps_all_that_belongs_to_its_candidates():
    whole = candidates(3, features={"f": (1.0, 2.0, 3.0)}, labels=(0, 1, 2), pool=(0, 1, 2, 3))
    part = whole.subset([2, 0])
    assert part.doc_ids == part.texts == ("d2", "d0")
    assert (part.features, part.labels, part.pool) == ({"f": (3.0, 1.0)}, (2, 0), (0, 1, 2, 3))
    assert candidates(2).subset([1]).labels is None


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"texts": ("one",)}, "1 texts for 2 doc_ids"),
        ({"labels": (1, 0, 2)}, "3 labels for 2 doc_ids"),
        ({"doc_ids": ("a", "a")}, "document 'a' is there twice"),
    ],
)
def test_a_list_whose_parts_do_not_fit_names_its_query(wrong, told):
    fields = {"doc_ids": ("a", "b"), "texts": ("one", "two"), "labels": (1, 0), **wrong}
    with pytest.raises(ValueError, match=f"list of query 'q': {told}"):
        CandidateList("q", "a question", **fields)


def test_a_subset_that_repeats_a_candidate_is_refused():
    with pytest.raises(ValueError, match="query 'q': document 'b' is there twice"):
        CandidateList("q", "a question", ("a", "b"), ("one", "two")).subset([1, 1])


def test_an_ordering_that_repeats_a_document_names_its_query():
    with pytest.raises(ValueError, match="ordering of query 'q' by 'teacher': document 'a' is there twice"):
        Ordering("q", ("a", "b", "a"), "teacher")


def test_a_run_is_not_sorted_by_nan():
    with pytest.raises(ValueError, match="run 'mine', query 'q': the score of document 'b' is NaN"):
        Run.from_scores({"p": {"a": 1.0}, "q": {"a": 1.0, "b": float("nan")}}, "mine")
