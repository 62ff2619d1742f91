"""The admin endpoint (R10): HTTP in front of ``Operations``.

Theory of operation
-------------------
A request takes one way, ``Admin.answer``, whatever it asks for: who is it, may he do that, is it asked for as the table of routes
says, do it, say what came of it, and write that to the audit log. ``serves`` is the one decorator that puts a handler behind it,
with the scope that the table gives its route. Whatever goes wrong on the way becomes one ``Problem``.

What no route is for (404, 405) takes the same way, so that strangers learn nothing but 401. OPTIONS says what a path is good for.

Rules: handlers know neither tokens nor the request's bytes, they get what the schemas let pass. No handler touches a relay.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Final, TypeVar, cast

from klein import Klein
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.web.resource import IResource
from werkzeug.exceptions import HTTPException
from werkzeug.exceptions import MethodNotAllowed as NoSuchMethod

from zrc_relay.control.audit import AuditLog, Outcome
from zrc_relay.control.auth import Gate, Principal
from zrc_relay.control.events import MAX_SECONDS, EventHub, EventStream, TooManyListeners
from zrc_relay.control.incoming import Inputs, body_of, inputs_of, origin_of
from zrc_relay.control.openapi import EVENT_STREAM_TYPE, JSON_TYPE, PROBLEM_TYPE, document_bytes
from zrc_relay.control.operations import (
    AllocationFilter,
    AllocationName,
    AllocationState,
    NewEntry,
    NewKey,
    OperationError,
    Operations,
    Page,
    SortKey,
)
from zrc_relay.control.problems import Problem, problem_of
from zrc_relay.control.routes import ROUTES, EventKind, Route, Scope
from zrc_relay.control.schema import plain
from zrc_relay.control.slices import ROWS, in_slices
from zrc_relay.core.cidr import Access, Network
from zrc_relay.quic.clock import Clock
from zrc_relay.tasks import shielded

Handler = TypeVar("Handler", bound=Callable[..., Awaitable[Any]])

GONE: Final = "whoever asked did not wait for the answer"
NO_ROUTE: Final = "request"
"""What the audit log calls a request that no route is for."""
_TARGETS: Final = ("id", "device_id", "network")
"""The inputs that say what a request is about."""
_SAFE_HEADERS: Final = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}


@dataclass(slots=True)
class Call:
    """One request on its way: who asks, with what, and what the audit log should say about it."""

    request: Any
    route: Route | None
    principal: Principal | None = None
    inputs: Inputs = field(default_factory=dict)
    notes: dict[str, object] = field(default_factory=dict)

    @property
    def who(self) -> str:
        """Name of who asks."""
        return self.principal.name if self.principal is not None else ""


def serves(app: Klein, name: str) -> Callable[[Handler], Handler]:
    """Puts a handler behind ``Admin.answer`` as the route ``name``; it gets the ``Call``."""
    route = ROUTES[name]

    def decorate(handler: Handler) -> Handler:
        path = route.path.replace("{", "<").replace("}", ">")

        @app.route(path, methods=[route.method], endpoint=name)
        async def handle(self: Admin, request: Any, **parts: str) -> None:
            await self.see_through(Call(request, route), lambda call: handler(self, call), parts)

        del handle
        return handler

    return decorate


class Admin:
    """The web application; ``resource`` is what a site serves. See the module's docstring."""

    app = Klein()
    _log = Logger()

    def __init__(
        self,
        operations: Operations,
        gate: Gate,
        audit: AuditLog,
        hub: EventHub,
        clock: Clock,
        *,
        stream_seconds: float = MAX_SECONDS,
    ) -> None:
        self._operations = operations
        self.gate = gate
        self._audit = audit
        self._hub = hub
        self._clock = clock
        self.stream_seconds = stream_seconds
        self._streams: dict[EventStream, Principal] = {}
        document_bytes()  # made now, because that takes longer than a packet may wait

    def resource(self) -> IResource:
        """The resource at the root of a site, which sees to it that paths are text and host names do not matter."""
        return cast(IResource, self.app.resource())

    def recheck(self) -> None:
        """The tokens are others now: end the streams of those who are no longer known."""
        for stream, principal in list(self._streams.items()):
            if not self.gate.knows(principal):
                stream.end()

    def note_refused(self, request: Any, status: int) -> None:
        """A request was refused before it came here: too long, or not HTTP as it should be."""
        fields = {"from": origin_of(request).text, "status": int(status), "detail": HTTPStatus(status).phrase}
        self._audit.record(NO_ROUTE, Outcome.REFUSED, fields, is_stranger=True)

    # -- the one way

    def see_through(self, call: Call, handler: Callable[[Call], Awaitable[Any]], parts: Mapping[str, str]) -> Deferred[None]:
        """``answer``, to its end: Klein cancels what it waits for when a client goes, and half a reload is worse than none."""
        call.request.notifyFinish().addErrback(lambda _: call.notes.__setitem__("detail", GONE))
        return shielded(Deferred.fromCoroutine(self.answer(call, handler, parts)))

    async def answer(self, call: Call, handler: Callable[[Call], Awaitable[Any]], parts: Mapping[str, str]) -> None:
        """Deal with one request, from who it is to the line in the audit log."""
        request, route = call.request, call.route
        try:
            origin = origin_of(request)
            call.notes["from"] = origin.text
            call.principal = self.gate.identify(origin, request.getHeader(b"authorization"))
            self.gate.check(origin, call.principal, route.scope if route is not None else Scope.READ)
            if route is not None:
                call.inputs = inputs_of(request, route, parts)
                call.notes["target"] = next((call.inputs[name] for name in _TARGETS if name in call.inputs), None)
                call.inputs |= body_of(request, route)
            found = await handler(call)
            status = route.status if route is not None else 200
            if isinstance(found, EventStream):
                self._note(call, status, Outcome.DONE)
                await self._follow(found, call.principal)
                return
            await self._send(request, status, found)
            self._note(call, status, Outcome.DONE)
        except Problem as problem:
            self._refuse(call, problem)
        except OperationError as error:
            self._refuse(call, problem_of(error))
        except Exception:
            self._log.failure("the admin endpoint could not answer {action}", event="admin.failed", action=self._action(call))
            self._refuse(call, Problem(500, "an error in the relay; its log says more"))

    async def _follow(self, stream: EventStream, principal: Principal) -> None:
        """Wait for the end of a stream, which is usually that whoever listened is gone."""
        self._streams[stream] = principal
        stream.begin()
        await stream.over
        del self._streams[stream]

    async def _send(self, request: Any, status: int, found: Any) -> None:
        """Send an answer; a long list is put into words in slices."""
        items = getattr(found, "items", None)
        if isinstance(found, bytes):
            body = found
        elif isinstance(items, tuple) and len(items) > ROWS:
            rows: list[str] = []
            await in_slices(items, lambda item: rows.append(json.dumps(plain(item))), self._clock, ROWS)
            rest = json.dumps({"total": found.total, "offset": found.offset})
            body = f'{{"items": [{", ".join(rows)}], {rest[1:]}'.encode()
        else:
            body = json.dumps(plain(found)).encode()
        send(request, status, JSON_TYPE, body)

    def _refuse(self, call: Call, problem: Problem) -> None:
        for name, value in problem.headers.items():
            call.request.setHeader(name, value)
        send(call.request, problem.status, PROBLEM_TYPE, problem.body())
        is_failure = problem.status >= 500 or problem.status in (404, 409)
        detail = "; ".join((problem.detail, *problem.problems))
        self._note(call, problem.status, Outcome.FAILED if is_failure else Outcome.REFUSED, detail)

    def _note(self, call: Call, status: int | None, outcome: Outcome, detail: str | None = None) -> None:
        request, principal = call.request, call.principal
        fields: dict[str, object] = {
            "method": request.method.decode("latin-1"),
            "path": request.path.decode("latin-1"),
            "status": status,
            "detail": detail,
            **call.notes,
        }
        if principal is not None:
            fields |= {"who": principal.name, "how": principal.how}
        self._audit.record(self._action(call), outcome, fields, is_stranger=principal is None)

    @staticmethod
    def _action(call: Call) -> str:
        return call.route.name if call.route is not None else NO_ROUTE

    @app.handle_errors(HTTPException)
    async def no_route(self, request: Any, failure: Any) -> None:
        """What no route is for."""
        error = failure.value
        problem = Problem(404, "there is nothing here; /admin/openapi.json says what there is")
        if isinstance(error, NoSuchMethod):
            methods = sorted({*(error.valid_methods or ()), "OPTIONS"})
            allow = {"Allow": ", ".join(methods)}
            if request.method == b"OPTIONS":
                _headers(request, 204, None)
                request.setHeader("Allow", allow["Allow"])
                self._note(Call(request, None, notes={"from": origin_of(request).text}), 204, Outcome.DONE)
                return
            problem = Problem(405, f"{request.path.decode('latin-1')} knows {allow['Allow']} only", headers=allow)

        async def refuse(call: Call) -> None:
            del call
            raise problem

        await self.answer(Call(request, None), refuse, {})

    # -- allocations

    @serves(app, "listAllocations")
    async def list_allocations(self, call: Call) -> Any:
        """See the table of routes, as for all of these."""
        given = call.inputs
        which = AllocationFilter(
            state=AllocationState(given["state"]) if "state" in given else None,
            device_id=_bytes(given.get("device")),
            peer_id=_bytes(given.get("peer")),
            tier=given.get("tier"),
            pinned=given.get("pinned"),
            source=_network(given.get("source")),
        )
        sort = str(given["sort"])
        key = SortKey(sort.removeprefix("-"))
        return await self._operations.allocations(which, key, _page(given), descending=sort.startswith("-"))

    @serves(app, "showAllocation")
    async def show_allocation(self, call: Call) -> Any:
        """One of them."""
        return await self._operations.allocation(_name(call))

    @serves(app, "terminateAllocation")
    async def terminate_allocation(self, call: Call) -> Any:
        """End one."""
        reason = call.notes["reason"] = str(call.inputs["reason"])
        return await self._operations.terminate(_name(call), reason)

    @serves(app, "traceAllocation")
    async def trace_allocation(self, call: Call) -> Any:
        """Write a qlog."""
        return await self._operations.trace(_name(call))

    # -- what there is

    @serves(app, "showStats")
    async def show_stats(self, call: Call) -> Any:
        """The relay at a glance."""
        del call
        return await self._operations.stats()

    @serves(app, "listConnections")
    async def list_connections(self, call: Call) -> Any:
        """QUIC connections."""
        return await self._operations.connections(_network(call.inputs.get("source")), _page(call.inputs))

    # -- lists of networks

    @serves(app, "listNetworks")
    async def list_networks(self, call: Call) -> Any:
        """Who is allowed and who is blocked."""
        access = call.inputs.get("access")
        return await self._operations.entries(Access(access) if access is not None else None, _page(call.inputs))

    @serves(app, "addNetwork")
    async def add_network(self, call: Call) -> Any:
        """Allow or block."""
        given = call.inputs
        call.notes |= {"target": given["network"], "reason": given.get("note") or None, "detail": given["access"]}
        network = Network.parse(given["network"])
        return await self._operations.add_entry(
            NewEntry(network, Access(given["access"]), given.get("ttl"), given.get("note", ""), call.who)
        )

    @serves(app, "removeNetwork")
    async def remove_network(self, call: Call) -> Any:
        """Take that back."""
        return await self._operations.remove_entry(Network.parse(call.inputs["network"]))

    # -- device keys

    @serves(app, "listKeys")
    async def list_keys(self, call: Call) -> Any:
        """Who may sign tokens."""
        return await self._operations.keys(_page(call.inputs))

    @serves(app, "pinKey")
    async def pin_key(self, call: Call) -> Any:
        """Let a device sign."""
        given = call.inputs
        call.notes |= {"target": given["public_key"], "reason": given.get("note") or None}
        key = NewKey(bytes.fromhex(given["public_key"]), given.get("tier", ""), given.get("note", ""))
        return await self._operations.pin(key)

    @serves(app, "unpinKey")
    async def unpin_key(self, call: Call) -> Any:
        """Let it sign no more."""
        return await self._operations.unpin(bytes.fromhex(call.inputs["device_id"]))

    # -- the process

    @serves(app, "drain")
    async def drain(self, call: Call) -> Any:
        """Take nobody new."""
        del call
        return await self._operations.drain()

    @serves(app, "reload")
    async def reload(self, call: Call) -> Any:
        """Read the configuration again."""
        result = await self._operations.reload()
        call.notes["detail"] = ", ".join(result.changed) or None
        return result

    @serves(app, "listen")
    async def listen(self, call: Call) -> Any:
        """Events as they happen."""
        request, kind = call.request, call.inputs.get("kind")
        stream = EventStream(
            request, EventKind(kind) if kind is not None else None, self._clock,
            lambda: self._hub.leave(stream.take), seconds=self.stream_seconds,
        )
        try:
            self._hub.listen(stream.take, stream.end)
        except TooManyListeners as error:
            raise Problem(503, f"{len(self._hub)} are listening already", headers={"Retry-After": "60"}) from error
        _headers(request, 200, EVENT_STREAM_TYPE)
        request.setHeader("Connection", "close")
        return stream

    @serves(app, "showDocument")
    async def show_document(self, call: Call) -> Any:
        """The OpenAPI document."""
        del call
        return document_bytes()


def send(request: Any, status: int, content_type: str, body: bytes) -> None:
    """Answer ``request`` with ``body``; Klein ends the answer."""
    _headers(request, status, content_type)
    request.setHeader("Content-Length", str(len(body)))
    request.write(body)


def _headers(request: Any, status: int, content_type: str | None) -> None:
    request.setResponseCode(status)
    for name, value in _SAFE_HEADERS.items():
        request.setHeader(name, value)
    if content_type is not None:
        request.setHeader("Content-Type", content_type)


def _page(given: Inputs) -> Page:
    return Page(given["offset"], given["limit"])


def _name(call: Call) -> AllocationName:
    device, _, allocation = call.inputs["id"].rpartition(":")
    return AllocationName(bytes.fromhex(allocation), bytes.fromhex(device) if device else None)


def _bytes(text: Any) -> bytes | None:
    return bytes.fromhex(text) if text is not None else None


def _network(text: Any) -> Network | None:
    return Network.parse(text) if text is not None else None
