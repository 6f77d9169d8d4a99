"""Commands that measure: evaluate, robustness."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rerank.cli.options import (
    CollectionText,
    Device,
    DocumentTokens,
    Out,
    Precision,
    Window,
    Windowing,
)
from rerank.cli.terminal import app, console
from rerank.errors import InputError, NotFound


@app.command(rich_help_panel="Measure")
def evaluate(
    runs: Annotated[list[Path], typer.Argument(help="TREC runs; the others are tested against the first.")],
    qrels: Annotated[Path, typer.Option("--qrels", help="Judgements: TREC or BEIR.")],
    measure: Annotated[
        list[str], typer.Option("--measure", "-m", help="nDCG@10, RR@10, AP, R@100, P@10, Judged@10 ...")
    ] = [
        "nDCG@10",
        "RR@10",
        "AP",
        "R@100",
    ],
    out: Out = None,
) -> None:
    """Measure runs as trec_eval does, with paired tests against the first one."""
    from rerank.data import read_qrels, read_run
    from rerank.evaluation.tables import compare
    from rerank.experiment.workspace import write_json

    if len({path.resolve() for path in runs}) < len(runs):
        raise InputError(f"a run is given twice: {', '.join(map(str, runs))}")
    names = _names(runs)
    read = {name: read_run(path, name) for name, path in zip(names, runs, strict=True)}
    table = compare(read, read_qrels(qrels), measure, [(name, names[0]) for name in names[1:]])
    console.print(table.to_rich())
    for sentence in table.verdict():
        console.print(sentence, highlight=False)
    if out is not None:
        write_json(out, table.to_json())


@app.command(rich_help_panel="Measure")
def robustness(
    model: Annotated[str, typer.Argument(help="A model folder or hub id.")],
    collection: CollectionText,
    run: Annotated[Path, typer.Option("--run", help="Candidates: a TREC run or RankLLM JSON.")],
    depth: Annotated[int, typer.Option(min=2, help="Candidates a query.")] = 20,
    queries: Annotated[int, typer.Option(min=1, help="Queries that are tried.")] = 50,
    shuffles: Annotated[int, typer.Option(min=2, help="Orders in which each list is shown.")] = 5,
    json: Annotated[Path | None, typer.Option("--json", help="File to write, with all numbers.")] = None,
    device: Device = None,
    precision: Precision = "auto",
    window: Window = None,
    windowing: Windowing = None,
    document_tokens: DocumentTokens = None,
) -> None:
    """Ask what moves a model's rankings that should not: the order shown, and texts that ask for the first place."""
    from rerank.experiment.reranking import Loading
    from rerank.experiment.robustness import robustness_of, robustness_table
    from rerank.experiment.workspace import write_json

    if json is not None and not json.parent.is_dir():
        raise NotFound(f"--json {json}: there is no folder {json.parent}; make it first")
    loading = Loading(device, precision, window=window, windowing=windowing, document_tokens=document_tokens)
    found = robustness_of(model, collection, run, depth, queries, shuffles, loading)
    console.print(robustness_table(found))
    for sentence in found.sentences():
        console.print(sentence, highlight=False, soft_wrap=True, markup=False)
    if json is not None:
        write_json(json, found.to_json())


def _names(paths: list[Path]) -> list[str]:
    """A short name for each run: its stem, or its path where stems repeat."""
    stems = [path.name.removesuffix(".gz").removesuffix(".trec") for path in paths]
    return [stem if stems.count(stem) == 1 else str(path) for stem, path in zip(stems, paths, strict=True)]
