"""``zrc-relay tunnel``, against a relay on loopback sockets."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from aioquic.quic.configuration import QuicConfiguration
from twisted.internet.defer import Deferred
from twisted.internet.utils import getProcessOutputAndValue
from twisted.trial.unittest import SynchronousTestCase

from tests.cli_support import PATIENCE, RelayCase, UdpProgram, reactor, zrc_relay
from zrc_relay.cli.carrier import WARNING_INTERVAL, RelayLink, Tunnel
from zrc_relay.cli.dev_setup import make_dev_setup
from zrc_relay.cli.errors import EndedByRelay, Failure
from zrc_relay.cli.keyfiles import read_key
from zrc_relay.cli.local_port import LocalPort
from zrc_relay.cli.params import HostPort
from zrc_relay.cli.ping import measure
from zrc_relay.cli.processes import child_environment, cli_command
from zrc_relay.cli.tunnel import carry
from zrc_relay.client import connect
from zrc_relay.client.notices import DatagramsDropped, QuotaWarning, RateLimitedNotice, RelayDraining, Superseded
from zrc_relay.client.trust import Trust
from zrc_relay.config import load_config
from zrc_relay.core.codes import DropCause
from zrc_relay.core.token import RelayToken
from zrc_relay.engine import Surroundings
from zrc_relay.service import RelayService

HERE = HostPort("127.0.0.1", 0)
LARGE = 9000
"""Bytes that fit no QUIC packet of ours, whatever the path carries."""
TOO_LARGE = 65_536
"""Bytes that no payload may have; no UDP datagram has as many either."""


class Lines:
    """What a tunnel tells its user; lines may be waited for, and who waits goes on when the tunnel has gone on."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._waiting: list[tuple[str, Deferred[str]]] = []

    def __call__(self, line: str) -> None:
        self.lines.append(line)
        waiting, self._waiting = self._waiting, []
        for part, waiter in waiting:
            if part in line:
                reactor.callLater(0, waiter.callback, line)
            else:
                self._waiting.append((part, waiter))

    def next_with(self, part: str) -> Deferred[str]:
        """The next line that holds ``part``."""
        waiter: Deferred[str] = Deferred()
        waiter.addTimeout(PATIENCE, reactor)
        self._waiting.append((part, waiter))
        return waiter

    def has(self, part: str) -> bool:
        return any(part in line for line in self.lines)


class SmallPackets(Trust):
    """A client whose packets are as small as QUIC allows (RFC 9000 §14.1)."""

    def configuration(self, host: str) -> QuicConfiguration:
        configuration = super().configuration(host)
        configuration.max_datagram_size = 1200
        return configuration


class End:
    """One end of a tunnel, open, with its local port."""

    def __init__(self, tunnel: Tunnel, local: LocalPort, told: Lines, warned: Lines) -> None:
        self.tunnel = tunnel
        self.local = local
        self.told = told
        self.warned = warned

    @property
    def port(self) -> int:
        return self.local.address.port


class TunnelCase(RelayCase):
    """A relay, and tunnels to it."""

    by_channel = False

    def setUp(self) -> None:
        super().setUp()
        self.ends: list[End] = []
        self.addCleanup(self.close_ends)

    def close_ends(self) -> None:
        for end in self.ends:
            end.tunnel.close()

    def link(self, key: Path, token: RelayToken | None = None) -> RelayLink:
        return RelayLink(self.relay, self.trust, token or self.token, read_key(key))

    async def open(self, key: Path, target: int | None = None, *, now: Any = None) -> End:
        told, warned = Lines(), Lines()
        tunnel = Tunnel(tell=told, warn=warned, now=now or time.monotonic, by_channel=self.by_channel)
        if target is None:
            local = LocalPort.listen(reactor, HERE, tunnel.from_local)
        else:
            local = LocalPort.aim(reactor, HostPort("127.0.0.1", target), tunnel.from_local)
        await tunnel.open(reactor, self.link(key), local)
        tunnel.ended.addErrback(lambda _: None)
        self.ends.append(End(tunnel, local, told, warned))
        return self.ends[-1]

    async def open_both(self, target: int) -> tuple[End, End]:
        """The device's end, aiming at ``target``, and the peer's, listening."""
        device = await self.open(self.made.device_key, target)
        joined = device.told.next_with("the peer joined")
        peer = await self.open(self.made.peer_key)
        await joined
        return device, peer


