"""The server under load: `python benchmarks/serving.py [PART ...] [--quick] [--minutes 10]`.

    throughput   8 clients with 20 documents each beside `Reranker.rank` of the same lists; the floor of HTTP
    queue        three times the capacity is offered: how long what is accepted takes, beside the queue's own bound
    batching     small requests: turns that several share beside `--one-at-a-time`; three models
    fuzz         1,000 malformed requests, held connections, schemathesis: faults, memory
    soak         ten minutes of everything: lost and wrong answers, counts, memory; SIGTERM with requests in flight
    peer         beside infinity_emb serving the same checkpoint (--infinity FOLDER, an environment that has it)

Server, in-process side and client are three processes; the first two have --threads threads each (all cores) and never
compute at once; what the client takes of a core is in the result. Parts are described in benchmarks/serving/.

Writes benchmarks/results/serving.json, a section for each part, with its date, commit and hardware (a --quick run only
with --out), and prints a table. A full run takes about half an hour on two cores, a quick one three minutes; nothing
else should run meanwhile. schemathesis is looked for on the PATH, or given by --schemathesis.
"""

from __future__ import annotations

import os

# Before torch is imported: threads that wait must not spin, and nobody asks the hub.
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from record import RESULTS, stamp
from serving.batching import batching
from serving.fuzz import fuzz
from serving.inside import child
from serving.material import Material, material
from serving.overload import overload
from serving.peer import peer
from serving.plan import FULL, QUICK, TINY, Plan
from serving.soak import soak
from serving.throughput import throughput

PARTS = ("throughput", "queue", "batching", "fuzz", "soak", "peer")
PACKAGES = ("torch", "transformers", "fastapi", "uvicorn", "h11")


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)} (default: all)")
    parser.add_argument("--quick", action="store_true", help="three minutes: is it in order?")
    parser.add_argument("--tiny", action="store_true", help="random tiny weights, made-up texts: does the script work?")
    parser.add_argument("--minutes", type=float, help="of the soak")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of server and in-process side")
    parser.add_argument("--infinity", type=Path, help="an environment that has infinity_emb 0.0.78")
    parser.add_argument("--schemathesis", default=shutil.which("st"), help="the program st")
    parser.add_argument("--out", type=Path, help="where the result is written")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    given = parser.parse_args()
    unknown = sorted(set(given.parts) - set(PARTS))
    if unknown:
        parser.error(f"parts are {', '.join(PARTS)}, not {', '.join(unknown)}")
    if "peer" in given.parts and given.infinity is None:
        parser.error("peer needs --infinity FOLDER, an environment that has infinity_emb 0.0.78")
    if given.threads < 1 or (given.minutes is not None and given.minutes <= 0):
        parser.error("--threads is at least 1, --minutes above 0")
    return given


def works(given: argparse.Namespace, plan: Plan, found: Material) -> dict[str, Callable[[], dict[str, Any]]]:
    """What measures each part that is asked for."""
    asked = given.parts or [part for part in PARTS if part != "peer" or given.infinity is not None]
    threads = given.threads
    known: dict[str, Callable[[], dict[str, Any]]] = {
        "throughput": lambda: throughput(plan, found, threads),
        "queue": lambda: overload(plan, found, threads),
        "batching": lambda: batching(plan, found, threads),
        "fuzz": lambda: fuzz(plan, found, threads, given.schemathesis),
        "soak": lambda: soak(plan, found, threads),
        "peer": lambda: peer(plan, found, threads, given.infinity),
    }
    return {part: work for part, work in known.items() if part in asked}


def measure(given: argparse.Namespace, plan: Plan, place: Path | None) -> dict[str, Any]:
    """The sections that were measured; each is written as soon as it is there, beside those of before."""
    content = json.loads(place.read_text(encoding="utf8")) if place is not None and place.exists() else {}
    measured = {}
    with tempfile.TemporaryDirectory() as folder:
        found = material(plan, Path(folder))
        for part, work in works(given, plan, found).items():
            print(time.strftime("%H:%M:%S"), part, file=sys.stderr, flush=True)
            start = time.perf_counter()
            figures = work()
            facts = {**stamp(), "threads": given.threads, "versions": {name: version(name) for name in PACKAGES}}
            facts |= {"quick": plan != FULL, "source": found.source, "seconds_of_all": time.perf_counter() - start}
            content[part] = measured[part] = {**facts, **figures}
            if place is not None:
                place.write_text(json.dumps(content, indent=1) + "\n", encoding="utf8")
            print(table(part, figures), flush=True)
    return measured


def table(part: str, figures: dict[str, Any]) -> str:
    """The figures that a person looks for first, a line each."""
    named = {
        "throughput": ("pairs_per_second", "ratios", "latency_server", "latency_inside", "floor_of_http"),
        "queue": ("ratios",),
        "batching": ("ratios",),
        "fuzz": ("requests", "faults", "faults_first", "memory", "held connections", "schemathesis", "alive"),
        "soak": ("requests", "statuses", "lost", "wrong", "first_problems", "counts", "memory", "ending"),
        "peer": ("ratios", "pairs_per_second", "latency", "largest_score_difference"),
    }[part]
    shown = {name: figures[name] for name in (*named, "client_share_of_a_core", "required") if name in figures}
    return "\n".join([f"{part}", *(f"  {name:24} {_short(value)}" for name, value in shown.items())])


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return ", ".join(f"{name} {_short(one)}" for name, one in value.items())
    return str(value)


def main() -> None:
    """Measure, write, print."""
    given = arguments()
    if given.child:
        child(**json.loads(given.child))
        return
    plan = TINY if given.tiny else QUICK if given.quick else FULL
    plan = plan if given.minutes is None else replace(plan, soak_minutes=given.minutes)
    measure(
        given,
        plan,
        given.out or (None if plan in (QUICK, TINY) or given.quick or given.tiny else RESULTS / "serving.json"),
    )


if __name__ == "__main__":
    main()
