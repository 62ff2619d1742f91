"""Datagrams that do not fit a DATAGRAM frame, on the way out (PROTOCOL §6, "oversize datagrams").

They wait in a queue with the same bounds as the others (R3.9) and are written, one record at a time, to a unidirectional stream
of type 0x01 that is kept open. What was written to a stream cannot be dropped any more, so only little is written ahead of what
the peer has acknowledged.
"""

from __future__ import annotations

from zrc_relay.core.records import STREAM_OVERSIZE, encode_record
from zrc_relay.core.varint import encode_varint
from zrc_relay.quic.connection import Connection
from zrc_relay.quic.egress import EgressQueue

MAX_AHEAD = 128 * 1024
"""Bytes written to the stream and not acknowledged: two of the largest records."""


class OversizeSender:
    """The 0x01 stream of one connection, opened when it is first needed."""

    def __init__(self, quic: Connection, queue: EgressQueue) -> None:
        self._quic = quic
        self._queue = queue
        self._stream_id: int | None = None

    def push(self, payload: bytes, now: float) -> bool:
        """Queue ``payload`` (at most 65,535 bytes); False when the peer lets us open no stream for it."""
        if self._stream_id is None:
            self._stream_id = self._quic.open_stream(unidirectional=True)
            if self._stream_id is None:
                return False
            self._quic.send_stream_data(self._stream_id, encode_varint(STREAM_OVERSIZE))
        elif self._is_refused(self._stream_id):
            return False
        self._queue.push(payload, now)
        return True

    def pump(self, now: float) -> None:
        """Write what may be written."""
        queue, stream_id = self._queue, self._stream_id
        if stream_id is None or not queue:
            return
        queue.expire(now)
        while queue and self._quic.unsent(stream_id) < MAX_AHEAD and not self._is_refused(stream_id):
            self._quic.send_stream_data(stream_id, encode_record(queue.popleft()))

    @property
    def waits(self) -> bool:
        """Whether something is queued."""
        return bool(self._queue)

    def _is_refused(self, stream_id: int) -> bool:
        """Whether the peer has stopped the stream. QUIC forgets it, code and all, once its reset is acknowledged."""
        return self._quic.reset_code(stream_id) is not None or self._quic.is_stream_done(stream_id)