class CarryingTests(TunnelCase):
    """Issue 2: a UDP program works through ``tunnel`` as it is."""

    async def test_requests_and_responses_of_every_size_arrive_unchanged(self) -> None:
        server, client = UdpProgram(self, echo=True), UdpProgram(self)
        _, peer = await self.open_both(server.port)
        sent = [os.urandom(size) for size in (0, 1, 2, 63, 64, 65, 500, 1199, 1200, 1202)]
        for count, payload in enumerate(sent, start=1):
            client.send(payload, peer.port)
            await client.has(count)
        self.assertEqual(server.got, sent)
        self.assertEqual(client.got, sent)

    async def test_nothing_is_reordered(self) -> None:
        server, client = UdpProgram(self), UdpProgram(self)
        _, peer = await self.open_both(server.port)
        sent = [number.to_bytes(2, "big") * 50 for number in range(300)]
        for start in range(0, len(sent), 20):
            for payload in sent[start : start + 20]:
                client.send(payload, peer.port)
            await server.has(start + 20)
        self.assertEqual(server.got, sent)

    async def test_both_ends_count_what_they_carry(self) -> None:
        server, client = UdpProgram(self, echo=True), UdpProgram(self)
        device, peer = await self.open_both(server.port)
        for count, size in enumerate((10, 20, 30), start=1):
            client.send(bytes(size), peer.port)
            await client.has(count)
        for end in (device, peer):
            statistics = end.tunnel.statistics
            self.assertEqual((statistics.sent.datagrams, statistics.sent.volume), (3, 60))
            self.assertEqual((statistics.received.datagrams, statistics.received.volume), (3, 60))
            self.assertEqual(str(statistics), "sent 3 datagrams (60 B), received 3 datagrams (60 B); dropped: none")

    async def test_the_server_sees_one_address_of_the_tunnels_own(self) -> None:
        server, client = UdpProgram(self, echo=True), UdpProgram(self)
        device, peer = await self.open_both(server.port)
        for count in (1, 2):
            client.send(b"x", peer.port)
            await client.has(count)
        self.assertEqual({port for _, port in server.senders}, {device.port})

    async def test_either_end_may_speak_first_and_either_role_may_listen(self) -> None:
        server, client = UdpProgram(self, echo=True), UdpProgram(self)
        peer = await self.open(self.made.peer_key, server.port)
        joined = peer.told.next_with("the device joined")
        device = await self.open(self.made.device_key)
        await joined
        client.send(b"to the peer", device.port)
        await client.has(1)
        self.assertEqual(client.got, [b"to the peer"])

    async def test_quic_with_the_smallest_packets_works_inside(self) -> None:
        settings = {"drain_timeout": "0s", "base_udp_payload": "1200", "max_udp_payload": "1200"}
        made = make_dev_setup(Path(self.mktemp()), listen=["127.0.0.1"], port=0, settings=settings)
        inner = RelayService(load_config(path=made.config, environ={}, options={}), Surroundings(reactor))
        inner.startService()
        self.addCleanup(inner.stopService)
        device, peer = await self.open_both(inner.quic.ports[0].local.port)
        result = await measure(reactor, HostPort("127.0.0.1", peer.port), SmallPackets(fingerprint=made.fingerprint), count=2)
        self.assertEqual(result.relays[0].instance_id, inner.relay.policy.instance_id)
        for end in (device, peer):
            self.assertEqual(end.tunnel.statistics.dropped["too large"], 0)


