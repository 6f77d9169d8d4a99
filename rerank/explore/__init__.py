"""A local page to try a finished run on: type a query, see first stage, clone and refined side by side, and why.

Needs the extra `serve`. Nothing leaves the machine: the page is one file, and the server listens to this machine alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rerank.explore.app import app_of, serve
    from rerank.explore.session import Session, open_session

__all__ = ["Session", "app_of", "open_session", "serve"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name in ("app_of", "serve"):
        from rerank.explore import app

        return getattr(app, name)
    from rerank.explore import session

    return getattr(session, name)
