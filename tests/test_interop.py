"""A client of another QUIC stack, in another language, written from the protocol page alone, against this relay.

The tests exist where Go and quic-go are installed; elsewhere the module says that it has none. ``make prove`` insists on them.
"""

from __future__ import annotations

import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

from twisted.trial.unittest import TestCase

from tests import quicgo
from tests.real_relay import PATIENCE, Client, Setup, ended, eventually, exchange
from zrc_relay.cli.processes import Child, child_environment
from zrc_relay.client import notices
from zrc_relay.core.codes import RedirectReason, Role, TerminationReason
from zrc_relay.core.token import RelayToken

VECTORS = Path(__file__).resolve().parent.parent / "docs" / "vectors.json"


class GoProcess:
    """A running quicgo."""

    def __init__(self, child: Child) -> None:
        self._child = child

    def events(self, name: str) -> list[dict[str, Any]]:
        """What it has printed so far under one name."""
        return [event for event in quicgo.printed(self._child.output) if event["event"] == name]

    async def event(self, name: str) -> dict[str, Any]:
        """The first event of that name; waits for it."""
        await eventually(lambda: self.events(name) or self.status is not None, f"{name} from quicgo")
        found = self.events(name)
        if not found:
            msg = f"no {name} from quicgo, which said:\n{self._child.tail}"
            raise AssertionError(msg)
        return found[0]

    @property
    def status(self) -> int | None:
        """Its exit status; None while it runs."""
        process: subprocess.Popen[bytes] = vars(self._child)["_process"]
        return process.poll()

    async def gone(self) -> int | None:
        """Its exit status; waits for it."""
        await eventually(lambda: self.status is not None, "the end of quicgo")
        return self.status

    @property
    def said(self) -> str:
        """All that it has printed, for the message of a failure."""
        return self._child.tail


class GoCase(TestCase):
    """Starts quicgo as the ends of ``setup``'s allocations."""

    timeout = 4 * PATIENCE
    setup: Setup
    started = 0

    def go(self, mode: str, role: Role | None = None, token: RelayToken | None = None, **flags: object) -> GoProcess:
        if role is not None:
            key = self.setup.made.device_key if role is Role.DEVICE else self.setup.made.peer_key
            flags |= {
                "addr": f"127.0.0.1:{self.setup.port}", "cert_sha256": self.setup.made.fingerprint.hex(),
                "token": (token or self.setup.token).to_text(), "role": role.name.lower(), "key": key.resolve(),
            }
        self.started += 1
        child = Child(
            f"quicgo-{self.started}", quicgo.command(mode, **flags), self.setup.made.directory, child_environment()
        )
        self.addCleanup(child.stop)
        return GoProcess(child)


