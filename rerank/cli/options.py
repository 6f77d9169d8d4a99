"""Options that several commands have, each written once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer


def _given(text: str | Path) -> Path:
    if not str(text).strip():  # Path("") would be the folder that the user stands in
        raise typer.BadParameter("it is empty; name a file or a folder, or leave the option out")
    return Path(text)


def out_option(help: str) -> Any:
    """The option `--out`: where a command writes; an empty text is refused."""
    return typer.Option("--out", help=help, parser=_given, metavar="PATH")


Out = Annotated[Path | None, out_option("Folder or file to write to.")]
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
