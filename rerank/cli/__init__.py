"""The command line: a few lines for each command, over the same functions that Python users call."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from typing import Any

from rich.logging import RichHandler

from rerank.cli import bench, learn, measure, rank, serve, share  # noqa: F401 - each adds its commands
from rerank.cli.terminal import app, errors, escaped
from rerank.errors import RerankError, Unfinished

__all__ = ["app", "main"]


def _quiet() -> None:
    """Our messages through rich; those of the libraries below us only when they are errors."""
    handler = RichHandler(console=errors, show_path=False, show_time=False)
    handler.addFilter(lambda record: record.name.startswith("rerank") or record.levelno >= logging.ERROR)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[handler])
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    from huggingface_hub.utils import logging as hub_logging
    from transformers.utils import logging as transformers_logging

    hub_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()


def main() -> Any:
    """Run a command; an error raised on purpose is one message and exit status 2 (1: the rest is done)."""
    # Threads that spin while they wait make small tensor operations a hundred times slower on a busy machine.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        if not {"--help", "-h"} & set(sys.argv):
            _quiet()
        return app()
    except (RerankError, OSError) as error:
        # OSError: no room, no permission, no such folder; the system's own message names the path.
        errors.print(f"[bold red]error:[/bold red] {escaped(str(error))}", highlight=False, soft_wrap=True)
        return sys.exit(1 if isinstance(error, Unfinished) else 2)