class GoTests(GoCase):
    """Issue "must show": a client of another QUIC stack handshakes, allocates, exchanges datagrams and releases."""

    def setUp(self) -> None:
        self.setup = Setup(self)
        self.service = self.setup.service()

    async def echoing(self, role: Role) -> Client:
        """A client of the library that sends everything back."""
        client = await self.setup.connect(role)
        client.relay.on_datagram = client.relay.send
        return client

    async def check_ping(self, go: GoProcess) -> None:
        status = await go.gone()
        self.assertEqual(status, 0, go.said)
        (result,) = go.events("result")
        self.assertEqual((result["sent"], result["received"]), (200, 200), result)
        self.assertEqual(len(go.events("released")), 1)
        (closed,) = go.events("closed")
        self.assertEqual(closed["name"], "NO_ERROR")
        await eventually(lambda: not len(self.service.relay.table), "the end of the allocation")
        self.assertEqual(self.service.relay.counters.session_errors, 0)

    async def test_a_device_in_go_and_a_peer_in_python(self) -> None:
        peer = await self.echoing(Role.PEER)
        await self.check_ping(self.go("ping", Role.DEVICE, count=200, size=1100, rate=500))
        await ended(peer)
        self.assertIn(notices.AllocationTerminated(TerminationReason.RELEASED), peer.notices)

    async def test_a_peer_in_go_and_a_device_in_python(self) -> None:
        device = await self.echoing(Role.DEVICE)
        await self.check_ping(self.go("ping", Role.PEER, count=200, size=64, rate=500))
        await ended(device)

    async def test_both_in_go(self) -> None:
        echo = self.go("echo", Role.PEER)
        await echo.event("allocated")
        await self.check_ping(self.go("ping", Role.DEVICE, count=200, size=1000, rate=500))
        self.assertEqual((await echo.event("closed"))["name"], "NO_ERROR")

    async def test_python_sends_and_go_echoes_every_size(self) -> None:
        echo = self.go("echo", Role.PEER)
        await echo.event("allocated")
        device = await self.setup.connect(Role.DEVICE)
        await eventually(lambda: device.relay.peer_present, "the peer")
        for size in (0, 1, 2, 63, 64, 500, 1000, min(device.relay.max_payload, 1150)):
            payload = bytes(size % 251 for _ in range(size))
            device.got.clear()
            device.relay.send(payload)
            await eventually(lambda: device.got, f"the echo of {size} bytes")
            self.assertEqual(device.got, [payload])

    async def test_python_sends_by_a_channel_and_go_echoes(self) -> None:
        echo = self.go("echo", Role.PEER, channel=True)
        told = await echo.event("channel")
        device = await self.setup.connect(Role.DEVICE)
        got: list[bytes] = []
        channel = await device.relay.open_channel(got.append)
        self.assertEqual([told["channel_id"]], [channel_id.hex() for channel_id in self.service.relay.channels])
        sent = [bytes(size % 251 for _ in range(size)) for size in (0, 1, 500, 1000, channel.max_payload)]
        for count, payload in enumerate(sent, start=1):
            channel.send(payload)
            await eventually(partial(lambda wanted: len(got) == wanted, count), f"the echo of {len(payload)} bytes")
        device.relay.send(b"a datagram")
        await eventually(lambda: device.got, "the echo of a datagram")
        self.assertEqual((got, device.got), (sent, [b"a datagram"]))
        await device.relay.release()
        result = await echo.event("result")
        self.assertEqual((result["channel_echoed"], result["channel_strays"], result["received"]), (len(sent), 0, 1))

    async def test_what_the_relay_says_is_what_the_page_says(self) -> None:
        echo = self.go("echo", Role.DEVICE)
        hello, allocated = await echo.event("hello"), await echo.event("allocated")
        self.assertEqual(hello["relay_id"], self.setup.token.relay_id.hex())
        self.assertEqual(allocated["allocation_id"], self.setup.token.allocation_id.hex())
        told = allocated["keepalive_interval"], allocated["idle_timeout"], allocated["bandwidth_limit"]
        self.assertEqual(told, (15, 30, 1_250_000))
        self.assertEqual(echo.events("violation"), [])

    async def test_relays_are_listed_before_any_allocate(self) -> None:
        go = self.go("list", Role.DEVICE)
        self.assertEqual(await go.gone(), 0, go.said)
        relays = await go.event("relays")
        self.assertIn(f"127.0.0.1:{self.setup.port}", str(relays))

    def mint(self, **changes: object) -> RelayToken:
        """A token that Go signed."""
        fields: dict[str, object] = {
            "key": self.setup.made.device_key.resolve(), "relay_id": self.setup.token.relay_id.hex(),
            "allocation_id": self.setup.token.allocation_id.hex(), "peer_id": self.setup.token.peer_id.hex(),
            "expires": int(time.time()) + 3600, "bandwidth": 500_000, "quota": 50_000_000,
        }
        done = subprocess.run(
            quicgo.command("mint", **(fields | changes)), capture_output=True, text=True, timeout=PATIENCE, check=True
        )
        return RelayToken.from_text(done.stdout)

    async def test_a_token_minted_in_go_is_accepted_and_refreshes(self) -> None:
        first = self.mint(allocation_id="ab" * 16)
        device, peer = await self.setup.pair(token=first)
        await exchange(device, peer)
        allocated = device.relay.allocated
        self.assertEqual(allocated.bandwidth_limit if allocated else None, 500_000)
        longer = self.mint(allocation_id="ab" * 16, expires=first.expires_at + 60, bandwidth=1_000_000)
        go = self.go("refresh", Role.DEVICE, first, token2=longer.to_text())
        refreshed = await go.event("refreshed")
        self.assertEqual((refreshed["expires_at"], refreshed["bandwidth_limit"]), (longer.expires_at, 1_000_000))
        older = self.go("refresh", Role.DEVICE, longer, token2=first.to_text())
        self.assertIn("TOKEN_EXPIRED", str(await older.event("error_capsule")))

    async def test_flipped_bits_and_a_missing_proof_are_refused_with_their_codes(self) -> None:
        token_codes = {
            "TOKEN_BAD_SIGNATURE", "DEVICE_UNKNOWN", "TOKEN_WRONG_RELAY", "TOKEN_WRONG_ALLOCATION", "TOKEN_EXPIRED",
        }
        flips: list[tuple[str, object, set[str]]] = [("no_proof", True, {"PROOF_REQUIRED"})]
        flips += [("flip_token_bit", bit, token_codes) for bit in (0, 200, 300, 600, 1000, 1439)]
        flips += [("flip_proof_bit", bit, {"PROOF_INVALID"}) for bit in (0, 255, 511)]
        for flag, value, expected in flips:
            go = self.go("echo", Role.DEVICE, None, **{flag: value})
            closed = await go.event("closed")
            self.assertIn(closed["name"], expected, (flag, value))
            await go.gone()
        self.assertEqual(self.service.relay.counters.allocations_created, 0)

    async def test_the_test_vectors_agree(self) -> None:
        go = self.go("vectors", vectors=VECTORS)
        self.assertEqual(await go.gone(), 0, go.said)
        self.assertEqual(go.events("vector_failed"), [])


