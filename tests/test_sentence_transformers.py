"""Our losses in sentence-transformers' trainer, against its own losses; our folders in its classes, and its in ours."""

import itertools
import logging
import math
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import CrossEncoder
from sentence_transformers.cross_encoder import losses as theirs
from torch.nn.parallel import DistributedDataParallel

from rerank import Reranker
from rerank.data import load_collection
from rerank.errors import InputError
from rerank.integrations.sentence_transformers import RerankLoss
from rerank.models.backbones import load_cross_encoder
from rerank.models.exporting import export_onnx
from rerank.models.loading import save_policy
from rerank.models.onnx import open_session
from rerank.models.policy import ScorePolicy
from rerank.rewards import FunctionReward, ndcg, reciprocal_rank

CACM = Path(__file__).parents[2] / "shared" / "data" / "cacm"
QUERIES = ["read a csv file", "open a socket"]
DOCUMENTS = [
    ["read lines of a file", "a cup of tea", "csv " * 30, "the csv module reads files", "x"],
    ["sockets and ports", "close the socket", "a b c"],
]
LABELS = [torch.tensor([2.0, 0.0, 1.0, 3.0, 0.0]), torch.tensor([1.0, 2.0, 0.0])]
INPUTS = [QUERIES, DOCUMENTS]
PAIRS = [(query, text) for query, texts in zip(QUERIES, DOCUMENTS, strict=True) for text in texts]


def cross_encoder(folder, dropout=0.0, seed=3):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
        model = CrossEncoder(str(folder), num_labels=1, max_length=64, device="cpu", config_kwargs=config)
        torch.nn.init.normal_(model[0].model.classifier.weight)
    return model.train()


@pytest.fixture
def model(tiny_bert):
    return cross_encoder(tiny_bert)


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def logits(model, pairs=PAIRS):
    return torch.tensor(model.predict(pairs, activation_fn=torch.nn.Identity()))


# Against their losses, and by enumeration


