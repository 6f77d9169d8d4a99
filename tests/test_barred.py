"""Documents that are no candidates of a query stay out of it: under judgements of others, and under probes."""

import json

from rerank.bench.arms import Lists, probe_arm, rank_arm
from rerank.bench.first_stages import First
from rerank.bench.running import bench
from rerank.bench.suites import EXCLUDED, BenchSet, Suite, excluded
from rerank.data import read_run, write_run
from rerank.types import Collection, Run

WORDS = ("river", "copper", "violin", "harbour", "lantern", "orchard")


class ByLength:
    """A system that ranks long texts first, and remembers what it was shown."""

    name = "long"

    def __init__(self):
        self.shown = {}

    def identity(self):
        return "by length"

    def prepared(self, lists, collection, first):
        return list(lists)

    def ranked(self, lists):
        for c in lists:
            self.shown[c.query_id] = set(c.doc_ids)
            scores = {c.query_id: {d: float(len(text)) for d, text in zip(c.doc_ids, c.texts, strict=True)}}
            yield c.query_id, Run.from_scores(scores).rankings[c.query_id], 0.001


def test_judgements_of_others_leave_the_exclusions_of_a_set_as_they_are():
    own = {"q1": {"d1": 1, "d2": EXCLUDED}, "q2": {"d3": 1}}
    others = {"q1": {"d2": 1, "d3": 1}, "q2": {"d1": EXCLUDED}}
    collection = Collection({d: d for d in ("d1", "d2", "d3")}, {"q1": "x", "q2": "y"}, others)
    assert excluded(BenchSet("s", "x"), collection, own) == {"q1": {"d2"}, "q2": {"d1"}}
    assert excluded(BenchSet("s", "x", without_itself=True), collection.select(["q1"]), own) == {"q1": {"d2", "q1"}}


def test_a_bench_under_judgements_of_others_retrieves_no_document_that_the_set_excludes(tmp_path):
    folder = tmp_path / "data" / "one"
    (folder / "qrels").mkdir(parents=True)
    texts = {f"d{i}": f"river {word}" for i, word in enumerate(WORDS)}
    (folder / "corpus.jsonl").write_text("".join(json.dumps({"_id": d, "text": t}) + "\n" for d, t in texts.items()))
    (folder / "queries.jsonl").write_text(json.dumps({"_id": "q1", "text": "river copper"}) + "\n")
    head = "query-id\tcorpus-id\tscore\n"
    (folder / "qrels" / "test.tsv").write_text(f"{head}q1\td1\t{EXCLUDED}\nq1\td2\t1\n")
    (tmp_path / "others.tsv").write_text(f"{head}q1\td1\t1\nq1\td3\t1\n")
    suite = Suite("small", (BenchSet("one", "one#test", tmp_path / "data"),), ("nDCG@10",))
    bench(suite, [], ("bm25",), tmp_path / "out", depth=5, qrels={"one": tmp_path / "others.tsv"})
    found = read_run(tmp_path / "out" / "sets" / "one" / "bm25" / "first_stage.trec")
    assert set(found.doc_ids("q1")) == set(texts) - {"d1"}


def test_an_arm_is_shown_no_barred_document_by_the_probe_that_adds_documents(tmp_path):
    """As in ArguAna: each query is a document, which the lists of the other queries hold."""
    documents = {w: f"{w} " * (i + 1) for i, w in enumerate(WORDS)}
    queries = {w: w for w in WORDS[:3]}
    collection = Collection(documents, queries, {w: {WORDS[-1]: 1} for w in queries})
    found = Run.from_scores({q: {d: 1.0 + i for i, d in enumerate(WORDS) if d != q and i < 4} for q in queries})
    path = tmp_path / "bm25" / "first_stage.trec"
    path.parent.mkdir()
    write_run(found, path)
    first = First("bm25", path, found, 0.0)
    shown = []
    for barred in ({q: {q} for q in queries}, {}):
        system, lists = ByLength(), Lists(collection, first, overwrite=True, barred=barred)
        probe_arm(lists, system, rank_arm(lists, system), ["distract"], "nDCG@10")
        shown.append([q in documents_shown for q, documents_shown in system.shown.items()])
    assert shown == [[False] * 3, [True] * 3]