class WorkersTests(GoCase):
    """Issue "all cores": who cannot choose a routing byte is sent to the right worker, where both ends of an allocation meet."""

    ALLOCATIONS = 8

    def setUp(self) -> None:
        self.setup = Setup(self, settings={"workers": "4"})
        self.service = self.setup.front()

    async def test_both_ends_follow_redirects_until_they_meet(self) -> None:
        await self.setup.ready()
        redirects = []
        for number in range(self.ALLOCATIONS):
            token = self.setup.another_token(allocation_id=bytes([number]) * 16)
            echo = self.go("echo", Role.PEER, token)
            ping = self.go("ping", Role.DEVICE, token, count=20, size=1000, rate=200)
            self.assertEqual(await ping.gone(), 0, ping.said)
            (result,) = ping.events("result")
            self.assertEqual((result["sent"], result["received"]), (20, 20), result)
            self.assertEqual((await echo.event("closed"))["name"], "NO_ERROR")
            await echo.gone()
            for end in (echo, ping):
                self.assertEqual(end.events("violation"), [])
                redirects.append(end.events("redirect"))
        for found in redirects:
            self.assertLessEqual(len(found), 1)  # where it is sent to it is right
        followed = [event for found in redirects for event in found]
        # Each end meets the right one of four by chance: that none of 16 was sent elsewhere has a probability of 2e-10.
        self.assertGreater(len(followed), 0)
        ports = {address for event in followed for address in event["addresses"]}
        self.assertEqual({event["reason"] for event in followed}, {RedirectReason.OTHER_WORKER})
        self.assertNotIn(f"127.0.0.1:{self.setup.port}", ports)


if (_missing := quicgo.missing()) is not None:
    # No test is there that would be passed over in silence: there is none, and a line that says so.
    sys.stderr.write(f"tests.test_interop has no tests here: {_missing}\n")
    del GoTests, WorkersTests
