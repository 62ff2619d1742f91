"""A relay with workers as the processes that it is: clients at every worker, deaths of all kinds, reloads, stopping, the log."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from hashlib import sha256
from http.client import HTTPConnection
from pathlib import Path
from ssl import PEM_cert_to_DER_cert
from tempfile import mkdtemp
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import SynchronousTestCase, TestCase

from tests.real_relay import PATIENCE, Client, Setup, ended, eventually, exchange, reactor
from tests.test_process import ProcessCase, run
from tests.two_workers import LOOPBACK, allocation_of
from zrc_relay.cli.certificates import make_self_signed
from zrc_relay.cli.processes import relay_command
from zrc_relay.client import connect_resilient, notices
from zrc_relay.client.errors import QuotaExceeded, RelayError, Terminated
from zrc_relay.client.reconnect import ResilientConnection
from zrc_relay.client.trust import Trust
from zrc_relay.core.cidr import Access, Entry, Network
from zrc_relay.core.codes import Role
from zrc_relay.core.token import RelayToken
from zrc_relay.workers.parent import ParentService
from zrc_relay.workers.process import environment

COUNT = 2
READY = re.compile(r'"relay\.ready"')
COUNTER = re.compile(r"^(\w+_total(?:\{[^}]*\})?) (\S+)$", re.MULTILINE)
SOON = 5.0
"""Seconds for what takes one when nothing else keeps the machine busy."""


class WorkersCase(ProcessCase):
    """A relay with two workers, as ``twistd zrc-relay`` starts it."""

    async def begin(self, settings: Mapping[str, str] | None = None) -> None:
        """Start it; returns when it is ready."""
        changes = {"workers": str(COUNT), "security_log": "security.log", "audit_log": "audit.log", **(settings or {})}
        self.setup = Setup(self, settings=changes)
        self.child = await self.relay(self.setup)
        await self.said(self.child, READY)

    def token(self, index: int, number: int = 0) -> RelayToken:
        """A token whose allocation is that worker's."""
        return self.setup.another_token(allocation_id=allocation_of(index, COUNT, number))

    async def pair(self, index: int, number: int = 0) -> tuple[Client, Client]:
        return await self.setup.pair(token=self.token(index, number))

    def events(self, name: str) -> list[dict[str, Any]]:
        """The lines of the log with the event ``name``."""
        return of_event(self.child.output, name)

    def pids(self) -> dict[int, int]:
        """By index, the process that was ready last."""
        return {line["worker"]: line["pid"] for line in self.events("worker.ready")}

    async def spare(self) -> None:
        """Wait for the process that takes the place of one that dies."""
        await eventually(lambda: len(children(self.child.pid)) == COUNT + 1, "a spare worker")

    def metrics(self) -> Deferred[str]:
        (line,) = [line for line in self.events("listen.http") if line["service"] == "observe"]
        return deferToThread(fetch, int(line["endpoint"].split(":")[1]), "/metrics")

    async def replaced(self, index: int, before: int) -> None:
        """Wait until another process than ``before`` is the worker ``index``."""
        await eventually(lambda: self.pids()[index] != before, f"another worker {index}")

    async def stop(self) -> None:
        """End it in peace; nothing is left."""
        mine = children(self.child.pid)
        os.kill(self.child.pid, signal.SIGTERM)
        self.assertEqual(await self.gone(self.child), 0)
        self.assertEqual([pid for pid in mine if is_alive(pid)], [])
        self.assertNotIn("Traceback", self.child.output)
        self.assertEqual(self.events("worker.output"), [])


