"""``AdminClient``: what ``zrc-relay ctl`` asks the admin endpoint with (R10).

Theory of operation
-------------------
What can be asked is looked up in the relay's own table of routes, by operation id: a value that stands in the path goes there,
the others go to the query, or into the body where the route has one. Each request has a connection of its own.

Whatever is not the answer that was wanted becomes an exception that ends the command with one clear message and a status of its
kind. What the relay says is shown as it is, with what to do about it where that can be known from here.
"""

from __future__ import annotations

import errno
import json
from collections.abc import Callable, Mapping
from typing import Any, Final, NoReturn
from urllib.parse import quote, urlencode

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure as TwistedFailure
from twisted.web.client import URI, Agent, ResponseDone
from twisted.web.http import PotentialDataLoss
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgentEndpointFactory
from zope.interface import implementer  # type: ignore[import-untyped]  # as everywhere in Twisted

from zrc_relay.abuse.http import USER_AGENT, Bytes, describe, is_cancelled, root_cause
from zrc_relay.cli.console import printable
from zrc_relay.cli.ctl_where import Place
from zrc_relay.cli.errors import BadInput, Failure
from zrc_relay.config_table import CTL_TOKEN_VARIABLE
from zrc_relay.control.events import KEEPALIVE
from zrc_relay.control.routes import ROUTES, Route

DEFAULT_TIMEOUT: Final = 10.0
"""Seconds to wait for an answer: a list of thousands takes one or two."""
SILENCE: Final = 3 * KEEPALIVE
"""Seconds without a sign of life after which a stream of events is taken to be dead."""


class Unreachable(Failure):
    """There was no answer; exit status 1."""


class Denied(Failure):
    """The relay does not know who asks, or does not let him (401, 403); exit status 3."""

    exit_code = 3


class NoSuchThing(Failure):
    """There is no such thing (404); exit status 4."""

    exit_code = 4


class Conflicting(Failure):
    """It does not go together with how things are (409); exit status 5."""

    exit_code = 5


class AdminClient:
    """Asks the relay at ``place``, showing ``token`` if there is one.

    ``timeout`` is in seconds, for each whole answer; ``silence`` is how long a stream of events may bring nothing.
    """

    def __init__(
        self, reactor: Any, place: Place, token: str | None, timeout: float = DEFAULT_TIMEOUT, silence: float = SILENCE
    ) -> None:
        if token is not None and not place.is_private:
            msg = f"the token would cross the network in the clear to {place}; use ssl: or https:"
            raise BadInput(msg)
        self._reactor = reactor
        self._place = place
        self._token = token
        self._timeout = timeout
        self._silence = silence
        self._endpoint = place.client_endpoint(reactor)

    async def ask(self, name: str, **values: Any) -> Any:
        """What the operation ``name`` answers, from JSON; values that are None are not sent.

        Raises ``Failure`` (see the classes above) or ``BadInput``.
        """
        pieces: list[bytes] = []
        connection = _Connection(self._endpoint)

        async def exchange() -> int:
            response = await self._send(connection, name, values)
            body = _Body(pieces.append)
            response.deliverBody(body)
            await body.over
            return int(response.code)

        status = await self._patiently(connection, exchange())
        return self._judged(status, b"".join(pieces))

    async def listen(self, take: Callable[[bytes], bool], **values: Any) -> None:
        """Give ``take`` the bytes of the stream of events as they come, until it returns false or the stream ends in peace.

        Raises what ``ask`` does, also for a stream that breaks, and what ``take`` raises.
        """
        connection = _Connection(self._endpoint)
        response = await self._patiently(connection, self._send(connection, "listen", values))
        refusal: list[bytes] = []

        def fell_silent() -> None:
            if not body.over.called:
                body.over.errback(Unreachable(f"{self._place} has given no sign of life for {self._silence:g} s"))

        watch = self._reactor.callLater(self._silence, fell_silent)

        def received(data: bytes) -> None:
            if body.over.called:
                return
            watch.reset(self._silence)
            if response.code != 200:
                refusal.append(data)
                return
            try:
                goes_on = take(data)
            except Exception:
                body.over.errback()
            else:
                if not goes_on:
                    body.over.callback(None)

        body = _Body(received)
        try:
            response.deliverBody(body)
            await body.over
        except Exception as error:
            self._give_up(error)
        finally:
            if watch.active():
                watch.cancel()
            connection.abort()
        if response.code != 200:
            self._judged(response.code, b"".join(refusal))

    async def _patiently(self, connection: _Connection, exchange: Any) -> Any:
        waiting: Deferred[Any] = Deferred.fromCoroutine(exchange)
        waiting.addTimeout(self._timeout, self._reactor, self._timed_out)
        is_over = False
        try:
            result = await waiting
            is_over = True
        except Exception as error:
            self._give_up(error)
        finally:
            if not is_over:
                connection.abort()
        return result

    async def _send(self, connection: _Connection, name: str, values: Mapping[str, Any]) -> Any:
        route = ROUTES[name]
        path, body = request_of(route, {key: value for key, value in values.items() if value is not None})
        headers = Headers({"User-Agent": [USER_AGENT]})
        if self._token is not None:
            headers.addRawHeader("Authorization", f"Bearer {self._token}")
        if body is not None:
            headers.addRawHeader("Content-Type", "application/json")
        agent = Agent.usingEndpointFactory(self._reactor, connection)
        url = f"http://relay{self._place.prefix}{path}"
        return await agent.request(
            route.method.encode(), url.encode(), headers, Bytes(body) if body is not None else None
        )

    def _timed_out(self, result: object, timeout: float) -> NoReturn:
        del result
        msg = f"{self._place} does not answer within {timeout:g} s"
        raise Unreachable(msg)

    def _give_up(self, error: Exception) -> NoReturn:
        """Say why there is no answer."""
        if isinstance(error, Failure | BadInput):
            raise error
        if is_cancelled(error):
            raise CancelledError from error
        place = self._place
        number = getattr(root_cause(error), "osError", None)
        if place.path is not None and number == errno.ENOENT:
            msg = f"there is no socket {place}: is the relay running, and is its admin_endpoint there?"
        elif place.path is not None and number == errno.EACCES:
            msg = f"you may not connect to {place}: its mode and owner, or those of a directory above it, keep you out"
        elif number == errno.ECONNREFUSED:
            msg = f"nobody listens on {place}: is the relay running, and is its admin_endpoint there?"
        else:
            msg = f"no answer from {place}: {printable(describe(error))}"
        raise Unreachable(msg) from error

    def _judged(self, status: int, body: bytes) -> Any:
        """The value of an answer that grants, or the exception for one that does not."""
        try:
            value = json.loads(body)
        except ValueError as error:  # not text, not JSON
            msg = f"{self._place} is not the admin endpoint of a relay: what it answers, with status {status}, is not JSON"
            raise Failure(msg) from error
        if 200 <= status < 300:
            return value
        problem = value if isinstance(value, dict) else {}
        lines = [f"{problem.get('detail') or problem.get('title') or 'the relay refuses'} (status {status})"]
        for name in ("candidates", "problems"):
            found = problem.get(name)
            lines += [f"  {item}" for item in found] if isinstance(found, list) else []
        hint = self._hint(status)
        message = "\n".join(printable(line) for line in [*lines, *([hint] if hint else [])])
        raise _KINDS.get(status, Failure)(message)

    def _hint(self, status: int) -> str:
        """What to do about a refusal, empty where the relay says all there is to say."""
        if status == 401 and self._token is None and self._place.path is not None:
            return (
                f"show a token with --token-file or {CTL_TOKEN_VARIABLE}, or be root or the relay's own user where the relay has "
                "admin_unix_trust"
            )
        if status == 401 and self._token is None:
            return f'show a token with --token-file or {CTL_TOKEN_VARIABLE}; "zrc-relay admin-token NAME" makes one'
        if status == 401:
            return "its table must be in the file that admin_tokens_path names, and the relay must have read that (SIGHUP)"
        if status == 403:
            return 'it takes a token with that scope; "zrc-relay admin-token NAME --write" makes one that may do everything'
        return ""


