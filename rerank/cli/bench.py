"""The command that measures whole suites: bench."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rerank.cli.options import Device, DocumentTokens, Overwrite, Precision, Window, Windowing, out_option
from rerank.cli.terminal import GO_ON, app, command_line, console, interruptible, writing_to
from rerank.errors import InputError


@app.command(rich_help_panel="Measure")
def bench(
    suite: Annotated[
        str,
        typer.Argument(
            help="beir, nano-beir, msmarco-dev, trec-dl-19 to trec-dl-23, bright, or `local:FOLDER` (a folder of BEIR "
            "folders)."
        ),
    ],
    model: Annotated[
        list[str],
        typer.Option(
            "--model",
            help="NAME=WHERE or WHERE: a folder, a hub id, or the URL of a rerank endpoint (`tei+http://...#MODEL`). "
            "The first one is the others' baseline.",
        ),
    ] = [],
    first_stage: Annotated[
        list[str],
        typer.Option(
            "--first-stage", "-f", help="bm25, dense, hybrid, or [NAME=] a TREC run or a folder of them (SET.trec)."
        ),
    ] = ["bm25"],
    out: Annotated[Path | None, out_option("Folder to work in; default: runs/bench-SUITE.")] = None,
    only: Annotated[list[str], typer.Option("--set", "-s", help="These sets of the suite alone.")] = [],
    judged_pool: Annotated[
        list[str], typer.Option("--judged-pool", help="A set whose candidates are its judged documents.")
    ] = [],
    key: Annotated[
        list[str],
        typer.Option("--key", help="NAME=VARIABLE: the environment variable with the key of endpoint NAME."),
    ] = [],
    qrels: Annotated[list[str], typer.Option("--qrels", help="SET=FILE: judgements in place of the set's own.")] = [],
    measure: Annotated[
        list[str], typer.Option("--measure", help="In place of the suite's; the first is the one that is tested.")
    ] = [],
    probe: Annotated[
        list[str],
        typer.Option("--probe", "-p", help="shuffle, distract, n-1, typos, first-stage (of two), or all."),
    ] = [],
    depth: Annotated[int, typer.Option(min=1, help="Candidates a query.")] = 100,
    limit: Annotated[int | None, typer.Option(min=1, help="Queries of each set, chosen by their ids.")] = None,
    encoder: Annotated[str, typer.Option(help="Bi-encoder of dense and hybrid: folder, hub id, or minilm.")] = "minilm",
    overwrite: Overwrite = False,
    device: Device = None,
    precision: Precision = "auto",
    max_length: Annotated[int | None, typer.Option(help="Cross-encoders: tokens of a pair.")] = None,
    backend: Annotated[str, typer.Option(help="torch, onnx or vllm.")] = "torch",
    window: Window = None,
    windowing: Windowing = None,
    document_tokens: DocumentTokens = None,
) -> None:
    """Measure rerankers on a suite of collections, side by side, with tests, speed, probes and a report.

    `rerank bench local:data --model runs/quickstart/model/light -f bm25 -f dense`

    `rerank bench beir --model mine=runs/my-search/model --model theirs=http://localhost:8080/rerank -s scifact`

    The same command goes on after an interruption; what is finished is not repeated.
    """
    from rerank.bench import bench as carry_out
    from rerank.bench import model_choices, suite_named
    from rerank.evaluation.probes import PROBES
    from rerank.experiment.reranking import Loading

    # Another first stage's candidates can be shown only where there is another first stage.
    every = [name for name in PROBES if name != "first-stage" or len(first_stage) > 1]
    wanted = [one for name in probe for one in (every if name == "all" else (name,))]
    chosen = suite_named(suite, only, judged_pool)
    folder = out or Path("runs") / f"bench-{chosen.name.replace(':', '-').replace('/', '-')}"
    loading = Loading(device, precision, max_length, backend, window, windowing, document_tokens)
    with interruptible(GO_ON[overwrite]), writing_to(folder):
        carry_out(
            chosen,
            model_choices(model, _pairs(key, "--key")),
            first_stage,
            folder,
            depth=depth,
            probes=wanted,
            measures=measure,
            encoder=encoder,
            loading=loading,
            limit=limit,
            overwrite=overwrite,
            console=console,
            command=command_line(),
            qrels={name: Path(path) for name, path in _pairs(qrels, "--qrels").items()},
        )


def _pairs(given: list[str], option: str) -> dict[str, str]:
    """What stands on both sides of each `=`."""
    found: dict[str, str] = {}
    for text in given:
        name, mark, value = text.partition("=")
        if not mark or not name or not value:
            raise InputError(f"{option} {text!r} is not two words with a = between them")
        if name in found:
            raise InputError(f"{option} names {name!r} twice")
        found[name] = value
    return found
