"""The other side of each comparison: the same lists through `Reranker` in a process of its own, without a server.

The child reads a line of JSON for each piece of work and writes one: lists in, scores and times out. Its thread counts
are those of the server.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, final

from serving.material import Question
from serving.server import surroundings


class Ranking(NamedTuple):
    """What the child did with some lists."""

    seconds: float
    latencies: list[float]
    """Seconds of each call."""
    scores: list[list[float]]
    """The logit of each document of each list, in the order of the documents."""


@final
class Inside:
    """A child that has a model loaded."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def rank(self, questions: Sequence[Question], together: int = 1) -> Ranking:
        """`Reranker.rank` of each question, or `rank_many` of so many `together`."""
        work = {"questions": [list(question) for question in questions], "together": together}
        if self.process.stdin is None or self.process.stdout is None:
            raise RuntimeError("the child has no pipes")
        self.process.stdin.write(json.dumps(work) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the child ended with {self.process.wait()}")
        return Ranking(**json.loads(answer))


@contextlib.contextmanager
def inside(model: Path, threads: int, precision: str = "auto") -> Iterator[Inside]:
    """A child with the model at a path."""
    script = Path(__file__).parents[1] / "serving.py"
    command = [sys.executable, str(script), "--child", json.dumps({"model": str(model), "precision": precision})]
    environment = {**os.environ, **surroundings(threads)}
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        yield Inside(process)
    finally:
        if process.stdin is not None:
            process.stdin.close()
        process.wait(30)
        if process.stdout is not None:
            process.stdout.close()


def child(model: str, precision: str) -> None:
    """Nothing; lists are ranked until there are no more."""
    from rerank.reranker import Reranker

    reranker = Reranker.from_pretrained(model, "cpu", precision)
    for line in sys.stdin:
        print(json.dumps(_ranked(reranker, **json.loads(line))._asdict()), flush=True)


def _ranked(reranker: Any, questions: list[tuple[str, list[str]]], together: int) -> Ranking:
    hits, calls = [], []
    start = time.perf_counter()
    for first in range(0, len(questions), together):
        began = time.perf_counter()
        if together == 1:
            hits.append(reranker.rank(*questions[first]))
        else:
            hits += reranker.rank_many(questions[first : first + together])
        calls.append(time.perf_counter() - began)
    seconds = time.perf_counter() - start
    scores = [[hit.score for hit in sorted(found, key=lambda hit: hit.index)] for found in hits]
    return Ranking(seconds, calls, scores)
