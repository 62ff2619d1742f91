"""``Streams``: every stream of one connection but control and HELLO (PROTOCOL §6).

Theory of operation
-------------------
Streams that we open begin with the type 0x00; what the other end answers on them has none. On streams that the relay opens the
type comes first, byte by byte if need be, and decides: 0x00 becomes a ``RelayStream`` for ``on_stream``, 0x01 carries oversize
datagrams, anything else is reset.

When the relay's limit does not let a stream be opened, it waits, ``MAX_WAITING`` of each kind at most. The relay may open
another stream for each of its own that is done with here, delivered to the last byte: so what a sender can make us hold is
bounded by the number of streams times one window.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

from twisted.logger import Logger

from zrc_relay.client.errors import ConnectionLost, TooManyStreams
from zrc_relay.client.stream_halves import StreamCode
from zrc_relay.client.streams import RelayAddress, RelayStream
from zrc_relay.core.codes import StreamError
from zrc_relay.core.records import STREAM_FORWARDED, STREAM_OVERSIZE, RecordDecoder
from zrc_relay.core.varint import encode_varint, pull_varint
from zrc_relay.quic.connection import Connection, is_unidirectional

MAX_WAITING: Final = 64
"""Streams of each kind that may wait for the relay's limit; as many as wait at the relay for ours."""


