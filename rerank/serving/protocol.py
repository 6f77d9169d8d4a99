"""HTTP connections that may not be held open for nothing, and refusals in JSON for what is no HTTP at all."""

from __future__ import annotations

import asyncio
import json
import logging
import uuid
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from rerank.serving.asking import Refusal

LEAST = 2**16
"""Bytes of an answer that a client has to take in the time that it has for a head."""
HELLO = b"\x16\x03"
"""How TLS begins."""
PREFACE = b"PRI * HTTP/2"


class Patient(H11Protocol):
    """A connection is closed that brings no whole request, or takes no part of its answer, for too long."""

    patience = 20.0
    """Seconds that a head may take to come, and a part of an answer to be taken."""
    _late: asyncio.TimerHandle | None = None
    """Closes the connection where no request is there by then (slow loris)."""
    _taking: asyncio.TimerHandle | None = None
    """Looks whether the client goes on taking its answer."""
    _first = b""
    """What the connection began with."""

    def connection_made(self, transport: Any) -> None:
        """Nothing; the head of the first request has to come in time."""
        super().connection_made(transport)
        self._late = self.loop.call_later(self.patience, self.transport.close)

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing; there is nothing to look after any more."""
        self._in_time()
        if self._taking is not None:
            self._taking.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Nothing; takes in what came."""
        if len(self._first) < len(PREFACE):
            self._first += data[: len(PREFACE)]
        if self.cycle is None and self._first.startswith(PREFACE):
            self._refuse("HTTP/2 is not spoken here: ask with HTTP/1.1")
            return
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._in_time()
        else:
            self._expect()

    def on_response_complete(self) -> None:
        """Nothing; an answer is handed over, and has to be taken."""
        super().on_response_complete()
        if self._taking is not None:
            self._taking.cancel()
        self._look(None)
        if self.cycle.response_complete and self.conn.trailing_data[0]:  # a further request came along, in part
            self._expect()

    def send_400_response(self, msg: str) -> None:
        """Nothing; refuses what cannot be read as a request, and closes."""
        if self._first.startswith(HELLO):
            self._refuse("this is TLS, and the server speaks HTTP alone: ask http://, not https://")
        else:
            self._refuse("this is not HTTP as it is written in RFC 9112")

    def _refuse(self, said: str) -> None:
        body = json.dumps(Refusal(400, said).body(uuid.uuid4().hex)).encode()
        head = (
            "HTTP/1.1 400 Bad Request\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()

    def _expect(self) -> None:
        """A further request has begun; it has to be there in time."""
        if self._late is None and not self.transport.is_closing():
            self._late = self.loop.call_later(self.patience, self.transport.close)

    def _look(self, before: int | None) -> None:
        """Cut the connection where its client took too little of what was left `before`; look again later."""
        left = self.transport.get_write_buffer_size()
        if before is not None and left > max(0, before - LEAST):
            self.transport.abort()
        elif left:
            self._taking = self.loop.call_later(self.patience, self._look, left)

    def _in_time(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None


def patient(seconds: float) -> type[H11Protocol]:
    """uvicorn's protocol, for which heads have to come, and answers have to be taken, within so many seconds."""

    class Own(Patient):
        patience = seconds

    logging.getLogger("uvicorn.error").addFilter(_is_fault)
    return Own


def _is_fault(record: logging.LogRecord) -> bool:
    """Whether a record tells of a fault: a request that is cut off at the end has been told so, and is none."""
    return not (record.exc_info and isinstance(record.exc_info[1], asyncio.CancelledError))
