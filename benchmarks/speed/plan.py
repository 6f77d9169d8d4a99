"""How much is measured: in full, quickly (two minutes on two cores), or only enough to see that the script works."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import final


@final
@dataclass(frozen=True)
class Plan:
    """The amounts of one run."""

    queries: int = 54
    """Lists of TREC DL 2020 that are scored; each round takes its own share of them."""
    depth: int = 100
    rounds: int = 6
    long_queries: int = 12
    """Lists of long documents (SciFact)."""
    long_depth: int = 30
    long_rounds: int = 3
    trial_pairs: int = 192
    """Pairs on which the best batch size of sentence-transformers is looked for."""
    batch_sizes: tuple[int, ...] = (16, 32, 64, 128)
    latency_queries: int = 6
    latency_documents: tuple[int, ...] = (20, 100)
    shapes: tuple[tuple[int, int], ...] = ((8, 32), (1, 256))
    """(lists a step, documents a list) of training. With 512 pairs a step, as on GPUs, sentence-transformers wants more
    than 23 GB where its dropout is as configured: the system ended it."""
    losses: tuple[tuple[str, int], ...] = (("lambda", 2), ("listnet", 1))
    """(loss, rounds)."""
    steps: int = 1
    """Optimizer steps of a round."""
    trial_documents: int = 128
    mini_batch_sizes: tuple[int, ...] = (8, 16, 32, 64, 128)
    memory: tuple[int, ...] = (8, 32, 128, 512)
    """Documents of the lists whose training memory is measured."""
    memory_float32: tuple[int, ...] = (32, 512)
    peer_memory: tuple[int, ...] = (32, 128)
    clone_steps: int = 120
    """Steps of the short training that makes the checkpoint."""
    tiny: bool = False
    """Random weights of a tiny network, made-up texts: nothing is measured, only tried."""


FULL = Plan()
QUICK = Plan(
    queries=4,
    depth=50,
    rounds=2,
    long_queries=3,
    long_depth=6,
    long_rounds=1,
    trial_pairs=32,
    batch_sizes=(16, 32),
    latency_queries=2,
    latency_documents=(20,),
    shapes=((4, 16), (1, 64)),
    losses=(("lambda", 1),),
    trial_documents=24,
    mini_batch_sizes=(8, 24),
    memory=(32, 128),
    memory_float32=(),
    peer_memory=(32,),
    clone_steps=10,
)
TINY = replace(
    QUICK,
    queries=2,
    depth=8,
    long_queries=2,
    long_depth=6,
    trial_pairs=16,
    batch_sizes=(8, 32),
    shapes=((2, 8), (1, 16)),
    losses=(("lambda", 1), ("listnet", 1)),
    trial_documents=8,
    mini_batch_sizes=(4,),
    memory=(4, 16),
    peer_memory=(4,),
    tiny=True,
)


def on_gpu(plan: Plan) -> Plan:
    """The plan with amounts that keep a GPU busy for long enough to be timed."""
    if plan.tiny:
        return plan
    full = plan.clone_steps == FULL.clone_steps
    return replace(
        plan,
        queries=54,
        depth=100,
        rounds=6 if full else 2,
        long_queries=36 if full else 8,
        long_depth=100,
        trial_pairs=2048 if full else 512,
        batch_sizes=(32, 64, 128, 256, 512),
        latency_queries=40 if full else 8,
        latency_documents=FULL.latency_documents,
        shapes=((16, 32), (1, 512)),
        losses=(("lambda", 5 if full else 2), ("listnet", 3 if full else 1)),
        steps=6 if full else 2,
        trial_documents=512,
        mini_batch_sizes=(16, 32, 64, 128, 256, 512),
        memory=FULL.memory,
        memory_float32=FULL.memory_float32,
        peer_memory=(32, 128, 512),
        clone_steps=FULL.clone_steps,
    )
