"""The real servers that the clients are pointed to, and what in-process `rank` says of the same questions.

    plain      answers; at most 100 documents in a request
    full       a slow model behind a queue of 100 documents: 429 while it is crowded
    late       the slow model, and a millisecond for a question: 504
    loading    its model never comes: 503
    draining   the slow model again; who checks it ends it with SIGTERM while it reads

The models are random and tiny, with a real architecture and a tokenizer of bytes, so that no two texts look alike.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from questions import QUESTIONS

KEY = secrets.token_urlsafe(24)
KEY_NAME = "RERANK_CLIENT_CHECKS_KEY"
COMMAND = (sys.executable, "-c", "from rerank.cli import main; main()", "serve")
STARTING = 120.0
"""Seconds that a server may take to start."""
READS = 512
"""Tokens, here bytes, that a model reads."""
FLOAT32 = ("--precision", "float32", "--device", "cpu")


@dataclass
class Running:
    """A server that was started."""

    url: str
    model: str
    process: subprocess.Popen[bytes]

    @property
    def plan(self) -> dict[str, str]:
        """What a client is told of it."""
        return {"url": self.url, "key": KEY, "model": self.model}


def write_model(folder: Path, seed: int, hidden: int, layers: int, calibrated: bool = False) -> None:
    """Write a random cross-encoder with a tokenizer of bytes, through `Reranker.save_pretrained`."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

    from rerank import Reranker
    from rerank.models.calibration import Calibration

    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {piece: i for i, piece in enumerate([*special.values(), *letters])}
    pieces = Tokenizer(models.BPE(vocabulary, merges=[], unk_token="[UNK]"))
    pieces.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    pieces.decoder = decoders.ByteLevel()
    pieces.post_processor = processors.BertProcessing(("[SEP]", vocabulary["[SEP]"]), ("[CLS]", vocabulary["[CLS]"]))
    names = ["input_ids", "token_type_ids", "attention_mask"]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=pieces, model_input_names=names, model_max_length=READS, **special
    )
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        intermediate_size=2 * hidden,
        max_position_embeddings=READS,
        initializer_range=0.3 if hidden < 100 else 0.1,  # wide enough that texts get visibly different scores
        num_labels=1,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        BertForSequenceClassification(config).save_pretrained(folder / "plain")
    tokenizer.save_pretrained(folder / "plain")
    reranker = Reranker.from_pretrained(folder / "plain", device="cpu", precision="float32")
    if calibrated:
        reranker.policy.calibration = Calibration("affine", 0.7, -0.4)
    reranker.save_pretrained(folder)


def write_models(folder: Path) -> dict[str, Path]:
    """Name -> folder of the models: two to tell apart, a slow one, and one whose loading never ends."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    found = {name: folder / name for name in ("tiny", "other", "slow", "never")}
    write_model(found["tiny"], seed=1, hidden=32, layers=2)
    write_model(found["other"], seed=2, hidden=32, layers=2, calibrated=True)
    write_model(found["slow"], seed=3, hidden=128, layers=3)
    found["never"].mkdir()
    os.mkfifo(found["never"] / "rerank.json")  # who opens it waits for somebody to write
    return found


def answered_in_process(models: dict[str, Path]) -> dict[str, Any]:
    """The questions, each with its ranking: (index, relevance) best first."""
    from rerank import Reranker

    rerankers = {
        name: Reranker.from_pretrained(models[name], device="cpu", precision="float32") for name in ("tiny", "other")
    }
    found = {}
    for name, (model, query, documents) in QUESTIONS.items():
        hits = rerankers[model].rank(query, documents, probabilities=rerankers[model].calibrated())
        ranking = [(hit.index, hit.relevance) for hit in hits]
        found[name] = {"query": query, "documents": documents, "ranking": ranking}
    return found


@contextlib.contextmanager
def running(models: dict[str, Path], logs: Path) -> Iterator[dict[str, Running]]:
    """Name -> server, ended when this ends."""
    both = (f"tiny={models['tiny']}", f"other={models['other']}")
    slow = f"tiny={models['slow']}"
    wanted = {
        "plain": (*both, *FLOAT32, "--max-documents", "100"),
        "full": (slow, *FLOAT32, "--queue", "100"),
        "late": (slow, *FLOAT32, "--timeout", "0.001"),
        "loading": (f"tiny={models['never']}", *FLOAT32),
        "draining": (slow, *FLOAT32),
    }
    found: dict[str, Running] = {}
    with contextlib.ExitStack() as stack:
        for name, arguments in wanted.items():
            found[name] = stack.enter_context(_started(name, arguments, logs))
        for name, server in found.items():
            _await(server, "/live" if name == "loading" else "/ready", logs / f"server-{name}.log")
        yield found


@contextlib.contextmanager
def _started(name: str, arguments: tuple[str, ...], logs: Path) -> Iterator[Running]:
    port = _free_port()
    environment = {**os.environ, KEY_NAME: KEY, "HF_HUB_OFFLINE": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    command = [*COMMAND, *arguments, "--port", str(port), "--key-env", KEY_NAME]
    with open(logs / f"server-{name}.log", "wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
    try:
        yield Running(f"http://127.0.0.1:{port}", "tiny", process)
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def _await(server: Running, path: str, log: Path) -> None:
    """Return when the server answers 200 at `path`; RuntimeError with its log where it ends before."""
    until = time.monotonic() + STARTING
    while time.monotonic() < until:
        if server.process.poll() is not None:
            break
        with contextlib.suppress(OSError, urllib.error.HTTPError):
            with urllib.request.urlopen(server.url + path, timeout=5):
                return
        time.sleep(0.1)
    raise RuntimeError(f"a server did not start:\n{log.read_text('utf8', 'replace')[-3000:]}")
