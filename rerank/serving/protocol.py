"""HTTP connections that may not be held open for nothing, and refusals in JSON for what is no HTTP at all."""

from __future__ import annotations

import asyncio
import json
import uuid
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from rerank.serving.asking import Refusal


def patient(seconds: float) -> type[H11Protocol]:
    """uvicorn's protocol, for which the head of a request has to be there within so many seconds."""

    class Patient(H11Protocol):
        """A connection without a request, whole or begun, for too long is closed (slow loris)."""

        _late: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._late = self.loop.call_later(seconds, self.transport.close)

        def connection_lost(self, exc: Exception | None) -> None:
            self._in_time()
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self.cycle is not None and not self.cycle.response_complete:
                self._in_time()
            elif self._late is None and not self.transport.is_closing():  # a further request has begun
                self._late = self.loop.call_later(seconds, self.transport.close)

        def send_400_response(self, msg: str) -> None:
            refusal = Refusal(400, "this is not HTTP as it is written in RFC 9112")
            body = json.dumps(refusal.body(uuid.uuid4().hex)).encode()
            head = (
                "HTTP/1.1 400 Bad Request\r\nContent-Type: application/json\r\n"
                f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
            )
            self.transport.write(head.encode() + body)
            self.transport.close()

        def _in_time(self) -> None:
            if self._late is not None:
                self._late.cancel()
                self._late = None

    return Patient