def test_list_net_is_theirs(model):
    ours, other = RerankLoss(model, "list_net"), theirs.ListNetLoss(model)
    for labels in (LABELS, [torch.tensor([0.3, 0.1, 0.9, 0.2, 0.5]), torch.tensor([1, 0, 0])]):
        torch.testing.assert_close(ours(INPUTS, labels), other(INPUTS, labels))
    found, wanted = (gradients(model, loss(INPUTS, LABELS)) for loss in (ours, other))
    assert found.keys() == wanted.keys()
    for name in wanted:
        torch.testing.assert_close(found[name], wanted[name], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("i", [0, 1])
def test_rank_net_of_a_list_is_theirs_in_nats(i, model):
    inputs, labels = [[QUERIES[i]], [DOCUMENTS[i]]], [LABELS[i]]
    found = RerankLoss(model, "rank_net")(inputs, labels)
    wanted = theirs.RankNetLoss(model, reduction_log="natural")(inputs, labels)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("i", [0, 1])
def test_list_mle_of_a_list_is_theirs_a_place(i, model):
    labels = [torch.arange(len(DOCUMENTS[i]), 0.0, -1)]
    inputs = [[QUERIES[i]], [DOCUMENTS[i]]]
    wanted = theirs.ListMLELoss(model)(inputs, labels) / len(DOCUMENTS[i])
    torch.testing.assert_close(RerankLoss(model, "list_mle")(inputs, labels), wanted)


def enumerated(scores, labels, worth, temperature=1.0):
    """The expectation of `worth` over all orders of a list under Plackett-Luce."""
    total = 0.0
    for order in itertools.permutations(range(len(scores))):
        left = np.exp(np.asarray(scores, dtype=np.float64)[list(order)] / temperature)
        chance = np.prod(left / left[::-1].cumsum()[::-1])
        total += chance * worth([float(labels[i]) for i in order])
    return total


def dcg(grades, cutoff):
    return sum(grade / math.log2(rank + 2) for rank, grade in enumerate(grades[:cutoff]))


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("measure", ["nDCG@3", "ndcg@3", "RR"])
def test_a_measure_is_minus_the_log_of_its_expectation_over_all_orders(measure, temperature, model):
    def worth(grades):
        if measure == "RR":
            return 1.0 / (next(rank for rank, grade in enumerate(grades) if grade >= 1) + 1)
        return dcg(grades, 3) / dcg(sorted(grades, reverse=True), 3)

    scores = logits(model).split([5, 3])
    expected = [enumerated(s, y, worth, temperature) for s, y in zip(scores, LABELS, strict=True)]
    found = RerankLoss(model, measure, temperature=temperature)(INPUTS, LABELS)
    assert found.item() == pytest.approx(-np.mean(np.log(expected)), abs=2e-5)
    linear = RerankLoss(model, measure, temperature=temperature, utility="linear")(INPUTS, LABELS)
    assert linear.item() == pytest.approx(-np.mean(expected), abs=2e-5)


def test_the_gradient_of_a_measure_is_its_slope(model):
    loss, weight = RerankLoss(model, "nDCG@3"), model[0].model.classifier.weight
    slope = gradients(model, loss(INPUTS, LABELS))["0.model.classifier.weight"]
    direction = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    values = []
    with torch.no_grad():
        for step in (1e-3, -1e-3):
            weight += step * direction
            values.append(loss(INPUTS, LABELS).item())
            weight -= step * direction
    assert (values[0] - values[1]) / 2e-3 == pytest.approx(float((slope * direction).sum()), rel=0.02)


def test_a_reward_of_your_own_is_sampled_towards_the_exact_gradient(model):
    def worth(doc_ids, candidates):
        grades = [candidates.labels[int(d)] for d in doc_ids]
        return dcg(grades, 3) / dcg(sorted(candidates.labels, reverse=True), 3)

    exact = RerankLoss(model, ndcg(3), utility="linear")
    sampled = RerankLoss(model, FunctionReward(worth, "mine"), samples=1500)
    assert sampled.get_config_dict()["estimator"] == "rloo"
    torch.manual_seed(0)
    wanted, found = (gradients(model, loss(INPUTS, LABELS)) for loss in (exact, sampled))
    name = "0.model.classifier.weight"
    assert float(torch.cosine_similarity(found[name].flatten(), wanted[name].flatten(), dim=0)) > 0.97
    assert sampled(INPUTS, LABELS).item() == pytest.approx(exact(INPUTS, LABELS).item(), abs=0.03)


# Memory


@pytest.mark.parametrize("objective", ["nDCG@10", "rank_net"])
@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_mini_batches_have_the_gradients_of_the_whole_batch(objective, scale, model):
    whole, parts = RerankLoss(model, objective, None), RerankLoss(model, objective, 3)
    torch.testing.assert_close(parts(INPUTS, LABELS), whole(INPUTS, LABELS))
    wanted, found = (gradients(model, loss(INPUTS, LABELS) * scale) for loss in (whole, parts))
    assert found.keys() == wanted.keys()
    for name in wanted:
        torch.testing.assert_close(found[name], wanted[name], atol=1e-5, rtol=1e-3)


def test_dropout_is_the_same_in_both_passes(tiny_bert, monkeypatch):
    model = cross_encoder(tiny_bert, dropout=0.3)
    loss, seen, logits_of = RerankLoss(model, "list_net", 3), [], RerankLoss._logits

    def noted(self, block, key, index):
        seen.append(logits_of(self, block, key, index))
        return seen[-1]

    monkeypatch.setattr(RerankLoss, "_logits", noted)
    value = loss(INPUTS, LABELS)
    state = torch.get_rng_state()
    value.backward()
    assert torch.equal(torch.get_rng_state(), state), "the trainer's own stream is left as it was"
    first, second = seen[:3], seen[3:]
    assert len(second) == 3
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one, other)
    assert not torch.equal(loss(INPUTS, LABELS), value), "the next step draws anew"


def test_a_list_of_800_is_held_a_mini_batch_at_a_time(model):
    inputs = [["find the file"], [[f"file {i} " * (1 + i % 5) for i in range(800)]]]
    labels = [torch.tensor([float(i % 4) for i in range(800)])]
    held = []

    def peak(size):
        live, most = 0, 0

        class Kept:
            def __init__(self, tensor):
                nonlocal live, most
                self.tensor = tensor
                live += tensor.numel()
                most = max(most, live)

            def __del__(self):
                nonlocal live
                live -= self.tensor.numel()

        with torch.autograd.graph.saved_tensors_hooks(Kept, lambda kept: kept.tensor):
            RerankLoss(model, "nDCG@10", size)(inputs, labels).backward()
        return most

    held = {size: peak(size) for size in (16, 32, None)}
    assert held[16] < held[32] < held[None] / 10


def test_an_evaluation_keeps_no_graph_and_draws_nothing(model):
    state = torch.get_rng_state()
    with torch.no_grad():
        found = RerankLoss(model, "nDCG@10", 3)(INPUTS, LABELS)
    assert not found.requires_grad
    assert torch.equal(torch.get_rng_state(), state)
    torch.testing.assert_close(found, RerankLoss(model, "nDCG@10", None)(INPUTS, LABELS).detach())


