import json

import pytest

from rerank.data import read_rankllm, read_texts, write_rankllm
from rerank.data.rankllm import Requests
from rerank.errors import DataError, InputError, Mismatch, NotFound
from rerank.types import Collection, Run

REQUESTS = [
    {
        "query": {"text": "what is it", "qid": 264014},
        "candidates": [
            {"docid": "b", "score": 2.5, "doc": {"contents": "bee"}},
            {"docid": 7, "score": 2.5, "doc": {"title": "Seven", "text": "7"}},
            {"docid": "c", "score": 9, "doc": {"title": None, "body": "sea"}},
        ],
    },
    {
        "query": {"text": "again", "qid": "x"},
        "candidates": [{"docid": "b", "doc": "bee"}, {"docid": "z", "doc": "zed"}],
    },
]


def layouts(tmp_path):
    for name, text in {
        "array.json": json.dumps(REQUESTS),
        "pretty.json": json.dumps(REQUESTS, indent=2),
        "lines.jsonl": "\n".join(map(json.dumps, REQUESTS)),
    }.items():
        (tmp_path / name).write_text(text)
        yield tmp_path / name


def test_every_layout_of_requests_gives_the_same_texts_and_canonical_ranking(tmp_path):
    for path in layouts(tmp_path):
        collection, run = read_rankllm(path)
        assert collection.documents == {"b": "bee", "7": "Seven 7", "c": "sea", "z": "zed"}
        assert collection.queries == {"264014": "what is it", "x": "again"}
        assert run.rankings == {"264014": (("c", 9.0), ("b", 2.5), ("7", 2.5)), "x": (("b", 0.0), ("z", -1.0))}


def test_a_single_pretty_request_is_read(tmp_path):
    (tmp_path / "one.json").write_text(json.dumps(REQUESTS[1], indent=1))
    assert read_rankllm(tmp_path / "one.json")[1].doc_ids("x") == ("b", "z")


@pytest.mark.parametrize("name", ["r.jsonl", "r.json", "r.jsonl.gz", "r.json.gz"])
def test_requests_are_the_same_after_writing_and_reading(tmp_path, name):
    collection, run = read_rankllm(next(layouts(tmp_path)))
    write_rankllm(run, collection, tmp_path / name)
    again, run_again = read_rankllm(tmp_path / name)
    assert (again.documents, again.queries) == (collection.documents, collection.queries)
    assert run_again.rankings == run.rankings


def test_a_run_is_not_written_with_the_wrong_collection(tmp_path):
    with pytest.raises(Mismatch, match=r"'q'.*'gone'.*1 in all"):
        write_rankllm(Run({"q": (("gone", 1.0),)}), Collection({}, {"q": "?"}), tmp_path / "r.jsonl")
    with pytest.raises(Mismatch, match="query"):
        write_rankllm(Run({"q": (("d", 1.0),)}), Collection({"d": ""}, {}), tmp_path / "r.jsonl")
    with pytest.raises(InputError, match="no queries"):
        write_rankllm(Run({}), Collection({}, {}), tmp_path / "r.jsonl")


def request(**candidate):
    return {"query": {"text": "t", "qid": "q"}, "candidates": [{"docid": "d", "score": 1, "doc": "x"} | candidate]}


@pytest.mark.parametrize(
    ("record", "field"),
    [
        (request(score="high"), "'score'"),
        (request(score=True), "'score'"),
        (request(docid=None), "docid"),
        (request(docid=" "), "docid"),
        (request(doc=3), "doc"),
        (request(doc={"url": "u"}), "contents"),
        ({"query": "t", "candidates": []}, "'query'"),
        ({"query": {"text": None, "qid": "q"}, "candidates": []}, "query.text"),
        ({"query": {"text": "t", "qid": "q"}}, "'candidates'"),
        ({"query": {"text": "t", "qid": "q"}, "candidates": [{"docid": "d", "doc": "x"}] * 2}, "twice"),
    ],
)
def test_a_faulty_request_is_refused_with_its_line_and_field(tmp_path, record, field):
    path = tmp_path / "r.jsonl"
    path.write_text(json.dumps({"query": {"text": "", "qid": "1"}, "candidates": []}) + "\n" + json.dumps(record))
    with pytest.raises(DataError) as error:
        read_rankllm(path)
    assert str(error.value).startswith(f"{path}:2:") and field in str(error.value)


def test_a_truncated_array_an_empty_file_and_a_repeated_query_are_refused(tmp_path):
    path = tmp_path / "r.json"
    for text, fault in [
        (json.dumps(REQUESTS, indent=2)[:-30], "cut short"),
        ("", "empty"),
        ("[]", "no request"),
        (json.dumps(REQUESTS[1:] * 2), "request 2: query 'x'"),
        ("[3]", "request 1"),
    ]:
        path.write_text(text)
        with pytest.raises(DataError, match=fault):
            read_rankllm(path)


