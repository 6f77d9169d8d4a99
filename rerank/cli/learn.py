"""Commands that train and what belongs to it: quickstart, train, teach, audit, report, keys."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

import typer

from rerank.cli.options import CollectionText, out_option
from rerank.cli.terminal import app, command_line, console, interruptible, writing_to
from rerank.errors import InputError, NotFound


@app.command(rich_help_panel="Learn")
def quickstart(
    out: Annotated[Path, out_option("Folder of the run.")] = Path("runs/quickstart"),
    code: Annotated[
        Path | None, typer.Option("--code", help="Search this repository instead of Python's library.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run.")] = False,
    small: Annotated[
        bool, typer.Option("--small", help="The light scorer alone, on fewer queries: a minute or two.")
    ] = False,
) -> None:
    """Watch a reranker learn from a teacher, and measure whether it passes it, on text that is on your machine already.

    Documents are the functions of Python's standard library, queries the first sentences of their docstrings.
    Needs the small encoder of the extra quickstart; from the clone: pip install -c constraints.txt -e '.[quickstart]'
    """
    from rerank.experiment import train as carry_out
    from rerank.recipe import parse_recipe

    text = files("rerank").joinpath("quickstart-small.toml" if small else "quickstart.toml").read_text(encoding="utf8")
    if code is not None:
        if '"' in str(code) or "\\" in str(code.as_posix()):
            raise InputError(f"--code {code}: a path with quotes or backslashes cannot be written into a recipe")
        text = text.replace('"code#', f'"code:{code.resolve().as_posix()}#')
    with interruptible(), writing_to(out):
        loaded = parse_recipe(text, Path.cwd(), "quickstart")
        carry_out(loaded, out, resume, console, command_line())
    _next_steps(out, loaded.models[0].name)


@app.command(rich_help_panel="Learn")
def train(
    recipe: Annotated[Path, typer.Argument(help="A recipe (TOML).")],
    out: Annotated[Path | None, out_option("Folder of the run; default: runs/NAME.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run.")] = False,
) -> None:
    """Carry out a recipe: retrieve, teach, clone, refine, compare with the control, report."""
    from rerank.experiment import train as carry_out
    from rerank.recipe import load_recipe

    with interruptible():
        loaded = load_recipe(recipe)
        folder = out or Path("runs") / loaded.name
        with writing_to(folder):
            carry_out(loaded, folder, resume, console, command_line())
    _next_steps(folder, loaded.models[0].name)


@app.command(rich_help_panel="Learn")
def teach(
    collection: CollectionText,
    run: Annotated[Path, typer.Option("--run", help="Candidates: a TREC run or RankLLM JSON.")],
    out: Annotated[Path, out_option("Orderings (JSONL) to write or to complete.")],
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
    with interruptible(""):
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


@app.command(rich_help_panel="Learn")
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


@app.command(rich_help_panel="Learn")
def report(folder: Annotated[Path, typer.Argument(help="The folder of a run of `train` or of `bench`.")]) -> None:
    """Write report.html of a run or a benchmark anew."""
    from rerank.report.writing import write_report

    console.print(f"{write_report(folder)}")


@app.command(rich_help_panel="Learn")
def keys() -> None:
    """List the keys of a recipe: name, default, meaning (Markdown)."""
    from rerank.experiment.keys import recipe_keys

    typer.echo(recipe_keys(), nl=False)


def _next_steps(folder: Path, model_name: str) -> None:
    model = folder / "model" / model_name
    settings = model / "rerank.json"
    # Texts alone have no first-stage scores, without which such a model ranks by its plain part.
    reads = settings.is_file() and '"active": true' in settings.read_text(encoding="utf8")
    run = {"Better, a run:": f"rerank rank {model} --collection COLLECTION --run RUN --out RERANKED"} if reads else {}
    lines = {
        "The report:": str(folder / "report.html"),
        "The model:": str(model),
        "Look around:": f"rerank explore {folder}",
        "Use it:": f'rerank rank {model} --query "..." --documents texts.txt',
        **run,
        "Serve it:": f"rerank serve {model}",
        "Beside others:": f"rerank bench local:FOLDER --model {model} --model OTHER",
        "In Python:": f'Reranker.from_pretrained("{model.as_posix()}").rank(query, documents)',
    }
    console.print()
    for what, how in lines.items():
        console.print(f"{what:15} {how}", highlight=False, markup=False, soft_wrap=True)
