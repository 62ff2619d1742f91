"""Reloading: what is read again and from where, all or nothing, what is reported; by service and by SIGHUP."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Mapping
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

from nacl.signing import SigningKey
from twisted.internet.defer import Deferred, maybeDeferred, succeed
from twisted.trial.unittest import SynchronousTestCase, TestCase

from tests.real_relay import PATIENCE, Client, Setup, ended, eventually, exchange
from tests.test_process import TAC, ProcessCase
from zrc_relay.cli.certificates import make_self_signed
from zrc_relay.cli.processes import Child
from zrc_relay.client.errors import Blocked, ConnectFailed, DeviceUnknown, RateLimited, Terminated
from zrc_relay.client.trust import Trust
from zrc_relay.config import Config, load_config
from zrc_relay.core.cidr import Access, Entry, Network
from zrc_relay.core.codes import Role
from zrc_relay.core.keys import DeviceKeys
from zrc_relay.core.relay import Policy
from zrc_relay.inputs import Inputs
from zrc_relay.logs.levels import LogFormat, LogLevel
from zrc_relay.logs.observer import LogSettings, RelayLog
from zrc_relay.logs.outputs import Output
from zrc_relay.reload import Reloader, ReloadReport, merge
from zrc_relay.reloadable import RELOADABLE
from zrc_relay.service import RelayService
from zrc_relay.workers.orders import Orders
from zrc_relay.workers.parent import ParentService

NOT_RELOADABLE = frozenset((
    "listen_addr", "listen_port", "relay_id", "state_dir", "observe_endpoint", "admin_endpoint", "admin_tokens_path",
    "admin_unix_trust", "audit_log", "security_log", "webhook_url", "webhook_secret_path", "webhook_ca_path", "webhook_secret",
    "bouncer_url", "bouncer_key_path", "bouncer_ca_path", "bouncer_interval", "bouncer_key",
    "workers", "worker_port_base", "worker_stall", "worker_affinity",
))


class Running:
    """A relay, with its workers if it has any, that reads its settings from a file, variables and options."""

    def __init__(self, case: TestCase, settings: Mapping[str, str] | None = None) -> None:
        self.setup = Setup(case, settings=settings)
        self.environ: dict[str, str] = {}
        self.options: dict[str, str] = {}
        load = partial(load_config, path=self.setup.made.config, environ=self.environ, options=self.options)
        self.service = self.setup.front(load)

    def add(self, text: str) -> None:
        """Append to the TOML file."""
        with self.setup.made.config.open("a", encoding="utf-8") as file:
            file.write(f"\n{text}\n")

    def write(self, name: str, content: str | bytes) -> Path:
        """Write another file beside it."""
        path = self.setup.made.directory / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    async def reload(self) -> ReloadReport:
        return await self.service.reload()

    def in_force(self) -> tuple[object, ...]:
        """Everything that a reload may change, as it is now."""
        service = self.service
        if not isinstance(service, RelayService):
            return service.config, self.orders, service.device_keys, sorted(map(str, service.lists))
        relay, endpoint = service.relay, service.endpoint
        return (
            service.config, relay.policy, relay.admission.settings, sorted(map(str, relay.admission.lists)),
            endpoint.credentials, vars(endpoint)["_settings"], service.device_keys, service.qlogs.directory,
        )

    @property
    def orders(self) -> Orders:
        """What its workers go by."""
        orders: Orders = vars(cast(ParentService, self.service).crew)["_orders"]
        return orders

    @property
    def policy(self) -> Policy:
        """What it goes by."""
        service = self.service
        return service.relay.policy if isinstance(service, RelayService) else self.orders.settings.policy


class ServiceTests(TestCase):
    """R8, issue "reload": limits, tiers, rates, lists, keys, certificate; new settings are in force at once, for clients too."""

    timeout = 2 * PATIENCE

    async def test_nothing_new_is_nothing_changed(self) -> None:
        relay = Running(self)
        device, peer = await relay.setup.pair()
        self.assertEqual(await relay.reload(), ReloadReport())
        await exchange(device, peer)

    async def test_limits_and_tiers_reach_running_allocations(self) -> None:
        relay = Running(self)
        device, peer = await relay.setup.pair()
        relay.add('default_quota = "7 MB"\nmax_allocations = 3\n[tiers.gold]\nquota = "8 MB"')
        report = await relay.reload()
        self.assertEqual(report.changed, ("default_quota", "max_allocations", "tiers"))
        self.assertTrue(report.is_done)
        for client in (device, peer):
            await eventually(lambda: _quota(client) == 7_000_000, "REFRESHED")  # noqa: B023 - awaited here
        key = re.search(r'public_key = "\w+"', (relay.setup.made.directory / "devices.toml").read_text())
        relay.write("devices.toml", f'[[device]]\n{key[0] if key else ""}\ntier = "gold"\n')
        self.assertEqual((await relay.reload()).changed, ("device_keys_path",))
        await eventually(lambda: _quota(device) == 8_000_000, "REFRESHED")
        await exchange(device, peer)

    async def test_keys_that_are_gone_end_what_they_signed_and_come_back(self) -> None:
        relay = Running(self)
        before = (relay.setup.made.directory / "devices.toml").read_text()
        device, _ = await relay.setup.pair()
        relay.write("devices.toml", f'[[device]]\npublic_key = "{bytes(SigningKey.generate().verify_key).hex()}"\n')
        report = await relay.reload()
        self.assertEqual((report.changed, report.ended), (("device_keys_path",), 1))
        await ended(device)
        self.assertIsInstance(device.relay.error, Terminated)
        with self.assertRaises(DeviceUnknown):
            await relay.setup.connect(Role.DEVICE)
        relay.write("devices.toml", before)
        await relay.reload()
        await relay.setup.connect(Role.DEVICE)

    async def test_what_was_pinned_unpinned_and_blocked_at_run_time_survives(self) -> None:
        relay = Running(self)
        service, setup = relay.service, relay.setup
        service.pins.unpin(setup.token.device_id, service.device_keys)
        service.use_device_keys()
        blocked = Network.parse("203.0.113.0/24")
        service.lists.add(Entry(blocked, Access.BLOCK), service._wall())  # noqa: SLF001 - the clock it goes by
        relay.add('idle_timeout = "9s"\nblock = "198.51.100.0/24"')
        report = await relay.reload()
        self.assertEqual(report.changed, ("block", "idle_timeout"))
        with self.assertRaises(DeviceUnknown):
            await setup.connect(Role.DEVICE)
        networks = {str(entry.network) for entry in service.lists}
        self.assertEqual(networks, {"198.51.100.0/24", "203.0.113.0/24"})

    async def test_lists_put_out_who_is_no_longer_served(self) -> None:
        relay = Running(self)
        device, _ = await relay.setup.pair()
        relay.add('block = "127.0.0.0/8"')
        self.assertEqual((await relay.reload()).changed, ("block",))
        await ended(device)
        self.assertIsInstance(device.relay.error, Blocked)

    async def test_rates_count_what_was_before(self) -> None:
        relay = Running(self, {"rejoin_rate": "2/h"})
        await relay.setup.pair()
        relay.add("")
        text = relay.setup.made.config.read_text()
        relay.setup.made.config.write_text(text.replace('rejoin_rate = "2/h"', 'rejoin_rate = "1/h"'))
        self.assertEqual((await relay.reload()).changed, ("rejoin_rate",))
        with self.assertRaises(RateLimited):
            await relay.setup.connect(Role.PEER)

    async def test_the_certificate_is_for_new_connections(self) -> None:
        relay = Running(self)
        device, peer = await relay.setup.pair()
        certificate, key = make_self_signed(["relay.test"])
        relay.write("cert.pem", certificate)
        relay.write("key.pem", key)
        self.assertEqual((await relay.reload()).changed, ("quic_cert_path",))
        await exchange(device, peer)
        with self.assertRaises(ConnectFailed):
            await relay.setup.connect(Role.PEER)
        shown = relay.service.reloader.inputs.credentials.certificate_sha256
        newcomer = await relay.setup.connect(Role.PEER, trust=Trust(fingerprint=shown))
        newcomer.relay.send(b"from the newcomer")
        await eventually(lambda: b"from the newcomer" in device.got, "the newcomer's datagram")
        self.assertFalse(peer.relay.is_closed)

    async def test_levels_and_form_of_the_log(self) -> None:
        class Lines:
            is_terminal = False
            lines: list[str] = []  # noqa: RUF012 - one of them

            def write(self, line: str, level: LogLevel) -> None:
                del level
                self.lines.append(line)

            def reopen(self) -> None:
                self.lines.append("reopened")

        output: Output = Lines()
        relay = Running(self)
        log = relay.service.log = RelayLog(output, LogSettings(), lambda: 0.0)
        relay.add('log_format = "text"\n[log_levels]\n"some.part" = "error"')
        self.assertEqual((await relay.reload()).changed, ("log_format", "log_levels"))
        for level in ("warn", "error"):
            log({"log_level": _level(level), "log_namespace": "some.part.of", "log_format": level, "log_time": 0})
        found = [line for line in Lines.lines if "some.part" in line]  # workers may have something to say, too
        self.assertEqual(found, ["1970-01-01T00:00:00.000Z error [some.part.of] error"])
        relay.service.reopen_logs()
        self.assertEqual(Lines.lines[-1], "reopened")

    async def test_variables_and_options_of_the_start_are_still_stronger_than_the_file(self) -> None:
        relay = Running(self)
        relay.environ["ZRC_RELAY_IDLE_TIMEOUT"] = "11s"
        relay.options["wait-timeout"] = "12s"
        relay.add('idle_timeout = "1s"\nwait_timeout = "1s"\nkeepalive_interval = "13s"')
        await relay.reload()
        policy = relay.policy
        self.assertEqual((policy.idle_timeout, policy.wait_timeout, policy.keepalive_interval), (11, 12, 13))

    async def test_two_at_once_come_one_after_the_other(self) -> None:
        relay = Running(self)
        relay.add("max_allocations = 5")
        first, second = relay.reload(), relay.reload()
        reports = [await first, await second]
        self.assertEqual([report.changed for report in reports], [("max_allocations",), ()])


class AllOrNothingTests(TestCase):
    """Issue "reload": an invalid file changes nothing, and every problem is a line that says why."""

    timeout = 2 * PATIENCE

    async def check(self, relay: Running, *expected: str) -> None:
        """Nothing is changed, whatever else is new, and these are the problems."""
        relay.write("x.toml", "")
        before = relay.in_force()
        report = await relay.reload()
        self.assertFalse(report.is_done)
        self.assertEqual((report.changed, report.not_reloadable, report.ended), ((), (), 0))
        self.assertEqual(len(report.problems), len(expected), report.problems)
        for problem, text in zip(report.problems, expected, strict=True):
            self.assertIn(text, problem)
            self.assertNotIn("\n", problem)
        self.assertEqual(relay.in_force(), before)
        self.assertTrue(relay.service.reloader.is_failing)

    async def test_settings_that_are_wrong(self) -> None:
        relay = Running(self)
        device, peer = await relay.setup.pair()
        relay.add('max_allocations = 5\nidle_timeout = "soon"\nno_such_thing = 1\n[log_levels]\n"no part" = "info"\nx = "loud"')
        await self.check(relay, "idle_timeout", "no_such_thing", 'log_levels."no part"', "loud")
        await exchange(device, peer)

    async def test_a_file_that_is_no_toml_or_is_gone(self) -> None:
        relay = Running(self)
        relay.add("]")
        await self.check(relay, "not TOML")
        relay.setup.made.config.unlink()
        await self.check(relay, "cannot be read")

    async def test_files_that_cannot_be_used_all_of_them_together(self) -> None:
        relay = Running(self)
        relay.add("max_allocations = 5")
        relay.write("cert.pem", "hello")
        relay.write("devices.toml", '[[device]]\npublic_key = "1"\n[[device]]\npublic_key = "2"')
        await self.check(relay, "holds no PEM certificate", "device 1", "device 2")

    async def test_a_key_that_is_not_the_certificates(self) -> None:
        relay = Running(self)
        relay.write("key.pem", make_self_signed(["x"])[1])
        relay.add("max_allocations = 5")
        await self.check(relay, "is not the key of the certificate")

    async def test_a_tier_that_is_gone_while_a_device_has_it(self) -> None:
        relay = Running(self)
        keys = (relay.setup.made.directory / "devices.toml").read_text()
        relay.write("devices.toml", f'{keys}\ntier = "gold"\n')
        await self.check(relay, "gold")

    async def test_part_of_the_relay_that_cannot_read_its_files(self) -> None:
        class Part:
            name = "admin"
            used: list[object] = []  # noqa: RUF012 - one of them
            error: Exception | None = ValueError("first\nsecond")

            def prepare_reload(self) -> str:
                if self.error is not None:
                    raise self.error
                return "prepared"

            def reload(self, prepared: object) -> None:
                self.used.append(prepared)

        relay, part = Running(self), Part()
        relay.service.reloader.participants.append(part)
        relay.add("max_allocations = 5")
        await self.check(relay, "admin: first", "admin: second")
        part.error = ValueError()
        await self.check(relay, "admin: ValueError()")
        part.error = None
        self.assertEqual((await relay.reload()).changed, ("max_allocations",))
        self.assertEqual((part.used, relay.service.reloader.is_failing), (["prepared"], False))

    async def test_what_is_mended_is_in_force_with_the_next_one(self) -> None:
        relay = Running(self)
        text = relay.setup.made.config.read_text()
        relay.add("max_allocations = -5")
        await self.check(relay, "max_allocations")
        relay.setup.made.config.write_text(text + "\nmax_allocations = 5\n")
        self.assertEqual((await relay.reload()).changed, ("max_allocations",))
        self.assertEqual(relay.policy.max_allocations, 5)
        self.assertEqual((relay.service.reloader.done, relay.service.reloader.refused), (1, 1))

    async def test_an_error_of_our_own_is_a_problem_too(self) -> None:
        relay = Running(self)
        self.patch(relay.service.forwarding, "put_in_force", lambda *_: 1 // 0)
        report = await relay.reload()
        self.assertEqual(len(report.problems), 1)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertTrue(relay.service.reloader.is_failing)


class RestartTests(TestCase):
    """Issue "reload": what cannot be reloaded is named, each time, and keeps its value."""

    timeout = 2 * PATIENCE

    async def test_it_is_named_until_the_file_agrees_again(self) -> None:
        relay = Running(self)
        text = relay.setup.made.config.read_text()
        config = relay.service.config
        relay.add('state_dir = "elsewhere"\nsecurity_log = "security.log"\nidle_timeout = "9s"')
        for changed in (("idle_timeout",), ()):
            report = await relay.reload()
            self.assertEqual((report.changed, report.not_reloadable), (changed, ("security_log", "state_dir")))
            self.assertTrue(report.is_done)
        self.assertEqual(relay.service.config, replace(config, idle_timeout=9.0))
        relay.setup.made.config.write_text(text)
        self.assertEqual(await relay.reload(), ReloadReport(changed=("idle_timeout",)))
        self.assertFalse((relay.setup.made.directory / "elsewhere").exists())


class TableTests(SynchronousTestCase):
    """R8: every setting either takes part in a reload or needs a restart, and somebody has thought about which."""

    def test_every_field_is_in_one_of_the_two(self) -> None:
        self.assertEqual(RELOADABLE | NOT_RELOADABLE, {item.name for item in fields(Config)})
        self.assertEqual(RELOADABLE & NOT_RELOADABLE, frozenset())

    def test_merging_takes_the_one_and_keeps_the_other(self) -> None:
        current = Config(quic_cert_path=Path("a"), quic_key_path=Path("b"), relay_id=bytes(16))
        wanted = Config(
            quic_cert_path=Path("c"), quic_key_path=Path("b"), relay_id=b"x" * 16, max_streams=5, log_format=LogFormat.TEXT,
            listen_port=1,
        )
        merged, kept = merge(current, wanted)
        self.assertEqual(kept, ("listen_port", "relay_id"))
        self.assertEqual(merged, replace(wanted, listen_port=current.listen_port, relay_id=current.relay_id))


class OrderTests(SynchronousTestCase):
    """Issue "reload": nothing is read in the reactor's thread, and nothing is used before everything is read."""

    def test_reading_is_somewhere_else_and_committing_comes_after_it(self) -> None:
        config = Config(quic_cert_path=Path("a"), quic_key_path=Path("b"), relay_id=bytes(16))
        credentials: Any = type("Shown", (), {"certificate_sha256": b""})()
        inputs = Inputs(config, credentials, DeviceKeys())
        waiting: list[tuple[Any, Deferred[Any]]] = []
        committed: list[Inputs] = []

        def run(function: Any) -> Deferred[Any]:
            waiting.append((function, Deferred()))
            return waiting[-1][1]

        def commit(inputs: Inputs) -> Deferred[int]:
            committed.append(inputs)
            return succeed(3)

        reloader = Reloader(inputs, lambda: replace(inputs, config=replace(config, max_streams=5)), run=run, commit=commit)
        first, second = reloader.reload(), reloader.reload()
        self.assertEqual((len(waiting), committed), (1, []))
        function, done = waiting.pop()
        maybeDeferred(function).chainDeferred(done)
        self.assertEqual(self.successResultOf(first), ReloadReport(("max_streams",), (), (), 3))
        self.assertEqual((len(committed), len(waiting)), (1, 1))
        self.assertNoResult(second)


