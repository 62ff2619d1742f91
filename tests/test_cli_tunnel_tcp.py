"""``zrc-relay tunnel --tcp``: TCP programs over a relay on loopback sockets."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import deferLater
from zope.interface import implementer  # type: ignore[import-untyped]

from tests.cli_support import PATIENCE, RelayCase, reactor, zrc_relay
from zrc_relay.cli.dev_setup import make_dev_setup
from zrc_relay.cli.errors import EndedByRelay, Failure
from zrc_relay.cli.keyfiles import read_key
from zrc_relay.cli.params import HostPort
from zrc_relay.cli.relay_end import RelayLink
from zrc_relay.cli.tcp_carrier import TcpTunnel
from zrc_relay.client.trust import Trust
from zrc_relay.config import load_config
from zrc_relay.core.token import RelayToken
from zrc_relay.engine import Surroundings
from zrc_relay.service import RelayService

HERE = HostPort("127.0.0.1", 0)


class Program(Protocol):
    """A TCP program that remembers what it gets and how it ended, and may be waited for."""

    def __init__(self) -> None:
        self.got = bytearray()
        self.ended_with: BaseException | None = None
        self._waiting: list[tuple[Callable[[], bool], Deferred[None]]] = []

    @property
    def socket(self) -> Any:
        return self.transport

    def until(self, condition: Callable[[], bool]) -> Deferred[None]:
        """Fires when ``condition`` holds."""
        waiter: Deferred[None] = Deferred()
        waiter.addTimeout(PATIENCE, reactor)
        self._waiting.append((condition, waiter))
        self._look()
        return waiter

    def has(self, count: int) -> Deferred[None]:
        return self.until(lambda: len(self.got) >= count)

    def is_over(self) -> Deferred[None]:
        return self.until(lambda: self.ended_with is not None)

    def _look(self) -> None:
        ready = [waiter for condition, waiter in self._waiting if condition()]
        self._waiting = [entry for entry in self._waiting if entry[1] not in ready]
        for waiter in ready:
            waiter.callback(None)

    def dataReceived(self, data: bytes) -> None:
        self.got += data
        self._look()

    def connectionLost(self, reason: Any = None) -> None:
        self.ended_with = reason.value
        self._look()


class Echo(Program):
    """Sends back what it gets."""

    def dataReceived(self, data: bytes) -> None:
        self.socket.write(data)
        super().dataReceived(data)


@implementer(IHalfCloseableProtocol)
class Half(Program):
    """Goes on when the other side has said all it had to say."""

    def __init__(self) -> None:
        super().__init__()
        self.read_all = False

    def readConnectionLost(self) -> None:  # noqa: N802 - Twisted's name
        self.read_all = True
        self._look()

    def writeConnectionLost(self) -> None:  # noqa: N802 - Twisted's name
        """Nothing to do."""


class Server(Factory):
    """Listens on a port of its own and remembers whom it served."""

    def __init__(self, case: RelayCase, program: Callable[[], Program]) -> None:
        self.program = program
        self.served: list[Program] = []
        self._waiting: list[tuple[int, Deferred[Program]]] = []
        listening = reactor.listenTCP(0, self, interface="127.0.0.1")
        self.port: int = listening.getHost().port
        case.addCleanup(listening.stopListening)
        case.addCleanup(self.hang_up)

    def buildProtocol(self, addr: Any) -> Program:  # noqa: N802 - Twisted's name
        del addr
        served = self.program()
        self.served.append(served)
        for entry in list(self._waiting):
            if len(self.served) >= entry[0]:
                self._waiting.remove(entry)
                reactor.callLater(0, entry[1].callback, served)
        return served

    def has_served(self, count: int) -> Deferred[Program]:
        waiter: Deferred[Program] = Deferred()
        waiter.addTimeout(PATIENCE, reactor)
        if len(self.served) >= count:
            waiter.callback(self.served[-1])
        else:
            self._waiting.append((count, waiter))
        return waiter

    def hang_up(self) -> None:
        for served in self.served:
            if served.ended_with is None and served.transport is not None:
                served.socket.abortConnection()


class TcpCase(RelayCase):
    """A relay, a targeting tunnel at the device and a listening one at the peer."""

    def setUp(self) -> None:
        settings = {"drain_timeout": "0s", "default_bandwidth_limit": "1 Gbit/s"}
        self.made = make_dev_setup(Path(self.mktemp()), listen=["127.0.0.1"], port=0, settings=settings)
        self.service = RelayService(load_config(path=self.made.config, environ={}, options={}), Surroundings(reactor))
        self.service.startService()
        self.addCleanup(self.service.stopService)
        self.relay = HostPort("127.0.0.1", self.service.quic.ports[0].local.port)
        self.trust = Trust(fingerprint=self.made.fingerprint)
        self.token = RelayToken.from_text(self.made.token.read_text())
        self.tunnels: list[TcpTunnel] = []
        self.told: list[str] = []
        self.warned: list[str] = []
        self.clients: list[Program] = []
        self.addCleanup(self.clean)

    def clean(self) -> Deferred[Any]:
        for client in self.clients:
            if client.ended_with is None and client.transport is not None:
                client.socket.abortConnection()
        for tunnel in self.tunnels:
            tunnel.close()
        return deferLater(reactor, 0.05)

    def tunnel(self) -> TcpTunnel:
        made = TcpTunnel(tell=self.told.append, warn=self.warned.append)
        made.ended.addErrback(lambda _: None)
        self.tunnels.append(made)
        return made

    async def open(self, key: Path, tunnel: TcpTunnel) -> None:
        await tunnel.open(reactor, RelayLink(self.relay, self.trust, self.token, read_key(key)))

    async def listening(self, key: Path) -> tuple[TcpTunnel, int]:
        tunnel = self.tunnel()
        port = tunnel.listen(reactor, HERE).port
        await self.open(key, tunnel)
        return tunnel, port

    async def aiming(self, key: Path, target: int) -> TcpTunnel:
        tunnel = self.tunnel()
        tunnel.aim(HostPort("127.0.0.1", target))
        await self.open(key, tunnel)
        return tunnel

    async def both(self, target: int) -> int:
        """Opens both ends; returns the port to connect to."""
        await self.aiming(self.made.device_key, target)
        _, port = await self.listening(self.made.peer_key)
        return port

    async def release(self, tunnel: TcpTunnel) -> None:
        """End the allocation from one end."""
        connection = tunnel.open_connection
        if connection is not None:
            await connection.release()

    async def connect(self, port: int, program: Program | None = None) -> Program:
        made: Deferred[Program] = Deferred()
        client = program or Program()

        def build() -> Program:
            reactor.callLater(0, made.callback, client)
            return client

        from twisted.internet.endpoints import TCP4ClientEndpoint  # noqa: PLC0415 - used here only

        factory: Any = Factory.forProtocol(build)
        await TCP4ClientEndpoint(reactor, "127.0.0.1", port).connect(factory)
        self.clients.append(client)
        return await made


class CarryingTests(TcpCase):
    """Issue "client library": TCP connections over streams."""

    async def test_what_one_writes_the_other_reads_both_ways(self) -> None:
        server = Server(self, Echo)
        client = await self.connect(await self.both(server.port))
        client.socket.write(b"hello")
        await client.has(5)
        self.assertEqual((server.served[0].got, client.got), (b"hello", b"hello"))

    async def test_a_server_may_speak_first(self) -> None:
        class Greeter(Program):
            def connectionMade(self) -> None:
                self.socket.write(b"220 ready\r\n")

        server = Server(self, Greeter)
        client = await self.connect(await self.both(server.port))
        await client.has(11)
        self.assertEqual(client.got, b"220 ready\r\n")

    async def test_either_end_may_listen(self) -> None:
        server = Server(self, Echo)
        await self.aiming(self.made.peer_key, server.port)
        _, port = await self.listening(self.made.device_key)
        client = await self.connect(port)
        client.socket.write(b"the other way round")
        await client.has(19)
        self.assertEqual(client.got, b"the other way round")

    async def test_megabytes_arrive_unchanged_in_both_directions_at_once(self) -> None:
        server = Server(self, Half)
        port = await self.both(server.port)
        client = await self.connect(port, Half())
        served = await server.has_served(1)
        there, back = os.urandom(3_000_000), os.urandom(2_000_000)
        client.socket.write(there)
        served.socket.write(back)
        await gatherResults([served.has(len(there)), client.has(len(back))])
        self.assertEqual(hashlib.sha256(served.got).digest(), hashlib.sha256(there).digest())
        self.assertEqual(hashlib.sha256(client.got).digest(), hashlib.sha256(back).digest())

    async def test_more_connections_than_the_relay_allows_streams_take_turns(self) -> None:
        server = Server(self, Echo)
        port = await self.both(server.port)
        clients = [await self.connect(port) for _ in range(45)]
        for number, client in enumerate(clients):
            client.socket.write(b"%02d" % number)
        for number, client in enumerate(clients):
            await client.has(2)
            self.assertEqual(client.got, b"%02d" % number)
            client.socket.loseConnection()
        self.assertEqual(len(server.served), 45)

    async def test_the_statistics_count_connections_and_bytes(self) -> None:
        server = Server(self, Echo)
        port = await self.both(server.port)
        client = await self.connect(port)
        client.socket.write(bytes(1500))
        await client.has(1500)
        expected = "1 connections (1 open), sent 1.5 kB, received 1.5 kB; came to nothing: none"
        self.assertEqual([str(tunnel.statistics) for tunnel in self.tunnels], [expected, expected])
        client.socket.loseConnection()
        await server.served[0].is_over()
        await deferLater(reactor, 0.1)
        self.assertEqual([tunnel.statistics.now_open for tunnel in self.tunnels], [0, 0])


class EndingTests(TcpCase):
    """Half-close and reset are carried over."""

    async def test_half_close_ends_one_direction_and_the_answer_still_comes(self) -> None:
        server = Server(self, Half)
        client = await self.connect(await self.both(server.port), Half())
        client.socket.write(b"question")
        client.socket.loseWriteConnection()
        served = await server.has_served(1)
        assert isinstance(served, Half)  # noqa: S101 - what this server makes
        await served.until(lambda: served.read_all)
        self.assertEqual(served.got, b"question")
        self.assertIsNone(served.ended_with)
        served.socket.write(b"answer")
        await client.has(6)
        self.assertIsNone(client.ended_with)
        served.socket.loseConnection()
        await client.until(lambda: isinstance(client, Half) and client.read_all)
        self.assertEqual(client.got, b"answer")
        await deferLater(reactor, 0.1)
        self.assertEqual([tunnel.statistics.now_open for tunnel in self.tunnels], [0, 0])

    async def test_a_close_with_data_before_it_delivers_the_data(self) -> None:
        class Brief(Program):
            def connectionMade(self) -> None:
                self.socket.write(bytes(500_000))
                self.socket.loseConnection()

        server = Server(self, Brief)
        client = await self.connect(await self.both(server.port))
        await client.is_over()
        self.assertEqual(len(client.got), 500_000)
        self.assertIsInstance(client.ended_with, ConnectionDone)

    async def test_a_reset_of_the_client_is_a_reset_at_the_server(self) -> None:
        server = Server(self, Half)
        client = await self.connect(await self.both(server.port))
        client.socket.write(b"x")
        served = await server.has_served(1)
        await served.has(1)
        client.socket.abortConnection()
        await served.is_over()
        self.assertNotIsInstance(served.ended_with, ConnectionDone)

    async def test_a_reset_of_the_server_is_a_reset_at_the_client(self) -> None:
        server = Server(self, Half)
        client = await self.connect(await self.both(server.port), Half())
        served = await server.has_served(1)
        served.socket.abortConnection()
        await client.is_over()
        self.assertNotIsInstance(client.ended_with, ConnectionDone)

    async def test_a_server_that_breaks_after_its_own_half_close_breaks_the_client(self) -> None:
        server = Server(self, Half)
        client = await self.connect(await self.both(server.port), Half())
        served = await server.has_served(1)
        served.socket.loseWriteConnection()
        await client.until(lambda: isinstance(client, Half) and client.read_all)
        client.socket.write(b"still talking")
        await served.has(13)
        served.socket.abortConnection()
        deadline = reactor.seconds() + PATIENCE
        while client.ended_with is None and reactor.seconds() < deadline:
            client.socket.write(b"is anyone there?")  # a socket that has read everything notices a reset when it writes
            await deferLater(reactor, 0.05)
        self.assertIsNotNone(client.ended_with)
        self.assertNotIsInstance(client.ended_with, ConnectionDone)

    async def test_a_reset_after_a_half_close_is_still_one(self) -> None:
        server = Server(self, Half)
        client = await self.connect(await self.both(server.port), Half())
        client.socket.loseWriteConnection()
        served = await server.has_served(1)
        await served.until(lambda: isinstance(served, Half) and served.read_all)
        served.socket.abortConnection()
        await client.is_over()
        self.assertNotIsInstance(client.ended_with, ConnectionDone)


class PressureTests(TcpCase):
    """R3.8: back-pressure from one TCP program to the other, both ways."""

    async def flood(self, writer: Program, reader: Program) -> None:
        """``reader`` stops reading, ``writer`` is stopped, and in the end everything arrives."""
        reader.socket.pauseProducing()
        written = bytearray()
        paused: list[bool] = []

        class Source:
            def resumeProducing(self) -> None:  # noqa: N802 - Twisted's name
                if len(written) < 40_000_000:
                    piece = os.urandom(65_536)
                    written.extend(piece)
                    writer.socket.write(piece)
                else:
                    writer.socket.unregisterProducer()

            def pauseProducing(self) -> None:  # noqa: N802 - Twisted's name
                paused.append(True)

            def stopProducing(self) -> None:  # noqa: N802 - Twisted's name
                """Nothing to do."""

        writer.socket.registerProducer(Source(), False)
        before = -1
        while len(written) != before:
            before = len(written)
            await deferLater(reactor, 0.5)
        self.assertLess(len(written), 25_000_000, "kernel buffers and windows, not everything")
        held = sum(tunnel.statistics.sent for tunnel in self.tunnels)
        self.assertLess(held, len(written) + 1)
        writer.socket.unregisterProducer()
        reader.socket.resumeProducing()
        await reader.has(len(written))
        self.assertEqual(hashlib.sha256(reader.got).digest(), hashlib.sha256(written).digest())

    async def test_a_server_that_does_not_read_stops_its_client(self) -> None:
        server = Server(self, Half)
        client = await self.connect(await self.both(server.port), Half())
        await self.flood(client, await server.has_served(1))

    async def test_a_client_that_does_not_read_stops_its_server(self) -> None:
        server = Server(self, Half)
        client = await self.connect(await self.both(server.port), Half())
        await self.flood(await server.has_served(1), client)

    async def test_one_that_is_stalled_does_not_stop_the_others(self) -> None:
        server = Server(self, Half)
        port = await self.both(server.port)
        stalled = await self.connect(port, Half())
        (await server.has_served(1)).socket.pauseProducing()
        stalled.socket.write(bytes(20_000_000))
        other = await self.connect(port, Half())
        served = await server.has_served(2)
        other.socket.write(bytes(1_000_000))
        await served.has(1_000_000)


class TroubleTests(TcpCase):
    """What comes to nothing ends the program's connection, is counted, and told of once in a while."""

    async def test_a_target_that_is_not_there_breaks_the_connection(self) -> None:
        server = Server(self, Echo)
        gone = server.port
        port = await self.both(1)
        del gone
        client = await self.connect(port)
        await client.is_over()
        await deferLater(reactor, 0.05)
        self.assertEqual(self.tunnels[0].statistics.dropped["not taken by the target"], 1)
        self.assertIn("cannot connect to 127.0.0.1:1", self.warned[0])

    async def test_without_the_other_end_the_relay_refuses(self) -> None:
        _, port = await self.listening(self.made.peer_key)
        client = await self.connect(port)
        await client.is_over()
        await deferLater(reactor, 0.05)
        self.assertEqual(self.tunnels[0].statistics.dropped["at the relay"], 1)
        self.assertIn("the other end is not there", self.warned[0])

    async def test_an_other_end_that_only_listens_refuses(self) -> None:
        await self.listening(self.made.device_key)
        _, port = await self.listening(self.made.peer_key)
        client = await self.connect(port)
        await client.is_over()
        await deferLater(reactor, 0.05)
        self.assertEqual(self.tunnels[1].statistics.dropped["refused there"], 1)
        self.assertIn("it needs --tcp and --target", self.warned[0])

    async def test_before_there_is_a_relay_connections_are_refused(self) -> None:
        tunnel = self.tunnel()
        port = tunnel.listen(reactor, HERE).port
        self.addCleanup(tunnel.release_local)
        client = await self.connect(port)
        await client.is_over()
        self.assertEqual(tunnel.statistics.dropped["without a relay"], 1)

    async def test_when_the_relay_is_lost_so_are_the_connections(self) -> None:
        server = Server(self, Echo)
        client = await self.connect(await self.both(server.port))
        client.socket.write(b"x")
        await client.has(1)
        ended: Deferred[None] = Deferred()
        self.tunnels[1].ended.addBoth(lambda _: ended.callback(None))
        await self.release(self.tunnels[0])
        await ended.addTimeout(PATIENCE, reactor)
        await client.is_over()
        await server.served[0].is_over()

    async def test_a_release_of_the_other_end_is_said(self) -> None:
        tunnel = TcpTunnel(tell=self.told.append, warn=self.warned.append)
        self.tunnels.append(tunnel)
        tunnel.listen(reactor, HERE)
        await self.open(self.made.peer_key, tunnel)
        other = await self.aiming(self.made.device_key, 1)
        await self.release(other)
        with self.assertRaises(EndedByRelay) as caught:
            await tunnel.ended
        self.assertEqual(str(caught.exception), "the device released the allocation")

    async def test_a_port_that_is_taken_is_a_failure_in_one_line(self) -> None:
        server = Server(self, Echo)
        with self.assertRaises(Failure) as caught:
            self.tunnel().listen(reactor, HostPort("127.0.0.1", server.port))
        self.assertEqual(str(caught.exception), f"cannot listen on TCP 127.0.0.1:{server.port}: Address already in use")

    async def test_a_host_that_is_not_there_is_a_failure_in_one_line(self) -> None:
        with self.assertRaises(Failure) as caught:
            self.tunnel().aim(HostPort("no such host", 1))
        self.assertIn("cannot find no such host", str(caught.exception))

    def test_the_command_wants_one_of_listen_and_target_with_tcp_too(self) -> None:
        base = ["tunnel", "--relay", "127.0.0.1:1", "--token", self.token.to_text(), "--key", self.made.peer_key, "--tcp"]
        for extra in ([], ["--listen", "0", "--target", "127.0.0.1:1"]):
            result = zrc_relay(*base, *extra)
            self.assertEqual(result.exit_code, 2)
            self.assertIn("either --listen or --target", result.stderr)
