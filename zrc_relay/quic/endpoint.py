"""The endpoint: every packet of every listening socket comes in here (PROTOCOL §1, ARCHITECTURE "the way of a packet").

Theory of operation
-------------------
``datagram_received`` looks at the first byte (RFC 9443) and at the Destination Connection ID and hands the packet to its
connection, or makes one for an Initial if the ``Door`` lets it in, or drops it with a cause. Nothing is parsed that is not needed
for that. ``batch_done`` then flushes each connection that was touched, once, however many packets the batch had for it.

* ``Routes`` says whose a packet is, by its Destination Connection ID.
* Deadlines of all connections share one ``Wheel`` and one reactor timer, which is re-armed only when the earliest deadline moves
  earlier.
* An exception in the processing of one connection ends that connection (R5.6); it is logged with its name and counted.

Bounds: ``MAX_HANDSHAKES`` half-open connections and ``max_connections`` in all; past them Initials are dropped.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import ClassVar, Final

from twisted.internet.protocol import DatagramProtocol
from twisted.logger import Logger
from twisted.python.failure import Failure

from zrc_relay.core.authorisation import Refused
from zrc_relay.core.channel import CHANNEL_FIRST_BYTE, CHANNEL_HEADER, Channel, is_one_channel
from zrc_relay.core.codes import ErrorCode
from zrc_relay.core.counters import Handshake, InputDrop, Limit
from zrc_relay.core.relay import Relay
from zrc_relay.core.sources import numeric
from zrc_relay.quic.clock import Clock, DelayedCall
from zrc_relay.quic.door import Door, Opening, reply
from zrc_relay.quic.gather import Gather
from zrc_relay.quic.ids import CONNECTION_ID_SIZE, ConnectionIds
from zrc_relay.quic.link import RelayConnection
from zrc_relay.quic.routes import Routes
from zrc_relay.quic.settings import Credentials, EndpointSettings
from zrc_relay.quic.stateless import SUPPORTED_VERSIONS, LongHeader, parse_long_header, version_negotiation
from zrc_relay.quic.strays import Strays
from zrc_relay.quic.udp import Path
from zrc_relay.quic.wheel import Wheel

MAX_HANDSHAKES: Final = 1024
"""Half-open connections at a time: some 75 MB, and three times what a core can complete within ``handshake_timeout``."""
MIN_INITIAL: Final = 1200
"""Smallest UDP payload that an Initial may come in (RFC 9000 §14.1)."""
MIN_CLIENT_ID: Final = 8
"""Shortest Destination Connection ID that a client may choose (RFC 9000 §7.2)."""
MAX_FLUSH_ROUNDS: Final = 64
"""Flushing one connection can touch others (a close tells the other side); more rounds than this would be a loop."""
TIMEOUT_BUDGET: Final = 0.003
"""Seconds after which connections whose time has come wait until packets were looked at: handshakes of a flood have theirs all at
once."""


class Endpoint(DatagramProtocol):
    """All QUIC connections of one relay process.

    ``clock`` is the reactor (or a ``Clock``) for its one timer; ``now`` gives monotonic and ``wall`` Unix seconds; ``random``
    gives random bytes.
    """

    _log: ClassVar = Logger()

    def __init__(
        self,
        relay: Relay,
        credentials: Credentials,
        settings: EndpointSettings,
        ids: ConnectionIds,
        *,
        clock: Clock,
        now: Callable[[], float],
        wall: Callable[[], float],
        random: Callable[[int], bytes],
    ) -> None:
        self.relay = relay
        self.credentials = credentials
        self._settings = settings
        self._ids = ids
        self._clock = clock
        self._now = now
        self._wall = wall
        self._random = random
        self._routes = Routes()
        self._route_table = self._routes.table
        self._connections: set[RelayConnection] = set()
        self._handshaking: set[RelayConnection] = set()
        self._touched: dict[RelayConnection, None] = {}
        self._deadlines: Wheel[RelayConnection] = Wheel()
        self._door = Door(relay, ids, random, now())
        self._strays = Strays(relay.counters, ids, random, now())
        self._access_revision = relay.admission.lists.revision
        self._timer: DelayedCall | None = None
        self._timer_at = 0.0
        self._inbox: dict[RelayConnection | Channel, tuple[Path, list[bytes]]] = {}
        """What the batch brought so far for connections and channels."""
        self._batch_now: float | None = None
        self._gather = Gather(settings.gather_time, now=now)
        self._received = 0
        """Packets, up to the batch before this one."""
        self.accepting = True

    def reconfigure(self, credentials: Credentials, settings: EndpointSettings) -> None:
        """Make connections with these from now on; those that are there keep what they have (PROTOCOL §4)."""
        self.credentials = credentials
        if settings.gather_time != self._settings.gather_time:
            self._gather = Gather(settings.gather_time, now=self._now)
        self._settings = settings

    # -- packets in

    def batch_begins(self) -> None:
        """See ``PatientReceiver``."""
        self._gather.begin()

    def datagram_received(self, data: bytes, path: Path) -> None:
        """One UDP datagram; see ``Receiver``."""
        if self._batch_now is None:
            self._batch_now = self._now()
        counters = self.relay.counters
        counters.packets_received += 1
        size = len(data)
        if size == 0:
            counters.input_dropped[InputDrop.TRUNCATED] += 1
            return
        first = data[0]
        if 64 <= first < 128:
            connection = self._route_table.get(data[1 : 1 + CONNECTION_ID_SIZE])
            if connection is None:
                self._strays.short(data, path, self._now())
                return
            self._put_by(connection, data, path)
            return
        try:
            found = self._stranger(first, data, path)
        except Exception:
            self._log.failure("a packet that belongs to no connection could not be dealt with", event="packet.failed")
            counters.session_errors += 1
            return
        if found is None:
            return
        connection = found
        try:
            connection.receive(data, path, self._batch_now, self._wall())
        except Exception:
            self._fail(connection)

    def train_received(self, train: bytes, size: int, path: Path) -> None:
        """Several datagrams in one piece; see ``Receiver``. Those of a channel stay together."""
        if train[0] == CHANNEL_FIRST_BYTE and is_one_channel(train, size):
            channel = self.relay.channels.get(train[1:CHANNEL_HEADER])
            if channel is not None:
                if self._batch_now is None:
                    self._batch_now = self._now()
                self.relay.counters.packets_received += -(-len(train) // size)
                earlier = self._inbox.pop(channel, None)
                if earlier is not None:
                    self._deliver(channel, *earlier, self._wall())
                try:
                    channel.receive_train(train, size, path, self._batch_now, self._wall())
                except Exception:
                    self._fail_channel(channel, path)
                return
        for start in range(0, len(train), size):
            self.datagram_received(train[start : start + size], path)

    def batch_done(self) -> None:
        """Flush what the batch touched; see ``Receiver``."""
        inbox = self._inbox
        if inbox:
            self._inbox = {}
            wall = self._wall()
            later, self._touched = self._touched, {}
            for target in list(inbox):
                arrived = inbox.pop(target, None)
                if arrived is None:
                    continue
                self._deliver(target, arrived[0], arrived[1], wall)
                # Whom it sends to is flushed before the others are looked at: the packets leave that much earlier. What the
                # batch has from there comes first, so that each is flushed once. Nothing of others is flushed with them: what
                # an allocation's packets look like must not depend on others.
                touched = self._touched
                if not touched:
                    continue
                while inbox and (waiting := [each for each in touched if each in inbox]):
                    for each in waiting:
                        path, packets = inbox.pop(each)
                        self._deliver(each, path, packets, wall)
                self._flush_touched(self._now(), wall)
                if self._touched:
                    later.update(self._touched)
                    self._touched = {}
            self._touched = later
        self._batch_now = None
        now, wall = self._now(), self._wall()
        self.relay.settle(now, wall)
        self._flush(now, wall)
        if self._timer_at <= now and self._timer is not None:
            self._timer.cancel()
            self._timed_out()  # the reactor may be a while yet
        received = self.relay.counters.packets_received
        self._gather.end(received - self._received)
        self._received = received

    def stays(self) -> bool:
        """See ``PatientReceiver``."""
        return self._gather.is_dense

    def _put_by(self, target: RelayConnection | Channel, data: bytes, path: Path) -> None:
        """Keep a packet until the batch is complete: its target gets all that came by one path in one go."""
        inbox = self._inbox.get(target)
        if inbox is None:
            self._inbox[target] = (path, [data])
        elif inbox[0] == path:
            inbox[1].append(data)
        else:
            self._deliver(target, *inbox, self._wall())
            self._inbox[target] = (path, [data])

    def _deliver(self, target: RelayConnection | Channel, path: Path, packets: list[bytes], wall: float) -> None:
        now = self._batch_now
        try:
            target.receive_batch(packets, path, self._now() if now is None else now, wall)
        except Exception:
            if isinstance(target, Channel):
                self._fail_channel(target, path)
            else:
                self._fail(target)

    def send_blocked(self) -> None:
        """See ``Receiver``."""
        self.relay.counters.sends_blocked += 1

    def makeConnection(self, transport: object) -> None:
        """A port listens for this endpoint; there may be several, and each packet's path says by which it came."""
        del transport
        self.doStart()

    def _stranger(self, first: int, data: bytes, path: Path) -> RelayConnection | None:
        """What has no short header: the connection it belongs to or begins, or None when it was put by or dealt with."""
        if first >= 192:
            return self._long_header(data, path)
        if first == CHANNEL_FIRST_BYTE:
            channel = self.relay.channels.get(data[1:CHANNEL_HEADER])
            if channel is not None:
                self._put_by(channel, data, path)
            else:
                self._strays.drop(data[1:CHANNEL_HEADER], InputDrop.CHANNEL)
            return None
        if first < 4:
            self._door.stun(data, path, now=self._now(), wall=self._wall())
        else:
            self.relay.counters.input_dropped[InputDrop.FIRST_BYTE] += 1
        return None

    def _long_header(self, data: bytes, path: Path) -> RelayConnection | None:
        """The connection a long-header packet belongs to, a new one for an Initial, or None when it was dealt with."""
        header = parse_long_header(data)
        if header is None:
            self.relay.counters.input_dropped[InputDrop.TRUNCATED] += 1
            return None
        connection = self._route_table.get(header.destination)
        if connection is not None or not self._may_begin(header, len(data), path):
            return connection
        opening = self._door.knock(
            data, header, path, open_handshakes=len(self._handshaking), now=self._now(), wall=self._wall()
        )
        return self._begin(opening, path) if opening is not None else None

    def _may_begin(self, header: LongHeader, size: int, path: Path) -> bool:
        """Whether a packet of nobody's is an Initial of a version that is spoken here, and there is room for a connection."""
        counters = self.relay.counters
        if size < MIN_INITIAL:
            counters.input_dropped[InputDrop.SMALL_INITIAL] += 1
            return False
        if header.version not in SUPPORTED_VERSIONS:
            if header.version != 0:  # never answer a Version Negotiation packet: two relays could be set on each other
                counters.version_negotiations += 1
                reply(size, version_negotiation(header), path)
            return False
        if not header.is_initial:
            self._strays.drop(header.destination, InputDrop.UNKNOWN_CONNECTION)
            return False
        if len(header.destination) < MIN_CLIENT_ID:
            counters.input_dropped[InputDrop.UNKNOWN_CONNECTION] += 1
            return False
        return self._has_room()

    def _has_room(self) -> bool:
        counters = self.relay.counters
        cause = None
        if not self.accepting:
            cause = InputDrop.STOPPING
        elif len(self._handshaking) >= MAX_HANDSHAKES:
            cause = InputDrop.HANDSHAKES_FULL
        elif len(self._connections) >= self._settings.max_connections:
            cause = InputDrop.CONNECTIONS_FULL
        if cause is not None:
            counters.input_dropped[cause] += 1
        return cause is None

    def _begin(self, opening: Opening, path: Path) -> RelayConnection:
        self.relay.counters.handshakes[Handshake.STARTED] += 1
        connection = RelayConnection(
            self, self.credentials, self._settings,
            ids=self._ids, nonce=self._random(32), opening=opening, path=path, now=self._now(),
        )
        self._route_table[connection.first_destination_id] = connection
        self._connections.add(connection)
        self._handshaking.add(connection)
        return connection

    # -- what connections call (Host)

    def issued(self, connection_id: bytes, connection: RelayConnection) -> None:
        """See ``Host``."""
        self._route_table[connection_id] = connection

    def retired(self, connection_id: bytes, connection: RelayConnection) -> None:
        """See ``Host``."""
        self._routes.retire(connection_id, connection, self._now())

    def established(self, connection: RelayConnection) -> None:
        """See ``Host``."""
        self._handshaking.discard(connection)
        try:
            address, wall = numeric(connection.remote.host), self._wall()
            self.relay.admission.check_access(address, wall)
            if not connection.is_admitted:
                self.relay.admission.validated(address, self._now())
        except Refused as refusal:
            connection.session.refuse(refusal, self._now(), self._wall())
        # The client uses an id of ours now; late Initials to the one it chose are of no use to anyone.
        self.retired(connection.first_destination_id, connection)

    def touch(self, connection: RelayConnection) -> None:
        """See ``Host``."""
        self._touched[connection] = None
        if self._batch_now is None:
            self._wake(self._now())

    def expect(self, connection: RelayConnection, deadline: float) -> None:
        """See ``Host``."""
        self._deadlines.set(connection, deadline)

    def put_off(self, connection: RelayConnection, deadline: float) -> None:
        """See ``Host``."""
        self._deadlines.put_off(connection, deadline)

    def expect_owing(self, connection: RelayConnection, at: float) -> None:
        """See ``Host``."""
        self._deadlines.set_owing(connection, at)

    # -- time

    def sweep(self) -> None:
        """What is due a few times a second: expiry, held-back notices, retired ids."""
        now, wall = self._now(), self._wall()
        self._routes.sweep(now)
        revision = self.relay.admission.lists.revision
        if revision != self._access_revision:
            self._access_revision = revision
            for connection in self._connections:
                self.relay.recheck(connection.session)
        self.relay.sweep(now, wall)
        self._flush(now, wall)

    def close_all(self, code: ErrorCode, reason: str) -> None:
        """Close every connection with ``code``; those that have no 1-RTT keys yet are dropped."""
        now, wall = self._now(), self._wall()
        for connection in list(self._connections):
            if connection.established:
                self.relay.unbind(connection.session, now, wall)
                connection.session.shut(code, reason)
            else:
                self._remove(connection)
        self._flush(now, wall)

    def stop(self) -> None:
        """Forget everything and let the timer go; all that is still sent are closes that were waiting."""
        self.accepting = False
        for connection in self._connections:
            connection.hurry()
            self._touched[connection] = None
        self._flush(self._now(), self._wall())
        for connection in list(self._connections):
            self._remove(connection)
        self._deadlines = Wheel()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def find(self, name: str) -> RelayConnection | None:
        """The connection that logs call ``name``."""
        return next((connection for connection in self._connections if connection.name == name), None)

    @property
    def connections(self) -> int:
        """How many connections there are, half-open and closing ones included."""
        return len(self._connections)

    @property
    def handshaking(self) -> int:
        """How many of them are half-open."""
        return len(self._handshaking)

    def all_connections(self) -> list[RelayConnection]:
        """Those connections."""
        return list(self._connections)

    def _wake(self, deadline: float) -> None:
        if self._timer is not None:
            if deadline >= self._timer_at:
                return
            self._timer.cancel()
        self._timer_at = deadline
        self._timer = self._clock.callLater(max(0.0, deadline - self._now()), self._timed_out)

    def _timed_out(self) -> None:
        self._timer = None
        now, wall = self._now(), self._wall()
        self._batch_now = now
        try:
            self._call_ready(now, wall)
            self.relay.settle(now, wall)
        finally:
            self._flush(now, wall)  # which sees to the next time, whatever happens

    def _call_ready(self, now: float, wall: float) -> None:
        ready, owing = self._deadlines.due(now)
        for connection in owing:
            if connection.owes:
                self._touched[connection] = None
        begun = self._now()  # finding them is not part of the budget, or many of them could leave nothing of it
        for connection in ready:
            if self._now() - begun > TIMEOUT_BUDGET:
                self.expect(connection, now)  # its turn comes after the packets that wait
                continue
            try:
                connection.timed_out(now, wall)
            except Exception:
                self._fail(connection)

    # -- packets out

    def _flush(self, now: float, wall: float) -> None:
        self._batch_now = now
        try:
            for _ in range(MAX_FLUSH_ROUNDS):
                self._report_failures()
                if not self._touched:
                    break
                self._flush_touched(now, wall)
                self.relay.settle(now, wall)
        finally:
            self._batch_now = None
            upcoming = self._deadlines.next()
            if self._touched:
                self._wake(now)
            elif upcoming < inf:
                self._wake(upcoming)

    def _flush_touched(self, now: float, wall: float) -> None:
        touched, self._touched = self._touched, {}
        for connection in touched:
            try:
                connection.flush(now, wall)
            except Exception:
                self._fail(connection)
                continue
            if connection.finished:
                self._remove(connection)

    def _report_failures(self) -> None:
        """Errors that the core has kept to one allocation or session: log them, close the sessions."""
        failures = self.relay.failures
        while failures:
            failed = failures.pop()
            names = [session.link.name for session in failed.sessions]
            if failed.key is not None:
                self._log.failure(
                    "allocation {allocation} is closed: its processing failed", Failure(failed.error), event="allocation.failed",
                    device=failed.key[0].hex(), allocation=failed.key[1].hex(), connections=names,
                )
            else:
                self._log.failure(
                    "connection {connection} is closed: its processing failed", Failure(failed.error), event="connection.failed",
                    connection=", ".join(names),
                )
            self.relay.counters.session_errors += 1
            for session in failed.sessions:
                if isinstance(session.link, RelayConnection):  # and not gone since
                    self._abort(session.link)

    def _fail(self, connection: RelayConnection) -> None:
        """One connection's processing raised: end that one (R5.6)."""
        ids = connection.session.ids
        self._log.failure(
            "connection {connection} is closed: its processing failed", event="connection.failed",
            connection=connection.name, device=ids.get("device"), allocation=ids.get("allocation"),
        )
        self.relay.counters.session_errors += 1
        self._abort(connection)

    def _fail_channel(self, channel: Channel, path: Path) -> None:
        """The same, when it was about what a client sent on its channel."""
        sender = channel.sender(path)
        if sender is not None and isinstance(sender.link, RelayConnection):
            self._fail(sender.link)

    def _abort(self, connection: RelayConnection) -> None:
        if connection not in self._connections:
            return
        try:
            connection.abort(self._now(), self._wall())
        except Exception:
            self._log.failure(
                "connection {connection} could not say goodbye", event="connection.close_failed", connection=connection.name
            )
        self._remove(connection)

    def _remove(self, connection: RelayConnection) -> None:
        self._touched.pop(connection, None)
        if connection not in self._connections:
            return  # removed before; a stream of somebody else's has touched it since
        if connection.is_abandoned and self.relay.admission.abandoned(numeric(connection.remote.host), self._now()):
            remote = connection.remote
            self.relay.limited(Limit.AMPLIFICATION, remote.host, remote.port, "pattern")
        self._connections.discard(connection)
        self._handshaking.discard(connection)
        self._deadlines.set(connection, inf)
        self._routes.remove(connection, self._now())
        if connection.finished:
            connection.let_go()