class ServingTests(WorkersCase):
    """Issue "all cores": both ends of an allocation meet in one worker, and operators hear of all workers in one place."""

    async def test_pairs_meet_at_each_worker_and_their_lines_arrive(self) -> None:
        await self.begin()
        for index in range(COUNT):
            for number in range(2):
                device, peer = await self.pair(index, number)
                await exchange(device, peer)
        self.assertEqual(len(self.events("allocation.created")), 4)
        own = {line["worker"] for line in json_lines(self.child.output) if isinstance(line.get("worker"), int)}
        self.assertEqual(own, set(range(COUNT)))
        self.assertEqual(self.events("session.redirected"), [])
        text = await self.metrics()
        self.assertEqual(values(text, "zrc_relay_workers "), [COUNT])
        self.assertEqual(values(text, 'zrc_relay_active_allocations{state="active"}'), [4])
        for index in range(COUNT):
            with self.assertRaises(RelayError):
                await self.setup.connect(Role.DEVICE, token=replace(self.token(index, 9), expires_at=1))
        security = self.setup.made.directory / "security.log"
        await eventually(lambda: len(json_lines(security.read_text())) >= COUNT, "records of both workers")
        connections = [record["connection"] for record in json_lines(security.read_text())]
        self.assertEqual({bytes.fromhex(each)[0] % COUNT for each in connections}, set(range(COUNT)))
        await self.stop()
        audit = json_lines((self.setup.made.directory / "audit.log").read_text())
        self.assertIn("SIGTERM", json.dumps(audit))
        self.assertEqual(len(self.events("session.lost")), 8, "the last words of the workers")

    async def test_auto_starts_one_for_each_cpu(self) -> None:
        cpus = os.sched_getaffinity(0)
        mine = set(sorted(cpus)[:COUNT])
        os.sched_setaffinity(0, mine)
        self.addCleanup(os.sched_setaffinity, 0, cpus)
        await self.begin({"workers": "auto"})
        self.assertEqual(len(self.pids()) or 1, len(mine))

    async def test_a_single_worker_is_the_relay_itself(self) -> None:
        await self.begin({"workers": "1"})
        self.assertEqual((children(self.child.pid), self.events("worker.ready")), ([], []))
        await exchange(*await self.setup.pair())


class DeathTests(WorkersCase):
    """Issue "all cores": one that dies or stands still is replaced; the others lose nothing, its clients come back."""

    async def resilient(self, role: Role, index: int) -> tuple[ResilientConnection, list[bytes], list[notices.NoticeEvent]]:
        got: list[bytes] = []
        heard: list[notices.NoticeEvent] = []
        client = await connect_resilient(
            reactor, LOOPBACK, self.setup.port, token=self.token(index), key=self.setup.keys[role], trust=self.setup.trust,
            on_datagram=got.append, on_notice=heard.append, timeout=PATIENCE,
        )
        self.addCleanup(client.close)
        return client, got, heard

    async def test_one_that_is_killed_hurts_only_its_own_clients_and_not_for_long(self) -> None:
        await self.begin()
        device, peer = await self.pair(0)
        (victim, _, heard), (other, got, heard_too) = [await self.resilient(role, 1) for role in Role]
        await self.spare()
        pids, before = self.pids(), await self.metrics()
        sent = 0
        os.kill(pids[1], signal.SIGKILL)
        killed_at = time.monotonic()
        while not all(any(isinstance(one, notices.Reconnected) for one in each) for each in (heard, heard_too)):
            device.relay.send(b"%d" % sent)
            victim.send(b"anybody there?")  # who says nothing does not learn that nobody is
            other.send(b"anybody there?")
            sent += 1
            self.assertLess(time.monotonic() - killed_at, SOON)
            await deferLater(reactor, 0.01)
        await eventually(lambda: len(peer.got) == sent, "every datagram of the others")
        self.assertFalse(device.relay.is_closed or peer.relay.is_closed)
        await resend(lambda: victim.send(b"back"), lambda: b"back" in got)
        (gone,) = self.events("worker.gone")
        self.assertEqual((gone["worker"], gone["pid"], gone["reason"]), (1, pids[1], "killed by signal 9"))
        self.assertNotEqual(self.pids()[1], pids[1])
        after = await self.metrics()
        self.assertEqual(values(after, "zrc_relay_worker_restarts_total"), [1.0])
        now = counters(after)
        self.assertEqual([name for name, value in counters(before).items() if now.get(name, 0) < value], [])
        await self.stop()

    async def test_one_that_stands_still_is_replaced_and_signals_for_the_parent_alone_do_nothing(self) -> None:
        await self.begin({"worker_stall": "2s"})
        pids = self.pids()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            os.kill(pids[0], number)
        device, peer = await self.pair(0)
        os.kill(pids[1], signal.SIGSTOP)
        await self.replaced(1, pids[1])
        self.assertFalse(is_alive(pids[1]))
        (killed,) = self.events("worker.killed")
        self.assertIn("stood still", killed["problem"])
        await exchange(*await self.pair(1))
        await exchange(device, peer)
        self.assertEqual(self.pids()[0], pids[0], "it was not asked to end")
        await self.stop()

    async def test_the_death_of_the_parent_takes_all_with_it_and_frees_the_ports(self) -> None:
        await self.begin()
        await self.spare()
        family = children(self.child.pid)
        os.kill(family[0], signal.SIGSTOP)  # so that it cannot see that its parent is gone
        os.kill(self.child.pid, signal.SIGKILL)
        await self.gone(self.child)
        await eventually(lambda: not any(map(is_alive, family)), "the end of the workers", SOON)
        for number in range(COUNT + 1):
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.bind((LOOPBACK, self.setup.port + number))


