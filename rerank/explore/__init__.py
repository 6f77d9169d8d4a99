"""A local page to try a finished run on: type a query, see first stage, clone and refined side by side, and why.

Needs the extra `serve`. Nothing leaves the machine: the page is one file, and the server listens to this machine alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rerank.lazily import lazily

if TYPE_CHECKING:
    from rerank.explore.app import app_of, serve
    from rerank.explore.session import Session, open_session

__all__ = ["Session", "app_of", "open_session", "serve"]

_HOME = {"Session": "session", "app_of": "app", "open_session": "session", "serve": "app"}

__getattr__, __dir__ = lazily(__name__, __all__, _HOME)