def test_a_model_that_is_wrapped_for_several_processes_has_the_same_gradients(model, tmp_path):
    wanted = gradients(model, RerankLoss(model, "nDCG@10", 3)(INPUTS, LABELS))
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        loss = RerankLoss(model, "nDCG@10", 3)
        loss.model = DistributedDataParallel(model)
        loss.model.preprocess = model.preprocess  # as their trainer does
        found = gradients(model, loss(INPUTS, LABELS))
    finally:
        torch.distributed.destroy_process_group()
    for name in wanted:
        torch.testing.assert_close(found[name], wanted[name])


# Their trainer


def lists_of(collection, n, depth):
    """Rows of their format: beginnings of queries, each with relevant documents among others."""
    draw, rows = random.Random(0), {"query": [], "docs": [], "labels": []}
    ids = list(collection.documents)
    for query_id in itertools.islice(collection.qrels, n):
        good = [d for d, grade in collection.qrels[query_id].items() if grade > 0][:2]
        shown = draw.sample([*good, *draw.sample(ids, depth - len(good))], depth)
        rows["query"].append(collection.queries[query_id][:20])
        rows["docs"].append([collection.documents[d][:30] for d in shown])  # a token is a character here
        rows["labels"].append([float(d in good) for d in shown])
    return rows


@pytest.mark.skipif(not CACM.is_dir(), reason="the data set cacm is not in the folder shared/data beside the checkout")
def test_their_trainer_learns_with_it_and_what_it_saves_is_ours_to_load(tiny_bert, tmp_path):
    from datasets import Dataset
    from sentence_transformers.cross_encoder import CrossEncoderTrainer, CrossEncoderTrainingArguments

    rows = lists_of(load_collection(f"{CACM}#train"), 8, 6)
    model = cross_encoder(tiny_bert, dropout=0.05)
    arguments = CrossEncoderTrainingArguments(
        output_dir=str(tmp_path / "trainer"),
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        num_train_epochs=25,
        learning_rate=2e-3,
        logging_steps=5,
        report_to="none",
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
    )
    loss = RerankLoss(model, "nDCG@10", 5)
    trainer = CrossEncoderTrainer(model=model, args=arguments, train_dataset=Dataset.from_dict(rows), loss=loss)
    trainer.train()
    told = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert np.mean(told[-3:]) < 0.8 * np.mean(told[:3])
    model.save_pretrained(str(tmp_path / "model"))
    assert '"objective": "nDCG@10"' in (tmp_path / "model" / "README.md").read_text(encoding="utf8")
    pairs = [(rows["query"][0], text) for text in rows["docs"][0]]
    ours = Reranker.from_pretrained(tmp_path / "model", device="cpu", precision="float32")
    np.testing.assert_allclose(ours.predict(pairs), logits(model.eval(), pairs), atol=1e-5)


def test_a_list_with_nothing_to_teach_is_left_out_and_that_is_said(model, caplog):
    caplog.set_level(logging.WARNING, "rerank.integrations")
    loss = RerankLoss(model, "nDCG@10")
    alone = loss([QUERIES[:1], DOCUMENTS[:1]], LABELS[:1])
    both = [LABELS[0], torch.zeros(3)]
    torch.testing.assert_close(loss(INPUTS, both), alone)
    loss(INPUTS, both)
    assert [record.getMessage()[:22] for record in caplog.records] == ["1 of the 2 lists of a "]
    nothing = loss(INPUTS, [torch.zeros(5), torch.ones(3)])
    assert all(not grad.any() for grad in gradients(model, nothing).values())
    assert nothing.item() == 0.0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"objective": "nDGC@10"}, "did you mean 'nDCG'"),
        ({"objective": "listnet"}, "did you mean 'list_net'"),
        ({"objective": "R"}, "write R@10"),
        ({"objective": 3}, "name of a measure or a loss"),
        ({"temperature": 0}, "temperature"),
        ({"temperature": "1"}, "temperature must be greater than 0, not '1'"),
        ({"samples": 1}, "at least 2"),
        ({"mini_batch_size": 2.5}, "whole number"),
        ({"utility": "logg"}, "utility"),
        ({"objective": "rank_net", "temperature": 2.0}, "for measures"),
        ({"estimator": "exakt"}, "did you mean 'exact'"),
        ({"objective": FunctionReward(lambda ids, _: 1.0), "estimator": "exact"}, "sampled estimator"),
    ],
)
def test_a_wrong_setting_is_named_with_what_is_allowed(settings, message, model):
    with pytest.raises(InputError, match=message):
        RerankLoss(model, **settings)


