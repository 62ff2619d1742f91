"""What a worker goes by, on its way from one process to another, and what it tells on the way back."""

from __future__ import annotations

import io
import sys
import time
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.protocols import amp
from twisted.trial.unittest import SynchronousTestCase

from tests.two_workers import LOOPBACK
from zrc_relay.cli.dev_setup import make_dev_setup
from zrc_relay.config import load_config
from zrc_relay.core.cidr import Access, AccessLists, Entry, Network
from zrc_relay.core.codes import ErrorCode, Role
from zrc_relay.core.keys import Device, DeviceKeys, KeyChanges
from zrc_relay.core.remembered import Remembered
from zrc_relay.engine import Surroundings
from zrc_relay.inputs import Inputs, credentials_of, engine_settings_of, load_device_keys
from zrc_relay.logs.levels import LogFormat, LogLevel
from zrc_relay.workers.commands import Value
from zrc_relay.workers.orders import (
    Begin,
    Beginning,
    CertificateText,
    Kind,
    ListChange,
    Orders,
    Post,
    Said,
    SocketPlace,
    devices_of,
)
from zrc_relay.workers.telling import Outbox
from zrc_relay.workers.worker import NotPrepared, Worker, aloud

NETWORK = Network.parse("192.0.2.0/24")
BLOCKED = Entry(NETWORK, Access.BLOCK, note="why")


class OrdersCase(SynchronousTestCase):
    """The inputs of a relay with more than defaults in them, and the orders that they make."""

    def setUp(self) -> None:
        made = make_dev_setup(Path(self.mktemp()), listen=[LOOPBACK], port=0, settings={
            "allow": "192.0.2.0/24", "block": "198.51.100.7", "log_level": "warn", "stream_window": "70000", "max_streams": "9",
            "quic_idle_timeout": "23s", "qlog_dir": "recordings", "default_bandwidth_limit": "2 MB/s",
        })
        config = load_config(path=made.config, environ={}, options={})
        self.inputs = Inputs(config, credentials_of(config), load_device_keys(config))
        self.settings = engine_settings_of(config, bytes(8))
        self.orders = Orders.of(self.inputs, self.settings, LogFormat.TEXT)


class JourneyTests(OrdersCase):
    """Issue "all cores": everything that a worker goes by crosses the socket pair, and is the same there."""

    def journey(self, value: Any, kind: Any) -> Any:
        box = amp.AmpBox()
        found: dict[str, Any] = {}
        Value(kind).toBox(b"it", box, {"it": value}, None)
        Value(kind).fromBox(b"it", amp.AmpBox.copy(box), found, None)
        return found["it"]

    def test_orders(self) -> None:
        self.assertEqual(self.journey(self.orders, Orders), self.orders)
        self.assertEqual(self.orders.settings, self.settings)
        self.assertEqual((self.orders.log.form, self.orders.log.level), (LogFormat.TEXT, LogLevel.WARN))
        self.assertEqual((self.orders.allow, [str(each) for each in self.orders.block]), ((NETWORK,), ["198.51.100.7/32"]))

    def test_a_beginning_as_a_command(self) -> None:
        post = Post(1, 2, (SocketPlace(7, "::1", 4433),), 4, b"\x00\xff" * 16, logs_security=True, cpus=(3,), report_interval=0.5)
        remembered = (
            Remembered(b"\xff" * 32, b"\x00" * 16, 2**60, 2_000_000_000, ErrorCode.TERMINATED, frozenset(Role), pinned=True),
            Remembered(b"\x01" * 32, b"\xee" * 16, 0, 1, None, frozenset(), pinned=False),
        )
        beginning = Beginning(post, self.orders, devices_of(self.inputs.device_keys), (BLOCKED,), remembered)
        box = Begin.makeArguments({"beginning": beginning}, None)
        self.assertEqual(Begin.parseArguments(box, None), {"beginning": beginning})

    def test_ten_thousand_devices(self) -> None:
        keys = DeviceKeys([Device(number.to_bytes(32, "big"), tier="", note="x") for number in range(10_000)])
        self.assertEqual(self.journey(devices_of(keys), tuple[Device, ...]), devices_of(keys))
        changes = DeviceKeys().changes_to(keys) | {b"\xff" * 32: None}
        self.assertEqual(self.journey(changes, KeyChanges), changes)


