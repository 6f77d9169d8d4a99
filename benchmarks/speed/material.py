"""What is measured on: a checkpoint, lists to score, lists to train on.

The checkpoint is `BertForSequenceClassification` on MiniLM's weights with one output, as the field's ms-marco-MiniLM
rerankers are; a short clone of RankVicuna's orderings of TREC DL 2019 makes it rank sensibly. Without MiniLM (or with
`tiny`) the weights are random, without the data the texts are made up, with log-normal lengths; `source` says which.
"""

from __future__ import annotations

import hashlib
import random
import sys
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from rerank.data import candidate_lists, load_collection, read_run
from rerank.errors import MissingDependency
from rerank.models.backbones import MINILM_SHA256, backbone_path
from rerank.models.loading import load_policy, save_policy
from rerank.models.policy import ScorePolicy
from rerank.teachers import Recorded
from rerank.training import Clone, Context
from rerank.types import CandidateList, Collection, Qrels, Run

from .plan import FULL, Plan

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT.parent / "shared" / "data"
CACHE = ROOT / "runs"
WORDS = 30_000
"""Words of the vocabulary of made-up texts."""
TRAIN_LENGTH = 256
TEACHERS = {
    "bm25": "bm25",
    "tasb": "d_bert_kd_tasb",
    "splade": "splade_p_p_ensemble_distil",
    "ada2": "open_ai_ada2",
}
SETTINGS = {"learning_rate": 2e-4, "unranked": "last", "list_size": 16}
"""Of the clone that makes the checkpoint: a new head has far to go in few steps."""


class Task(NamedTuple):
    """Lists to score."""

    lists: list[CandidateList]
    qrels: Qrels
    max_length: int


class Material(NamedTuple):
    """All that is measured on."""

    checkpoint: Path
    source: dict[str, str]
    tasks: dict[str, Task]
    pool: Collection
    """Where training lists come from."""
    found: Run
    """The first stage's run over the pool."""

    @property
    def exported(self) -> Path:
        """Where the checkpoint is, or will be, in ONNX: not beside weights that are somebody's own."""
        if self.checkpoint.parent == CACHE:
            return self.checkpoint
        digest = hashlib.sha256(str(self.checkpoint.resolve()).encode())
        for file in sorted(self.checkpoint.rglob("*.safetensors")):
            digest.update(file.read_bytes())
        return CACHE / f".speed-onnx-{digest.hexdigest()[:12]}"


def say(text: str) -> None:
    """Nothing; a line of progress on stderr."""
    print(text, file=sys.stderr, flush=True)


def material(plan: Plan, checkpoint: Path | None, device: str) -> Material:
    """The checkpoint (made and cached where none is given) and the texts."""
    real = (DATA / "trec-dl-19-20").is_dir() and (DATA / "scifact").is_dir() and not plan.tiny
    texts = _real_texts(plan) if real else _made_up_texts(plan)
    about = "TREC DL 2019/2020, SciFact" if real else "made up: words at random, log-normal lengths; grades at random"
    if checkpoint is not None:
        return Material(checkpoint, {"texts": about, "checkpoint": "given"}, *texts)
    folder, weights = _checkpoint(plan, real, device)
    return Material(folder, {"texts": about, "checkpoint": weights}, *texts)


