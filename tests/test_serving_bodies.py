"""Bodies of requests: what json reads is read, through every encoding, and all else is refused cheaply and by name."""

import gzip
import json
import time
import tracemalloc
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rerank.serving.asking import Refusal
from rerank.serving.limits import Limits
from rerank.serving.wire.bodies import LEVELS, VALUES, body_of

JSON = {"content-type": "application/json"}
SMALL = Limits(body=2**20)
LARGEST = 16 * 2**20


def raw_deflate(data):
    stream = zlib.compressobj(wbits=-15)
    return stream.compress(data) + stream.flush()


ENCODINGS = {
    "": lambda data: data,
    "identity": lambda data: data,
    "gzip": gzip.compress,
    "x-gzip, identity": gzip.compress,
    "DEFLATE": zlib.compress,
    "deflate": raw_deflate,
}

# Half of the characters are those that mean something in JSON.
texts = st.text(st.sampled_from('"\\[]{},:0\n') | st.characters(codec="utf-8"), max_size=20)
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4))
bodies = st.dictionaries(texts, values, max_size=6)


def refusal(raw, headers=JSON, limits=SMALL):
    with pytest.raises(Refusal) as caught:
        body_of(raw, headers, limits)
    return caught.value.status, caught.value.message


@given(bodies, st.sampled_from(sorted(ENCODINGS)), st.booleans(), st.booleans())
def test_what_json_wrote_is_read_back_through_every_encoding(body, encoding, ascii_only, mark):
    data = (b"\xef\xbb\xbf" if mark else b"") + json.dumps(body, ensure_ascii=ascii_only).encode()
    headers = {"Content-Type": "application/json", "Content-Encoding": encoding}
    assert body_of(ENCODINGS[encoding](data), headers, SMALL) == body


@given(bodies, st.data())
def test_a_body_with_some_bytes_changed_is_read_as_json_reads_it_or_refused(body, data):
    raw = bytearray(json.dumps(body, ensure_ascii=False).encode())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(raw)))
        raw[at : at + data.draw(st.integers(0, 2))] = data.draw(
            st.sampled_from([b'"', b"[", b"}", b",", b"\\", b"\xff"])
        )
    try:
        found = body_of(bytes(raw), JSON, SMALL)
    except Refusal as refused:
        assert refused.status in (400, 422)
        assert len(refused.message) < 300
    else:
        assert found == json.loads(bytes(raw).decode("utf-8-sig"))


@pytest.mark.parametrize(
    "given",
    ["application/json", "Application/JSON; charset=UTF-8", 'application/json;charset="utf-8"', "application/ld+json"],
)
def test_content_types_of_json_are_taken(given):
    assert body_of(b"{}", {"CONTENT-TYPE": given}, SMALL) == {}


@pytest.mark.parametrize(
    "given",
    ["", "text/plain", "application/x-www-form-urlencoded", "application/jsonp", "application/json; charset=latin-1"],
)
def test_other_content_types_are_refused_with_advice(given):
    status, message = refusal(b"{}", {"content-type": given})
    assert status == 415
    assert "-H 'Content-Type: application/json'" in message


@pytest.mark.parametrize("given", ["br", "zstd", "gzip, gzip", "gzip, deflate", "chunked"])
def test_other_and_chained_encodings_are_refused(given):
    status, message = refusal(gzip.compress(b"{}"), {**JSON, "content-encoding": given})
    assert status == 415
    assert "identity, gzip or deflate" in message


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_compressed_bodies_that_are_cut_go_on_or_are_none_are_refused(encoding):
    headers, packed = {**JSON, "content-encoding": encoding}, ENCODINGS[encoding](b'{"query": "a query"}' * 9)
    assert refusal(packed[:-3], headers)[0] == 400
    assert "cut on the way" in refusal(packed[:-3], headers)[1]
    assert "behind its end" in refusal(packed + b"more", headers)[1]
    assert "not in that format" in refusal(b"\xff\xff not compressed", headers)[1]


@pytest.mark.parametrize("encoding", ["", "gzip", "DEFLATE", "deflate"])
def test_a_body_may_have_as_many_bytes_as_the_limit_says_and_not_one_more(encoding):
    body = b'{"query": "' + b"x" * 500 + b'"}'
    headers, packed = {**JSON, "content-encoding": encoding}, ENCODINGS[encoding](body)
    assert body_of(packed, headers, Limits(body=len(body)))["query"] == "x" * 500
    status, message = refusal(packed, headers, Limits(body=len(body) - 1))
    assert status == 413
    assert "--max-body" in message


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_a_bomb_is_never_inflated_beyond_the_limit(encoding):
    bomb = ENCODINGS[encoding](b" " * 2**26)
    tracemalloc.start()
    try:
        assert refusal(bomb, {**JSON, "content-encoding": encoding})[0] == 413
        assert tracemalloc.get_traced_memory()[1] < 4 * SMALL.body
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"", "is empty"),
        (b" \n", "is empty"),
        (b'[{"query": "q"}]', "is a list"),
        (b"null", "is null"),
        (b'"' + b"x" * 1000 + b'"', "is the text 'xxx"),
        (b"1" * 300, "a very large number"),
        (b'{"query": "caf\xe9"}', "byte 0xe9 at offset 14"),
        (b'\xef\xbb\xbf{"query": "caf\xe9"}', "byte 0xe9 at offset 17"),
        ('{"query": "q"}'.encode("utf-16"), "byte 0xff at offset 0"),
        (b'{"query": "q",\n "documents": undefined}', "line 2, column 15, where 'undefined}'"),
        (b'{"query": "q"', "line 1, column 14, where it ends"),
        (b'{"query": "q"} {}', "extra data"),
        (b'{"query": "a\nb"}', "invalid control character"),
        (b"{'query': 'q'}", "line 1, column 2"),
        (b'{"a": 1' + b"0" * 5000 + b"}", "more than 309 digits"),
        (b'{"a": 0.' + b"0" * 5000 + b"1}", "more than 309 digits"),
    ],
)
def test_what_is_no_json_object_is_refused_with_its_place(raw, said):
    status, message = refusal(raw)
    assert status == 400
    assert said in message
    assert len(message) < 300


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b'{"query": "a", "query": "b"}', "the body has the key 'query' twice"),
        (b'{"documents": [{"a": 1}, {"text": "x", "b": {}, "text": "x"}]}', "documents.1: has the key 'text' twice"),
        (rb'{"query": "a", "quer\u0079": "b"}', "the body has the key 'query' twice"),
        (b'{"first_stage": {"bm25": [1, NaN]}}', "first_stage.bm25.1: numbers must be finite"),
        (b'{"top_n": -Infinity}', "top_n: numbers must be finite"),
        (b'{"a": {"b": 1e999}}', "a.b: numbers must be finite"),
    ],
)
def test_what_two_readers_would_read_differently_is_refused_by_name(raw, said):
    status, message = refusal(raw)
    assert status == 400
    assert said in message


