"""sha256 of files and of texts, in hex: what tells two files, two corpora or two jobs apart."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path


def sha256_of(path: Path) -> str:
    """The sha256 of a file, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def digest_of(texts: Iterable[str]) -> str:
    """The sha256, in hex, of texts in their order; no two different sequences are taken for one another."""
    digest = hashlib.sha256()
    for text in texts:
        data = text.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.hexdigest()


def summed(digests: Iterable[str]) -> str:
    """One digest of many, whatever their order: the parts' digests, summed, are that of the whole."""
    return f"{sum(int(digest, 16) for digest in digests) % 2**256:064x}"
