"""What one forward pass saves beside a written permutation: `python benchmarks/listwise.py [--only PART ...]`.

    speed      20 candidates ranked in one pass; by writing all 20 names under the mask, which feeds forced tokens in
               one go; and by as many tokens of transformers' own generation; the same model, candidates of 3 lengths
    malformed  answers to random prompts under the mask: how many are no permutation
    steps      a refine step of the one-pass model beside a clone step, on the same lists
    sizes      one list of 20 candidates of 128 tokens through real architectures with random weights: seconds and
               memory of ranking and of a LoRA training step (--device cuda on a GPU; the smallest alone on a CPU)

Models have random weights of real architectures: speed and form do not depend on what a model has learned. The parts
are run in turn and alternate within; figures are medians. Writes benchmarks/results/listwise.json.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from record import RESULTS, stamp

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import tiny_language_models as tiny
from hostile_prompts import faults_on, hostile_lists

from rerank.models.language.generative import GenerativePolicy, GenerativeScorer
from rerank.models.language.listwise import ListwiseScorer
from rerank.models.language.model import adapt
from rerank.models.language.next_tokens import padded_ids
from rerank.models.language.reading import Reading
from rerank.models.policy import ScorePolicy
from rerank.prompting.prompts import Prompt
from rerank.rewards import ndcg
from rerank.teachers import Judged
from rerank.training import Clone, Context, Log, Refine
from rerank.types import CandidateList

BRIEF = Prompt(instruction="Order the passages; each begins with its name and {mark}.", request="Best first:")
WORDS = "tea cup green water leaf pot boil steam black milk sugar taste warm time day hand light small long old".split()
SIZES: dict[str, dict[str, int]] = {
    "qwen3-0.6b": {"hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 16},
    "qwen3-4b": {"hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36, "num_attention_heads": 32},
    "qwen3-8b": {"hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36, "num_attention_heads": 32},
}
"""What decides the cost of the published models; all have 8 heads of keys and values of 128, and 151,936 tokens."""


def random_lists(n_lists: int, n: int, words: int, seed: int = 0) -> list[CandidateList]:
    """Judged lists of random words."""
    draw = random.Random(seed)
    return [
        CandidateList(
            f"q{i}",
            " ".join(draw.choices(WORDS, k=4)),
            tuple(f"d{k}" for k in range(n)),
            tuple(" ".join(draw.choices(WORDS, k=words)) for _ in range(n)),
            labels=tuple(int(k == i % n) for k in range(n)),
            pool=(1,),
        )
        for i in range(n_lists)
    ]


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """How long `work` takes."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


# -------------------------------------------------------------------------------------------------------------- parts
def speed(device: torch.device, turns: int) -> dict[str, Any]:
    """One pass beside generation, the same model and prompts, for candidates of several lengths."""
    return {
        "model": "Qwen3 architecture, hidden 256, 6 layers, random weights, float32",
        "by_length": [_speed(device, turns, words) for words in (2, 8, 20)],
    }


def _speed(device: torch.device, turns: int, words: int) -> dict[str, Any]:
    """Candidates of `words` words; do one pass and the written answer put the same one first?"""
    reading = Reading(window=20, document_tokens=128, query_tokens=32, prompt=BRIEF)
    network = tiny.model("qwen3", hidden=256, layers=6, heads=8, context=8192).to(device)
    tokens = tiny.tokenizer()
    one = ScorePolicy(ListwiseScorer(network, tokens, reading, "float32")).eval()
    written = GenerativePolicy(GenerativeScorer(network, tokens, reading, "float32")).eval()
    lists = random_lists(8, 20, words)
    with torch.inference_mode():
        firsts = [len({p.scores([c])[0].argmax().item() for p in (one, written)}) == 1 for c in lists]
    answer = len(tokens(" > ".join(f"[{name}]" for name in one.scorer.prompts.names))["input_ids"])
    took: dict[str, list[float]] = {"one pass": [], "written": [], "written token by token": []}
    for turn in range(turns):
        c = [lists[turn % len(lists)]]
        with torch.inference_mode():
            took["one pass"].append(seconds(lambda c=c: one.scores(c), device))
            took["written"].append(seconds(lambda c=c: written.scores(c), device))
            took["written token by token"].append(seconds(lambda c=c: _generated(one, c, answer), device))
    ratios = {n: [t / o for t, o in zip(took[n], took["one pass"], strict=True)] for n in list(took)[1:]}
    return {
        "prompt_tokens": len(one.item_scorer.encode(lists[:1])[0]),
        "answer_tokens": answer,
        "seconds_a_list": {name: statistics.median(values) for name, values in took.items()},
        "over_one_pass": {name: statistics.median(values) for name, values in ratios.items()},
        "over_one_pass_all": ratios,
        "same_candidate_first": sum(firsts) / len(firsts),
    }


def _generated(policy: ScorePolicy, lists: list[CandidateList], n: int) -> torch.Tensor:
    """`n` tokens as transformers generates them, one after another: how rerankers that parse their output are run."""
    scorer = policy.scorer
    ids, mask = padded_ids([item.ids for item in scorer.encode(lists)], 0, scorer.device)
    return scorer.model.generate(
        input_ids=ids, attention_mask=mask, min_new_tokens=n, max_new_tokens=n, do_sample=False, use_cache=True
    )


