"""Forwarded streams: mirrored between the two ends with everything that can happen to them (PROTOCOL §6; R3.8).

Theory of operation
-------------------
``Forwarder`` belongs to one connection and handles the events of every stream but control and HELLO. The first stream a client
opens with type 0x00 gets a mirror: a stream of the same direction that the relay opens on the counterpart's current connection.
Each direction of a mirrored stream is a ``Pipe`` from a source (connection, stream) to a target; a unidirectional stream has one,
a bidirectional two. What moves through a pipe:

* **Bytes** are received in order into ``pending``, wait there for the caps (delayed, never dropped), and are then written to the
  target stream. The source gets credit only when the target has acknowledged, so that ``pending`` and the target's send buffer
  together never exceed one stream window, whoever stalls.
* **FIN** follows the last byte. **RESET_STREAM** discards what is pending and is passed on at once. **STOP_SENDING** is answered
  with a reset (aioquic does that), passed on to the source, and what still comes is thrown away.
* If no stream can be opened because the counterpart's limit is reached, the pipe waits in a queue (``max_pending_streams``).

The client may open another stream only when both halves *and* the mirror of an old one are done (``_release``): aioquic would
give that credit back as soon as the near half ends, and mirrors would pile up.

Streams of type 0x01 carry oversize datagrams and end here: each record becomes a datagram like any other.
"""

from __future__ import annotations

from collections import deque
from typing import Final, Protocol

from zrc_relay.core.allocation import Allocation
from zrc_relay.core.codes import StreamError
from zrc_relay.core.counters import Counters, StreamReset
from zrc_relay.core.limiter import TokenBucket
from zrc_relay.core.records import STREAM_FORWARDED, STREAM_OVERSIZE, RecordDecoder
from zrc_relay.core.varint import pull_varint
from zrc_relay.quic.connection import Connection, is_unidirectional

RECORDS_PER_SECOND: Final = 10_000
"""Oversize records that one connection may send each second: 120 Mbit/s of the smallest ones that need to be records."""
RECORDS_AT_ONCE: Final = 64
"""Of these, how many at once: less than a millisecond of work."""
MAX_GRANT: Final = 64 * 1024
"""Bytes that one stream may take from the caps in one go, so that streams of an allocation share them."""


class Owner(Protocol):
    """The connection a forwarder belongs to, as far as the forwarder needs it."""

    quic: Connection
    streams: Forwarder
    finished: bool
    """Whether nothing is left of it, and nobody to be given credit: what came whole goes on to its target without it."""

    @property
    def allocation(self) -> Allocation | None:
        """The allocation that the connection is bound to."""
        ...

    @property
    def counterpart(self) -> Owner | None:
        """The current connection of the other side."""
        ...

    def datagram_received(self, payload: bytes) -> None:
        """A payload that came as an oversize record."""
        ...

    def wake(self) -> None:
        """There is something to send on this connection."""
        ...


class Pipe:
    """One direction of a mirrored stream; see the module's docstring."""

    __slots__ = ("closed", "ended", "pending", "source", "source_id", "target", "target_id", "uncredited")

    def __init__(self, source: Owner, source_id: int, target: Owner, target_id: int | None) -> None:
        self.source = source
        self.source_id = source_id
        self.target = target
        self.target_id = target_id
        self.pending = bytearray()
        self.uncredited = 0
        self.ended = False
        self.closed = False

    def credit(self) -> None:
        """Give the source back what the target has acknowledged."""
        held = len(self.pending)
        if self.target_id is not None:
            held += self.target.quic.unsent(self.target_id)
        self._give_back(held)

    def discard(self) -> None:
        """Nothing goes through any more; what was held is credited, since nobody waits for it."""
        self.closed = True
        self.pending.clear()
        self._give_back(0)

    def _give_back(self, held: int) -> None:
        """Credit all that was not credited but ``held`` bytes."""
        if self.uncredited > held:
            if not self.source.finished:
                self.source.quic.consume(self.source_id, self.uncredited - held)
                self.source.wake()
            self.uncredited = held

    @property
    def is_idle(self) -> bool:
        """Whether nothing is held and nothing is left to say."""
        return not self.uncredited and not self.pending and (self.closed or not self.ended)


