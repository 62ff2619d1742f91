"""Events as they happen, for those who listen (R10): the fan-out, and server-sent events (WHATWG HTML, "Server-sent events").

Theory of operation
-------------------
``EventHub`` stands in the chain of ``Observer``s in front of the log, and hears the security log's records as one of its sinks.
So listeners get at most what those logs get. Without listeners an event costs one look. With some it is put into words once,
however many they are.

An ``EventStream`` is one listener: an HTTP response that does not end. What the connection cannot take waits, ``MAX_WAITING``
events at most. A reader who falls further behind is dropped: the last event is ``overflow``, the connection is cut soon after.
A stream also ends, with ``end``, after ``MAX_SECONDS``, so that nobody listens for ever on a right that he had once.
"""

from __future__ import annotations

import json
import math
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IPushProducer
from twisted.python.failure import Failure
from zope.interface import implementer  # type: ignore[import-untyped]

from zrc_relay.control.answers import moment
from zrc_relay.control.routes import EventKind
from zrc_relay.core.relay import Observer
from zrc_relay.quic.clock import Clock, DelayedCall

MAX_LISTENERS: Final = 16
"""Listeners at a time: a person or a program each, and the work of each event is theirs together."""
MAX_WAITING: Final = 1000
"""Events that wait for one reader: some 300 kB."""
KEEPALIVE: Final = 15.0
"""Seconds between comments: less than what proxies and NAT take for the end of a connection."""
MAX_SECONDS: Final = 3600.0
LINGER: Final = 5.0
"""Seconds that a reader who was dropped has for what is on its way to it."""
_ALSO_SECURITY: Final = "session.refused"


@dataclass(frozen=True, slots=True)
class Event:
    """One event: its number, its name, and its fields as JSON."""

    number: int
    name: str
    data: str

    @property
    def kind(self) -> str:
        """See ``EventKind``."""
        return EventKind.SECURITY.value if self.name == _ALSO_SECURITY else self.name.partition(".")[0]

    def encode(self) -> bytes:
        """As it goes over the line. JSON has no line breaks, and names are the program's."""
        return f"id: {self.number}\nevent: {self.name}\ndata: {self.data}\n\n".encode()


Listener = Callable[[Event], None]


class TooManyListeners(Exception):
    """There are ``MAX_LISTENERS`` already."""


class EventHub:
    """An ``Observer`` and a ``Sink`` of the security log that tells whoever listens. ``wall`` gives Unix seconds."""

    def __init__(self, following: Observer, *, wall: Callable[[], float]) -> None:
        self._following = following
        self._wall = wall
        self._listeners: dict[Listener, Callable[[], None]] = {}
        self._number = 0

    def __len__(self) -> int:
        return len(self._listeners)

    def event(self, name: str, **fields: object) -> None:
        """See ``Observer``. Events about security come as records, see ``offer``."""
        self._following.event(name, **fields)
        if self._listeners and name != _ALSO_SECURITY and not name.startswith(f"{EventKind.SECURITY.value}."):
            self._tell(name, {"time": moment(self._wall()), **fields})

    def announce(self, name: str, **fields: object) -> None:
        """Tell listeners alone: what the log has in other words."""
        if self._listeners:
            self._tell(name, {"time": moment(self._wall()), **fields})

    def offer(self, record: Mapping[str, object]) -> None:
        """See ``Sink``."""
        if self._listeners:
            self._tell(str(record.get("event")), {key: value for key, value in record.items() if key != "event"})

    def listen(self, listener: Listener, on_end: Callable[[], None]) -> None:
        """Call ``listener`` with each event from now on, and ``on_end`` when there will be no more."""
        if len(self._listeners) >= MAX_LISTENERS:
            raise TooManyListeners
        self._listeners[listener] = on_end

    def leave(self, listener: Listener) -> None:
        """Call it no more."""
        self._listeners.pop(listener, None)

    def close(self) -> bool:
        """The relay stops: there will be no more. Whether there was anybody to tell."""
        had_listeners = bool(self._listeners)
        while self._listeners:
            _, on_end = self._listeners.popitem()
            on_end()
        return had_listeners

    def _tell(self, name: str, fields: Mapping[str, object]) -> None:
        self._number += 1
        shown = {key: plain for key, value in fields.items() if (plain := _plain(value)) is not None}
        event = Event(self._number, name, json.dumps(shown, separators=(",", ":")))
        for listener in list(self._listeners):
            listener(event)


