"""``zrc-relay ctl events``: the server-sent events of a relay, understood and followed (WHATWG HTML, "Server-sent events").

Theory of operation
-------------------
``Events`` takes the bytes of a stream as they come and gives whole events: a line each for ``id``, ``event`` and ``data``, and a
blank line; comments, which keep the connection alive, are passed over. ``follow`` goes on when the relay ends a stream because it
is an hour old or because we were too slow, which it says, and fails when the relay is gone.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final, Protocol

from twisted.internet.task import deferLater

from zrc_relay.cli.console import printable
from zrc_relay.cli.errors import Failure

RETRY_DELAY: Final = 1.0
"""Seconds between the end of a stream and the next one."""
MAX_LINE: Final = 1024 * 1024
"""Bytes of a line: many times what any event has."""
_LAST: Final = {"end": "", "overflow": "events were lost: they came faster than this command took them"}
"""The names of events that end a stream, and what to tell about them."""


@dataclass(frozen=True, slots=True)
class Event:
    """One event: its number on this relay (empty where it has none), its name, its fields."""

    number: str
    name: str
    fields: dict[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """For JSON, as it came."""
        return {"id": self.number, "event": self.name, "data": self.fields}

    def __str__(self) -> str:
        """On one line, for people."""
        rest = [f"{key}={printable(_plain(value))}" for key, value in self.fields.items() if key != "time"]
        when = printable(str(self.fields.get("time", "")))
        return " ".join(filter(None, (when, printable(self.name), *rest)))


def _plain(value: object) -> str:
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False) if not value or " " in value or '"' in value else value
    return json.dumps(value)


class Events:
    """Takes bytes, gives events; ``Failure`` for what is no stream of events."""

    def __init__(self) -> None:
        self._waiting = b""
        self._fields: dict[str, str] = {}

    def take(self, data: bytes) -> Iterator[Event]:
        """The events that are complete with ``data``."""
        *lines, self._waiting = (self._waiting + data).split(b"\n")
        if len(self._waiting) > MAX_LINE:
            msg = "what comes is no stream of events"
            raise Failure(msg)
        for line in lines:
            name, _, value = line.decode(errors="replace").removesuffix("\r").partition(":")
            if name:
                self._fields[name] = value.removeprefix(" ")
            elif not line.strip() and "data" in self._fields:
                yield self._event()
                self._fields = {}

    def _event(self) -> Event:
        fields = self._fields
        try:
            data = json.loads(fields["data"])
        except ValueError as error:
            msg = "what comes is no stream of events"
            raise Failure(msg) from error
        return Event(fields.get("id", ""), fields.get("event", "message"), data if isinstance(data, dict) else {"data": data})


class Listening(Protocol):
    """What ``follow`` needs of ``AdminClient``."""

    async def listen(self, take: Callable[[bytes], bool], **values: Any) -> None:
        """See there."""
        ...


class Follower:
    """Shows what one stream brings, until there were ``count`` events in all (None: for ever)."""

    def __init__(self, show: Callable[[Event], None], warn: Callable[[str], None], count: int | None) -> None:
        self._show = show
        self._warn = warn
        self._left = count
        self._events = Events()
        self.comes_again = False
        """Whether the relay has said that the stream is over."""

    @property
    def is_done(self) -> bool:
        """Whether all were shown that there were to be."""
        return self._left == 0

    def begin(self) -> None:
        """A new stream."""
        self._events = Events()
        self.comes_again = False

    def take(self, data: bytes) -> bool:
        """Show what comes; whether more is wanted."""
        for event in self._events.take(data):
            if event.name in _LAST and not event.number:
                self.comes_again = True
                if _LAST[event.name]:
                    self._warn(_LAST[event.name])
            elif not self.is_done:
                self._left = self._left - 1 if self._left is not None else None
                self._show(event)
        return not self.is_done


async def follow(reactor: Any, client: Listening, follower: Follower, *, kind: str | None) -> None:
    """Show events of ``kind`` (None: of any); ``Failure`` when the relay is gone."""
    while True:
        follower.begin()
        await client.listen(follower.take, kind=kind)
        if follower.is_done:
            return
        if not follower.comes_again:
            msg = "the relay has ended the stream of events without a word"
            raise Failure(msg)
        await deferLater(reactor, RETRY_DELAY)
