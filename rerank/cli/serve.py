"""The command that serves models: serve."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from rerank.cli.options import Device, DocumentTokens, Precision, Window, Windowing
from rerank.cli.terminal import app
from rerank.errors import InputError, NotFound


@app.command(rich_help_panel="Serve")
def serve(
    models: Annotated[list[str], typer.Argument(metavar="MODEL...", help="Folders or hub ids; NAME=MODEL names one.")],
    host: Annotated[str, typer.Option(help="An address that others can reach needs a key.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 picks a free one.")] = 8000,
    key_file: Annotated[
        Path | None, typer.Option("--key-file", help="A key in each line, of 16 characters or more; clients send one.")
    ] = None,
    key_env: Annotated[str | None, typer.Option("--key-env", help="The environment variable that holds a key.")] = None,
    insecure: Annotated[bool, typer.Option("--insecure", help="Any address without a key.")] = False,
    alias: Annotated[
        list[str], typer.Option("--alias", help="OTHER=NAME: another name of a model; '*=NAME': all other names.")
    ] = [],
    max_documents: Annotated[int, typer.Option(min=1, help="Of a request.")] = 1000,
    max_characters: Annotated[int, typer.Option(min=1, help="Of a query, and of a document.")] = 100_000,
    max_body: Annotated[int, typer.Option(min=1, help="Bytes, also when decompressed.")] = 16 * 2**20,
    max_tokens: Annotated[int, typer.Option(min=1, help="That the model reads for one request.")] = 1_000_000,
    queue: Annotated[int, typer.Option(min=1, help="Documents that wait; beyond it 429.")] = 4000,
    max_bodies: Annotated[int, typer.Option(min=1, help="Bytes of all bodies at once; beyond it 429.")] = 256 * 2**20,
    timeout: Annotated[float, typer.Option(help="Seconds to an answer; beyond it 504.")] = 60.0,
    body_timeout: Annotated[float, typer.Option(help="Seconds in which a body arrives; beyond it 408.")] = 20.0,
    drain: Annotated[
        float | None, typer.Option(help="Seconds after SIGTERM to answer what was asked; default: --timeout.")
    ] = None,
    log: Annotated[bool, typer.Option("--log", help="A line for each request: status, time, no texts.")] = False,
    turn_tokens: Annotated[int | None, typer.Option(min=1, help="Tokens that a model reads at once.")] = None,
    one_at_a_time: Annotated[bool, typer.Option("--one-at-a-time", help="Never batch requests together.")] = False,
    device: Device = None,
    precision: Precision = "auto",
    backend: Annotated[str, typer.Option(help="torch, onnx, vllm.")] = "torch",
    max_length: Annotated[int | None, typer.Option(min=1, help="Tokens of a pair, cross-encoders.")] = None,
    window: Window = None,
    windowing: Windowing = None,
    document_tokens: DocumentTokens = None,
) -> None:
    """Answer the clients of Cohere, Jina, Voyage, TEI, vLLM, Infinity and Weaviate, and show a page to try it.

    `rerank serve runs/quickstart/model/light`, then open the address that it prints
    """
    from rerank.experiment.reranking import Loading
    from rerank.serving.limits import Limits
    from rerank.serving.server import serve as run

    limits = Limits(max_documents, max_characters, max_body, max_tokens, queue, timeout, body_timeout, max_bodies)
    reading = Loading(window=window, windowing=windowing, document_tokens=document_tokens).reading
    loading = {"device": device, "precision": precision, "max_length": max_length, "backend": backend}
    run(
        models,
        host,
        port,
        _keys(key_file, key_env),
        insecure,
        alias,
        limits,
        {**loading, "reading": reading},
        turn_tokens,
        1 if one_at_a_time else None,
        drain,
        log,
    )


def _keys(file: Path | None, variable: str | None) -> list[str]:
    """The keys of a file, one a line, and that of an environment variable."""
    from rerank.serving.server import checked_key

    found: list[str] = []
    if file is not None:
        try:
            lines = file.read_text(encoding="utf-8-sig").splitlines()
        except OSError as error:
            raise NotFound(f"--key-file {file} cannot be read: {error.strerror or error}") from error
        except UnicodeDecodeError as error:
            raise InputError(f"--key-file {file} is no text: write a key in each line") from error
        numbered = [(i, line.strip()) for i, line in enumerate(lines, 1) if not line.lstrip().startswith("#")]
        found = [checked_key(key, f"--key-file {file}:{i}") for i, key in numbered if key]
        if not found:
            raise InputError(f"--key-file {file} holds no key: write one in each line")
    if variable is not None:
        key = os.environ.get(variable, "")
        if not key:
            raise InputError(f"--key-env {variable}: there is no such environment variable, or it is empty")
        found.append(checked_key(key, f"--key-env {variable}"))
    return found
