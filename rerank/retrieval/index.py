"""What indexes share: checked inputs, canonical cuts, and a folder that is complete or refused.

An index is saved with the hash of its documents (and, for dense ones, of its encoder) in a manifest written last;
loading it beside other documents, or after a save that was cut short, is a `Mismatch`.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rerank.digests import sha256_of
from rerank.errors import InputError, Mismatch, NotFound

MANIFEST = "manifest.json"
_FORMAT = 1


def check_texts(texts: Mapping[str, str], what: str) -> None:
    """Nothing; an `InputError` names the first of `texts` (id -> text) that is no text."""
    if not isinstance(texts, Mapping):
        raise InputError(f"{what}: expected a mapping of id -> text, got {type(texts).__name__}")
    for key, text in texts.items():
        if not isinstance(key, str) or not isinstance(text, str):
            raise InputError(f"{what}: the entry {key!r} is {text!r:.80}; ids and texts must be strings")


def check_depth(depth: int) -> None:
    """Nothing; an `InputError` unless `depth` is a positive integer."""
    if isinstance(depth, bool) or not isinstance(depth, int) or depth < 1:
        raise InputError(f"depth = {depth!r}: expected a positive integer, the number of documents to find for a query")


def rows_of(doc_ids: Sequence[str], row: Mapping[str, int], index: str) -> list[int]:
    """The row of each document in an index; an `InputError` names the first that the index does not hold."""
    unknown = [d for d in doc_ids if d not in row]
    if unknown:
        raise InputError(
            f"{len(unknown)} of {len(doc_ids)} documents are not in the index {index!r}, the first is {unknown[0]!r}; "
            f"it holds {len(row)} documents: build it from the collection that the ids come from"
        )
    return [row[d] for d in doc_ids]


def best(scores: np.ndarray, rows: np.ndarray, doc_ids: Sequence[str], depth: int) -> tuple[tuple[str, float], ...]:
    """The `depth` best (doc id, score) in canonical order; `scores[i]` belongs to the document `doc_ids[rows[i]]`.

    All documents that tie with the last place compete for it, so the cut does not depend on the order of the corpus.
    """
    if len(scores) > depth:
        kept = scores >= np.partition(scores, -depth)[-depth]
        scores, rows = scores[kept], rows[kept]
    pairs = ((doc_ids[row], score) for row, score in zip(rows.tolist(), scores.tolist(), strict=True))
    return tuple(sorted(pairs, key=lambda pair: (-pair[1], pair[0]))[:depth])


def documents_hash(documents: Mapping[str, str]) -> str:
    """The sha256 of ids and texts, whatever their order."""
    digest = hashlib.sha256()
    for doc_id in sorted(documents):
        for part in (doc_id, documents[doc_id]):
            data = part.encode("utf-8", "surrogatepass")
            digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()


def write_manifest(folder: Path, kind: str, settings: Mapping[str, Any], documents: str) -> None:
    """Nothing; writes the sha256 of each file in `folder`. It comes last: without a manifest a folder is no index."""
    files = {p.name: sha256_of(p) for p in sorted(folder.iterdir()) if p.is_file() and p.name != MANIFEST}
    manifest = {"format": _FORMAT, "kind": kind, "settings": dict(settings), "documents": documents, "files": files}
    fresh = folder / (MANIFEST + ".tmp")
    fresh.write_text(json.dumps(manifest, indent=2), encoding="utf-8")
    os.replace(fresh, folder / MANIFEST)


def read_manifest(folder: Path, kind: str, documents: Mapping[str, str]) -> dict[str, Any]:
    """The settings of the index in `folder`, once its format, kind, files and documents are found to match."""
    path = folder / MANIFEST
    if not path.is_file():
        raise NotFound(f"{folder} holds no finished index ({MANIFEST} is missing): build the index and save it again")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        found = (manifest["format"], manifest["kind"])
        settings, theirs, files = manifest["settings"], manifest["documents"], manifest["files"]
    except (ValueError, KeyError, TypeError) as error:
        raise Mismatch(f"{path} is damaged ({error!r}): build the index and save it again") from None
    if found != (_FORMAT, kind):
        raise Mismatch(f"{path}: format and kind are {found}, expected {(_FORMAT, kind)}: build the index again")
    for name, digest in files.items():
        if not (folder / name).is_file() or sha256_of(folder / name) != digest:
            raise Mismatch(f"{folder / name} is missing or differs from what was saved: build the index again")
    if theirs != documents_hash(documents):
        raise Mismatch(
            f"the index in {folder} was built from other documents than the {len(documents)} given "
            "(the hash of ids and texts differs): build it again from these, or load the collection it was built from"
        )
    return dict(settings)


def empty_folder(folder: Path | str) -> Path:
    """The folder, there, and without the manifest of an earlier index, so that a torn save is seen."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MANIFEST).unlink(missing_ok=True)
    return folder