@pytest.mark.parametrize(
    "text",
    [
        '{"_id": "a", "title": "T", "text": "x"}\n{"_id": "b", "text": "y"}\n',
        '{"id": "a", "title": "T", "contents": "x"}\n{"docid": "b", "title": null, "body": "y"}\n',
        "a\tT x\nb\ty\n",
        "id\ttext\na\tT x\r\nb\t y",
    ],
)
def test_texts_of_json_lines_and_of_two_columns_read_alike(tmp_path, text):
    (tmp_path / "t").write_text(text)
    assert read_texts(tmp_path / "t") == {"a": "T x", "b": "y"}


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "empty"),
        ("a\tx\nb\n", ":2: 1 columns"),
        ("a\tx\nb\ty\tz\n", ":2: 3 columns"),
        ("a\tx\n\ty\n", ":2: column 1"),
        ("a\tx\na\ty\n", ":2: id 'a'"),
        ("id\ttext\n", "no record"),
        ('{"id": 3, "text": "x"}', ':1: .*write "3"'),
    ],
)
def test_faulty_texts_are_refused_with_their_line(tmp_path, text, fault):
    (tmp_path / "t").write_text(text)
    with pytest.raises(DataError, match=fault):
        read_texts(tmp_path / "t")


def test_a_line_separator_inside_a_text_does_not_cut_it(tmp_path):
    (tmp_path / "t").write_text('{"id": "a", "text": "x\u2028y\x85z"}\n')
    assert read_texts(tmp_path / "t") == {"a": "x\u2028y\x85z"}


def test_a_missing_file_is_not_found(tmp_path):
    with pytest.raises(NotFound):
        read_texts(tmp_path / "none")


def test_a_score_that_no_float_holds_is_refused_with_its_line(tmp_path):
    request = {"query": {"text": "t", "qid": "q"}, "candidates": [{"docid": "d", "doc": "text", "score": 10**400}]}
    (tmp_path / "lines.jsonl").write_text(json.dumps(request) + "\n")
    with pytest.raises(DataError, match=r"lines\.jsonl:1: query 'q': field 'score' of 'd' is .* finite number"):
        read_rankllm(tmp_path / "lines.jsonl")


def test_a_place_that_cannot_be_written_is_named_and_no_draft_stays(tmp_path):
    collection, run = Collection({"d": "text"}, {"q": "t"}), Run({"q": (("d", 1.0),)})
    (tmp_path / "folder").mkdir()
    (tmp_path / "plain").write_text("a file")
    for path, problem in ((tmp_path / "folder", "it is a folder"), (tmp_path / "plain" / "run.jsonl", "")):
        with pytest.raises(InputError, match=rf"{path.name} cannot be written: {problem}.*; give a file in a folder"):
            write_rankllm(run, collection, path)
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["folder", "plain"]
    write_rankllm(run, collection, tmp_path / "new" / "deep" / "run.jsonl")
    assert read_rankllm(tmp_path / "new" / "deep" / "run.jsonl")[1].rankings == run.rankings


def test_ids_that_are_numbered_anew_in_each_request_come_back_as_they_were(tmp_path):
    # "1 of request 2" is also somebody's own id; "same" has one text, and is one document.
    own = "1 of request 2"
    lists = [{"1": "a", "same": "s"}, {"1": "b", own: "b", "same": "s"}, {"1": "c", own: "d"}]
    records = [
        {"query": {"text": "?", "qid": q}, "candidates": [{"docid": d, "doc": t} for d, t in texts.items()], "q": q}
        for q, texts in enumerate(lists)
    ]
    (tmp_path / "r.jsonl").write_text("\n".join(map(json.dumps, records)))
    with pytest.raises(DataError, match="'1' was given before with another text"):
        read_rankllm(tmp_path / "r.jsonl")
    requests = Requests(tmp_path / "r.jsonl")
    found = {q: [requests.collection.documents[d] for d in requests.run.doc_ids(q)] for q in requests.run.rankings}
    assert found == {str(q): list(texts.values()) for q, texts in enumerate(lists)}
    assert requests.run.doc_ids("0") == ("1", "same")
    assert requests.run.doc_ids("1")[2] == "same"

    turned = {q: tuple((d, -float(i)) for i, (d, _) in enumerate(r[::-1])) for q, r in requests.run.rankings.items()}
    requests.write(Run(turned), tmp_path / "out.jsonl")
    written = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    for before, after in zip(records, written, strict=True):
        scored = [{**c, "score": -float(i)} for i, c in enumerate(before["candidates"][::-1])]
        assert after == {**before, "candidates": scored}


def test_half_a_surrogate_in_a_field_that_nobody_reads_comes_back(tmp_path):
    record = {"query": {"text": "?", "qid": "q"}, "candidates": [{"docid": "d", "doc": "x", "url": "\ud800"}]}
    (tmp_path / "r.jsonl").write_text(json.dumps(record))
    requests = Requests(tmp_path / "r.jsonl")
    requests.write(requests.run, tmp_path / "out.json")
    [written] = json.loads((tmp_path / "out.json").read_text())
    assert written["candidates"] == [{"docid": "d", "doc": "x", "url": "\ud800", "score": 0.0}]
