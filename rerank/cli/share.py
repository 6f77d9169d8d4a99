"""Commands that show what was learned to others: explore, push."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rerank.cli.terminal import app, console


@app.command(rich_help_panel="Show")
def explore(
    folder: Annotated[Path, typer.Argument(help="The folder of a finished `rerank train`.")],
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 picks a free one.")] = 8899,
    host: Annotated[str, typer.Option(help="Another address than this machine's shows your documents to others.")] = (
        "127.0.0.1"
    ),
    browser: Annotated[bool, typer.Option(help="Open the page.")] = True,
    base: Annotated[
        Path | None, typer.Option("--base", help="What relative paths of the recipe start from, if it was moved.")
    ] = None,
) -> None:
    """Try a run's models on queries of your own: first stage, clone and refined side by side, and why they differ."""
    from rerank.explore import serve

    serve(folder, host, port, browser, base)


@app.command(rich_help_panel="Show")
def push(
    model: Annotated[Path, typer.Argument(help="A model folder, e.g. runs/quickstart/model/light.")],
    repo: Annotated[str, typer.Argument(help="NAME or OWNER/NAME on the Hugging Face hub.")],
    public: Annotated[bool, typer.Option("--public", help="For everybody to see; else the repository is private.")] = (
        False
    ),
    revision: Annotated[str | None, typer.Option(help="A branch; made where there is none.")] = None,
    message: Annotated[str | None, typer.Option(help="Of the commit.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be sent, and send nothing.")] = False,
) -> None:
    """Send a model and its card to the Hugging Face hub; the token is the one of `hf auth login`, or HF_TOKEN."""
    from rerank.experiment.pushing import licence_of, uploads
    from rerank.experiment.pushing import push as send

    if dry_run:
        found = uploads(model)
        for upload in found:
            console.print(f"{upload.size:>13,}  {upload.path}", highlight=False, markup=False, soft_wrap=True)
        total = sum(upload.size for upload in found) / 1e6
        kind = "public" if public else "private"
        console.print(
            f"{len(found)} files, {total:.1f} MB, would go to {repo} ({kind})", highlight=False, soft_wrap=True
        )
        if licence_of(model) is None:
            console.print("The card states no licence: give `licence` under [[models]], or write it into README.md")
        return
    console.print(send(model, repo, not public, revision, message), highlight=False, soft_wrap=True)