def malformed(device: torch.device, prompts: int) -> dict[str, Any]:
    """Answers to random prompts under the mask that the strict reader finds fault with."""
    found: Counter[str] = Counter(answers=0)
    for naming in ("numbers", "letters"):
        reading = Reading(window=20, document_tokens=12, query_tokens=8, naming=naming)
        network = tiny.model("llama", hidden=32, layers=1, heads=2).to(device)
        policy = GenerativePolicy(GenerativeScorer(network, tiny.tokenizer(), reading, "float32"), budget=32_768).eval()
        found += faults_on(policy, hostile_lists(prompts // 2, seed=len(found)), seed=0)
    return {"answers": found["answers"], "malformed": sum(found.values()) - found["answers"], "found": dict(found)}


def steps(device: torch.device, turns: int) -> dict[str, Any]:
    """A refine step beside a clone step of the one-pass model."""
    reading = Reading(window=20, document_tokens=32, query_tokens=16)
    network = tiny.model("qwen3", hidden=128, layers=4, heads=4, context=8192).to(device)
    policy = ScorePolicy(ListwiseScorer(network, tiny.tokenizer(), reading, "float32"))
    lists = random_lists(32, 20, 5)
    took: dict[str, list[float]] = {"clone": [], "refine": [], "refine anchored": []}
    for turn in range(turns):
        for stage in took:
            took[stage] += _pace(stage, policy, lists, turn)
    medians = {stage: statistics.median(values) for stage, values in took.items()}
    return {
        "seconds_a_step": medians,
        "refine_over_clone": medians["refine"] / medians["clone"],
        "anchored_over_clone": medians["refine anchored"] / medians["clone"],
    }


def _pace(stage: str, policy: ScorePolicy, lists: list[CandidateList], turn: int) -> list[float]:
    """Seconds of each step but the first."""
    shared: dict[str, Any] = {"steps": 6, "lists_per_step": 4, "list_size": 20, "evaluations": 1, "select": "last"}
    with tempfile.TemporaryDirectory() as folder:
        context = Context(stage, seed=turn, log=Log(Path(folder) / "metrics.jsonl"))
        if stage == "clone":
            Clone(loss="list_mle", **shared).run(policy, lists, Judged()(lists), context)
        else:
            anchor = 0.2 if stage == "refine anchored" else 0.0
            Refine(anchor=anchor, temperature=1.0, **shared).run(policy, lists, ndcg(10), context)
        context.log.close()
        records = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
    speeds = [record["pairs_per_second"] for record in records if "pairs_per_second" in record]
    return [80 / value for value in speeds[1:]]


def sizes(device: torch.device, names: list[str]) -> dict[str, Any]:
    """Seconds and memory of one list of 20 candidates of 128 tokens."""
    return {name: _size(device, name) for name in names}


def _size(device: torch.device, name: str) -> dict[str, Any]:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        vocab_size=151_936,
        num_key_value_heads=8,
        head_dim=128,
        max_position_embeddings=40_960,
        tie_word_embeddings=name != "qwen3-8b",
        **SIZES[name],
    )
    before = _memory(device)
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with device:
            network = Qwen3ForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(default)
    # The tiny tokenizer reads bytes, so a document of 128 letters has 128 tokens.
    reading = Reading(window=20, document_tokens=128, query_tokens=32)
    adapt(network, 16)
    network.activation_checkpointing_enable()
    scorer = ListwiseScorer(network, tiny.tokenizer(), reading, "bfloat16")
    weights = _memory(device) - before
    items = scorer.encode(random_lists(1, 20, 40))
    ranked: list[float] = []
    with torch.no_grad():
        for _ in range(2):
            ranked.append(seconds(lambda: scorer.logits(items), device))
    ranking = _memory(device) - before
    scorer.train()
    trained = [seconds(lambda: scorer.logits(items).logsumexp(0).backward(), device) for _ in range(2)]
    return {
        "parameters": sum(p.numel() for p in network.parameters()),
        "prompt_tokens": len(items[0]),
        "seconds_to_rank": ranked[-1],
        "seconds_to_train": trained[-1],
        "gib_weights": weights,
        "gib_ranking": ranking,
        "gib_training": _memory(device) - before,
        # The floor: training with checkpoints takes three times as many, adapters apart.
        "floating_operations_to_rank": 2.0 * sum(p.numel() for p in network.parameters()) * len(items[0]),
    }


def _memory(device: torch.device) -> float:
    """The most memory so far, in GiB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> None:
    """Measure, and write the result after each part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=["speed", "malformed", "steps", "sizes"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--prompts", type=int, default=10_000)
    parser.add_argument("--models", nargs="+", choices=SIZES, default=["qwen3-0.6b"])
    parser.add_argument("--out", type=Path, default=RESULTS / "listwise.json")
    asked = parser.parse_args()
    device = torch.device(asked.device)
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "speed": lambda: speed(device, asked.turns),
        "malformed": lambda: malformed(device, asked.prompts),
        "steps": lambda: steps(device, asked.turns),
        "sizes": lambda: sizes(device, asked.models),
    }
    found = json.loads(asked.out.read_text(encoding="utf8")) if asked.out.exists() else {}
    for name in asked.only or parts:
        found[name] = {**parts[name](), **stamp(), "device": asked.device, "torch": torch.__version__}
        asked.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf8")
        print(name, json.dumps(found[name], indent=1))


if __name__ == "__main__":
    main()