def _plain(value: object) -> str | int | float | None:
    """``value`` as JSON can have it; None when it is nothing to be shown, as bytes are."""
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, str | int) else None


@implementer(IPushProducer)
class EventStream:
    """One listener over HTTP: ``begin`` answers ``request``, and ``take`` is what the hub calls.

    Only events of ``kind`` pass, or all. ``on_gone`` is called once, when it is over.
    """

    def __init__(
        self, request: Any, kind: EventKind | None, clock: Clock, on_gone: Callable[[], None], *, seconds: float = MAX_SECONDS
    ) -> None:
        self._request = request
        self._kind = kind.value if kind is not None else None
        self._clock = clock
        self._on_gone = on_gone
        self._seconds = seconds
        self._waiting: deque[bytes] = deque()
        self._is_paused = False
        self._is_over = False
        self._timers: dict[str, DelayedCall] = {}
        self.over: Deferred[None] = Deferred()
        """Fires when it is over."""

    def begin(self) -> None:
        """Send the headers and go on from there. The reader may go at any time, and need not take a body at all."""
        self._request.notifyFinish().addBoth(self._gone)
        if self._request.method == b"HEAD":
            self._request.finish()
            return
        self._request.registerProducer(self, True)  # noqa: FBT003 - Twisted's signature
        self._request.write(b": listening\n\n")
        self._later("keepalive", KEEPALIVE, self._keep_alive)
        self._later("end", self._seconds, self.end)

    def take(self, event: Event) -> None:
        """An event happened."""
        if self._is_over or (self._kind is not None and event.kind != self._kind):
            return
        if not self._is_paused:
            self._request.write(event.encode())
        elif len(self._waiting) < MAX_WAITING:
            self._waiting.append(event.encode())
        else:
            self._drop()

    def end(self) -> None:
        """There will be no more events on this stream."""
        self._finish("end", '{"detail":"the stream is over; come again"}')

    def pauseProducing(self) -> None:  # noqa: N802 - Twisted's name
        """The connection takes no more for now."""
        self._is_paused = True

    def resumeProducing(self) -> None:  # noqa: N802 - Twisted's name
        """The connection takes more."""
        self._is_paused = False
        while self._waiting and not self._is_paused and not self._is_over:
            self._request.write(self._waiting.popleft())

    def stopProducing(self) -> None:  # noqa: N802 - Twisted's name
        """The connection is gone; ``notifyFinish`` says so, too."""

    def _drop(self) -> None:
        """The reader is too slow: say so behind what is on its way, and see that it ends."""
        self._waiting.clear()
        transport = self._request.channel.transport
        self._finish("overflow", f'{{"detail":"more than {MAX_WAITING} events were waiting for you"}}')
        self._clock.callLater(LINGER, transport.abortConnection)

    def _finish(self, name: str, data: str) -> None:
        if self._is_over:
            return
        for waiting in self._waiting:
            self._request.write(waiting)
        self._waiting.clear()
        self._request.write(f"event: {name}\ndata: {data}\n\n".encode())
        channel = self._request.channel
        self._request.unregisterProducer()
        self._request.finish()  # which tells ``_gone``
        channel.loseConnection()

    def _keep_alive(self) -> None:
        if not self._is_paused:
            self._request.write(b": keepalive\n\n")
        self._later("keepalive", KEEPALIVE, self._keep_alive)

    def _later(self, name: str, delay: float, function: Callable[[], None]) -> None:
        def call() -> None:
            del self._timers[name]
            function()

        self._timers[name] = self._clock.callLater(delay, call)

    def _gone(self, result: Failure | None) -> None:
        del result
        self._is_over = True
        self._waiting.clear()
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        self._on_gone()
        if not self.over.called:
            self.over.callback(None)
