"""The relay as a process of its own: both ways to start it, everything that keeps it from starting, signals, and dead clients."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase, TestCase

from tests.real_relay import PATIENCE, Client, Setup, ended, eventually, exchange
from zrc_relay.cli.processes import Child, child_environment, relay_command
from zrc_relay.client import notices
from zrc_relay.client.errors import AllocationIdle, Draining
from zrc_relay.core.codes import Role

ROOT = Path(__file__).resolve().parent.parent
TWISTD = [sys.executable, "-c", "from twisted.scripts.twistd import run; run()", "--nodaemon", "--pidfile="]
TAC = [*TWISTD, "--python", str(ROOT / "relay.tac")]
LISTENING = re.compile(r"listening on UDP \S+:(\d+)")


def environment(changes: Mapping[str, str] | None = None) -> dict[str, str]:
    """For children: finds this package and these tests, and nobody's settings but ``changes``."""
    own = child_environment()
    own["PYTHONPATH"] = os.pathsep.join((str(ROOT), own["PYTHONPATH"]))
    return {**own, **(changes or {})}


def run(command: Sequence[str], directory: Path, changes: Mapping[str, str] | None = None) -> tuple[int, list[str]]:
    """Run a relay that is not going to start; its exit status and what it said."""
    done = subprocess.run(
        command, cwd=directory, env=environment(changes), capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    return done.returncode, (done.stdout + done.stderr).splitlines()


class ProcessCase(TestCase):
    """Starts relays and clients as processes; what is left of them is ended with the test."""

    timeout = 3 * PATIENCE

    def start(
        self, name: str, command: Sequence[str], directory: Path, changes: Mapping[str, str] | None = None
    ) -> Child:
        child = Child(name, command, directory, environment(changes))
        self.addCleanup(child.stop)
        return child

    async def relay(
        self, setup: Setup, command: Sequence[str] | None = None, changes: Mapping[str, str] | None = None
    ) -> Child:
        child = self.start("relay", command or relay_command(setup.made.config.resolve()), setup.made.directory, changes)
        await self.said(child, LISTENING)
        found = LISTENING.search(child.output)
        setup.port = int(found.group(1)) if found else 0
        return child

    async def client(self, setup: Setup, role: str) -> Child:
        command = [sys.executable, "-m", "tests.client_process", str(setup.made.directory.resolve()), str(setup.port), role]
        child = self.start(f"client-{role}", command, setup.made.directory)
        await self.said(child, re.compile(r"^allocated$", re.MULTILINE))
        return child

    async def said(self, child: Child, what: re.Pattern[str]) -> None:
        def look() -> bool:
            if what.search(child.output):
                return True
            child.check()
            return False

        await eventually(look, f"{what.pattern} from {child.name}")

    async def gone(self, child: Child) -> int:
        """Wait for the end of a child; its exit status."""
        process: subprocess.Popen[bytes] = vars(child)["_process"]
        await eventually(lambda: process.poll() is not None, f"the end of {child.name}")
        return process.returncode


class StartTests(ProcessCase):
    """Issue "the given shape": ``twistd zrc-relay`` and ``twistd -y relay.tac`` run the same service tree, from any directory."""

    def elsewhere(self) -> Path:
        directory = Path(self.mktemp())
        directory.mkdir()
        return directory

    async def check(self, command: Sequence[str] | None, directory: Path | None = None) -> None:
        setup = Setup(self)
        if directory is None:
            child = await self.relay(setup, command)
        else:
            child = self.start("relay", command or [], directory, {"ZRC_RELAY_CONFIG": str(setup.made.config.resolve())})
            await self.said(child, LISTENING)
            setup.port = int(LISTENING.findall(child.output)[0])
        device, peer = await setup.pair()
        await exchange(device, peer)
        await device.relay.release()
        os.kill(child.pid, signal.SIGTERM)
        self.assertEqual(await self.gone(child), 0)
        self.assertNotIn("Traceback", child.output)
        self.assertIn("is ready", child.output)
        self.assertIn("relay stopped", child.output)

    async def test_the_plugin_with_a_configuration_file(self) -> None:
        await self.check(None)

    async def test_the_plugin_with_the_file_named_by_the_environment_from_another_directory(self) -> None:
        await self.check([*TWISTD, "zrc-relay"], self.elsewhere())

    async def test_the_tac_file_with_relay_toml_in_the_current_directory(self) -> None:
        await self.check(TAC)

    async def test_the_tac_file_with_the_file_named_by_the_environment(self) -> None:
        await self.check(TAC, self.elsewhere())

    async def test_options_go_before_variables_and_variables_before_the_file(self) -> None:
        setup = Setup(self, settings={"idle_timeout": "11s", "keepalive_interval": "11s", "default_quota": "11 MB"})
        command = [*relay_command(setup.made.config.resolve()), "--idle-timeout", "13s"]
        await self.relay(setup, command, {"ZRC_RELAY_IDLE_TIMEOUT": "12s", "ZRC_RELAY_KEEPALIVE_INTERVAL": "12s"})
        allocated = (await setup.connect(Role.DEVICE)).relay.allocated
        if allocated is None:
            self.fail("not allocated")
        self.assertEqual((allocated.idle_timeout, allocated.keepalive_interval, allocated.quota_bytes), (13, 12, 11_000_000))


class CannotStartTests(SynchronousTestCase):
    """Issue "bad input": everything that is wrong at once, one line each, no traceback, and a status that says which kind."""

    def setUp(self) -> None:
        self.setup = Setup(self)  # type: ignore[arg-type]  # a SynchronousTestCase has what it uses
        self.directory = self.setup.made.directory
        self.command = relay_command(self.setup.made.config.resolve())

    def check(self, status: int, *expected: str, changes: Mapping[str, str] | None = None) -> None:
        for command in (self.command, TAC):
            found, lines = run(command, self.directory, changes)
            self.assertEqual(found, status, lines)
            said = [line for line in lines if "zrc-relay: " in line]
            for text in expected:
                self.assertEqual(len([line for line in said if text in line]), 1, f"{text!r} in {said}")
            self.assertEqual(len(said), len(expected), said)
            self.assertFalse([line for line in lines if "Traceback" in line], lines)

    def test_a_bad_toml_lists_every_problem(self) -> None:
        with self.setup.made.config.open("a") as file:
            file.write('idle_timeout = "soon"\nmax_alocations = 5\nmax_udp_payload = 100\n')
        slip = {"ZRC_RELAY_MAX_STREMS": "1"}
        self.check(2, "idle_timeout", "max_alocations", "max_udp_payload", "ZRC_RELAY_MAX_STREMS", changes=slip)

    def test_a_file_that_is_no_toml(self) -> None:
        self.setup.made.config.write_text("this is [ not TOML")
        status, lines = run(self.command, self.directory)
        self.assertEqual(status, 2)
        self.assertIn("relay.toml", "".join(lines))
        self.assertNotIn("Traceback", "".join(lines))

    def test_a_configuration_that_is_not_there(self) -> None:
        self.setup.made.config.unlink()
        status, lines = run(self.command, self.directory)
        self.assertEqual(status, 2)
        self.assertIn("relay.toml", "".join(lines))
        self.assertNotIn("Traceback", "".join(lines))

    def test_a_certificate_that_cannot_be_read(self) -> None:
        certificate = self.directory / "cert.pem"
        certificate.unlink()
        self.check(2, "cert.pem: No such file or directory")
        certificate.mkdir()
        self.check(2, "cert.pem: Is a directory")

    def test_a_certificate_that_is_none(self) -> None:
        (self.directory / "cert.pem").write_text("hello")
        self.check(2, "cert.pem holds no PEM certificate")

    def test_device_keys_with_problems(self) -> None:
        (self.directory / "devices.toml").write_text('[[device]]\npublic_key = "1"\n[[device]]\npublic_key = "2"\n')
        status, lines = run(self.command, self.directory)
        self.assertEqual(status, 2)
        self.assertEqual(len([line for line in lines if "devices.toml" in line]), 2, lines)

    def test_a_port_in_use_is_one_line(self) -> None:
        taken = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.addCleanup(taken.close)
        taken.bind(("127.0.0.1", 0))
        port = str(taken.getsockname()[1])
        self.check(1, f"cannot listen on UDP 127.0.0.1:{port}: Address already in use", changes={"ZRC_RELAY_LISTEN_PORT": port})


class SignalTests(ProcessCase):
    """Issue "stopping": SIGTERM drains, a second one stops at once."""

    async def draining(self, drain_timeout: str) -> tuple[Child, Client, Client]:
        setup = Setup(self, settings={"drain_timeout": drain_timeout})
        relay = await self.relay(setup)
        device, peer = await setup.pair()
        os.kill(relay.pid, signal.SIGTERM)
        for client in (device, peer):
            await eventually(lambda: any(isinstance(n, notices.RelayDraining) for n in client.notices), "NOTICE DRAINING")  # noqa: B023
        with self.assertRaises(Draining):
            await setup.connect(Role.DEVICE)
        await exchange(device, peer, b"while draining")
        return relay, device, peer

    async def test_sigterm_drains_and_the_process_ends_when_the_time_is_over(self) -> None:
        relay, device, peer = await self.draining("2s")
        self.assertEqual(await self.gone(relay), 0)
        for client in (device, peer):
            await ended(client)
            self.assertIsInstance(client.relay.error, Draining)

    async def test_the_process_ends_when_the_last_client_has_left(self) -> None:
        relay, device, _ = await self.draining("1h")
        await device.relay.release()
        self.assertEqual(await self.gone(relay), 0)

    async def test_a_second_sigterm_stops_at_once(self) -> None:
        relay, device, _ = await self.draining("1h")
        os.kill(relay.pid, signal.SIGTERM)
        self.assertEqual(await self.gone(relay), 0)
        await ended(device)
        self.assertIsInstance(device.relay.error, Draining)

    async def test_sigint_is_the_same(self) -> None:
        setup = Setup(self)
        relay = await self.relay(setup)
        os.kill(relay.pid, signal.SIGINT)
        self.assertEqual(await self.gone(relay), 0)
        self.assertNotIn("Traceback", relay.output)


class DeadClientTests(ProcessCase):
    """R2.6, issue "must show": a client killed with SIGKILL; the other side hears PEER_LEFT, and the allocation goes."""

    async def test_the_other_side_hears_peer_left_and_later_the_end(self) -> None:
        setup = Setup(self, settings={"quic_idle_timeout": "3s", "keepalive_interval": "1s", "idle_timeout": "2s"})
        relay = await self.relay(setup)
        device = await setup.connect(Role.DEVICE)
        victim = await self.client(setup, "peer")
        device.relay.send(b"ping")
        await eventually(lambda: device.got == [b"ping"], "the echo")
        os.kill(victim.pid, signal.SIGKILL)
        killed_at = time.monotonic()
        await eventually(lambda: notices.PeerLeft() in device.notices, "PEER_LEFT")
        left_after = time.monotonic() - killed_at
        self.assertFalse(device.relay.is_closed, "the allocation waits for the side that left")
        await ended(device)
        self.assertIsInstance(device.relay.error, AllocationIdle)
        self.assertGreater(time.monotonic() - killed_at, left_after)
        fresh = await setup.connect(Role.DEVICE)
        self.assertEqual(fresh.relay.allocated.bytes_transferred if fresh.relay.allocated else None, 8, "counted on")
        relay.check()
