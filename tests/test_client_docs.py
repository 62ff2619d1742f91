"""The examples of docs/client.md run against a relay as they stand there."""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.protocol import Protocol
from twisted.internet.task import deferLater
from twisted.trial.unittest import SynchronousTestCase

from tests.cli_support import PATIENCE, RelayCase, reactor
from tests.real_relay import eventually
from zrc_relay import client
from zrc_relay.cli.keyfiles import read_key
from zrc_relay.client import ClientConnection, ConnectFailed, ResilientConnection, connect
from zrc_relay.client.stats import Tally

PAGE = Path(__file__).parent.parent / "docs" / "client.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def examples() -> dict[str, Callable[..., Any]]:
    """Every function of the page, by its name."""
    found: dict[str, Callable[..., Any]] = {}
    for number, block in enumerate(BLOCKS):
        namespace: dict[str, Any] = {"__name__": f"example{number}"}
        exec(compile(block, f"{PAGE.name}, example {number + 1}", "exec"), namespace)  # noqa: S102 - that is the point
        found |= {name: value for name, value in namespace.items() if inspect.iscoroutinefunction(value) and name != "connect"}
    found.pop("connect_resilient", None)
    return found


class PageTests(SynchronousTestCase):
    """Issue "client library": what the page says exists."""

    def test_every_class_and_function_of_the_library_is_on_the_page_or_in_its_tables(self) -> None:
        text = PAGE.read_text(encoding="utf-8")
        unsaid = {"Identity", "NoticeEvent", "RelayAddress", "StreamCode", "TokenRefresher", "TokenSupplier", "RelayStats"}
        unsaid |= {"Redirected", "RedirectLoop", "UnknownCode", "PayloadTooLarge", "connect_unbound", "RelayStream"}
        missing = {name for name in client.__all__ if name not in text} - unsaid
        self.assertEqual(missing, set())

    def test_every_method_that_the_page_names_exists(self) -> None:
        text = PAGE.read_text(encoding="utf-8")
        channel = client.Channel(Tally())
        owners = ("relay", ClientConnection), ("relay", ResilientConnection), ("stream", client.RelayStream), ("channel", channel)
        for owner, kind in owners:
            for name in set(re.findall(rf"`(?:await |async for payload in )?{owner}\.(\w+)", text)):
                known = hasattr(kind, name) or name in ("protocol", "peer_present", "peer_max_payload")
                self.assertTrue(known or (kind is ClientConnection and name == "is_connected"), f"{owner}.{name} of {kind}")

    def test_no_line_is_longer_than_the_others(self) -> None:
        prose = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if not line.startswith("|")]
        self.assertLessEqual(max(map(len, prose)), 140)


class ExampleTests(RelayCase):
    """Issue "client library": the examples work."""

    def setUp(self) -> None:
        super().setUp()
        self.examples = examples()

    def run_example(self, name: str, key: Path, **more: Any) -> Deferred[Any]:
        """Start one of the examples as the end that ``key`` belongs to."""
        arguments = {
            "reactor": reactor, "host": self.relay.host, "port": self.relay.port,
            "token": self.token.to_text(), "key": read_key(key), "trust": self.trust,
        }
        return Deferred.fromCoroutine(self.examples.pop(name)(**arguments, **more))

    async def other_end(self, key: Path, **more: Any) -> ClientConnection:
        """A connection of the test's own."""
        relay = await connect(
            reactor, self.relay.host, self.relay.port, token=self.token, key=read_key(key), trust=self.trust, **more
        )
        self.addCleanup(relay.close)
        return relay

    def test_there_are_no_examples_but_these(self) -> None:
        self.assertEqual(set(self.examples), {"ask", "answer", "serve_streams", "send_file", "beside", "stay", "never_mind"})

    async def test_a_question_and_its_answer(self) -> None:
        answering = self.run_example("answer", self.made.device_key)
        await deferLater(reactor, 0.3)
        self.assertEqual(await self.run_example("ask", self.made.peer_key), b"you asked: what time is it?")
        last = await self.other_end(self.made.peer_key)
        await last.release()
        await answering.addTimeout(PATIENCE, reactor)

    async def test_a_stream_is_served(self) -> None:
        class Reader(Protocol):
            def __init__(self) -> None:
                self.got = b""
                self.enough: Deferred[None] = Deferred()

            def dataReceived(self, data: bytes) -> None:
                self.got += data
                if len(self.got) == 5:
                    self.enough.callback(None)

        serving = self.run_example("serve_streams", self.made.device_key)
        await deferLater(reactor, 0.3)
        relay = await self.other_end(self.made.peer_key)
        stream, reader = relay.open_stream(), Reader()
        stream.attach(reader)
        stream.write(b"hello")
        await reader.enough.addTimeout(PATIENCE, reactor)
        self.assertEqual(reader.got, b"HELLO")
        await relay.release()
        await serving.addTimeout(PATIENCE, reactor)

    async def test_a_file_is_sent(self) -> None:
        class Keeper(Protocol):
            def __init__(self) -> None:
                self.got = bytearray()
                self.ended: Deferred[None] = Deferred()

            def dataReceived(self, data: bytes) -> None:
                self.got += data

            def connectionLost(self, reason: Any = None) -> None:
                del reason
                self.ended.callback(None)

        keeper = Keeper()
        await self.other_end(self.made.device_key, on_stream=lambda stream: stream.attach(keeper))
        content = os.urandom(1_000_000)
        await self.run_example("send_file", self.made.peer_key, file=BytesIO(content)).addTimeout(PATIENCE, reactor)
        await keeper.ended.addTimeout(PATIENCE, reactor)
        self.assertEqual(bytes(keeper.got), content)

    async def test_packets_beside_quic(self) -> None:
        got: list[bytes] = []
        relay = await self.other_end(self.made.device_key)
        channel = await relay.open_channel(lambda payload: channel.send(b"you sent: " + payload))
        send = await self.run_example("beside", self.made.peer_key, on_packet=got.append)
        send(b"something")
        await eventually(lambda: got, "an answer")
        self.assertEqual(got, [b"you sent: something"])
        self.assertEqual(self.service.relay.counters.channel_packets, 2)
        await relay.release()

    async def test_a_supplied_token(self) -> None:
        got: list[bytes] = []
        relay = await self.run_example(
            "stay", self.made.peer_key, fetch_token=lambda: self.token, on_datagram=got.append
        )
        self.addCleanup(relay.close)
        other = await self.other_end(self.made.device_key)
        other.send(b"hello")
        await deferLater(reactor, 0.2)
        self.assertEqual(got, [b"hello"])

    async def test_one_that_comes_back(self) -> None:
        lines: list[str] = []
        back: Deferred[None] = Deferred()

        def log(line: str) -> None:
            lines.append(line)
            if line == "back":
                back.callback(None)

        relay: ResilientConnection = await self.run_example("never_mind", self.made.peer_key, log=log)
        self.addCleanup(relay.close)
        first = relay.connection
        self.assertIsNotNone(first)
        if first is not None:
            first.give_up(ConnectFailed("a test pulls the plug"))
        await back.addTimeout(PATIENCE, reactor)
        self.assertIn("a test pulls the plug", lines[0])
        self.assertIsNot(relay.connection, first)