class MemoryTests(WorkersCase):
    """R2.8, R3.7, PROTOCOL §5: what has ended stays ended and what was carried stays counted, whoever dies."""

    async def begin(self, settings: Mapping[str, str] | None = None) -> None:
        directory = Path(mkdtemp())  # trial's own directories have names that are too long for a socket
        self.addCleanup(shutil.rmtree, directory)
        self.socket = directory / "admin.sock"
        administered = {"admin_endpoint": f"unix:{self.socket}:mode=600", "admin_unix_trust": "true"}
        await super().begin({**administered, **(settings or {})})

    def ask(self, method: str, token: RelayToken, query: str = "") -> Deferred[dict[str, Any]]:
        """Ask the admin endpoint for the allocation of ``token``, or to end it."""
        return deferToThread(administer, self.socket, method, f"/admin/allocations/{token.allocation_id.hex()}{query}")

    async def kill(self, index: int) -> None:
        """Kill a worker; returns when another one has its place."""
        before = self.pids()[index]
        os.kill(before, signal.SIGKILL)
        await self.replaced(index, before)

    async def test_what_an_administrator_has_ended_stays_ended_when_its_worker_dies_at_once(self) -> None:
        await self.begin()
        await self.spare()
        device, peer = await self.pair(1)
        await exchange(device, peer)
        self.assertEqual((await self.ask("DELETE", self.token(1), "?reason=why"))["connections"], 2)
        await self.kill(1)
        with self.assertRaises(Terminated):
            await self.setup.connect(Role.DEVICE, token=self.token(1))
        await exchange(*await self.pair(1, 1))
        await self.stop()

    async def test_what_was_carried_stays_counted_but_for_the_last_second(self) -> None:
        await self.begin()
        await self.spare()
        payload = bytes(1000)
        device, _ = await self.pair(1)
        sent = 0
        while not (shown := await self.ask("GET", self.token(1)))["bytes_per_second"]:  # until its worker has looked
            device.relay.send(payload)
            sent += 1
        self.assertGreaterEqual(shown["bytes_transferred"], len(payload))
        await self.kill(1)
        small = self.setup.another_token(allocation_id=self.token(1).allocation_id, quota_bytes=len(payload) - 1)
        with self.assertRaises(QuotaExceeded):
            await self.setup.connect(Role.DEVICE, token=small)
        again = await self.setup.connect(Role.DEVICE, token=self.token(1))
        allocated = again.relay.allocated
        counted = allocated.bytes_transferred if allocated is not None else 0
        self.assertTrue(len(payload) <= counted <= sent * len(payload), (counted, sent))
        await self.stop()


