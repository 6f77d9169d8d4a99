"""Rerankers inside other people's engines: thin adapters, each over the same `Reranker`."""