def test_lone_surrogates_are_refused_by_field_and_pairs_are_read():
    assert body_of(rb'{"query": "\ud83d\ude00 \\ud800"}', JSON, SMALL) == {"query": "😀 \\ud800"}
    status, message = refusal(rb'{"documents": ["a", "b", "c", "d\udc00"]}')
    assert (status, message.split(":")[0]) == (422, "documents.3")
    assert "character 1" in message
    status, message = refusal(rb'{"a": {"k\ud800": 1}}')
    assert status == 422
    assert message.startswith("a: has the key 'k\\ud800'")


@given(
    st.integers(LEVELS - 4, LEVELS + 4), st.lists(st.sampled_from(["[", "{"]), min_size=40, max_size=40), st.booleans()
)
def test_bodies_may_be_nested_to_exactly_so_many_levels(levels, kinds, sibling):
    value = "1"
    for kind in kinds[: levels - 1]:
        side = '["[[[", {}], ' if sibling else ""
        value = f"[{side}{value}]" if kind == "[" else f'{{"[\\"{{": {value}}}'
    # A sibling of the innermost value is two levels deep itself.
    raw = f'{{"a": {value}}}'.encode()
    depth = 1 + max(
        i + 1 + (2 if sibling and kind == "[" else 0) for i, kind in enumerate(reversed(kinds[: levels - 1]))
    )
    if depth > LEVELS:
        status, message = refusal(raw)
        assert status == 400
        assert f"deeper than {LEVELS} levels" in message
    else:
        assert body_of(raw, JSON, SMALL) == json.loads(raw)


@pytest.mark.parametrize("raw", [b"[" * 50_000, b'{"a":' * 50_000])
def test_nesting_that_is_never_closed_is_refused_before_it_is_parsed(raw):
    status, message = refusal(raw)
    assert status == 400
    assert f"deeper than {LEVELS} levels" in message


def test_brackets_within_texts_and_beside_each_other_are_no_nesting():
    body = {"query": "[" * 10_000 + '"' + "{" * 10_000 + "\\", "documents": [{}, []] * 1000}
    assert body_of(json.dumps(body).encode(), JSON, SMALL) == body


def test_the_number_of_values_is_bounded_and_rises_with_the_documents_that_are_taken():
    body = json.dumps({"documents": [{"text": "x", "a": 1, "b": 2}] * (VALUES // 3)}).encode()
    status, message = refusal(body, limits=Limits())
    assert status == 413
    assert "--max-documents" in message
    assert len(body_of(body, JSON, Limits(documents=100_000))["documents"]) == VALUES // 3


def filled(unit, head=b"[", tail=b"1]"):
    return head + unit * ((LARGEST - len(head) - len(tail)) // len(unit)) + tail


HOSTILE = {
    "a million keys": lambda: b"{" + b",".join(b'"%d":1' % i for i in range(10**6)) + b"}",
    "open lists": lambda: b"[" * LARGEST,
    "open objects": lambda: b'{"":' * (LARGEST // 4),
    "closed lists": lambda: b"[" * (LARGEST // 2) + b"]" * (LARGEST // 2),
    "empty objects": lambda: filled(b"{},"),
    "numbers": lambda: filled(b"1,"),
    "one number": lambda: filled(b"1"),
    "long numbers": lambda: filled(b"9" * 4000 + b","),
    "fractions": lambda: filled(b"0." + b"1" * 300 + b"e99,", b'{"a":['),
    "a fraction": lambda: filled(b"1", b"[0."),
    "escapes": lambda: filled(rb"\n", b'{"query":"', b'"}'),
    "escaped surrogates": lambda: filled(rb"\ud800", b'{"query":"', b'"}'),
    "backslashes": lambda: filled(b"\\", b'{"query":"'),
    "quotes": lambda: b'"' * LARGEST,
    "empty texts": lambda: filled(b'"",', b'{"documents":[', b'""]}'),
    "long texts": lambda: b'{"documents":[' + b",".join([b'"%s"' % (b"x" * 150)] * 99_000) + b"]}",
    "lines": lambda: filled(b"\n", b"{"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_sixteen_megabytes_of_hostile_bytes_take_less_than_two_seconds(name):
    raw = HOSTILE[name]()
    began = time.process_time()
    try:
        body_of(raw, JSON, Limits())
    except Refusal as refused:
        assert refused.status in (400, 413, 422)
    assert time.process_time() - began < 2.0