class LocalPortTests(TunnelCase):
    """Issue 2: who is served at the local port, and who is not."""

    async def test_answers_go_to_the_program_that_was_heard_last(self) -> None:
        server, first, second = UdpProgram(self, echo=True), UdpProgram(self), UdpProgram(self)
        _, peer = await self.open_both(server.port)
        first.send(b"first", peer.port)
        await first.has(1)
        second.send(b"second", peer.port)
        await second.has(1)
        device_side = server.senders[-1][1]
        server.send(b"unasked", device_side)
        await second.has(2)
        self.assertEqual((first.got, second.got), ([b"first"], [b"second", b"unasked"]))

    async def test_a_target_port_takes_datagrams_from_the_target_only(self) -> None:
        server, client, stranger = UdpProgram(self, echo=True), UdpProgram(self), UdpProgram(self)
        device, peer = await self.open_both(server.port)
        stranger.send(b"let me in", device.port)
        client.send(b"hello", peer.port)
        await client.has(1)
        self.assertEqual(client.got, [b"hello"])
        self.assertEqual(device.tunnel.statistics.dropped["from strangers"], 1)
        self.assertEqual(stranger.got, [])

    async def test_before_any_program_was_heard_what_arrives_is_dropped_and_counted(self) -> None:
        server, client = UdpProgram(self), UdpProgram(self)
        device, peer = await self.open_both(server.port)
        warned = peer.warned.next_with("until a local program has sent something")
        server.send(b"too early", device.port)
        await warned
        client.send(b"now", peer.port)
        await server.has(1)
        server.send(b"in time", device.port)
        await client.has(1)
        self.assertEqual(client.got, [b"in time"])
        self.assertEqual(peer.tunnel.statistics.dropped["for no local program yet"], 1)

    async def test_ipv6_works_or_is_said_to_be_missing(self) -> None:
        program = UdpProgram(self)
        try:
            local = LocalPort.listen(reactor, HostPort("::1", 0), lambda payload: program.send(payload, program.port))
        except Failure as failure:  # a host without IPv6
            self.assertIn("cannot listen on UDP [::1]:0", str(failure))
            return
        self.addCleanup(local.stop)
        aimed = LocalPort.aim(reactor, HostPort("::1", local.address.port), lambda _: None)
        self.addCleanup(aimed.stop)
        self.assertTrue(aimed.send(b"six"))
        await program.has(1)
        self.assertEqual(program.got, [b"six"])

    async def test_a_port_that_is_taken_is_a_failure_in_one_line(self) -> None:
        taken = UdpProgram(self)
        with self.assertRaises(Failure) as caught:
            LocalPort.listen(reactor, HostPort("127.0.0.1", taken.port), lambda _: None)
        self.assertEqual(str(caught.exception), f"cannot listen on UDP 127.0.0.1:{taken.port}: Address already in use")

    async def test_a_host_that_is_not_there_is_a_failure_in_one_line(self) -> None:
        for make in (LocalPort.listen, LocalPort.aim):
            with self.assertRaises(Failure) as caught:
                make(reactor, HostPort("no such host", 1), lambda _: None)
            self.assertIn("cannot find no such host", str(caught.exception))

    async def test_an_address_that_is_not_ours_cannot_be_listened_on(self) -> None:
        with self.assertRaises(Failure) as caught:
            LocalPort.listen(reactor, HostPort("192.0.2.1", 0), lambda _: None)
        self.assertIn("cannot listen on UDP 192.0.2.1:0", str(caught.exception))


class LimitTests(TunnelCase):
    """Issue 2: what does not fit is dropped, counted and told of, not more often than anyone can read."""

    async def test_a_datagram_that_fits_no_packet_passes_too(self) -> None:
        server, client = UdpProgram(self, echo=True), UdpProgram(self)
        await self.open_both(server.port)
        peer = self.ends[-1]
        large = os.urandom(LARGE)
        client.send(large, peer.port)
        await client.has(1)
        self.assertEqual((server.got, client.got), ([large], [large]))
        self.assertEqual(str(peer.tunnel.statistics.dropped["too large"]), "0")

    async def test_thousands_too_large_are_told_of_once_and_after_a_while_again(self) -> None:
        time = [0.0]
        end = await self.open(self.made.device_key, now=lambda: time[0])
        for _ in range(1000):
            end.tunnel.from_local(bytes(TOO_LARGE))
        self.assertEqual(len(end.warned.lines), 1)
        time[0] = WARNING_INTERVAL
        end.tunnel.from_local(bytes(TOO_LARGE))
        end.tunnel.from_local(bytes(TOO_LARGE))
        self.assertEqual(len(end.warned.lines), 2)
        self.assertIn("(1001 until now)", end.warned.lines[-1])
        self.assertEqual(end.tunnel.statistics.dropped["too large"], 1002)

    async def test_what_is_sent_while_the_other_end_is_away_is_counted_by_cause(self) -> None:
        client = UdpProgram(self)
        peer = await self.open(self.made.peer_key)
        warned = peer.warned.next_with("the relay dropped")
        client.send(b"anyone there?", peer.port)
        await warned
        self.assertEqual(peer.tunnel.statistics.dropped["at the relay (no counterpart)"], 1)