def training_lists(given: Material, n: int, documents: int, first: int) -> list[CandidateList]:
    """`n` lists of so many documents, numbered from `first`: judged and found documents, filled up from the pool.

    Different numbers are different lists. Each has a relevant document and one that is not.
    """
    queries = sorted(q for q in given.pool.queries if max(given.pool.qrels.get(q, {}).values(), default=0) > 0)
    everything = sorted(given.pool.documents)
    lists = []
    for number in range(first, first + n):
        query_id = queries[number % len(queries)]
        draw = random.Random(number)
        grades = given.pool.qrels[query_id]
        near = sorted({*given.found.doc_ids(query_id), *(d for d in grades if d in given.pool.documents)})
        chosen = draw.sample([d for d in near if grades.get(d, 0) > 0], 1)
        chosen += draw.sample([d for d in near if d not in chosen], min(len(near) - 1, documents - 1))
        chosen += draw.sample(sorted(set(everything) - set(near)), documents - len(chosen))
        labels = tuple(grades.get(d, 0) for d in chosen)
        texts = tuple(given.pool.documents[d] for d in chosen)
        lists.append(
            CandidateList(f"{query_id}-{number}", given.pool.queries[query_id], tuple(chosen), texts, {}, labels)
        )
    return lists


# --------------------------------------------------------------------------------------------------------------- texts
def _real_texts(plan: Plan) -> tuple[dict[str, Task], Collection, Run]:
    trec = DATA / "trec-dl-19-20"
    passages = load_collection({"beir": str(trec), "split": "test", "qrels": "qrels_full/test.tsv"})
    found = read_run(trec / "runs" / "dl20.firststage.bm25.trec")
    long = load_collection(f"{DATA / 'scifact'}#test")
    long_run = read_run(DATA / "scifact" / "runs" / "bm25s.test.trec")
    tasks = {
        "trec_dl": _task(passages, found, plan.queries, plan.depth, TRAIN_LENGTH),
        "scifact": _task(long, long_run, plan.long_queries, plan.long_depth, 512),
    }
    pool, pool_run = _pool_2019()
    return tasks, pool, pool_run


def _pool_2019() -> tuple[Collection, Run]:
    trec = DATA / "trec-dl-19-20"
    pool = load_collection({"beir": str(trec), "split": "train", "qrels": "qrels_full/train.tsv"})
    return pool, read_run(trec / "runs" / "dl19.firststage.bm25.trec")


def _task(collection: Collection, run: Run, queries: int, depth: int, max_length: int) -> Task:
    wanted = sorted(q for q in collection.qrels if q in run.rankings)[:queries]
    collection = collection.select(wanted)
    run = Run({q: run.rankings[q] for q in wanted}, run.name)
    return Task(candidate_lists(collection, run, depth=depth), collection.qrels, max_length)