class Forwarder:
    """The forwarded streams of one connection."""

    def __init__(self, owner: Owner, counters: Counters, max_pending: int) -> None:
        self._owner = owner
        self._counters = counters
        self._max_pending = max_pending
        self._heads: dict[int, bytes] = {}
        """Streams of the client whose type has not arrived whole: less than eight bytes each, and as many as it may open."""
        self._records: dict[int, RecordDecoder] = {}
        self._unread: dict[int, int] = {}
        """Bytes of such streams that were not credited, because their records wait for the budget."""
        self._budget = TokenBucket(RECORDS_PER_SECOND, RECORDS_AT_ONCE, 0.0)
        self._inbound: dict[int, Pipe] = {}
        """Pipes whose source is a stream of this connection, by its id."""
        self._outbound: dict[int, Pipe] = {}
        """Pipes whose target is a stream of this connection, by its id."""
        self._busy: set[Pipe] = set()
        """Pipes from or to this connection that hold bytes or a FIN."""
        self._waiting: deque[tuple[Pipe, bool]] = deque()
        """Pipes into this connection that wait for its stream limit, with whether they are bidirectional."""
        self._mirrors: dict[int, tuple[Owner, int | None]] = {}
        """Streams that the client opened and has no credit back for, with their mirror if there is one."""
        self._mirroring: dict[int, Owner] = {}
        """Mirrors that were opened here, with the connection that waits for their end."""

    # -- events of this connection

    def data(self, stream_id: int, data: bytes, *, ended: bool, now: float) -> None:
        """Bytes of a stream, in order."""
        pipe = self._inbound.get(stream_id)
        if pipe is not None:
            self._feed(pipe, data, ended=ended, now=now)
        elif stream_id in self._records:
            self._oversize(stream_id, data, now)
        elif self._owner.quic.is_peer_stream(stream_id) and stream_id not in self._mirrors:
            self._head(stream_id, data, ended=ended, now=now)
        else:
            self._owner.quic.consume(stream_id, len(data))  # of a stream that was refused or reset

    def reset(self, stream_id: int, code: int) -> None:
        """The client reset its half of a stream."""
        self._owner.quic.forget_received(stream_id)
        self._records.pop(stream_id, None)
        self._unread.pop(stream_id, None)  # `forget_received` has given it back
        pipe = self._inbound.pop(stream_id, None)
        if pipe is None:
            if self._owner.quic.is_peer_stream(stream_id) and stream_id not in self._mirrors:
                self._heads.pop(stream_id, None)
                self._refuse(stream_id, code)
            return
        pipe.uncredited = 0  # `forget_received` has given it back
        if pipe.target_id is None:
            self._owner.quic.reset_sending(stream_id, code)  # the mirror never was, so nobody will answer
        self._close_pipe(pipe, code)

    def stop_sending(self, stream_id: int, code: int) -> None:
        """The client no longer wants what the relay sends on a stream; aioquic has reset it."""
        pipe = self._outbound.pop(stream_id, None)
        if pipe is not None and not pipe.closed:
            pipe.discard()
            pipe.source.quic.stop_receiving(pipe.source_id, code)
            pipe.source.wake()

    def pump(self, now: float) -> float | None:
        """Move what can be moved; returns when to try again because a cap holds something back, or None."""
        if self._waiting:
            self._open_waiting()
        again: float | None = None
        for pipe in list(self._busy):
            if pipe.source is self._owner:
                delay = self._move(pipe, now)
                if delay is not None:
                    again = delay if again is None else min(again, delay)
            pipe.credit()
            if pipe.is_idle:
                self._busy.discard(pipe)
        for stream_id in list(self._unread):
            if self._take_records(stream_id, now):
                delay = self._budget.wait(RECORDS_AT_ONCE / 4, now)
                again = delay if again is None else min(again, delay)
        if self._mirrors:
            self._release()
        for stream_id, waiting in list(self._mirroring.items()):
            if self._owner.quic.is_stream_done(stream_id):
                del self._mirroring[stream_id]
                self._outbound.pop(stream_id, None)
                waiting.wake()
        return None if again is None else now + again

    @property
    def is_quiet(self) -> bool:
        """Whether there is no stream to look after."""
        return not (self._mirrors or self._mirroring or self._busy or self._waiting)

    def lost(self) -> None:
        """The connection ended: what was mirrored to or from it is reset at the other end."""
        for pipe, _ in self._waiting:
            if not pipe.closed:  # else its source may be gone
                pipe.source.streams.target_lost(pipe)
        self._waiting.clear()
        for pipe in [*self._inbound.values()]:
            self._counters.streams_reset[StreamReset.COUNTERPART_LOST] += 1
            self._close_pipe(pipe, StreamError.COUNTERPART_LOST)
        for pipe in [*self._outbound.values()]:
            if not pipe.closed:
                pipe.source.streams.target_lost(pipe)
        for waiting in self._mirroring.values():
            waiting.wake()
        self._mirroring.clear()
        self._inbound.clear()
        self._outbound.clear()
        self._busy.clear()
        self._heads.clear()
        self._records.clear()
        self._unread.clear()

    def target_lost(self, pipe: Pipe) -> None:
        """The connection that a pipe of ours sends to has ended."""
        if pipe.target_id is None:
            self._owner.quic.reset_sending(pipe.source_id, StreamError.COUNTERPART_LOST)
        self._owner.quic.stop_receiving(pipe.source_id, StreamError.COUNTERPART_LOST)
        pipe.discard()
        self._owner.wake()

    # -- streams that begin

    def _head(self, stream_id: int, data: bytes, *, ended: bool, now: float) -> None:
        """The stream's type, which may come byte by byte, decides what it is."""
        quic = self._owner.quic
        data = self._heads.pop(stream_id, b"") + data  # not credited yet
        parsed = pull_varint(data, 0)
        if parsed is None and not ended:
            self._heads[stream_id] = data
            return
        stream_type, offset = parsed or (None, 0)
        if stream_type == STREAM_FORWARDED:
            self._mirror(stream_id, data, ended=ended, now=now)
        elif stream_type == STREAM_OVERSIZE and is_unidirectional(stream_id):
            self._mirrors[stream_id] = (self._owner, None)
            self._records[stream_id] = RecordDecoder()
            quic.consume(stream_id, offset)
            self._oversize(stream_id, data[offset:], now)
        else:
            quic.consume(stream_id, len(data))
            self._counters.streams_reset[StreamReset.UNKNOWN_TYPE] += 1
            self._refuse(stream_id, StreamError.UNKNOWN_TYPE)

    def _mirror(self, stream_id: int, data: bytes, *, ended: bool, now: float) -> None:
        target = self._owner.counterpart
        cause: StreamReset | None = None
        if target is None or self._owner.allocation is None:
            cause = StreamReset.NO_COUNTERPART
        elif not target.streams.has_room:
            cause = StreamReset.PENDING_LIMIT
        if cause is not None or target is None:
            self._counters.streams_reset[cause or StreamReset.NO_COUNTERPART] += 1
            self._owner.quic.consume(stream_id, len(data))
            self._refuse(stream_id, StreamError.NO_COUNTERPART)
            return
        self._counters.streams_mirrored += 1
        pipe = Pipe(self._owner, stream_id, target, None)
        self._inbound[stream_id] = pipe
        self._mirrors[stream_id] = (target, None)
        target.streams.open(pipe, bidirectional=not is_unidirectional(stream_id))
        self._feed(pipe, data, ended=ended, now=now)

    @property
    def has_room(self) -> bool:
        """Whether one more pipe may be opened here, or at least wait."""
        return len(self._waiting) < self._max_pending

    def open(self, pipe: Pipe, *, bidirectional: bool) -> None:
        """Open the mirror of a stream on this connection, or let it wait for the client's stream limit."""
        self._waiting.append((pipe, bidirectional))
        self._open_waiting()

    def _open_waiting(self) -> None:
        waiting = self._waiting
        for _ in range(len(waiting)):
            pipe, bidirectional = waiting.popleft()
            if pipe.closed:
                continue
            stream_id = self._owner.quic.open_stream(unidirectional=not bidirectional)
            if stream_id is None:
                waiting.append((pipe, bidirectional))
                continue
            pipe.target_id = stream_id
            self._outbound[stream_id] = pipe
            self._mirroring[stream_id] = pipe.source
            pipe.source.streams.mirrored(pipe)
            if bidirectional:
                self._inbound[stream_id] = back = Pipe(self._owner, stream_id, pipe.source, pipe.source_id)
                pipe.source.streams.answered(back)

    def mirrored(self, pipe: Pipe) -> None:
        """The mirror of one of our client's streams exists now."""
        self._mirrors[pipe.source_id] = (pipe.target, pipe.target_id)
        if pipe.pending or pipe.ended:
            self._busy.add(pipe)
            self._owner.wake()

    def answered(self, pipe: Pipe) -> None:
        """The way back of a bidirectional stream that our client opened; it may have stopped it already."""
        stream_id = pipe.target_id
        if stream_id is None:
            return
        code = self._owner.quic.reset_code(stream_id)
        if code is None:
            self._outbound[stream_id] = pipe
        else:
            pipe.discard()
            pipe.source.quic.stop_receiving(pipe.source_id, code)

    # -- pipes

    def _feed(self, pipe: Pipe, data: bytes, *, ended: bool, now: float) -> None:
        if pipe.closed:
            self._owner.quic.consume(pipe.source_id, len(data))
            if ended:
                self._inbound.pop(pipe.source_id, None)
            return
        pipe.pending += data
        pipe.uncredited += len(data)
        pipe.ended = pipe.ended or ended
        self._busy.add(pipe)
        pipe.target.streams.watch(pipe)
        self._move(pipe, now)

    def watch(self, pipe: Pipe) -> None:
        """Look after ``pipe``, which sends to this connection, whenever something is acknowledged here."""
        self._busy.add(pipe)

    def _move(self, pipe: Pipe, now: float) -> float | None:
        """Write what the caps allow to the target; returns the seconds to wait, if they hold something back."""
        if pipe.closed or pipe.target_id is None:
            return None
        allocation = self._owner.allocation
        if allocation is None:
            return None
        target = pipe.target.quic
        if target.reset_code(pipe.target_id) is not None:
            return None  # STOP_SENDING was received, its event comes next
        while pipe.pending:
            size, delay = allocation.grant_stream_bytes(min(len(pipe.pending), MAX_GRANT), now)
            if not size:
                return delay or None
            target.send_stream_data(pipe.target_id, bytes(pipe.pending[:size]))
            del pipe.pending[:size]
            pipe.target.wake()
        if pipe.ended:
            pipe.closed = True
            target.send_stream_data(pipe.target_id, b"", end_stream=True)
            self._inbound.pop(pipe.source_id, None)
            pipe.target.wake()
        return None

    def _close_pipe(self, pipe: Pipe, code: int) -> None:
        """End a pipe from its source's side: reset the target."""
        was_closed, pipe.closed = pipe.closed, True
        pipe.pending.clear()
        pipe.uncredited = 0
        if was_closed or pipe.target_id is None:
            return
        pipe.target.quic.reset_sending(pipe.target_id, code)
        pipe.target.streams.forget_outbound(pipe)
        pipe.target.wake()

    def forget_outbound(self, pipe: Pipe) -> None:
        """A pipe to this connection has ended."""
        if pipe.target_id is not None:
            self._outbound.pop(pipe.target_id, None)
        self._busy.discard(pipe)

    # -- streams that end

    def _refuse(self, stream_id: int, code: int) -> None:
        """Have nothing to do with a stream of the client: reset our half, stop its."""
        quic = self._owner.quic
        self._mirrors[stream_id] = (self._owner, None)
        quic.stop_receiving(stream_id, code)
        quic.reset_sending(stream_id, code)
        self._owner.wake()

    def _release(self) -> None:
        """Let the client open a stream for each of its own that is done here, with its mirror."""
        quic = self._owner.quic
        for stream_id, (target, mirror_id) in list(self._mirrors.items()):
            if not quic.is_stream_done(stream_id) or stream_id in self._unread:
                continue
            pipe = self._inbound.get(stream_id)
            if pipe is not None and not pipe.closed:
                continue  # its FIN has come, the bytes wait for the caps or for the counterpart's limit
            if mirror_id is not None and not target.quic.is_ending and not target.quic.is_stream_done(mirror_id):
                continue
            del self._mirrors[stream_id]
            self._inbound.pop(stream_id, None)
            self._records.pop(stream_id, None)
            self._outbound.pop(stream_id, None)
            quic.allow_stream(stream_id)

    def _oversize(self, stream_id: int, data: bytes, now: float) -> None:
        self._records[stream_id].push(data)
        self._unread[stream_id] = self._unread.get(stream_id, 0) + len(data)
        self._take_records(stream_id, now)

    def _take_records(self, stream_id: int, now: float) -> bool:
        """Take what the budget for records allows; whether some are left.

        Records cost work whatever their size, and the smallest is one byte, so their number has a limit, too. Those that have to
        wait are not credited; a record that is not whole is, because a window smaller than a record must not stop it.
        """
        decoder, budget = self._records[stream_id], self._budget
        budget.available(now)
        while budget.tokens >= 1:
            payload = decoder.next()
            if payload is None:
                break
            budget.tokens -= 1
            self._owner.datagram_received(payload)
        left = decoder.pending if budget.tokens < 1 else 0
        unread = self._unread[stream_id]
        self._owner.quic.consume(stream_id, unread - left)
        if left:
            self._unread[stream_id] = left
        else:
            del self._unread[stream_id]
        return bool(left)
