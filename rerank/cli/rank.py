"""Commands that find and rank: retrieve, rank, merge, export."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from rerank.cli.options import (
    CollectionText,
    Device,
    DocumentTokens,
    Overwrite,
    Precision,
    ShardText,
    Window,
    Windowing,
    out_option,
)
from rerank.cli.terminal import GO_ON, app, console, errors, interruptible, say_part, visible
from rerank.errors import InputError


@app.command(rich_help_panel="Rank")
def retrieve(
    collection: CollectionText,
    out: Annotated[Path, out_option("The TREC run to write.")],
    retriever: Annotated[list[str], typer.Option("--retriever", help="bm25 or dense; give both to fuse them.")] = [
        "bm25"
    ],
    fusion: Annotated[str, typer.Option(help="rrf or weighted.")] = "rrf",
    depth: Annotated[int, typer.Option(min=1, help="Documents a query.")] = 100,
    encoder: Annotated[
        str, typer.Option(help="Bi-encoder of the dense retriever: folder, hub id, or minilm.")
    ] = "minilm",
    index: Annotated[str, typer.Option(help="flat (exact), hnsw or ivf.")] = "flat",
    language: Annotated[str, typer.Option(help="Language of BM25's stemmer; `code` splits identifiers.")] = "english",
    shard: ShardText = None,
    overwrite: Overwrite = False,
    device: Device = None,
    precision: Precision = "auto",
) -> None:
    """Find candidates with BM25, FAISS, or both, and write a TREC run."""
    from rerank.experiment.reranking import Loading
    from rerank.experiment.retrieving import retrieve_run
    from rerank.experiment.shards import Shard
    from rerank.recipe import Retrieval

    if index not in ("flat", "hnsw", "ivf"):
        raise InputError(f"--index {index!r} is not one of flat, hnsw, ivf")
    settings = Retrieval(retrievers=tuple(retriever), index=index, language=language)  # type: ignore[arg-type]
    loading, part = Loading(device, precision), Shard.parse(shard)
    with interruptible(GO_ON[overwrite]):
        done = retrieve_run(collection, out, settings, fusion, depth, encoder, loading, part, overwrite, errors)
    say_part(done, f", up to {depth} documents each")


@app.command(rich_help_panel="Rank")
def rank(
    model: Annotated[str, typer.Argument(help="A model folder, e.g. runs/quickstart/model, or a hub id.")],
    query: Annotated[
        str | None, typer.Option("--query", "-q", help="Rank the documents of --documents for this query.")
    ] = None,
    documents: Annotated[
        Path | None, typer.Option("--documents", "-d", help="One text a line, or JSONL with `text`.")
    ] = None,
    collection: Annotated[
        str | None, typer.Option("--collection", "-c", help="Rerank a run of this collection.")
    ] = None,
    run: Annotated[Path | None, typer.Option("--run", help="The run to rerank.")] = None,
    requests: Annotated[
        Path | None, typer.Option("--requests", help="RankLLM requests to rerank; --out is then RankLLM JSON.")
    ] = None,
    out: Annotated[Path | None, out_option("The TREC run to write; of --requests, RankLLM JSON.")] = None,
    depth: Annotated[int | None, typer.Option(min=1, help="Rerank only the first candidates.")] = None,
    top_k: Annotated[int | None, typer.Option(min=1, help="Documents to print (10).")] = None,
    probabilities: Annotated[
        bool, typer.Option("--probabilities", help="Print how probably each document is relevant, not its logit.")
    ] = False,
    min_probability: Annotated[
        float | None, typer.Option(min=0.0, max=1.0, help="Leave out less probable documents.")
    ] = None,
    shard: ShardText = None,
    overwrite: Overwrite = False,
    device: Device = None,
    precision: Precision = "auto",
    max_length: Annotated[
        int | None, typer.Option(help="Cross-encoders: tokens of a pair; default: the model's own.")
    ] = None,
    backend: Annotated[
        str, typer.Option(help="torch; onnx: a model that was exported; vllm: a language model, on GPUs.")
    ] = "torch",
    window: Window = None,
    windowing: Windowing = None,
    document_tokens: DocumentTokens = None,
) -> None:
    """Rank documents for a query, or rerank a whole run.

    One query:  `rerank rank MODEL -q "read a csv file" -d texts.txt`

    A run:      `rerank rank MODEL -c ../scifact#test --run bm25.trec --out reranked.trec`

    RankLLM:    `rerank rank MODEL --requests requests.jsonl --out results.jsonl`

    In parts:   the same with `--shard 1/4` to `--shard 4/4`, anywhere; then `rerank merge reranked.trec`
    """
    from rerank.experiment.reranking import Loading, rank_texts, rerank_requests, rerank_run
    from rerank.experiment.shards import Shard

    _check_apart((query, documents), (collection, run, out, shard, requests), (probabilities, min_probability, top_k))
    loading = Loading(device, precision, max_length, backend, window, windowing, document_tokens)
    if query is not None and documents is not None:
        if not query.strip():
            raise InputError("--query is empty; give the words to rank for")
        for hit in rank_texts(model, query, documents, top_k or 10, probabilities, min_probability, loading):
            shown = hit.probability if probabilities else hit.score
            console.print(f"{shown:9.3f}  {visible(hit.text)}", highlight=False, soft_wrap=True, markup=False)
    elif requests is not None and out is not None:
        if (collection, run, shard) != (None, None, None):
            raise InputError("--requests bring their own texts and candidates: leave out --collection, --run, --shard")
        with interruptible(GO_ON[overwrite]):
            say_part(rerank_requests(model, requests, out, depth, loading, overwrite, errors))
    elif collection is not None and run is not None and out is not None:
        part = Shard.parse(shard)
        with interruptible(GO_ON[overwrite]):
            say_part(rerank_run(model, collection, run, out, depth, loading, part, overwrite, errors))
    else:
        raise InputError("give --query and --documents, or --collection, --run and --out, or --requests and --out")


def _check_apart(one: tuple[Any, ...], whole: tuple[Any, ...], shown: tuple[Any, ...]) -> None:
    """Nothing, where the options given are those of one query or those of a run, and not of both."""
    if all(part is None for part in whole):
        return
    if any(part is not None for part in one):
        raise InputError("--query and --documents rank one query; --collection, --run, --out and --shard a run")
    if shown != (False, None, None):
        raise InputError(
            "--top-k, --probabilities and --min-probability speak of one query, and --collection, --run and --out of a "
            "whole run, which keeps all its documents: leave them out"
        )


@app.command(rich_help_panel="Rank")
def merge(
    parts: Annotated[list[Path], typer.Argument(help="The parts, or the --out that they were made with.")],
    out: Annotated[Path | None, out_option("The run to write; default: the parts' own --out.")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Put the parts of `rank --shard` or `retrieve --shard` together, once all are there and of one job.

    `rerank merge reranked.trec`, or `rerank merge parts/reranked.trec.shard-* --out reranked.trec`
    """
    from rerank.experiment.merging import merge_parts

    say_part(merge_parts(parts, out, overwrite))


@app.command(rich_help_panel="Rank")
def export(
    model: Annotated[str, typer.Argument(help="A model folder or hub id.")],
    to: Annotated[str, typer.Option("--to", help="onnx.")] = "onnx",
    int8: Annotated[bool, typer.Option("--int8", help="Weights in 8 bits: smaller, faster on CPUs.")] = False,
    out: Annotated[Path | None, out_option("Folder to write; default: the model's own.")] = None,
) -> None:
    """Write a model for another runtime; `rank --backend onnx` uses it."""
    from rerank.models.exporting import export_onnx

    if to != "onnx":
        raise InputError(f"--to {to!r} is not known; onnx is what can be written")
    console.print(f"{export_onnx(model, out, int8)}", highlight=False, soft_wrap=True)
