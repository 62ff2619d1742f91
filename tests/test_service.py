"""The whole relay in this process, on real loopback sockets: starting, serving, draining, stopping, and what is not startable."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase, TestCase

from tests.real_relay import PATIENCE, Setup, eventually, exchange, reactor
from zrc_relay.client import notices
from zrc_relay.client.errors import ConnectFailed, Draining
from zrc_relay.config import load_config
from zrc_relay.core.codes import Role
from zrc_relay.core.wire import Address
from zrc_relay.credentials import CredentialsError
from zrc_relay.engine import Surroundings
from zrc_relay.service import RelayService, StartError


class ServingTests(TestCase):
    """R5.1, R3.1: IPv4, IPv6 and wildcard addresses serve, each answering from the address that was reached."""

    timeout = 2 * PATIENCE

    async def check(self, listen: tuple[str, ...], hosts: tuple[str, ...]) -> None:
        setup = Setup(self, listen=listen)
        service = setup.service()
        for number, host in enumerate(hosts):
            token = setup.another_token(allocation_id=bytes((number,)) * 16)
            device, peer = await setup.pair(host=host, token=token)
            await exchange(device, peer)
            allocated = device.relay.allocated
            self.assertEqual(allocated.relay_addr if allocated else None, Address.of(host, setup.port))
            loopback = "::1" if ":" in host else "127.0.0.1"
            self.assertEqual(device.relay.observed_addr.host, loopback)
            device.relay.release()
            await eventually(lambda: device.relay.is_closed and peer.relay.is_closed, "the release")  # noqa: B023 - awaited here
        await eventually(lambda: not len(service.relay.table), "an empty table")
        self.assertEqual(service.relay.counters.session_errors, 0)

    async def test_ipv4(self) -> None:
        await self.check(("127.0.0.1",), ("127.0.0.1",))

    async def test_ipv6(self) -> None:
        await self.check(("::1",), ("::1",))

    async def test_wildcards_of_both_families_on_one_port(self) -> None:
        await self.check(("0.0.0.0", "::"), ("127.0.0.1", "127.0.0.2", "::1"))

    async def test_several_addresses(self) -> None:
        await self.check(("127.0.0.1", "127.0.0.3", "::1"), ("127.0.0.1", "127.0.0.3", "::1"))

    async def test_what_is_announced_may_be_configured(self) -> None:
        setup = Setup(self, settings={"relay_addr": "203.0.113.5", "relay_port": "9999"})
        setup.service()
        device = await setup.connect(Role.DEVICE)
        allocated = device.relay.allocated
        self.assertEqual(allocated.relay_addr if allocated else None, Address.of("203.0.113.5", 9999))
        (entry,) = await device.relay.list_relays()
        self.assertEqual(entry.address, Address.of("203.0.113.5", 9999))

    async def test_limits_of_the_configuration_are_in_force(self) -> None:
        setup = Setup(self, settings={"default_bandwidth_limit": "2 MB/s", "default_quota": "1 MB", "idle_timeout": "7s"})
        setup.service()
        device = await setup.connect(Role.DEVICE)
        allocated = device.relay.allocated
        if allocated is None:
            self.fail("not allocated")
        self.assertEqual((allocated.bandwidth_limit, allocated.quota_bytes, allocated.idle_timeout), (2_000_000, 1_000_000, 7))

    async def test_garbage_from_the_network_changes_nothing(self) -> None:
        setup = Setup(self)
        service = setup.service()
        device, peer = await setup.pair()
        stranger = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.addCleanup(stranger.close)
        for first in range(256):
            for size in (0, 1, 20, 1300):
                stranger.sendto(bytes((first,)) + os.urandom(size), ("127.0.0.1", setup.port))
        stranger.sendto(b"", ("127.0.0.1", setup.port))
        await exchange(device, peer)
        self.assertEqual(service.relay.counters.session_errors, 0)


class StoppingTests(TestCase):
    """Issue "stopping": drain refuses, tells, waits for at most ``drain_timeout`` and closes what is left."""

    timeout = 2 * PATIENCE

    async def test_drain_tells_the_clients_refuses_new_ones_and_is_over_when_they_have_left(self) -> None:
        setup = Setup(self, settings={"drain_timeout": "60s"})
        service = setup.service()
        device, peer = await setup.pair()
        self.assertTrue(service.ready)
        began = time.time()
        drained = service.drain()
        self.assertFalse(service.ready)
        with self.assertRaises(Draining):
            await setup.connect(Role.DEVICE)
        await eventually(lambda: any(isinstance(n, notices.RelayDraining) for n in device.notices), "NOTICE DRAINING")
        (notice,) = [n for n in peer.notices if isinstance(n, notices.RelayDraining)]
        self.assertEqual(round((notice.deadline - began) / 10), 6)
        self.assertEqual(notice.alternates, ())
        await exchange(device, peer, b"while draining")
        self.assertFalse(drained.called)
        await device.relay.release()
        await drained

    async def test_what_is_left_after_the_timeout_is_closed_with_draining(self) -> None:
        setup = Setup(self, settings={"drain_timeout": "300ms"})
        service = setup.service()
        device, _ = await setup.pair()
        await service.stopService()
        await eventually(lambda: device.relay.is_closed, "the close")
        self.assertIsInstance(device.relay.error, Draining)

    async def test_a_relay_with_nothing_to_drain_stops_at_once_and_its_port_is_free(self) -> None:
        setup = Setup(self, settings={"drain_timeout": "1h"})
        service = setup.service()
        await service.stopService()
        again = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.addCleanup(again.close)
        again.bind(("127.0.0.1", setup.port))

    async def test_a_drain_may_be_cut_short(self) -> None:
        setup = Setup(self, settings={"drain_timeout": "1h"})
        service = setup.service()
        device, _ = await setup.pair()
        stopped: Deferred[None] = service.stopService()
        self.assertFalse(stopped.called)
        service.stop_draining()
        await stopped
        await eventually(lambda: device.relay.is_closed, "the close")
        self.assertIsInstance(device.relay.error, Draining)

    async def test_after_stopping_nobody_is_there(self) -> None:
        setup = Setup(self)
        service = setup.service()
        await service.stopService()
        with self.assertRaises(ConnectFailed):
            await setup.connect(Role.DEVICE, timeout=0.3)


class StartErrorTests(SynchronousTestCase):
    """Issue "bad input": what cannot be started says why, in sentences that name the file or the address."""

    def setUp(self) -> None:
        self.setup = Setup(self)  # type: ignore[arg-type]  # a SynchronousTestCase has what it uses
        self.directory = self.setup.made.directory

    def service(self) -> RelayService:
        return RelayService(load_config(path=self.setup.made.config, environ={}, options={}), Surroundings(reactor))

    def refused_credentials(self) -> str:
        with self.assertRaises(CredentialsError) as caught:
            self.service()
        self.assertEqual(len(str(caught.exception).splitlines()), 1)
        return str(caught.exception)

    def test_a_certificate_that_is_not_there(self) -> None:
        (self.directory / "cert.pem").unlink()
        self.assertIn("cert.pem: No such file", self.refused_credentials())

    def test_a_certificate_that_is_a_directory(self) -> None:
        (self.directory / "cert.pem").unlink()
        (self.directory / "cert.pem").mkdir()
        self.assertIn("cert.pem: Is a directory", self.refused_credentials())

    def test_a_certificate_that_is_none(self) -> None:
        for text in ("", "nonsense", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"):
            (self.directory / "cert.pem").write_text(text)
            self.assertIn("cert.pem holds no PEM certificate", self.refused_credentials())

    def test_a_key_that_is_none_or_of_another_certificate(self) -> None:
        key = self.directory / "key.pem"
        key.write_text("nonsense")
        self.assertIn("key.pem holds no unencrypted PEM private key", self.refused_credentials())
        key.write_bytes((Setup(self).made.directory / "key.pem").read_bytes())  # type: ignore[arg-type]
        self.assertIn("is not the key of the certificate", self.refused_credentials())

    def test_device_keys_with_every_problem_on_a_line(self) -> None:
        Path(self.directory / "devices.toml").write_text('[[device]]\npublic_key = "xy"\n[[device]]\ntier = "none such"\n')
        with self.assertRaises(StartError) as caught:
            self.service()
        lines = str(caught.exception).splitlines()
        self.assertGreaterEqual(len(lines), 2)
        self.assertTrue(all("devices.toml" in line for line in lines), lines)

    def test_device_keys_that_are_not_there(self) -> None:
        (self.directory / "devices.toml").unlink()
        with self.assertRaises(StartError) as caught:
            self.service()
        self.assertIn("devices.toml: No such file", str(caught.exception))

    def test_a_port_in_use_is_one_line_and_no_socket_is_left(self) -> None:
        taken = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.addCleanup(taken.close)
        taken.bind(("127.0.0.1", 0))
        config = load_config(
            path=self.setup.made.config, environ={},
            options={"listen-port": str(taken.getsockname()[1]), "listen-addr": "127.0.0.2, 127.0.0.1"},
        )
        service = RelayService(config, Surroundings(reactor))
        with self.assertRaises(StartError) as caught:
            service.privilegedStartService()
        self.assertEqual(
            str(caught.exception), f"cannot listen on UDP 127.0.0.1:{taken.getsockname()[1]}: Address already in use"
        )
        self.assertEqual(service.quic.ports, [])

    def test_an_address_that_is_not_this_hosts(self) -> None:
        config = load_config(path=self.setup.made.config, environ={}, options={"listen-addr": "203.0.113.77"})
        with self.assertRaises(StartError) as caught:
            RelayService(config, Surroundings(reactor)).privilegedStartService()
        self.assertIn("cannot listen on UDP 203.0.113.77:0: Cannot assign requested address", str(caught.exception))
