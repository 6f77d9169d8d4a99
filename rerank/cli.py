"""The command line: a few lines for each command, over the same functions that Python users call."""

from __future__ import annotations

import logging
import os
import re
import shlex
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.logging import RichHandler

from rerank.errors import InputError, NotFound, RerankError

app = typer.Typer(
    help="Clone a teacher's orderings, refine against the metric you report, prove the gain, use the result.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
STEERING = re.compile("[\x00-\x08\n-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Characters that move a terminal's cursor, change its state, end a line or turn the direction of text."""

console = Console()
errors = Console(stderr=True)

Out = Annotated[Path | None, typer.Option("--out", help="Folder or file to write to.")]
CollectionText = Annotated[
    str,
    typer.Argument(
        help="A BEIR folder `PATH#SPLIT`, `ir_datasets:ID`, `code` (functions of your Python installation), "
        "`code:PATH`, or `rankllm:FILE`."
    ),
]

ShardText = Annotated[
    str | None, typer.Option("--shard", help="I/N: this part of the queries alone, e.g. 1/4; then `rerank merge`.")
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Do anew what is there, and write over it, whatever it is.")
]
Device = Annotated[str | None, typer.Option("--device", help="cpu, cuda, cuda:1, mps; default: the first GPU.")]
Precision = Annotated[str, typer.Option("--precision", help="auto, float32, bfloat16, float16; onnx: float32, int8.")]
DocumentTokens = Annotated[
    int | None, typer.Option("--document-tokens", min=1, help="Language models: tokens of each document.")
]
Window = Annotated[int | None, typer.Option("--window", min=2, help="Language models: candidates in one prompt.")]
Windowing = Annotated[
    str | None,
    typer.Option("--windowing", help="Language models, longer lists: sliding, full, disjoint, tournament, setwise."),
]


@app.command()
def quickstart(
    out: Annotated[Path, typer.Option("--out", help="Folder of the run.")] = Path("runs/quickstart"),
    code: Annotated[
        Path | None, typer.Option("--code", help="Search this repository instead of Python's library.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run.")] = False,
    small: Annotated[
        bool, typer.Option("--small", help="The light scorer alone, on fewer queries: under a minute.")
    ] = False,
) -> None:
    """Watch a reranker learn from a teacher and then pass it, on real text that is already on your machine.

    Documents are the functions of Python's standard library, queries the first sentences of their docstrings.
    Needs the small encoder of the extra: pip install 'rerank[quickstart]'.
    """
    from rerank.experiment import train as carry_out
    from rerank.recipe import parse_recipe

    text = files("rerank").joinpath("quickstart-small.toml" if small else "quickstart.toml").read_text(encoding="utf8")
    if code is not None:
        if '"' in str(code) or "\\" in str(code.as_posix()):
            raise InputError(f"--code {code}: a path with quotes or backslashes cannot be written into a recipe")
        text = text.replace('"code#', f'"code:{code.resolve().as_posix()}#')
    with _interruptible():
        loaded = parse_recipe(text, Path.cwd(), "quickstart")
        carry_out(loaded, out, resume, console, _command())
    _next_steps(out, loaded.models[0].name)


@app.command()
def train(
    recipe: Annotated[Path, typer.Argument(help="A recipe (TOML).")],
    out: Annotated[Path | None, typer.Option("--out", help="Folder of the run; default: runs/NAME.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run.")] = False,
) -> None:
    """Carry out a recipe: retrieve, teach, clone, refine, compare with the control, report."""
    from rerank.experiment import train as carry_out
    from rerank.recipe import load_recipe

    with _interruptible():
        loaded = load_recipe(recipe)
        folder = out or Path("runs") / loaded.name
        carry_out(loaded, folder, resume, console, _command())
    _next_steps(folder, loaded.models[0].name)


@app.command()
def retrieve(
    collection: CollectionText,
    out: Annotated[Path, typer.Option("--out", help="The TREC run to write.")],
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
    with _interruptible(""):
        done = retrieve_run(collection, out, settings, fusion, depth, encoder, loading, part, overwrite, errors)
    _say_part(done, f", up to {depth} documents each")


@app.command()
def teach(
    collection: CollectionText,
    run: Annotated[Path, typer.Option("--run", help="Candidates: a TREC run or RankLLM JSON.")],
    out: Annotated[Path, typer.Option("--out", help="Orderings (JSONL) to write or to complete.")],
    teacher: Annotated[str, typer.Option(help="recorded, scored, judged, chat.")] = "scored",
    recording: Annotated[list[Path], typer.Option("--recording", help="recorded: TREC run or RankLLM JSON.")] = [],
    model: Annotated[
        str | None, typer.Option("--model", help="scored: a model, folder or hub id; chat: its name at the endpoint.")
    ] = None,
    url: Annotated[
        str | None, typer.Option("--url", help="chat: an OpenAI-compatible endpoint, as far as /v1.")
    ] = None,
    settings: Annotated[
        list[str], typer.Option("--set", help="chat: NAME=VALUE (TOML) of rerank.teachers.ChatSettings.")
    ] = [],
    depth: Annotated[int | None, typer.Option(min=2, help="Order only the first candidates of the run.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="chat: say what it would take, and ask nothing.")] = False,
) -> None:
    """Ask a teacher for its orderings of a run's candidates; answers are kept, so asking again is free.

    A language model:  `rerank teach ... --teacher chat --url http://localhost:8000/v1 --model NAME --dry-run`
    """
    from rerank.experiment.teaching import estimate_run, teach_run
    from rerank.recipe import TeacherChoice
    from rerank.toml import parse_settings

    if teacher not in ("recorded", "scored", "judged", "chat"):
        raise InputError(f"--teacher {teacher!r} is not one of recorded, scored, judged, chat")
    if teacher == "recorded" and not recording:
        raise InputError("--teacher recorded needs --recording: the TREC runs or RankLLM files to take orderings from")
    if teacher == "scored" and model is None:
        raise InputError("--teacher scored needs --model: a cross-encoder or bi-encoder, by folder or hub id")
    chat: dict[str, Any] = {}
    if teacher == "chat":
        given = {"url": url, "model": model}
        chat = parse_settings(settings, "--set") | {name: value for name, value in given.items() if value is not None}
    elif url is not None or settings:
        raise InputError(f"--url and --set are of --teacher chat, not of {teacher!r}")
    choice = TeacherChoice(kind=teacher, model=model, chat=chat)  # type: ignore[arg-type]
    with _interruptible(""):
        if dry_run:
            found = estimate_run(collection, run, out, choice, depth)
            cost = "unknown cost (give price_in and price_out)" if found.cost is None else f"a cost of {found.cost:.2f}"
            console.print(
                f"{found.requests} requests for {found.lists} lists ({found.cached} answers are there already): about "
                f"{found.tokens_in:,} tokens in, {found.tokens_out:,} out, {cost}",
                highlight=False,
                soft_wrap=True,
            )
            return
        console.print(teach_run(collection, run, out, choice, recording, depth), highlight=False, soft_wrap=True)


@app.command()
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


@app.command()
def audit(
    collection: CollectionText,
    run: Annotated[Path, typer.Option("--run", help="Candidates: a TREC run or RankLLM JSON.")],
    model: Annotated[
        str | None, typer.Option("--model", help="A model folder or hub id; without one, the run's own ranking.")
    ] = None,
    reward: Annotated[str, typer.Option(help="What refinement would maximise: a measure, or module:function.")] = (
        "nDCG@10"
    ),
    depth: Annotated[int, typer.Option(min=2, help="Candidates a query.")] = 100,
    json: Annotated[Path | None, typer.Option("--json", help="File to write, with the numbers of each list.")] = None,
) -> None:
    """Ask what refinement could gain, before training: headroom, what is within reach, what the first stage missed."""
    from rerank.experiment.auditing import audit_run, audit_table
    from rerank.experiment.workspace import write_json

    if json is not None and not json.parent.is_dir():
        raise NotFound(f"--json {json}: there is no folder {json.parent}; make it first")
    found = audit_run(collection, run, model, reward, depth)
    console.print(audit_table(found))
    console.print(found.advice(), highlight=False, soft_wrap=True, markup=False)
    if json is not None:
        write_json(json, found.to_json(by_list=True))


@app.command()
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


@app.command()
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
    out: Annotated[
        Path | None, typer.Option("--out", help="The TREC run to write; of --requests, RankLLM JSON.")
    ] = None,
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

    one, whole = (query, documents), (collection, run, out, shard, requests)
    if any(part is not None for part in one) and any(part is not None for part in whole):
        raise InputError("--query and --documents rank one query; --collection, --run, --out and --shard a run")
    if any(part is not None for part in whole) and (probabilities or (min_probability, top_k) != (None, None)):
        raise InputError(
            "--top-k, --probabilities and --min-probability speak of one query, and --collection, --run and --out of a "
            "whole run, which keeps all its documents: leave them out"
        )
    loading = Loading(device, precision, max_length, backend, window, windowing, document_tokens)
    if query is not None and documents is not None:
        if not query.strip():
            raise InputError("--query is empty; give the words to rank for")
        for hit in rank_texts(model, query, documents, top_k or 10, probabilities, min_probability, loading):
            shown = hit.probability if probabilities else hit.score
            console.print(f"{shown:9.3f}  {_visible(hit.text)}", highlight=False, soft_wrap=True, markup=False)
    elif requests is not None and out is not None:
        if (collection, run, shard) != (None, None, None):
            raise InputError("--requests bring their own texts and candidates: leave out --collection, --run, --shard")
        with _interruptible(""):
            _say_part(rerank_requests(model, requests, out, depth, loading, overwrite, errors))
    elif collection is not None and run is not None and out is not None:
        part = Shard.parse(shard)
        with _interruptible(""):
            _say_part(rerank_run(model, collection, run, out, depth, loading, part, overwrite, errors))
    else:
        raise InputError("give --query and --documents, or --collection, --run and --out, or --requests and --out")


@app.command()
def merge(
    parts: Annotated[list[Path], typer.Argument(help="The parts, or the --out that they were made with.")],
    out: Annotated[Path | None, typer.Option("--out", help="The run to write; default: the parts' own --out.")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Put the parts of `rank --shard` or `retrieve --shard` together, once all are there and of one job.

    `rerank merge reranked.trec`, or `rerank merge parts/reranked.trec.shard-* --out reranked.trec`
    """
    from rerank.experiment.merging import merge_parts

    _say_part(merge_parts(parts, out, overwrite))


@app.command()
def export(
    model: Annotated[str, typer.Argument(help="A model folder or hub id.")],
    to: Annotated[str, typer.Option("--to", help="onnx.")] = "onnx",
    int8: Annotated[bool, typer.Option("--int8", help="Weights in 8 bits: smaller, faster on CPUs.")] = False,
    out: Annotated[Path | None, typer.Option("--out", help="Folder to write; default: the model's own.")] = None,
) -> None:
    """Write a model for another runtime; `rank --backend onnx` uses it."""
    from rerank.models.exporting import export_onnx

    if to != "onnx":
        raise InputError(f"--to {to!r} is not known; onnx is what can be written")
    console.print(f"{export_onnx(model, out, int8)}", highlight=False, soft_wrap=True)


@app.command()
def keys() -> None:
    """List the keys of a recipe: name, default, meaning (Markdown)."""
    from rerank.experiment.keys import recipe_keys

    typer.echo(recipe_keys(), nl=False)


@app.command()
def report(folder: Annotated[Path, typer.Argument(help="The folder of a run.")]) -> None:
    """Write report.html of a run anew."""
    from rerank.evaluation.report import write_report

    console.print(f"{write_report(folder)}")


@contextmanager
def _interruptible(option: str = " with --resume") -> Iterator[None]:
    """Ctrl-C ends the block with the way to go on, and exit status 130."""
    try:
        yield
    except KeyboardInterrupt:
        errors.print(f"\ninterrupted; what was finished is kept: run the same command again{option}")
        raise typer.Exit(130) from None


def _say_part(part: Any, more: str = "") -> None:
    """One line for a part on disk (`experiment.shards.Part`)."""
    there = "" if part.fresh else " (was there already; nothing to do)"
    console.print(
        f"{part.queries} {'query' if part.queries == 1 else 'queries'}{more}: {part.path}{there}",
        highlight=False,
        soft_wrap=True,
        markup=False,
    )


def _visible(text: str) -> str:
    """The text with everything that could steer a terminal, forge a line or turn its direction shown as an escape."""
    return STEERING.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


def _names(paths: list[Path]) -> list[str]:
    """A short name for each run: its stem, or its path where stems repeat."""
    stems = [path.name.removesuffix(".gz").removesuffix(".trec") for path in paths]
    return [stem if stems.count(stem) == 1 else str(path) for stem, path in zip(stems, paths, strict=True)]


def _command() -> str:
    return shlex.join(["rerank", *sys.argv[1:]])


def _next_steps(folder: Path, model_name: str) -> None:
    model = folder / "model" / model_name
    console.print(f"\nThe report:     {folder / 'report.html'}", highlight=False)
    console.print(f"The model:      {model}", highlight=False)
    console.print(f'Use it:         rerank rank {model} --query "..." --documents texts.txt', highlight=False)
    settings = model / "rerank.json"
    if settings.is_file() and '"active": true' in settings.read_text(encoding="utf8"):
        # Texts alone have no first-stage scores, without which such a model ranks by its plain part.
        console.print(
            f"Better, a run:  rerank rank {model} --collection COLLECTION --run RUN --out RERANKED", highlight=False
        )
    console.print(
        f'In Python:      Reranker.from_pretrained("{model.as_posix()}").rank(query, documents)', highlight=False
    )


def _quiet() -> None:
    """Our messages through rich; those of the libraries below us only when they are errors."""
    handler = RichHandler(console=errors, show_path=False, show_time=False)
    handler.addFilter(lambda record: record.name.startswith("rerank") or record.levelno >= logging.ERROR)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[handler])
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()


def main() -> Any:
    """Run a command; errors raised on purpose are one message and exit status 2, others keep their traceback."""
    # Threads that spin while they wait make small tensor operations a hundred times slower on a busy machine.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        if not {"--help", "-h"} & set(sys.argv):
            _quiet()
        return app()
    except (RerankError, OSError) as error:
        # OSError: no room, no permission, no such folder; the system's own message names the path.
        errors.print(f"[bold red]error:[/bold red] {_escaped(str(error))}", highlight=False, soft_wrap=True)
        return sys.exit(2)


def _escaped(text: str) -> str:
    from rich.markup import escape

    return escape("\n".join(map(_visible, text.split("\n"))))


if __name__ == "__main__":
    main()
