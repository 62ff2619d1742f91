r"""``zrc-relay ctl top``: looks at the relay again and again, and shows it on the whole screen (R10).

Theory of operation
-------------------
``Top`` looks, draws and waits, in that order; a key changes what is wanted and cuts the wait short. What is drawn is always a
whole screen, made by ``ctl_top_view`` for the size that the terminal has just then. When a look fails, what was seen last stays
there with a line that says so, and the next look may do better; only who is not let in any more is told so and ends.

``Screen`` is the terminal: the other screen buffer, no cursor, and keys that come one by one without being shown. It is a context
manager, and whatever ends ``Top`` passes through it: a key, an error, or the signals that cancel a coroutine (see ``running``).
Ctrl-C remains a signal. Ctrl-Z and Ctrl-\, which would end or stop the process without asking, are switched off.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import termios
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Protocol, Self, TextIO

from rich.console import Console, Group
from rich.control import Control
from rich.screen import Screen as FullScreen
from rich.text import Text
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import deferLater

from zrc_relay.cli.ctl_client import Denied
from zrc_relay.cli.ctl_top_view import Order, Snapshot, frame, room
from zrc_relay.cli.errors import BadInput, Failure
from zrc_relay.control.operations import MAX_PAGE, SortKey
from zrc_relay.control.routes import MAX_OFFSET

__all__ = ["Order", "TopPlan", "top_lines", "top_screen"]

_ORDERS: Final[Mapping[str, Order]] = {
    "b": Order(SortKey.BYTES_PER_SECOND, descending=True),
    "t": Order(SortKey.BYTES_TRANSFERRED, descending=True),
    "a": Order(SortKey.LAST_ACTIVITY_AT, descending=True),
    "c": Order(SortKey.CREATED_AT, descending=True),
    "e": Order(SortKey.EXPIRES_AT, descending=False),
    "s": Order(SortKey.STATE, descending=False),
    "n": Order(SortKey.TIER, descending=False),
    "i": Order(SortKey.ID, descending=False),
    "d": Order(SortKey.DEVICE_ID, descending=False),
}
"""What each key sorts by, the way round that is of use first."""
_QUIT: Final = frozenset(("q", "Q"))
_KEY: Final = re.compile(r"\x1b[\[O][0-9;]*[A-Za-z~]|[^\x1b]")
"""A key as a terminal sends it: a character, or a sequence such as ESC [ A (ECMA-48 §5.4)."""
_UP, _DOWN = frozenset(("\x1b[A", "\x1bOA", "k")), frozenset(("\x1b[B", "\x1bOB", "j"))
_PAGE_UP, _PAGE_DOWN = frozenset(("\x1b[5~",)), frozenset(("\x1b[6~", " "))
_HOME = frozenset(("\x1b[H", "\x1bOH", "\x1b[1~", "g"))
_LFLAG, _CC = 3, 6
"""Where termios keeps the local flags and the control characters (termios(3))."""


@dataclass(frozen=True, slots=True)
class TopPlan:
    """What to watch: the order at first, seconds between looks, how many looks (None: without end), and which allocations."""

    order: Order
    interval: float
    count: int | None
    which: Mapping[str, Any]


class Asking(Protocol):
    """What is needed of ``AdminClient``."""

    async def ask(self, name: str, **values: Any) -> Any:
        """See there."""
        ...


class Display(Protocol):
    """What ``Top`` draws on; ``Screen`` for real."""

    @property
    def size(self) -> tuple[int, int]:
        """Characters in a line, and lines."""
        ...

    def draw(self, lines: list[Text]) -> None:
        """Show these lines and nothing else."""
        ...


async def look(client: Asking, plan: TopPlan, order: Order, *, limit: int, offset: int = 0) -> Snapshot:
    """Ask the relay for what ``top`` shows; raises what ``AdminClient.ask`` does."""
    stats = await client.ask("showStats")
    page = await client.ask("listAllocations", **plan.which, sort=str(order), limit=min(limit, MAX_PAGE), offset=offset)
    return Snapshot(stats, page)


async def top_lines(reactor: Any, client: Asking, plan: TopPlan, tell: Callable[[str], object]) -> None:
    """A line of JSON for each look."""
    done = 0
    while True:
        seen = await look(client, plan, plan.order, limit=MAX_PAGE)
        tell(json.dumps({"stats": seen.stats, "allocations": seen.page}))
        done += 1
        if done == plan.count:
            return
        await deferLater(reactor, plan.interval)


async def top_screen(reactor: Any, client: Asking, plan: TopPlan, place: str) -> None:
    """The whole screen, until a key or a signal ends it; ``BadInput`` where there is no terminal."""
    screen = Screen(sys.stdin, Console(highlight=False))
    top = Top(reactor, client, plan, place, screen)
    await top.look()  # before the screen is touched: what is wrong at once is told as any command does
    with screen:
        keys = Keys(screen.descriptor, top.press)
        reactor.addReader(keys)
        before = signal.signal(signal.SIGWINCH, lambda *_: reactor.callFromThread(top.refresh))
        try:
            await top.run()
        finally:
            signal.signal(signal.SIGWINCH, before)
            reactor.removeReader(keys)


class Top:
    """See the module's docstring. ``press`` is what a keyboard calls with each key."""

    def __init__(self, reactor: Any, client: Asking, plan: TopPlan, place: str, display: Display) -> None:
        self._reactor = reactor
        self._client = client
        self._plan = plan
        self._place = place
        self._display = display
        self._order = plan.order
        self._offset = 0
        self._snapshot: Snapshot | None = None
        self._problem = ""
        self._is_stale = False
        self._pause: Deferred[None] | None = None
        self._following: Deferred[None] | None = None
        self._has_quit = False

    async def run(self) -> None:
        """Draw and look until a key or ``count`` ends it, or who asks is let in no more."""
        self._following = Deferred.fromCoroutine(self._follow())
        try:
            await self._following
        except CancelledError:
            if not self._has_quit:
                raise

    async def look(self) -> None:
        """Ask the relay once; ``Failure`` when there is nothing to show then."""
        self._is_stale = False
        try:
            rows = self._rows()
            self._snapshot = await look(self._client, self._plan, self._order, limit=rows, offset=self._offset)
            self._problem = ""
            total = int(self._snapshot.page["total"])
            if self._offset and self._offset >= total:  # the list has become shorter
                self._move(total - rows)
        except Failure as error:
            if self._snapshot is None or isinstance(error, Denied):
                raise
            self._problem = error.message.partition("\n")[0]

    def refresh(self) -> None:
        """The terminal has another size: draw what there is, and look for what fits now."""
        self._draw()
        self._wake()

    def press(self, key: str) -> None:
        """A key, as ``Keys`` tells them; one that means nothing does nothing."""
        if key in _QUIT:
            self._has_quit = True
            if self._following is not None:
                self._following.cancel()
            return
        if key in _ORDERS:
            self._order, self._offset = _ORDERS[key], 0
        elif key == "r":
            self._order, self._offset = self._order.reversed(), 0
        elif key in _HOME:
            self._offset = 0
        elif key in _UP or key in _DOWN:
            self._move(self._offset + (1 if key in _DOWN else -1))
        elif key in _PAGE_UP or key in _PAGE_DOWN:
            self._move(self._offset + (self._rows() if key in _PAGE_DOWN else -self._rows()))
        else:
            return
        self._wake()

    async def _follow(self) -> None:
        looks = 1  # the first is done
        while True:
            self._draw()
            if looks == self._plan.count:
                return
            if not self._is_stale:
                self._pause = Deferred()
                timer = self._reactor.callLater(self._plan.interval, self._wake)
                try:
                    await self._pause
                finally:
                    self._pause = None
                    if timer.active():
                        timer.cancel()
            await self.look()
            looks += 1

    def _wake(self) -> None:
        """Look now, or as soon as the present look is over."""
        self._is_stale = True
        pause, self._pause = self._pause, None
        if pause is not None:
            pause.callback(None)

    def _move(self, offset: int) -> None:
        total = int(self._snapshot.page["total"]) if self._snapshot is not None else 0
        self._offset = max(0, min(offset, total - self._rows(), MAX_OFFSET))
        self._is_stale = True

    def _rows(self) -> int:
        workers = len(self._snapshot.workers) if self._snapshot is not None else 0
        return room(self._display.size[1], workers)

    def _draw(self) -> None:
        if self._snapshot is not None:
            width, height = self._display.size
            self._display.draw(
                frame(self._snapshot, self._order, width, height, place=self._place, problem=self._problem)
            )


class Keys:
    """Reads keys from a terminal, for the reactor: ``press`` gets each of them, and "q" when the terminal is gone."""

    def __init__(self, descriptor: int, press: Callable[[str], None]) -> None:
        self._descriptor = descriptor
        self._press = press

    def fileno(self) -> int:
        """See ``IReadDescriptor``, as for all of these."""
        return self._descriptor

    def doRead(self) -> None:  # noqa: N802 - Twisted's name
        """Something was typed."""
        try:
            data = os.read(self._descriptor, 1024)
        except OSError:
            data = b""
        for key in _KEY.findall(data.decode(errors="replace")) if data else "q":
            self._press(key)

    def connectionLost(self, reason: object) -> None:
        """The reactor reads no more."""

    def logPrefix(self) -> str:
        """What to call it."""
        return "keys"


class Screen:
    """A terminal with the whole screen ours between enter and exit; ``BadInput`` where there is none."""

    def __init__(self, keyboard: TextIO, console: Console) -> None:
        if not (keyboard.isatty() and console.is_terminal) or console.is_dumb_terminal:
            msg = 'top needs a terminal; "top --json", "list" and "stats" do not'
            raise BadInput(msg)
        self.descriptor = keyboard.fileno()
        self._console = console
        self._before: list[Any] = []

    @property
    def size(self) -> tuple[int, int]:
        """Characters in a line, and lines, as they are now."""
        size = self._console.size
        return size.width, size.height

    def draw(self, lines: list[Text]) -> None:
        """Show these lines and nothing else, in one go, so that nothing flickers."""
        for line in lines:
            line.no_wrap, line.overflow = True, "crop"
        with self._console:
            self._console.control(Control.home())
            self._console.print(FullScreen(Group(*lines)), end="")

    def __enter__(self) -> Self:
        self._before = termios.tcgetattr(self.descriptor)
        ours = termios.tcgetattr(self.descriptor)
        ours[_LFLAG] &= ~(termios.ICANON | termios.ECHO)
        off = bytes((os.fpathconf(self.descriptor, "PC_VDISABLE"),))
        ours[_CC][termios.VSUSP] = ours[_CC][termios.VQUIT] = off
        ours[_CC][termios.VMIN], ours[_CC][termios.VTIME] = 1, 0
        termios.tcsetattr(self.descriptor, termios.TCSADRAIN, ours)
        self._console.set_alt_screen(enable=True)
        self._console.show_cursor(show=False)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            self._console.show_cursor(show=True)
            self._console.set_alt_screen(enable=False)
        finally:
            termios.tcsetattr(self.descriptor, termios.TCSAFLUSH, self._before)
