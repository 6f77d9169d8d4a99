"""What every command shares with the terminal: the application, two consoles, interruptions, texts made harmless."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer
from rich.console import Console

from rerank.errors import InputError, RerankError

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


GO_ON = {False: "", True: " without --overwrite; what it had not come to is as it was before"}
"""--overwrite given -> what `interruptible` adds: given again, it would drop what was finished."""


@contextmanager
def interruptible(option: str = " with --resume") -> Iterator[None]:
    """Ctrl-C ends the block with the way to go on, and exit status 130."""
    try:
        yield
    except KeyboardInterrupt:
        errors.print(f"\ninterrupted; what was finished is kept: run the same command again{option}")
        raise typer.Exit(130) from None


@contextmanager
def writing_to(out: Path) -> Iterator[None]:
    """A place that cannot be written, at `out` or around it, ends the block with one message that says what to do."""
    from rerank.data.formats import way_out

    try:
        yield
    except RerankError:
        raise
    except OSError as error:
        place = Path(str(error.filename or ""))
        if not (error.filename and (place.is_relative_to(out) or out.is_relative_to(place))):
            raise
        problem = f"{error.strerror or error} ({place})"
        raise InputError(f"--out {out} cannot be written: {problem}; {way_out(error, 'a folder')}") from error


def say_part(part: Any, more: str = "") -> None:
    """One line for a part on disk (`experiment.shards.Part`)."""
    there = "" if part.fresh else " (was there already; nothing to do)"
    console.print(
        f"{part.queries} {'query' if part.queries == 1 else 'queries'}{more}: {part.path}{there}",
        highlight=False,
        soft_wrap=True,
        markup=False,
    )


def visible(text: str) -> str:
    """The text with everything that could steer a terminal, forge a line or turn its direction shown as an escape."""
    return STEERING.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


def escaped(text: str) -> str:
    """The text without markup of ours and without what could steer a terminal."""
    from rich.markup import escape

    return escape("\n".join(map(visible, text.split("\n"))))


def command_line() -> str:
    """What the user typed, as it can be typed again."""
    return shlex.join(["rerank", *sys.argv[1:]])
