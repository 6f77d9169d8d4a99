"""Tiny rerankers for the tests of adapters, and the examples of modules' docstrings as code."""

import importlib
import textwrap

import torch

from rerank import Reranker
from rerank.models.backbones import load_cross_encoder
from rerank.models.policy import FirstStageWeights, ScorePolicy


def a_reranker(folder, std=0.3, first_stage=None):
    """A random cross-encoder over `folder`, whose scores differ from text to text; weights of first-stage scores."""
    scorer, _ = load_cross_encoder(str(folder), max_length=64, precision="float32", device="cpu")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(9)
        torch.nn.init.normal_(scorer.model[-1].linear.weight, std=std)
    weights = FirstStageWeights(first_stage) if first_stage else None
    return Reranker(ScorePolicy(scorer, weights, budget=300))


def constant_reranker(folder):
    """One that gives every text the same score."""
    return a_reranker(folder, std=0.0)


def snippet_of(module):
    """The indented lines of a module's docstring: the example that it shows."""
    lines = importlib.import_module(module).__doc__.splitlines()
    return textwrap.dedent("\n".join(line for line in lines if line.startswith("    ")))