class HangUpTests(ProcessCase):
    """Issue "reload", "logs": SIGHUP to a process, however it was started; it goes on in a new file and says what came of it."""

    def lines(self, path: Path, event: str) -> list[dict[str, Any]]:
        return [line for line in map(json.loads, path.read_text().splitlines()) if line["event"] == event]

    def rotate(self, log: Path) -> Path:
        return log.rename(log.with_suffix(".1"))

    async def check(self, setup: Setup, child: Child, log: Path) -> None:
        port = self.lines(log, "listen.udp")[0]["address"].rpartition(":")[2]
        setup.port = int(port)
        device, peer = await setup.pair()
        rotated = self.rotate(log)
        with setup.made.config.open("a") as file:
            file.write('\nmax_allocations = 7\nstate_dir = "state"\n')
        os.kill(child.pid, signal.SIGHUP)
        await eventually(lambda: log.exists() and self.lines(log, "reload.done"), "the reload")
        (done,) = self.lines(log, "reload.done")
        self.assertEqual((done["changed"], done["not_reloadable"]), (["max_allocations"], ["state_dir"]))
        self.assertEqual(self.lines(log, "reload.restart_needed")[0]["setting"], "state_dir")
        with setup.made.config.open("a") as file:
            file.write("nonsense = 1\n")
        os.kill(child.pid, signal.SIGHUP)
        await eventually(lambda: self.lines(log, "reload.refused"), "the refusal")
        self.assertIn("nonsense", self.lines(log, "reload.refused")[0]["problem"])
        await exchange(device, peer)
        await device.relay.release()
        os.kill(child.pid, signal.SIGTERM)
        self.assertEqual(await self.gone(child), 0)
        self.assertTrue(self.lines(log, "relay.stopped"))
        bound = self.lines(rotated, "session.bound")
        self.assertEqual({line["allocation"] for line in bound}, {setup.token.allocation_id.hex()})

    async def started(self, command: list[str], setup: Setup) -> tuple[Child, Path]:
        log = (setup.made.directory / "relay.log").resolve()
        child = self.start("relay", command, setup.made.directory, {"ZRC_RELAY_CONFIG": str(setup.made.config.resolve())})

        def is_ready() -> bool:
            child.check()
            return log.exists() and bool(self.lines(log, "relay.ready"))

        await eventually(is_ready, "the relay")
        return child, log

    async def test_twistd_zrc_relay(self) -> None:
        setup = Setup(self)
        child, log = await self.started([*TAC[:-2], "--logfile", "relay.log", "zrc-relay"], setup)
        await self.check(setup, child, log)

    async def test_twistd_with_a_tac_file(self) -> None:
        setup = Setup(self)
        child, log = await self.started([*TAC[:-2], "--logfile=relay.log", *TAC[-2:]], setup)
        await self.check(setup, child, log)

    async def test_a_log_that_cannot_be_written_keeps_the_relay_from_starting(self) -> None:
        setup = Setup(self)
        child = self.start(
            "relay", [*TAC[:-2], "--logfile", "nowhere/relay.log", *TAC[-2:]], setup.made.directory,
            {"ZRC_RELAY_CONFIG": str(setup.made.config.resolve())},
        )
        self.assertEqual(await self.gone(child), 1)
        self.assertIn("zrc-relay: cannot write the log", child.output)
        self.assertNotIn("Traceback", child.output)


def _quota(client: Client) -> int | None:
    limits = client.relay.limits
    return limits.quota_bytes if limits is not None else None


def _level(name: str) -> Any:
    from twisted.logger import LogLevel as TwistedLevel  # noqa: PLC0415 - of the same name as ours

    return TwistedLevel.levelWithName(name)