class EntriesTests(TestCase):
    """R6.3: what run time says of networks is taken out of the lists of a worker when its time is over."""

    timeout = 2 * PATIENCE

    async def test_a_worker_takes_out_what_is_over_although_nobody_tells_it_to(self) -> None:
        setup = Setup(self, settings={"workers": str(COUNT), "observe_endpoint": "off"})
        service = setup.front()
        if not isinstance(service, ParentService):
            self.fail("it has no workers")
        await setup.ready()
        service.keeper.stopService()  # which would take it out here, and tell the workers
        network, seconds, known = Network.parse("192.0.2.0/24"), 0.5, 0.0
        while not known:  # workers refuse what is over when they hear of it
            service.lists.add(Entry(network, Access.BLOCK, time.time() + seconds), time.time())
            await service.lists_in_force()
            known = await self.entries(service)
            seconds *= 2
        while known:
            await deferLater(reactor, 0.1)
            known = await self.entries(service)
        self.assertEqual(len(service.lists), 1)

    async def entries(self, service: ParentService) -> float:
        """How many entries the lists of its workers have."""
        snapshot = await service.crew.traffic.snapshot()
        return snapshot.values["zrc_relay_access_entries"][""]


class OperationTests(WorkersCase):
    """R8, R9: a reload is for all workers or for none, and draining waits for the clients of all."""

    async def test_a_certificate_is_changed_for_all_or_for_none_and_then_all_drain(self) -> None:
        await self.begin({"drain_timeout": "1h"})
        pairs = [await self.pair(index) for index in range(COUNT)]
        old, made = self.setup.trust, self.setup.made.directory
        good = made / "cert.pem"
        shutil.copy(good, made / "old.pem")
        good.write_text("no certificate")
        await self.hang_up("reload.refused")
        await self.check_newcomers(old, 1)

        chain, key = make_self_signed(["localhost"])
        good.write_bytes(chain)
        (made / "key.pem").write_bytes(key)
        await self.hang_up("reload.done")
        self.setup.trust = Trust(fingerprint=sha256(PEM_cert_to_DER_cert(chain.decode())).digest())
        await self.check_newcomers(self.setup.trust, 2)
        for device, peer in pairs:
            await exchange(device, peer)

        os.kill(self.child.pid, signal.SIGTERM)
        for device, peer in pairs:
            for client in (device, peer):
                await eventually(
                    lambda client=client: any(isinstance(one, notices.RelayDraining) for one in client.notices),  # type: ignore[misc]
                    "NOTICE DRAINING",
                )
        await pairs[0][0].relay.release()
        await ended(pairs[0][1])
        await exchange(*pairs[1], b"while another worker drains")
        self.child.check()
        await pairs[1][0].relay.release()
        self.assertEqual(await self.gone(self.child), 0)

    async def hang_up(self, event: str) -> None:
        os.kill(self.child.pid, signal.SIGHUP)
        await eventually(lambda: self.events(event), event)

    async def check_newcomers(self, trust: Trust, number: int) -> None:
        """Every worker shows the certificate that ``trust`` is for."""
        for index in range(COUNT):
            client = await self.setup.connect(Role.DEVICE, token=self.token(index, number), trust=trust)
            await client.relay.release()


