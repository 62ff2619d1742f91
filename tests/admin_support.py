"""What the tests of the admin endpoint share: a relay with one, and an HTTP client that shows everything."""

from __future__ import annotations

import json
from collections.abc import Mapping
from http.client import HTTPResponse
from io import BytesIO
from pathlib import Path
from typing import Any, ClassVar, cast
from urllib.parse import urlencode

from twisted.internet import reactor as installed_reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, UNIXClientEndpoint, connectProtocol
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.protocol import Protocol
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase

from tests.real_relay import PATIENCE, Setup
from zrc_relay.control.administration import Administration
from zrc_relay.control.auth import digest_of
from zrc_relay.front import Front

reactor: Any = installed_reactor
READ_TOKEN = "read-" + "r" * 38
WRITE_TOKEN = "write-" + "w" * 37
TOKENS = {"reader": (READ_TOKEN, ["read"]), "writer": (WRITE_TOKEN, ["read", "write"])}


def write_tokens(path: Path, tokens: Mapping[str, tuple[str, list[str]]] = TOKENS) -> None:
    """A file with these tokens, for its owner only."""
    lines = [
        f'[[token]]\nname = "{name}"\nscopes = {json.dumps(scopes)}\nsha256 = "{digest_of(secret)}"\n'
        for name, (secret, scopes) in tokens.items()
    ]
    path.write_text("\n".join(lines))
    path.chmod(0o600)


class Answer:
    """What came back: status, headers (names in lower case), body."""

    def __init__(self, data: bytes, method: str) -> None:
        class Socket:
            """Enough of one for the standard library's parser."""

            def makefile(self, mode: str) -> BytesIO:
                del mode
                return BytesIO(data)

        response = HTTPResponse(cast(Any, Socket()), method=method)
        response.begin()
        self.status = response.status
        self.headers = {name.lower(): value for name, value in response.getheaders()}
        self.body = response.read()

    @property
    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)


class Exchange(Protocol):
    """One connection: sends ``data``, keeps what comes back until the other side closes."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.received = b""
        self.done: Deferred[bytes] = Deferred()

    def connectionMade(self) -> None:
        transport: Any = self.transport
        transport.write(self._data)

    def dataReceived(self, data: bytes) -> None:
        self.received += data

    def connectionLost(self, reason: Failure | None = None) -> None:
        del reason
        if not self.done.called:
            self.done.callback(self.received)

    def close(self) -> None:
        """Close from this side."""
        transport: Any = self.transport
        transport.abortConnection()


def request_bytes(
    method: str, path: str, *, token: str | None = None, value: Any = None, body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
) -> bytes:
    """A request as it goes over the line; ``value`` is sent as JSON."""
    lines = {"Host": "relay.test", "Connection": "close"}
    if token is not None:
        lines["Authorization"] = f"Bearer {token}"
    if value is not None:
        body = json.dumps(value).encode()
        lines["Content-Type"] = "application/json"
    lines |= headers or {}
    if body is not None and "Transfer-Encoding" not in lines:
        lines.setdefault("Content-Length", str(len(body)))
    head = "".join(f"{name}: {text}\r\n" for name, text in lines.items())
    return f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode() + (body or b"")


async def exchange(endpoint: IStreamClientEndpoint, data: bytes, method: str = "GET") -> Answer:
    """Send ``data`` on a connection of its own; what came back."""
    protocol = Exchange(data)
    await connectProtocol(endpoint, protocol)
    protocol.done.addTimeout(PATIENCE, reactor)
    return Answer(await protocol.done, method)


class AdminCase(TestCase):
    """A relay, with its workers if it has any, whose admin endpoint is on a loopback port, or where ``endpoint`` says."""

    timeout = 2 * PATIENCE
    endpoint = "tcp:0:interface=127.0.0.1"
    settings: ClassVar[Mapping[str, str]] = {}

    def setUp(self) -> None:
        settings = {"admin_endpoint": self.endpoint, "admin_tokens_path": "tokens.toml", "audit_log": "audit.log"}
        self.setup = Setup(self, settings={**settings, **self.settings})
        self.directory = self.setup.made.directory
        self.tokens = self.directory / "tokens.toml"
        write_tokens(self.tokens)
        self.audit_path = self.directory / "audit.log"
        self.service: Front = self.setup.front()

    @property
    def administration(self) -> Administration:
        """The part of the service tree."""
        if self.service.administration is None:
            self.fail("there is no admin endpoint")
        return self.service.administration

    @property
    def client(self) -> Any:
        """Where clients connect to."""
        host = self.administration.site.port.getHost()
        if hasattr(host, "name"):
            return UNIXClientEndpoint(reactor, host.name)
        return TCP4ClientEndpoint(reactor, "127.0.0.1", host.port)

    async def ask(self, method: str, path: str, *, token: str | None = WRITE_TOKEN, **more: Any) -> Answer:
        """One request on a connection of its own; see ``request_bytes``. ``query`` is a mapping."""
        await self.setup.ready()
        query = more.pop("query", None)
        if query:
            path += "?" + urlencode(query)
        return await exchange(self.client, request_bytes(method, path, token=token, **more), method)

    async def get(self, path: str, **query: Any) -> Any:
        """What a GET answers; it must be 200."""
        answer = await self.ask("GET", path, query=query)
        self.assertEqual(answer.status, 200, answer.body)
        return answer.json

    async def allocations(self) -> int:
        """How many there are."""
        number: int = (await self.get("/admin/stats"))["allocations"]["current"]
        return number

    def audited(self) -> list[dict[str, Any]]:
        """The records of the audit log."""
        return [json.loads(line) for line in self.audit_path.read_text().splitlines()]
