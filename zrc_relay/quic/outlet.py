"""``Outlet``: what sessions do to a connection, its own and those of others.

Theory of operation
-------------------
It is the ``Link`` of the connection's own session, and the ``Owner`` of its forwarded streams. What it is given to send waits in
the QUIC connection and in its egress queue until whoever drives the connection (``RelayConnection``) flushes it, which ``touch``
asks for.

Those who call ``send_datagrams``, ``send_control`` and ``close`` are often busy with another connection's packet. An exception
there is this connection's and not that one's: it is kept, and raised by the next flush (R5.6).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, cast

from zrc_relay.core.allocation import Allocation
from zrc_relay.core.codes import DropCause, ErrorCode
from zrc_relay.core.relay import Relay
from zrc_relay.core.session import Session
from zrc_relay.core.wire import Address
from zrc_relay.quic.connection import CONTROL_STREAM, HELLO_STREAM, Connection
from zrc_relay.quic.door import Opening
from zrc_relay.quic.egress import EgressQueue
from zrc_relay.quic.gone import GoneLink
from zrc_relay.quic.ids import ConnectionIds
from zrc_relay.quic.oversize import OversizeSender
from zrc_relay.quic.settings import Credentials, EndpointSettings
from zrc_relay.quic.streams import Forwarder
from zrc_relay.quic.udp import Path
from zrc_relay.quic.wheel import Timed

MAX_LINGER: Final = 1.0
"""Longest time in seconds that a close waits for the control stream to be acknowledged."""
PROBE_DELAY: Final = 0.25
"""Seconds from the handshake to the first probe of the path's MTU: a probe is a twentieth of what a short connection costs."""


class Outlet(Timed):
    """See the module's docstring. ``now`` is monotonic seconds; ``on_issued`` is told the ids that are issued."""

    __deletable__ = ("_oversize", "streams")  # in ``let_go``; mypyc wants to know

    def __init__(
        self,
        relay: Relay,
        credentials: Credentials,
        settings: EndpointSettings,
        *,
        ids: ConnectionIds,
        nonce: bytes,
        opening: Opening,
        path: Path,
        now: float,
        on_issued: Callable[[bytes], None],
    ) -> None:
        super().__init__()
        self._ids = ids
        self.certificate_sha256 = credentials.certificate_sha256
        self._original_id = opening.original_id
        self.established = False
        self.finished = False
        self._first_path = path
        self._close: tuple[ErrorCode, str] | None = None
        self._linger_until = 0.0
        self._error: Exception | None = None
        self._max_payload = 0
        self._now = now
        self.quic = Connection(
            configuration=credentials.configuration,
            ids=ids,
            egress=self._queue(relay, settings),
            max_streams=settings.max_streams,
            on_issued=on_issued,
            max_udp_payload=settings.max_udp_payload,
            probe_delay=PROBE_DELAY,
            original_destination_connection_id=opening.original_id,
            retry_source_connection_id=opening.retry_id,
        )
        self._state = self.quic.one_rtt
        self._egress = self.quic.egress
        self.session = Session(relay, self, nonce, now)
        self.streams = Forwarder(self, relay.counters, settings.max_pending_streams)
        self._oversize = OversizeSender(self.quic, self._queue(relay, settings))

    def touch(self) -> None:
        """Have this connection flushed at the end of the batch."""
        raise NotImplementedError

    def _queue(self, relay: Relay, settings: EndpointSettings) -> EgressQueue:
        waits = relay.counters.egress_waits
        return EgressQueue(settings.egress_queue_bytes, settings.egress_queue_age, self._dropped_late, waits)

    def _dropped_late(self, size: int) -> None:
        self.session.drop_egress(DropCause.EGRESS_QUEUE, size, self._now)

    def let_go(self) -> None:
        """After its end: break every reference cycle, so that its memory is free when the last who knows it forgets it."""
        self.session.link = GoneLink(self.name, self.remote, self.local)
        self.session.send_datagrams = self.session.link.send_datagrams
        self.quic.let_go()
        self._egress.close()
        del self.streams, self._oversize

    # -- Link

    @property
    def name(self) -> str:
        """The first connection id that the client used, in hex; unique enough to find its lines in a log."""
        return self._original_id.hex()

    @property
    def remote(self) -> Address:
        """See ``Link``."""
        (host, port, *_), _ = self._path
        return Address.of(host, port)

    @property
    def local(self) -> Address:
        """See ``Link``."""
        return self._path[1].address

    @property
    def _path(self) -> Path:
        return cast(Path, self.quic.validated_address or self._first_path)

    @property
    def max_payload(self) -> int:
        """See ``Link``."""
        return self.quic.max_payload

    @property
    def patience(self) -> float:
        """See ``Link``."""
        return self.quic.patience

    @property
    def control_backlog(self) -> int:
        """See ``Link``."""
        return self.quic.unsent(CONTROL_STREAM)

    @property
    def route(self) -> Path:
        """See ``Link``."""
        return self._path

    def new_channel_id(self) -> bytes:
        """See ``Link``."""
        return self._ids.channel()

    def send_packets(self, packets: list[bytes]) -> None:
        """See ``Link``."""
        to, origin = self._path
        origin.send_many(packets, to)

    def send_train(self, train: bytes, size: int) -> None:
        """See ``Link``."""
        to, origin = self._path
        origin.send_train(train, size, to)

    def send_hello(self, data: bytes) -> None:
        """See ``Link``."""
        self.quic.send_stream_data(HELLO_STREAM, data, end_stream=True)

    def send_control(self, data: bytes) -> None:
        """See ``Link``."""
        try:
            if self.quic.reset_code(CONTROL_STREAM) is None:  # else the event that ends the session is on its way
                self.quic.send_stream_data(CONTROL_STREAM, data)
        except Exception as error:
            self._error = error
        self.touch()

    def send_datagrams(self, payloads: list[bytes], now: float) -> None:
        """See ``Link``."""
        try:
            limit = self._max_payload
            for payload in payloads:
                if len(payload) > limit:
                    for larger in self.quic.send_payloads(payloads, now):
                        self._send_oversize(larger, now)
                    break
            else:
                self._egress.extend(payloads, now)
        except Exception as error:
            self._error = error
        self.touch()

    def _send_oversize(self, payload: bytes, now: float) -> None:
        self._state.attention = True
        if not self._oversize.push(payload, now):
            self.session.drop_egress(DropCause.OVERSIZE, len(payload), now)

    def close(self, code: ErrorCode, reason: str) -> None:
        """See ``Link``."""
        self._close = (code, reason)
        self._state.attention = True
        try:
            self._linger_until = self._now + min(3 * self.quic.probe_timeout, MAX_LINGER)
            self.streams.lost()
        except Exception as error:
            self._error = error
        self.touch()

    # -- Owner of forwarded streams

    @property
    def allocation(self) -> Allocation | None:
        """See ``Owner``."""
        return self.session.allocation

    @property
    def counterpart(self) -> Outlet | None:
        """See ``Owner``."""
        allocation = self.session.allocation
        if allocation is None:
            return None
        side = allocation.sides[1 - self.session.role]
        side.select(self._now)  # silence may have changed it
        link = cast(Session, side.current).link if side.current is not None else None
        return link if isinstance(link, Outlet) else None

    def datagram_received(self, payload: bytes) -> None:
        """See ``Owner``."""
        self.session.datagrams_received([payload], self._now)

    def wake(self) -> None:
        """See ``Owner``."""
        self._state.attention = True
        self.touch()
