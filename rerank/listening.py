"""What the servers of this package share: a socket to listen at, and a page that loads nothing from elsewhere."""

from __future__ import annotations

import base64
import hashlib
import ipaddress
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from rerank.errors import InputError

HERE = ("127.0.0.1", "localhost", "::1")
"""This machine, as nobody else can reach it."""
EVERYWHERE = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}
"""Host that stands for all addresses of this machine -> the one to open a page at."""


def is_here(host: str) -> bool:
    """Whether a host is this machine as nobody else can reach it."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.casefold() == "localhost" or host.casefold().endswith(".localhost")


@contextmanager
def listening(host: str, port: int) -> Iterator[socket.socket]:
    """A socket that listens at the address; port 0 takes a free one."""
    if not 0 <= port <= 65535:
        raise InputError(f"port {port} is none: give one from 1 to 65535, or 0 for a free one")
    try:
        listener = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise InputError(
            f"cannot listen on {host}, port {port} ({error.strerror or error}): give another port, or 0 for a free one"
        ) from error
    # An answer in two packets would wait 40 ms for the client's word on the first; accepted sockets inherit this.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with listener:
        yield listener


def host_of(name: str, port: int) -> str:
    """Host as a browser sends it for that name or address, and as a URL has it."""
    name = f"[{name}]" if ":" in name else name
    return f"{name.casefold()}:{port}" if port != 80 else name.casefold()


def content_security(page: str) -> str:
    """The policy of a page: its own style and script, named by their hashes, and answers of its own server alone."""
    style, script = (_hash(page, tag) for tag in ("style", "script"))
    return (
        f"default-src 'none'; style-src {style}; script-src {script}; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def _hash(page: str, tag: str) -> str:
    inner = page.partition(f"<{tag}>")[2].partition(f"</{tag}>")[0]
    return f"'sha256-{base64.b64encode(hashlib.sha256(inner.encode()).digest()).decode()}'"