class CertificateTests(OrdersCase):
    """R5.2: the workers show the relay's certificate, and agree on what the configuration says."""

    def test_it_gives_the_same_credentials(self) -> None:
        text = CertificateText.of(self.inputs)
        made, given = text.credentials(), self.inputs.credentials
        self.assertEqual(made.certificate_sha256, given.certificate_sha256)
        agreed = ("idle_timeout", "max_datagram_size", "max_stream_data", "max_data", "alpn_protocols", "max_datagram_frame_size")
        for name in agreed:
            self.assertEqual(getattr(made.configuration, name), getattr(given.configuration, name), name)
        self.assertEqual(made.configuration.idle_timeout, 23.0)
        self.assertEqual(CertificateText.of(Inputs(self.inputs.config, made, self.inputs.device_keys)), text)


class SaidTests(SynchronousTestCase):
    """R5.7: what is told is what JSON has, and nothing secret."""

    def test_values_arrive_as_json_has_them(self) -> None:
        fields: dict[str, object] = {
            "n": 7, "x": 0.5, "b": True, "s": "ü\n", "role": Role.DEVICE, "l": (1, Role.PEER), "m": {"k": Role.PEER, 3: 4},
            "net": NETWORK, "path": Path("/x"),
        }
        said = Said.of(Kind.EVENT, "name", fields)
        self.assertEqual(said.values, {
            "n": 7, "x": 0.5, "b": True, "s": "ü\n", "role": "DEVICE", "l": [1, "PEER"], "m": {"k": "PEER", "3": 4},
            "net": list(NETWORK), "path": "/x",
        })

    def test_bytes_are_dropped_wherever_they_are(self) -> None:
        fields: dict[str, object] = {
            "a": b"secret", "b": bytearray(b"secret"), "c": memoryview(b"secret"), "d": [b"secret", 1], "e": {"k": b"secret"},
            "f": None,
        }
        said = Said.of(Kind.EVENT, "name", fields)
        self.assertEqual(said.values, {"d": [1], "e": {}})
        self.assertNotIn("secret", said.fields)


class ListChangeTests(SynchronousTestCase):
    """R4.2: the lists of a worker follow those of its parent."""

    def test_they_are_applied_and_may_be_applied_twice(self) -> None:
        lists = AccessLists()
        for _ in range(2):
            ListChange(NETWORK, BLOCKED).apply(lists, 0.0)
            self.assertEqual(lists.runtime_entries, [BLOCKED])
        for _ in range(2):
            ListChange(NETWORK, None).apply(lists, 0.0)
            self.assertEqual(lists.runtime_entries, [])


class WorkerTests(OrdersCase):
    """R8: a worker says whether it can go by other orders before anything is changed, and why it could not begin."""

    def setUp(self) -> None:
        super().setUp()
        self.clock = Clock()
        self.ends = 0
        self.worker = Worker(Surroundings(self.clock, self.clock.seconds, time.time, bytes), -1, self.end)

    def end(self) -> None:
        self.ends += 1

    def test_it_says_what_is_wrong_with_orders(self) -> None:
        broken = CertificateText(b"", b"", 1.0, 1200, 1, 1)
        answer = self.worker.prepare(Orders(self.settings, broken, (), (), self.orders.log), {})
        self.assertNotEqual(answer["problem"], "")
        self.assertEqual(self.worker.prepare(self.orders, {}), {"problem": ""})

    def test_nothing_is_put_in_force_that_was_not_prepared(self) -> None:
        with self.assertRaises(NotPrepared):
            self.worker.commit()

    def test_it_ends_when_its_parent_is_gone(self) -> None:
        self.worker.connectionLost()
        self.assertEqual(self.ends, 1)

    def test_it_has_stopped_when_its_last_words_are_told(self) -> None:
        class Stopping:
            def stopService(self) -> None:
                outbox.put(Said(Kind.LINE, "info", "{}"))

        told: Deferred[Any] = Deferred()
        outbox = Outbox(lambda said, lost: told, self.clock)
        vars(self.worker).update(engine=Stopping(), _outbox=outbox)
        stopped = self.worker.stop()
        self.clock.advance(1)
        self.assertNoResult(stopped)
        told.callback(None)
        self.assertEqual(self.successResultOf(stopped), {})

    def test_what_cannot_be_logged_goes_to_standard_error(self) -> None:
        self.patch(sys, "stderr", io.StringIO())
        with self.assertRaises(ZeroDivisionError), aloud():
            raise ZeroDivisionError
        self.assertIn("ZeroDivisionError", sys.stderr.getvalue())