@pytest.mark.parametrize(
    ("inputs", "labels", "message"),
    [
        (INPUTS, torch.ones(2), "one label for each row"),
        (INPUTS, [row.tolist() for row in LABELS], r"a tensor \[n\] for each query is needed, .*: \[\["),
        ([["q"], [["a", None]]], [torch.tensor([1.0, 0.0])], "row 0: document 1 must be a text, not NoneType"),
        ([[], []], [], "no document"),
        ([*INPUTS, DOCUMENTS], LABELS, "not 3"),
        (INPUTS, LABELS[::-1], "5 documents and 3 labels"),
        ([QUERIES, ["a text", "another"]], LABELS, "a list of texts"),
        (INPUTS, [LABELS[0], torch.tensor([1.0, math.nan, 0.0])], r"labels\[1\]\[1\] is nan"),
        ([["q"], [[]]], [torch.tensor([])], "no document"),
    ],
)
def test_a_batch_that_is_none_is_refused(inputs, labels, message, model):
    with pytest.raises(InputError, match=message):
        RerankLoss(model)(inputs, labels)


def test_a_measure_of_relevant_documents_refuses_scores_for_grades(model):
    soft = [LABELS[0] / 4, LABELS[1]]
    with pytest.raises(InputError, match=r"0\.5"):
        RerankLoss(model, "RR@10")(INPUTS, soft)
    assert RerankLoss(model, "nDCG@10")(INPUTS, soft).item() > 0
    assert RerankLoss(model, reciprocal_rank(10)).objective == "RR@10"


# Folders


def modular(folder, tiny_bert, pooling):
    scorer, _ = load_cross_encoder(str(tiny_bert), 48, pooling, "float32", "cpu")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        torch.nn.init.normal_(scorer.model[-1].linear.weight)
    save_policy(ScorePolicy(scorer), folder)
    return folder


def classifier(folder, tiny_bert):
    model = cross_encoder(tiny_bert)
    model.save_pretrained(str(folder / "theirs"))
    Reranker.from_pretrained(folder / "theirs", device="cpu", precision="float32").save_pretrained(folder / "ours")
    return folder / "ours"


@pytest.fixture(scope="module", params=["mean", "cls", "classifier"])
def folder(request, tiny_bert, tmp_path_factory):
    """A folder that we wrote, and exported."""
    made = tmp_path_factory.mktemp(request.param)
    made = classifier(made, tiny_bert) if request.param == "classifier" else modular(made, tiny_bert, request.param)
    return export_onnx(str(made), int8=True)


def test_their_class_scores_and_ranks_a_folder_of_ours_as_we_do(folder):
    ours, other = Reranker.from_pretrained(folder, device="cpu", precision="float32"), CrossEncoder(str(folder))
    np.testing.assert_allclose(other.predict(PAIRS), ours.predict(PAIRS), atol=1e-5)
    assert float(np.abs(ours.predict(PAIRS)).max()) > 1, "logits, not their sigmoid"
    for query, texts in zip(QUERIES, DOCUMENTS, strict=True):
        found = [(hit.index, hit.score) for hit in ours.rank(query, texts)]
        wanted = [(hit["corpus_id"], float(hit["score"])) for hit in other.rank(query, texts)]
        assert [i for i, _ in found] == [i for i, _ in wanted]


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_an_exported_file_has_the_output_that_their_onnx_backend_reads(precision, folder):
    # optimum runs the transformer from the file and looks its outputs up by name; their modules do the rest.
    ours = Reranker.from_pretrained(folder, device="cpu", backend="onnx", precision=precision)
    other = CrossEncoder(str(folder), device="cpu")
    session = open_session(folder / "onnx" / ("model.onnx" if precision == "float32" else "model_int8.onnx"))
    features = other.preprocess(PAIRS)
    named = {node.name: features[node.name].numpy() for node in session.get_inputs()}
    names = [node.name for node in session.get_outputs()]
    if len(other) == 1:
        assert names == ["logits"]
        found = session.run(["logits"], named)[0]
    else:
        assert names == ["logits", "last_hidden_state"]
        features["token_embeddings"] = torch.from_numpy(session.run(["last_hidden_state"], named)[0])
        with torch.no_grad():
            for module in list(other)[1:]:
                features = module(features)
        found = features["scores"].numpy()
    tolerance = 1e-4 if precision == "float32" else 0.2  # int8 activations are scaled by batch
    np.testing.assert_allclose(found.reshape(-1), ours.predict(PAIRS), atol=tolerance)


def test_a_folder_of_theirs_gives_equal_scores_in_ours(tiny_bert, tmp_path):
    model = cross_encoder(tiny_bert).eval()
    model.save_pretrained(str(tmp_path))
    ours = Reranker.from_pretrained(tmp_path, device="cpu", precision="float32")
    np.testing.assert_allclose(ours.predict(PAIRS), logits(model), atol=1e-5)