def _made_up_texts(plan: Plan) -> tuple[dict[str, Task], Collection, Run]:
    longest = 100 if plan.tiny else 10_000
    short, short_run = _made_up(plan.queries, plan.depth, min(60, longest // 4), seed=0)
    long, long_run = _made_up(plan.long_queries, plan.long_depth, min(230, longest), seed=1)
    pool, pool_run = _made_up(43, 40 if plan.tiny else 300, min(60, longest // 4), seed=2)
    tasks = {
        "trec_dl": _task(short, short_run, plan.queries, plan.depth, 64 if plan.tiny else TRAIN_LENGTH),
        "scifact": _task(long, long_run, plan.long_queries, plan.long_depth, 128 if plan.tiny else 512),
    }
    return tasks, pool, pool_run


def _made_up(n_queries: int, n_documents: int, median: int, seed: int) -> tuple[Collection, Run]:
    """A collection with documents of its own for each query, a fifth of them relevant."""
    draw = random.Random(seed)
    queries, documents, qrels, rankings = {}, {}, {}, {}
    for i in range(n_queries):
        query_id = f"q{seed}-{i}"
        queries[query_id] = _words(draw, draw.randint(3, 9))
        ids = [f"{query_id}-d{j}" for j in range(n_documents)]
        documents |= {d: _words(draw, max(5, round(median * draw.lognormvariate(0.0, 0.5)))) for d in ids}
        qrels[query_id] = {d: draw.randint(1, 3) if j == 0 or draw.random() < 0.2 else 0 for j, d in enumerate(ids)}
        order = draw.sample(ids, len(ids))
        rankings[query_id] = tuple((d, -float(j)) for j, d in enumerate(order))
    return Collection(documents, queries, qrels, "made up"), Run(rankings, "at random")


def _words(draw: random.Random, n: int) -> str:
    return " ".join(f"w{draw.randrange(WORDS)}" for _ in range(n))


# ---------------------------------------------------------------------------------------------------------- checkpoint
def _checkpoint(plan: Plan, real: bool, device: str) -> tuple[Path, str]:
    """The folder of the checkpoint, and in words what its weights are."""
    try:
        backbone = None if plan.tiny else backbone_path("minilm")
    except MissingDependency:
        backbone = None
    # Made-up words are no words of MiniLM's: it would take them for many pieces, and every text for the longest.
    backbone = backbone if real else None
    for steps in (FULL.clone_steps, plan.clone_steps):  # what a full run has made serves a quick one, too
        folder, about = _kept(backbone, plan.tiny, steps)
        if (folder / "rerank.json").exists():
            return folder, about
    say(f"checkpoint: {about} (kept in {folder.relative_to(ROOT)})")
    raw = folder / "raw"
    if backbone:
        _with_fresh_head(backbone, raw)
        policy = load_policy(str(raw), device, max_length=512)
        _clone(policy, plan.clone_steps)
    else:
        _random_network(raw, plan.tiny)
        policy = load_policy(str(raw), device)
    save_policy(policy, folder)
    return folder, about


def _kept(backbone: str | None, tiny: bool, steps: int) -> tuple[Path, str]:
    """(where a checkpoint is kept, what it is)."""
    key = f"{SETTINGS} {steps} {MINILM_SHA256}" if backbone else f"random {tiny}"
    size = "a tiny network" if tiny else "MiniLM's architecture"
    about = f"MiniLM, {steps} steps of clone" if backbone else f"random weights of {size}"
    return CACHE / f".speed-{hashlib.sha256(key.encode()).hexdigest()[:12]}", about


def _with_fresh_head(backbone: str, folder: Path) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    torch.manual_seed(0)
    AutoModelForSequenceClassification.from_pretrained(backbone, num_labels=1).save_pretrained(folder)
    AutoTokenizer.from_pretrained(backbone, model_max_length=512).save_pretrained(folder)


def _clone(policy: ScorePolicy, steps: int) -> None:
    """Train on RankVicuna's orderings of four first stages' candidates; each pair of them is a list of its own."""
    pool, _ = _pool_2019()
    runs = DATA / "trec-dl-19-20" / "runs"
    lists, orderings = [], []
    for teacher, first_stage in TEACHERS.items():
        found = candidate_lists(pool, read_run(runs / f"dl19.firststage.{first_stage}.trec"))
        recorded = Recorded(runs / f"dl19.teacher.rankvicuna-over-{teacher}.trec")
        orderings += [replace(o, query_id=f"{o.query_id} {teacher}") for o in recorded(found)]
        lists += [replace(c, query_id=f"{c.query_id} {teacher}") for c in found]
    settings = Clone(steps=steps, evaluations=1, select="last", **SETTINGS)
    settings.run(policy, lists, orderings, Context("checkpoint"))


def _random_network(folder: Path, tiny: bool) -> None:
    """Write random weights of MiniLM's architecture, and a tokenizer with a word a token."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

    special = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    vocabulary = {word: i for i, word in enumerate([*special, *(f"w{i}" for i in range(WORDS))])}
    pieces = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    pieces.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    pieces.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    sizes = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64) if tiny else dict(
        hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536
    )  # fmt: skip
    torch.manual_seed(0)
    config = BertConfig(vocab_size=len(vocabulary), num_labels=1, initializer_range=0.1 if tiny else 0.05, **sizes)
    BertForSequenceClassification(config).save_pretrained(folder)
    PreTrainedTokenizerFast(
        tokenizer_object=pieces,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        model_max_length=512,
        **{f"{token[1:-1].lower()}_token": token for token in special},
    ).save_pretrained(folder)
