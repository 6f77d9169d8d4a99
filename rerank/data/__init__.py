"""Collections, runs and judgements: from files, catalogues and Python objects to lists of candidates."""

from rerank.data.beir import read_beir
from rerank.data.code_search import read_code
from rerank.data.collection import (
    candidate_lists,
    check_disjoint,
    collection_from,
    fingerprint,
    hold_out,
    load_collection,
)
from rerank.data.formats import read_rankllm, read_texts, write_rankllm
from rerank.data.ir_datasets import read_ir_dataset
from rerank.data.trec import read_qrels, read_run, write_qrels, write_run

__all__ = [
    "candidate_lists",
    "check_disjoint",
    "collection_from",
    "fingerprint",
    "hold_out",
    "load_collection",
    "read_beir",
    "read_code",
    "read_ir_dataset",
    "read_qrels",
    "read_rankllm",
    "read_run",
    "read_texts",
    "write_qrels",
    "write_rankllm",
    "write_run",
]
