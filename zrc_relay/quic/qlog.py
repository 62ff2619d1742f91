"""Recording one connection in qlog format, which qvis and other tools show (draft-ietf-quic-qlog-main-schema).

Theory of operation
-------------------
aioquic tells a trace of every packet and of every change of its congestion control. ``Trace`` keeps what it is told as JSON text
until there are ``limit`` bytes of it; from then on it keeps nothing. aioquic names an event first and lists the frames in it
afterwards, so the latest ``UNSETTLED`` events wait before they become text.

Payload is never in it: aioquic gives lengths of CRYPTO, STREAM and DATAGRAM frames. What would let a reader of the file harm the
connection is left out here: stateless reset tokens, and tokens for later connections.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from aioquic.quic.logger import QLOG_VERSION, QuicLoggerTrace

UNSETTLED: Final = 256
"""Events that may still change: more than one packet can cause."""


class Trace(QuicLoggerTrace):
    """A trace of the relay's end of a connection.

    ``original_id`` is the first connection id that the client used, ``wall`` gives Unix seconds, ``limit`` is in bytes.
    ``on_end`` is called once: when the connection has ended or the limit is reached.
    """

    def __init__(self, original_id: bytes, *, wall: Callable[[], float], limit: int, on_end: Callable[[], None]) -> None:
        super().__init__(is_client=False, odcid=original_id)
        self._vantage_point = {"name": "zrc-relay", "type": "server"}
        self._wall = wall
        self._limit = limit
        self._on_end = on_end
        self._unsettled: deque[dict[str, Any]] = deque()
        self._texts: list[str] = []
        self._size = 0
        self._is_over = False
        self.is_complete = True
        """Whether everything until the end was kept."""

    def __len__(self) -> int:
        return len(self._texts) + len(self._unsettled)

    def log_event(self, *, category: str, event: str, data: dict[str, Any]) -> None:
        """See ``QuicLoggerTrace``."""
        if self._is_over:
            return
        self._unsettled.append({"time": self.encode_time(self._wall()), "name": f"{category}:{event}", "data": data})
        if len(self._unsettled) >= 2 * UNSETTLED:
            self._settle(UNSETTLED)

    def end(self) -> None:
        """The connection has ended, or nobody wants to know more."""
        if not self._is_over:
            self._settle(0)
        if not self._is_over:
            self._finish()

    def text(self) -> str:
        """All of it as a qlog file."""
        head = {"qlog_format": "JSON", "qlog_version": QLOG_VERSION, "title": "zrc-relay"}
        trace = {
            "vantage_point": self._vantage_point,
            "common_fields": {"ODCID": self._odcid.hex(), "time_format": "absolute"},
        }
        return (
            f"{json.dumps(head)[:-1]}, "
            f'"traces": [{json.dumps(trace)[:-1]}, "events": [\n' + ",\n".join(self._texts) + "\n]}]}\n"
        )

    def _settle(self, keep: int) -> None:
        while len(self._unsettled) > keep:
            text = json.dumps(self._unsettled.popleft(), separators=(",", ":"))
            if self._size + len(text) > self._limit:
                self.is_complete = False
                self._finish()
                return
            self._size += len(text) + 2
            self._texts.append(text)

    def _finish(self) -> None:
        self._is_over = True
        self._unsettled.clear()
        self._on_end()

    # -- what must not be told

    def encode_new_connection_id_frame(
        self, connection_id: bytes, retire_prior_to: int, sequence_number: int, stateless_reset_token: bytes
    ) -> dict[str, Any]:
        """See ``QuicLoggerTrace``; without the stateless reset token."""
        frame = super().encode_new_connection_id_frame(connection_id, retire_prior_to, sequence_number, stateless_reset_token)
        del frame["reset_token"]
        return frame

    def encode_new_token_frame(self, token: bytes) -> dict[str, Any]:
        """See ``QuicLoggerTrace``; without the token."""
        return {"frame_type": "new_token", "length": len(token)}

    def encode_transport_parameters(self, owner: str, parameters: Any) -> dict[str, Any]:
        """See ``QuicLoggerTrace``; without the stateless reset token."""
        data = super().encode_transport_parameters(owner, parameters)
        data.pop("stateless_reset_token", None)
        return data