_KINDS: Final[Mapping[int, type[Failure | BadInput]]] = {
    400: BadInput, 401: Denied, 403: Denied, 404: NoSuchThing, 409: Conflicting, 413: BadInput, 422: BadInput,
}


def request_of(route: Route, values: Mapping[str, Any]) -> tuple[str, bytes | None]:
    """The path with its query, and the body if there is one, of a request with these values."""
    rest = dict(values)
    parts = {each.name: quote(str(rest.pop(each.name)), safe=":") for each in route.parameters if each.in_path}
    path = route.path.format_map(parts)
    if route.body is not None:
        return path, json.dumps(rest).encode()
    query = urlencode({name: str(value).lower() if isinstance(value, bool) else value for name, value in rest.items()})
    return (f"{path}?{query}" if query else path), None


@implementer(IAgentEndpointFactory, IStreamClientEndpoint)
class _Connection:
    """The connection of one request: where Agent is to connect whatever the URL says, and the way to end it."""

    def __init__(self, endpoint: Any) -> None:
        self._endpoint = endpoint
        self._protocol: Any = None

    def endpointForURI(self, uri: URI) -> _Connection:  # noqa: N802 - Twisted's name
        """See ``IAgentEndpointFactory``."""
        del uri
        return self

    def connect(self, factory: Any) -> Deferred[Any]:
        """See ``IStreamClientEndpoint``."""
        connecting: Deferred[Any] = self._endpoint.connect(factory)
        return connecting.addCallback(self._connected)

    def abort(self) -> None:
        """End the connection at once, if there is one."""
        transport = getattr(self._protocol, "transport", None)
        if transport is not None:
            transport.abortConnection()

    def _connected(self, protocol: Any) -> Any:
        self._protocol = protocol
        return protocol


class _Body(Protocol):
    """Hands on the pieces of an answer's body; ``over`` fires at its end."""

    def __init__(self, take: Callable[[bytes], None]) -> None:
        self._take = take
        self.over: Deferred[None] = Deferred()

    def dataReceived(self, data: bytes) -> None:
        """A piece."""
        self._take(data)

    def connectionLost(self, reason: TwistedFailure = connectionDone) -> None:
        """The end. A body without a length ends with its connection; whether it is whole shows in what it holds."""
        if self.over.called:
            return
        if reason.check(ResponseDone, PotentialDataLoss):
            self.over.callback(None)
        else:
            self.over.errback(reason)
