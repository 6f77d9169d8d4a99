"""A recipe, carried out: collections -> lists -> orderings -> clone -> refined and its control -> table -> report."""

from rerank.experiment.run import train

__all__ = ["train"]
