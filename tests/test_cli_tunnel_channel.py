"""``zrc-relay tunnel --channel``, against a relay on loopback sockets."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from twisted.internet.task import deferLater
from twisted.internet.utils import getProcessOutputAndValue
from twisted.trial.unittest import SynchronousTestCase

from tests.cli_support import RelayCase, UdpProgram, reactor, zrc_relay
from tests.real_relay import eventually
from tests.test_cli_tunnel import LARGE, TunnelCase
from zrc_relay.cli.carrier import SILENCE, Tunnel
from zrc_relay.cli.dev_setup import DevSetup, make_dev_setup
from zrc_relay.cli.params import HostPort
from zrc_relay.cli.processes import Child, child_environment, cli_command
from zrc_relay.client import Channel
from zrc_relay.config import load_config
from zrc_relay.core.counters import InputDrop
from zrc_relay.engine import Surroundings
from zrc_relay.service import RelayService


def channel_of(tunnel: Tunnel) -> Channel:
    """The channel of a tunnel that has one."""
    channel: Channel = vars(tunnel)["_channel"]
    return channel


def command(made: DevSetup, relay: HostPort, key: Path, *local: str) -> list[str]:
    """The real command, as a command line."""
    return cli_command(
        "tunnel", "--channel", "--relay", str(relay), "--token", f"@{made.token.absolute()}", "--key", str(key.absolute()),
        "--fingerprint", made.fingerprint.hex(), *local,
    )


class CarryingTests(TunnelCase):
    """Issue "channels": ``tunnel --channel`` carries a UDP program beside QUIC."""

    by_channel = True

    async def test_requests_and_responses_arrive_unchanged_and_by_the_channel(self) -> None:
        server, client = UdpProgram(self, echo=True), UdpProgram(self)
        device, peer = await self.open_both(server.port)
        largest = min(channel_of(end.tunnel).max_payload for end in (device, peer))  # the search for the path's MTU goes on
        sent = [os.urandom(size) for size in (0, 1, 2, 63, 64, 500, 1199, 1200, largest)]
        for count, payload in enumerate(sent, start=1):
            client.send(payload, peer.port)
            await client.has(count)
        self.assertEqual((server.got, client.got), (sent, sent))
        self.assertEqual(self.service.relay.counters.channel_packets, 2 * len(sent))
        for end in (device, peer):
            statistics = end.tunnel.statistics
            self.assertEqual((statistics.sent.datagrams, statistics.received.datagrams), (len(sent), len(sent)))
            self.assertEqual(statistics.sent.volume, sum(map(len, sent)))
            self.assertTrue(end.told.has("the channel is open: datagrams of up to"))
            self.assertEqual(end.warned.lines, [])

    async def test_what_does_not_fit_goes_as_without_it(self) -> None:
        server, client = UdpProgram(self, echo=True), UdpProgram(self)
        _, peer = await self.open_both(server.port)
        large = [os.urandom(channel_of(peer.tunnel).max_payload + 1000), os.urandom(LARGE)]
        for count, payload in enumerate(large, start=1):
            client.send(payload, peer.port)
            await client.has(count)
        self.assertEqual((server.got, client.got), (large, large))
        self.assertEqual(self.service.relay.counters.channel_packets, 0)
        self.assertEqual(peer.tunnel.statistics.sent.datagrams, 2)

    async def test_nothing_is_reordered_and_what_was_read_in_one_go_leaves_in_one(self) -> None:
        server, client = UdpProgram(self), UdpProgram(self)
        _, peer = await self.open_both(server.port)
        channel = channel_of(peer.tunnel)
        calls: list[int] = []
        send_many = channel.send_many

        def note(payloads: Sequence[bytes]) -> None:
            calls.append(len(payloads))
            send_many(payloads)

        self.patch(channel, "send_many", note)
        sent = [number.to_bytes(2, "big") * 50 for number in range(300)]
        for start in range(0, len(sent), 20):
            for payload in sent[start : start + 20]:
                client.send(payload, peer.port)
            await server.has(start + 20)
        self.assertEqual(server.got, sent)
        self.assertEqual(calls, [20] * 15)

    async def test_an_end_without_a_channel_is_noticed_and_what_it_sends_arrives(self) -> None:
        server, client = UdpProgram(self), UdpProgram(self)
        seconds = [0.0]
        self.by_channel = False
        device = await self.open(self.made.device_key, server.port)
        self.by_channel = True
        peer = await self.open(self.made.peer_key, now=lambda: seconds[0])
        dropped = self.service.relay.counters.input_dropped
        for _ in range(3):
            before = dropped[InputDrop.CHANNEL]
            client.send(b"to nobody", peer.port)
            await eventually(partial(lambda seen: dropped[InputDrop.CHANNEL] > seen, before), "a dropped packet")
            seconds[0] += SILENCE / 2
        self.assertEqual(peer.warned.lines, ["nothing has come through the channel yet; does the device say --channel, too?"])
        server.send(b"the other way", device.port)
        await client.has(1)
        self.assertEqual((client.got, server.got), ([b"the other way"], []))
        client.send(b"more", peer.port)
        await deferLater(reactor, 0.05)
        self.assertEqual(len(peer.warned.lines), 1)

    async def test_an_end_that_is_answered_or_alone_says_nothing_of_the_kind(self) -> None:
        server, client = UdpProgram(self, echo=True), UdpProgram(self)
        seconds = [0.0]
        peer = await self.open(self.made.peer_key, now=lambda: seconds[0])
        for _ in range(3):
            client.send(b"anyone there?", peer.port)
            await deferLater(reactor, 0.02)
            seconds[0] += 2 * SILENCE
        joined = peer.told.next_with("the device joined")
        await self.open(self.made.device_key, server.port)
        await joined
        for count in (1, 2, 3):
            client.send(b"hello", peer.port)
            await client.has(count)
            seconds[0] += 2 * SILENCE
        self.assertEqual(peer.warned.lines, [])


class ProcessTests(RelayCase):
    """Issue "channels": the real command at both ends."""

    async def start(self, key: Path, *local: str) -> Child:
        """One end, with its channel open; it is stopped when the test ends."""
        child = Child(key.stem, command(self.made, self.relay, key, *local), self.made.directory, child_environment())
        self.addCleanup(child.stop)
        await eventually(lambda: "the channel is open" in child.output, f"the channel of a process, which said {child.tail!r}")
        return child

    async def test_two_processes_carry_a_program(self) -> None:
        server, client = UdpProgram(self, echo=True), UdpProgram(self)
        await self.start(self.made.device_key, "--target", f"127.0.0.1:{server.port}")
        peer = await self.start(self.made.peer_key, "--listen", "0")
        found = re.search(r"local end on UDP 127\.0\.0\.1:(\d+)", peer.output)
        if found is None:
            self.fail(peer.output)
        sent = [os.urandom(700) for _ in range(50)]
        for count, payload in enumerate(sent, start=1):
            client.send(payload, int(found.group(1)))
            await client.has(count)
        self.assertEqual((server.got, client.got), (sent, sent))
        self.assertEqual(self.service.relay.counters.channel_packets, 100)


class RefusalTests(RelayCase):
    """Issue "channels": an end that finds the relay offers none says so in one line and exits with status 1."""

    def setUp(self) -> None:
        super().setUp()
        settings = {"drain_timeout": "0s", "channels": "false"}
        self.without = make_dev_setup(Path(self.mktemp()), listen=["127.0.0.1"], port=0, settings=settings)
        service = RelayService(load_config(path=self.without.config, environ={}, options={}), Surroundings(reactor))
        service.startService()
        self.addCleanup(service.stopService)
        self.address = HostPort("127.0.0.1", service.quic.ports[0].local.port)

    async def test_the_real_command(self) -> None:
        program, *arguments = command(self.without, self.address, self.without.peer_key, "--listen", "0")
        begun = time.monotonic()
        answer: Any = await getProcessOutputAndValue(program, arguments, env=child_environment())
        output, errors, status = answer
        said = f"zrc-relay: no channel at {self.address}: the relay offers no channels\n"
        self.assertEqual((status, errors.decode()), (1, said))
        self.assertIn(b"as the peer", output)
        self.assertLess(time.monotonic() - begun, 20)


class OptionTests(SynchronousTestCase):
    """Issue "channels": what is wrong with the command line is said before anything is sent."""

    def test_tcp_has_no_datagrams_to_send_by_a_channel(self) -> None:
        made = make_dev_setup(Path(self.mktemp()), listen=["127.0.0.1"], port=0)
        result = zrc_relay(
            "tunnel", "--relay", "127.0.0.1", "--token", f"@{made.token}", "--insecure", "--key", made.peer_key,
            "--listen", "0", "--tcp", "--channel",
        )
        self.assertEqual(result.exit_code, 2)
        self.assertIn("--channel is for datagrams", result.stderr)