class Streams:
    """See the module's docstring. ``deliver`` gets payloads that came as oversize records, ``wake`` asks for a flush."""

    _log = Logger()

    def __init__(self, quic: Connection, *, deliver: Callable[[bytes], None], wake: Callable[[], None]) -> None:
        self.on_stream: Callable[[RelayStream], None] | None = None
        self.local: RelayAddress | None = None
        """Our end of the allocation; None before there is one."""
        self._quic = quic
        self._deliver = deliver
        self._wake = wake
        self._streams: dict[int, RelayStream] = {}
        self._waiting: dict[bool, deque[RelayStream]] = {False: deque(), True: deque()}
        """Streams that wait for the relay's limit; those under True are unidirectional."""
        self._heads: dict[int, bytes] = {}
        """Streams of the relay whose type has not arrived whole, with what there is of it."""
        self._records: dict[int, RecordDecoder] = {}
        self._done_with: set[int] = set()
        """Streams of the relay that are of no interest any more, until QUIC has seen their end."""

    # -- for users

    def open(self, *, unidirectional: bool) -> RelayStream:
        """A new stream to the other end; see ``ClientConnection.open_stream``."""
        if self.local is None:
            msg = "not allocated yet"
            raise ConnectionLost(msg)
        waiting = self._waiting[unidirectional]
        if len(waiting) >= MAX_WAITING:
            msg = f"{len(waiting)} streams wait for the relay's limit"
            raise TooManyStreams(msg)
        stream = RelayStream(self._quic, self._wake, self.local, opener=True, unidirectional=unidirectional)
        waiting.append(stream)
        self._open_waiting()
        return stream

    # -- events of the connection

    def data(self, stream_id: int, data: bytes, *, ended: bool) -> None:
        """Bytes of a stream, in order. ``WireError`` when an oversize record is malformed."""
        stream = self._streams.get(stream_id)
        if stream is not None:
            stream.data_received(data, ended=ended)
        elif stream_id in self._records:
            self._oversize(stream_id, data, ended=ended)
        elif self._is_new(stream_id):
            self._head(stream_id, data, ended=ended)
        else:
            self._quic.consume(stream_id, len(data))

    def reset(self, stream_id: int, code: int) -> None:
        """The relay has reset its half of a stream."""
        stream = self._streams.get(stream_id)
        if stream is not None:
            stream.reset_received(code)
            return
        self._quic.forget_received(stream_id)
        self._records.pop(stream_id, None)
        if self._quic.is_peer_stream(stream_id):
            self._refuse(stream_id, code)

    def stop_sending(self, stream_id: int, code: int) -> None:
        """The relay does not want what we send on a stream; QUIC has reset our half."""
        stream = self._streams.get(stream_id)
        if stream is not None:
            stream.stop_received(code)

    def pump(self) -> None:
        """Let everything go on that can; before packets are sent."""
        self._open_waiting()
        for stream_id, stream in list(self._streams.items()):
            stream.pump()
            if stream.is_closed and self._quic.is_stream_done(stream_id):
                self._streams.pop(stream_id, None)  # gone already when what was called has closed the connection
                if not stream.is_opener:
                    self._quic.allow_stream(stream_id)
        for waiting in self._waiting.values():
            for stream in list(waiting):
                stream.pump()
        for stream_id in list(self._done_with):
            if self._quic.is_stream_done(stream_id):
                self._done_with.remove(stream_id)
                self._quic.allow_stream(stream_id)

    def lost(self, error: Exception) -> None:
        """The connection has ended."""
        streams = [*self._streams.values(), *self._waiting[False], *self._waiting[True]]
        self._streams.clear()
        self._heads.clear()
        self._records.clear()
        for waiting in self._waiting.values():
            waiting.clear()
        for stream in streams:
            stream.lost(error)

    # -- streams that begin

    def _open_waiting(self) -> None:
        for unidirectional, waiting in self._waiting.items():
            while waiting:
                if waiting[0].is_closed:  # given up before it began
                    waiting.popleft()
                    continue
                stream_id = self._quic.open_stream(unidirectional=unidirectional)
                if stream_id is None:
                    break
                stream = waiting.popleft()
                self._streams[stream_id] = stream
                stream.opened(stream_id, encode_varint(STREAM_FORWARDED))

    def _is_new(self, stream_id: int) -> bool:
        return self._quic.is_peer_stream(stream_id) and stream_id not in self._done_with

    def _head(self, stream_id: int, data: bytes, *, ended: bool) -> None:
        data = self._heads.pop(stream_id, b"") + data
        parsed = pull_varint(data, 0)
        if parsed is None and not ended:
            self._heads[stream_id] = data
            return
        stream_type, offset = parsed or (None, len(data))
        self._quic.consume(stream_id, offset)
        data = data[offset:]
        if stream_type == STREAM_FORWARDED and self.on_stream is not None and self.local is not None:
            self._accept(stream_id, data, self.local, self.on_stream, ended=ended)
        elif stream_type == STREAM_OVERSIZE and is_unidirectional(stream_id):
            self._records[stream_id] = RecordDecoder()
            self._oversize(stream_id, data, ended=ended)
        else:
            self._quic.consume(stream_id, len(data))
            self._refuse(stream_id, StreamCode.REFUSED if stream_type == STREAM_FORWARDED else StreamError.UNKNOWN_TYPE)

    def _accept(
        self, stream_id: int, data: bytes, local: RelayAddress, on_stream: Callable[[RelayStream], None], *, ended: bool
    ) -> None:
        stream = RelayStream(self._quic, self._wake, local, opener=False, unidirectional=is_unidirectional(stream_id))
        self._streams[stream_id] = stream
        stream.opened(stream_id)
        try:
            on_stream(stream)
        except Exception:
            self._log.failure("a callback of the user failed; the stream it was given is aborted")
            stream.abortConnection()
        stopped = self._quic.reset_code(stream_id)
        if stopped is not None:
            stream.stop_received(stopped)  # STOP_SENDING may overtake the type
        stream.data_received(data, ended=ended)

    def _oversize(self, stream_id: int, data: bytes, *, ended: bool) -> None:
        # Consumed as it comes: a record that is not whole takes at most its own size, and it may be longer than a window.
        self._quic.consume(stream_id, len(data))
        for payload in self._records[stream_id].feed(data):
            self._deliver(payload)
        if ended:
            self._records.pop(stream_id, None)
            self._done_with.add(stream_id)

    def _refuse(self, stream_id: int, code: int) -> None:
        self._heads.pop(stream_id, None)
        self._done_with.add(stream_id)
        self._quic.stop_receiving(stream_id, code)
        self._quic.reset_sending(stream_id, code)
        self._wake()
