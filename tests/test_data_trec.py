import gzip
import logging
from pathlib import Path

import numpy as np
import pytest
import pytrec_eval
from hypothesis import given
from hypothesis import strategies as st

from rerank.data import read_qrels, read_run, write_qrels, write_run
from rerank.errors import DataError, InputError, NotFound
from rerank.types import Run

DATA = Path(__file__).parents[2] / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the real collections are not beside this checkout")


def file(tmp_path, text, name="file.txt"):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@needs_data
def test_the_published_figure_of_bm25_on_trec_dl_2020_comes_out_of_the_files():
    run = read_run(DATA / "trec-dl-19-20/runs/dl20.firststage.bm25.trec")
    qrels = read_qrels(DATA / "trec-dl-19-20/qrels_full/test.tsv")
    measured = pytrec_eval.RelevanceEvaluator(qrels, {"ndcg_cut_10"}).evaluate(run.scores)
    assert sum(m["ndcg_cut_10"] for m in measured.values()) / len(qrels) == pytest.approx(0.4796, abs=5e-5)


@needs_data
@pytest.mark.parametrize("folder", ["scifact", "vaswani", "birco-wtb"])
def test_a_real_run_is_the_same_after_writing_and_reading(folder, tmp_path):
    run = read_run(DATA / folder / "runs/bm25s.test.trec")
    write_run(run, tmp_path / "run.trec.gz")
    again = read_run(tmp_path / "run.trec.gz")
    assert [(q, run.doc_ids(q)) for q in run.rankings] == [(q, again.doc_ids(q)) for q in again.rankings]


@given(st.lists(st.floats(-1e30, 1e30, width=64), min_size=1, max_size=30))
def test_written_scores_fall_strictly_in_float32_and_keep_the_ranking(tmp_path_factory, scores):
    path = tmp_path_factory.mktemp("run") / "run.trec"
    run = Run.from_scores({"q": {f"d{i}": s for i, s in enumerate(scores)}})
    write_run(run, path)
    again = read_run(path)
    assert again.doc_ids("q") == run.doc_ids("q")
    assert (np.diff(np.float32([s for _, s in again.rankings["q"]])) < 0).all()


def test_a_score_that_already_falls_in_float32_is_written_unchanged_and_a_tie_is_counted(tmp_path, caplog):
    caplog.set_level(logging.INFO, "rerank")
    write_run(Run({"q": (("a", 0.1), ("b", 0.1 - 1e-12), ("c", -7.3))}), tmp_path / "r")
    scores = read_run(tmp_path / "r").scores["q"]
    assert scores["a"] == 0.1 and scores["c"] == -7.3
    assert scores["b"] == float(np.nextafter(np.float32(0.1), np.float32(-1)))
    assert "1 tied scores" in caplog.text


def test_ties_are_ordered_by_the_rank_column_then_by_doc_id_and_told(tmp_path, caplog):
    path = file(tmp_path, "q Q0 c 3 1.0 t\nq Q0 b 3 1.0 t\nq Q0 z 1 1.0 t\nq Q0 top 9 2 t\n", "x.trec")
    with caplog.at_level(logging.WARNING):
        run = read_run(path)
    assert run.doc_ids("q") == ("top", "z", "b", "c") and run.name == "x"
    assert f"{100 * 2 / 3:.2f} %" in caplog.text


def test_ms_marco_columns_take_their_score_from_the_rank(tmp_path):
    run = read_run(file(tmp_path, "q\tb\t2\nq\ta\t1\n"), name="dev")
    assert run.rankings == {"q": (("a", -1.0), ("b", -2.0))} and run.name == "dev"


def test_bom_crlf_comments_blank_lines_tabs_and_joined_gzip_members_all_read_alike(tmp_path):
    plain = read_run(file(tmp_path, "q Q0 a 1 2 t\nq Q0 b 2 1 t\n")).rankings
    odd = b"\xef\xbb\xbf# by hand\r\nq\tQ0\ta\t1\t2\tt\r\n\r\nq  Q0 b 2 1 t"
    assert read_run(file(tmp_path, odd)).rankings == plain
    members = gzip.compress(b"q Q0 a 1 2 t\n", mtime=0) + gzip.compress(b"q Q0 b 2 1 t\n")
    assert read_run(file(tmp_path, members, "no-such-ending")).rankings == plain