class LifeTests(TunnelCase):
    """Issue 2: the tunnel waits for the other end, tells what happens, and ends with the relay's reason."""

    async def test_says_which_end_it_is_and_that_it_waits(self) -> None:
        end = await self.open(self.made.peer_key)
        connected, waiting = end.told.lines
        for part in (str(self.relay), "as the peer", self.token.allocation_id.hex(), "10 Mbit/s", "1 GB"):
            self.assertIn(part, connected)
        self.assertEqual(waiting, "waiting for the device")

    async def test_says_so_when_the_other_end_is_there_already(self) -> None:
        await self.open(self.made.device_key)
        peer = await self.open(self.made.peer_key)
        self.assertEqual(peer.told.lines[-1], "the device is there")

    async def test_goes_on_when_the_other_end_leaves_and_comes_back(self) -> None:
        server, client = UdpProgram(self, echo=True), UdpProgram(self)
        device, peer = await self.open_both(server.port)
        left = peer.told.next_with("the device left")
        device.tunnel.close()
        await left
        back = peer.told.next_with("the device joined")
        await self.open(self.made.device_key, server.port)
        await back
        client.send(b"still here", peer.port)
        await client.has(1)
        self.assertEqual(client.got, [b"still here"])

    async def test_closing_is_a_good_end_and_leaves_the_allocation(self) -> None:
        device, peer = await self.open_both(1)
        peer.tunnel.close()
        await peer.tunnel.ended
        left = device.told.next_with("the peer left")
        await left
        self.assertEqual(len(self.service.relay.table), 1)

    async def test_ends_with_the_reason_when_the_other_end_releases(self) -> None:
        end = await self.open(self.made.device_key)
        ended: list[Any] = []
        over: Deferred[None] = Deferred()
        end.tunnel.ended = Deferred()
        end.tunnel.ended.addErrback(ended.append).addBoth(over.callback)
        key = read_key(self.made.peer_key)
        other = await connect(reactor, "127.0.0.1", self.relay.port, token=self.token, key=key, trust=self.trust)
        await other.release()
        await over
        ended[0].trap(EndedByRelay)
        self.assertEqual(ended[0].getErrorMessage(), "the peer released the allocation")

    async def test_what_the_relay_tells_is_passed_on(self) -> None:
        end = await self.open(self.made.device_key)
        for notice, part in (
            (QuotaWarning(900_000_000, 10**9), "900.0 MB of the quota of 1.0 GB"),
            (RelayDraining(1_800_000_000, ()), "about to stop, at 2027-01-15 08:00:00 UTC"),
            (Superseded(), "another connection"),
            (RateLimitedNotice(1_250_000, 5), "bandwidth limit, 10 Mbit/s"),
            (DatagramsDropped(DropCause.EGRESS_QUEUE, 7), "dropped 7 of our datagrams: egress queue"),
        ):
            end.tunnel.noticed(notice)
            self.assertIn(part, end.warned.lines[-1])
        self.assertEqual(end.tunnel.statistics.dropped["at the relay (egress queue)"], 7)


