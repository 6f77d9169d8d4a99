"""Whether a model folder holds all that it should: what is missing would be made up at random, without a word.

transformers initialises weights that it does not find, and makes an empty tokenizer where there are no files of one.
Both load, and both rank by chance.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rerank.errors import Mismatch, NotFound

TOKENIZER_FILES = (
    *("tokenizer.json", "vocab.txt", "vocab.json", "merges.txt"),
    *("spiece.model", "spm.model", "sentencepiece.bpe.model", "tokenizer.model", "tokenizer.vocab"),
)
SHOWN = 3


def check_tokenizer_files(folder: Path) -> None:
    """Nothing, when a folder of a model holds a tokenizer."""
    if folder.is_dir() and not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise NotFound(
            f"{folder} holds no tokenizer (tokenizer.json, vocab.txt, ...): copy its files from the model that this "
            "one was made from"
        )


def check_vocabulary(tokenizer: Any, network: Any) -> None:
    """Nothing, when the network has a vector for each token of the tokenizer."""
    table = network.get_input_embeddings() if hasattr(network, "get_input_embeddings") else None
    rows = getattr(table, "num_embeddings", None)
    if rows is not None and len(tokenizer) > rows:
        raise Mismatch(
            f"the tokenizer has {len(tokenizer)} tokens and the network vectors for {rows}: they are not of one model; "
            "put the tokenizer's files right, or save the model anew"
        )


def check_weights(folder: Path, network: Any) -> None:
    """Nothing, when the safetensors of `folder` hold the weights of `network`'s head, and of its layers."""
    saved = _saved_names(folder)
    if saved is None:
        return
    prefix = f"{getattr(network, 'base_model_prefix', '')}."
    names = {name for name, _ in network.named_parameters()}
    missing = sorted(name for name in names if name not in saved and name.removeprefix(prefix) not in saved)
    unknown = {name for name in saved if name not in names and f"{prefix}{name}" not in names}
    # Weights of the body under other names are a matter of the library's own conversions; a head has none.
    heads = [name for name in missing if not name.startswith(prefix)]
    lost = heads or ([] if unknown else missing)
    if lost:
        shown = ", ".join(lost[:SHOWN]) + (f" and {len(lost) - SHOWN} more" if len(lost) > SHOWN else "")
        raise Mismatch(
            f"{folder} lacks weights of {type(network).__name__}: {shown}. Random ones would take their place; save "
            "the model anew, or give an encoder as the backbone of a recipe, which gets a head of its own"
        )


def _saved_names(folder: Path) -> set[str] | None:
    """Names of the tensors in a folder's safetensors; None where there are none to read."""
    from safetensors import safe_open

    index = folder / "model.safetensors.index.json"
    if index.is_file():
        return set(json.loads(index.read_text(encoding="utf8"))["weight_map"])
    file = folder / "model.safetensors"
    if not file.is_file():
        return None
    with safe_open(file, "pt") as content:
        return set(content.keys())