@pytest.mark.parametrize(
    ("text", "where", "field"),
    [
        ("q Q0 a 1 nan t\n", ":1:", "score"),
        ("q Q0 a 1 2 t\nq Q0 b 2 -inf t\n", ":2:", "score"),
        ("q Q0 a 1 1_0 t\n", ":1:", "score"),
        ("q Q0 a 1 2 t\nq Q0 a 2 1 t\n", ":2:", "docid"),
        ("q Q0 a x 2 t\n", ":1:", "rank"),
        ("q Q0 a 1 2 t\nq Q0 b 2 1", ":2:", "columns"),
        ("q Q0 a 1 2 t\nq\tb\t2\n", ":2:", "columns"),
        ("q 0 a 1\n", ":1:", "columns"),
        ("", ": ", "no ranked document"),
        ("# only a comment\n", ": ", "no ranked document"),
        (b"q Q0 a 1 2 t\nq Q0 \xff 2 1 t\n", ":2:", "UTF-8"),
        (gzip.compress(b"q Q0 a 1 2 t\n" * 9, mtime=0)[:-12], ":", "gzip"),
    ],
)
def test_a_faulty_run_is_refused_with_its_line_and_field(tmp_path, text, where, field):
    path = file(tmp_path, text)
    with pytest.raises(DataError) as error:
        read_run(path)
    assert str(error.value).startswith(f"{path}{where}") and field in str(error.value)


def test_a_missing_file_and_a_folder_are_told_apart(tmp_path):
    with pytest.raises(NotFound):
        read_run(tmp_path / "none")
    with pytest.raises(InputError, match="folder"):
        read_run(tmp_path)


@pytest.mark.parametrize(
    "run",
    [
        Run({"q": (("a", float("nan")),)}),
        Run({"q": (("a", float("inf")),)}),
        Run({"q": (("a", 1e300),)}),
        Run({"q": (("two words", 1.0),)}),
        Run({"#q": (("a", 1.0),)}),
        Run({"q": (("a", 2.0), ("a", 1.0))}),
        Run({"q": ()}),
    ],
)
def test_a_run_that_no_tool_would_read_back_is_not_written_and_the_old_file_stays(tmp_path, run):
    path = file(tmp_path, "old")
    with pytest.raises(InputError):
        write_run(run, path)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


QRELS = {"q1": {"a": 1, "b": -2}, "q2": {"c": 0}}


@pytest.mark.parametrize(
    "text",
    [
        "q1 0 a 1\nq1 0 b -2\nq2 0 c 0\n",
        "q1\t0\ta\t1\nq1\t0\tb\t-2\nq2\t0\tc\t0\n",
        "query-id\tcorpus-id\tscore\nq1\ta\t1\nq1\tb\t-2\nq2\tc\t0\n",
        "q1\ta\t1\nq1\tb\t-2\nq2\tc\t0\n",
        "q1 a 1\r\nq1 b -2\r\nq2 c 0",
    ],
)
def test_all_layouts_of_judgements_read_alike_and_no_first_row_is_lost(tmp_path, text):
    assert read_qrels(file(tmp_path, text)) == QRELS


@pytest.mark.parametrize("name", ["qrels.txt", "test.tsv", "test.tsv.gz"])
def test_judgements_are_the_same_after_writing_and_reading(tmp_path, name):
    write_qrels(QRELS, tmp_path / "new" / name)
    assert read_qrels(tmp_path / "new" / name) == QRELS


def test_ids_with_spaces_are_read_under_a_header_and_refused_where_they_are_ambiguous(tmp_path):
    header = "query-id\tcorpus-id\tscore\n"
    assert read_qrels(file(tmp_path, header + "q 1\td1\t1\n")) == {"q 1": {"d1": 1}}
    with pytest.raises(DataError, match="separator"):
        read_qrels(file(tmp_path, "q 1\td1\t1\n"))


def test_equal_repeats_of_a_judgement_are_counted(tmp_path, caplog):
    assert read_qrels(file(tmp_path, "q 0 a 1\nq 0 a 1\nq 0 a 1\n")) == {"q": {"a": 1}}
    assert "2 judgements" in caplog.text


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("q 0 a 1.5\n", ":1:"),
        ("q 0 a 1\nq 0 b \u0661\n", ":2:"),
        ("q 0 a 1\nq 0 a 0\n", ":2:"),
        ("query-id\tcorpus-id\tscore\nq\ta\tscore\n", ":2:"),
        ("q 0 a 1\nq 0 b", ":2:"),
        ("query-id\tcorpus-id\tscore\n", ": "),
        ("query-id\tcorpus-id\tscore\n\ta\t1\n", ":2:"),
    ],
)
def test_faulty_judgements_are_refused_with_their_line(tmp_path, text, where):
    path = file(tmp_path, text)
    with pytest.raises(DataError) as error:
        read_qrels(path)
    assert str(error.value).startswith(f"{path}{where}")


@pytest.mark.parametrize("grade", [str(2**31), str(-(2**31) - 1), "9" * 5000])
def test_a_grade_or_rank_beyond_32_bits_is_refused_with_its_line_and_the_allowed_range(tmp_path, grade):
    allowed = r"allowed is -2147483648 to 2147483647"
    with pytest.raises(DataError, match=rf"file\.txt:2: field 'relevance' is .*; {allowed}"):
        read_qrels(file(tmp_path, f"q 0 a {2**31 - 1}\nq 0 d {grade}\n"))
    with pytest.raises(DataError, match=rf"file\.txt:2: field 'rank' is .*; {allowed}"):
        read_run(file(tmp_path, f"q a 1\nq d {grade}\n"))