class CommandTests(TunnelCase):
    """Issue 2: the command around a tunnel: what it prints, and how it ends."""

    def setUp(self) -> None:
        super().setUp()
        self.told, self.warned = Lines(), Lines()
        # A signal that comes when nobody expects it must not end the run of the suite.
        self.addCleanup(signal.signal, signal.SIGUSR1, signal.signal(signal.SIGUSR1, signal.SIG_IGN))

    def carry(self, link: RelayLink, *, timeout: float = 10.0) -> Deferred[None]:
        def listen(reactor: Any, on_payload: Any) -> LocalPort:
            return LocalPort.listen(reactor, HERE, on_payload)

        return Deferred.fromCoroutine(carry(reactor, link, listen, timeout=timeout, tell=self.told, warn=self.warned))

    async def test_prints_the_port_that_was_taken(self) -> None:
        waiting = self.told.next_with("waiting for")
        running = self.carry(self.link(self.made.peer_key))
        await waiting
        self.assertRegex(self.told.lines[0], r"\Alocal end on UDP 127\.0\.0\.1:[1-9][0-9]*\Z")
        running.cancel()
        await running

    async def test_being_interrupted_is_a_good_end_with_statistics(self) -> None:
        waiting = self.told.next_with("waiting for")
        running = self.carry(self.link(self.made.peer_key))
        await waiting
        running.cancel()
        await running
        self.assertTrue(self.told.lines[-1].startswith("sent 0 datagrams"))

    async def test_sigusr1_prints_statistics_and_it_goes_on(self) -> None:
        waiting = self.told.next_with("waiting for")
        running = self.carry(self.link(self.made.peer_key))
        await waiting
        shown = self.told.next_with("sent 0 datagrams")
        os.kill(os.getpid(), signal.SIGUSR1)
        await shown
        self.assertFalse(running.called)
        running.cancel()
        await running

    async def test_what_the_relay_refuses_is_a_failure_with_its_reason(self) -> None:
        device = read_key(self.made.device_key)
        token = replace(self.token, relay_id=bytes(16)).sign(device)
        with self.assertRaises(Failure) as caught:
            await self.carry(self.link(self.made.device_key, token))
        self.assertIn(f"{self.relay} says no: TOKEN_WRONG_RELAY", str(caught.exception))

    async def test_the_end_of_the_relay_is_a_failure_with_its_reason_and_statistics(self) -> None:
        waiting = self.told.next_with("waiting for")
        running = self.carry(self.link(self.made.peer_key))
        await waiting
        self.service.stopService()
        with self.assertRaises(Failure) as caught:
            await running
        self.assertIn("DRAINING", str(caught.exception))
        self.assertTrue(self.warned.has("about to stop"))
        self.assertTrue(self.told.lines[-1].startswith("sent 0 datagrams"))

    async def test_a_certificate_that_is_not_the_pinned_one_is_a_failure(self) -> None:
        link = replace(self.link(self.made.peer_key), trust=replace(self.trust, fingerprint=bytes(32)))
        with self.assertRaises(Failure) as caught:
            await self.carry(link)
        self.assertIn("not the pinned one", str(caught.exception))

    async def test_interrupted_while_it_connects_it_leaves_nothing_behind(self) -> None:
        silent = UdpProgram(self)
        link = replace(self.link(self.made.peer_key), relay=HostPort("127.0.0.1", silent.port))
        running = self.carry(link)
        await silent.has(1)
        running.cancel()
        with self.assertRaises(Exception) as caught:
            await running
        self.assertEqual(type(caught.exception).__name__, "CancelledError")
        # Sockets and timers that were left would make trial fail this test.

    async def test_the_real_command_carries_and_ends_with_status_1_when_released(self) -> None:
        server = UdpProgram(self, echo=True)
        command, *arguments = cli_command(
            "tunnel", "--relay", str(self.relay), "--token", f"@{self.made.token.absolute()}",
            "--key", str(self.made.device_key.absolute()), "--target", f"127.0.0.1:{server.port}",
            "--fingerprint", self.made.fingerprint.hex(),
        )
        ended = getProcessOutputAndValue(command, arguments, env=child_environment())
        client = UdpProgram(self)
        peer = await self.open(self.made.peer_key)
        if not peer.told.has("is there"):
            await peer.told.next_with("the device joined")
        client.send(b"through a process", peer.port)
        await client.has(1)
        self.assertEqual(client.got, [b"through a process"])
        peer.tunnel.close()
        key = read_key(self.made.peer_key)
        other = await connect(reactor, "127.0.0.1", self.relay.port, token=self.token, key=key, trust=self.trust)
        await other.release()
        output, errors, status = await ended
        self.assertEqual(status, 1)
        self.assertIn(b"sent 1 datagrams (17 B), received 1 datagrams (17 B)", output)
        self.assertEqual(errors, b"zrc-relay: the peer released the allocation\n")


class OptionTests(SynchronousTestCase):
    """Issue 2: what is wrong with the command line is said before anything is sent."""

    def setUp(self) -> None:
        self.made = make_dev_setup(Path(self.mktemp()), listen=["127.0.0.1"], port=0)
        self.common = ("tunnel", "--relay", "127.0.0.1", "--token", f"@{self.made.token}", "--insecure")

    def test_exactly_one_local_end_is_wanted(self) -> None:
        for ends in ((), ("--listen", "5000", "--target", "127.0.0.1:5001")):
            result = zrc_relay(*self.common, "--key", self.made.peer_key, *ends)
            self.assertEqual(result.exit_code, 2)
            self.assertIn("either --listen or --target", result.stderr)

    def test_a_key_that_has_no_part_in_the_token_is_bad_input(self) -> None:
        stranger = self.made.directory / "stranger.key"
        zrc_relay("keygen", stranger)
        result = zrc_relay(*self.common, "--key", stranger, "--listen", "0")
        self.assertEqual(result.exit_code, 2)
        self.assertRegex(result.stderr, r"\Azrc-relay: the key is .*\n\Z")

    def test_a_key_file_that_others_can_read_is_refused(self) -> None:
        self.made.peer_key.chmod(0o644)
        result = zrc_relay(*self.common, "--key", self.made.peer_key, "--listen", "0")
        self.assertEqual(result.exit_code, 2)
        self.assertIn("chmod 600", result.stderr)

    def test_a_target_wants_a_port(self) -> None:
        result = zrc_relay(*self.common, "--key", self.made.peer_key, "--target", "127.0.0.1")
        self.assertEqual(result.exit_code, 2)
        self.assertIn("HOST:PORT", result.stderr)