class CannotStartTests(SynchronousTestCase):
    """Issue "bad input", for a relay with workers: one line, no traceback, the same status as without."""

    def setUp(self) -> None:
        self.setup = Setup(self, settings={"workers": "2"})  # type: ignore[arg-type]  # a SynchronousTestCase has what it uses
        self.taken = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.addCleanup(self.taken.close)

    def check(self, status: int, expected: str, **changes: str) -> None:
        settings = {f"ZRC_RELAY_{name.upper()}": value for name, value in changes.items()}
        found, lines = run(relay_command(self.setup.made.config.resolve()), self.setup.made.directory, settings)
        said = [line.partition("zrc-relay: ")[2].rstrip('"}') for line in lines if "zrc-relay: " in line]
        self.assertEqual((found, said), (status, [expected]), lines)
        self.assertFalse([line for line in lines if "Traceback" in line], lines)

    def test_a_port_in_use(self) -> None:
        self.taken.bind((LOOPBACK, 0))
        port = str(self.taken.getsockname()[1])
        self.check(1, f"cannot listen on UDP {LOOPBACK}:{port}: Address already in use", listen_port=port)

    def test_a_port_that_others_would_share(self) -> None:
        self.taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        self.taken.bind((LOOPBACK, 0))
        port = str(self.taken.getsockname()[1])
        self.check(1, f"cannot listen on UDP {LOOPBACK}:{port}: Address already in use", listen_port=port)

    def test_a_workers_own_port_in_use(self) -> None:
        self.taken.bind((LOOPBACK, 0))
        port = self.taken.getsockname()[1]
        self.check(1, f"cannot listen on UDP {LOOPBACK}:{port}: Address already in use", worker_port_base=str(port - 1))

    def test_settings_that_do_not_go_together(self) -> None:
        found, lines = run(
            relay_command(self.setup.made.config.resolve()), self.setup.made.directory,
            {"ZRC_RELAY_LISTEN_PORT": "4433", "ZRC_RELAY_WORKER_PORT_BASE": "4432"},
        )
        self.assertEqual((found, len([line for line in lines if "worker_port_base" in line])), (2, 1), lines)


def json_lines(text: str) -> list[dict[str, Any]]:
    """The lines of ``text`` that are JSON objects."""
    return [json.loads(line) for line in text.splitlines() if line.startswith("{") and line.endswith("}")]


def of_event(text: str, name: str) -> list[dict[str, Any]]:
    """Those with the event ``name``."""
    return [line for line in json_lines(text) if line.get("event") == name]


def administer(path: Path, method: str, what: str) -> dict[str, Any]:
    """What a relay answers at the admin endpoint on the UNIX socket ``path``."""
    connection = HTTPConnection("relay", timeout=PATIENCE)
    connection.sock = socket.socket(socket.AF_UNIX)
    try:
        connection.sock.connect(str(path))
        connection.request(method, what)
        answer: dict[str, Any] = json.loads(connection.getresponse().read())
        return answer
    finally:
        connection.close()


def fetch(port: int, path: str) -> str:
    """What a relay says over HTTP."""
    connection = HTTPConnection(LOOPBACK, port, timeout=PATIENCE)
    try:
        connection.request("GET", path)
        return connection.getresponse().read().decode()
    finally:
        connection.close()


def counters(text: str) -> dict[str, float]:
    """All counters, by name and labels."""
    return {name: float(value) for name, value in COUNTER.findall(text)}


def values(text: str, name: str) -> list[float]:
    """The values of all samples whose line begins with ``name``."""
    return [float(line.split()[-1]) for line in text.splitlines() if line.startswith(name)]


def children(pid: int) -> list[int]:
    """The processes that ``pid`` has started and that live."""
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split() if is_alive(int(each))]


def is_alive(pid: int) -> bool:
    """Whether there is such a process that has not ended."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in {"Z", "X"}


async def resend(send: Callable[[], object], has_come: Callable[[], bool]) -> None:
    """Send again and again until it has come: the other end may not be back yet."""
    waited = 0.0
    while not has_come():
        send()
        await deferLater(reactor, 0.05)
        waited += 0.05
        if waited > PATIENCE:
            msg = "it never came"
            raise AssertionError(msg)


class VersionTests(SynchronousTestCase):
    """A program that was upgraded under a running relay."""

    def test_a_worker_of_another_version_than_its_parent_says_so_and_ends(self) -> None:
        command = [sys.executable, "-m", "zrc_relay.workers", str(os.getpid()), "0.0.0"]
        done = subprocess.run(
            command, env=environment(os.environ), capture_output=True, text=True, timeout=PATIENCE, check=False
        )
        self.assertEqual(done.returncode, 1)
        self.assertRegex(done.stderr, r"^version \S+ is installed, and the parent runs 0\.0\.0: restart the relay\n$")
