"""What the tests of ``zrc-relay ctl`` share: running it beside a relay of this process, and a terminal to run it in."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import termios
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

import pyte
from click.testing import CliRunner, Result
from twisted.internet.defer import Deferred
from twisted.internet.threads import blockingCallFromThread, deferToThread
from twisted.trial.unittest import TestCase

from tests.admin_support import WRITE_TOKEN, AdminCase
from tests.cli_support import NO_SETTINGS, reactor
from tests.real_relay import eventually
from zrc_relay.cli.main import main
from zrc_relay.cli.processes import child_environment

IN_TERMINAL = """
import fcntl, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
from zrc_relay.cli.main import main
main(sys.argv[1:], prog_name="zrc-relay")
"""
"""Makes standard input the terminal that controls the process, so that Ctrl-C and changes of its size become signals."""


class Beside:
    """Runs the command line in a thread while the reactor goes on, which then does what ``running.run`` would do."""

    def __init__(self, case: TestCase) -> None:
        self._running: Deferred[Any] | None = None
        case.addCleanup(self._cancel)

    def __call__(self, *arguments: object, env: Mapping[str, str] | None = None) -> Deferred[Result]:
        """Fires with what came of it."""
        words = [str(argument) for argument in arguments]
        environment = {**NO_SETTINGS, **(env or {})}
        result: Deferred[Result] = deferToThread(
            CliRunner().invoke, main, words, env=environment, prog_name="zrc-relay", obj=self._run
        )
        return result

    def _run(self, start: Callable[[Any], Coroutine[Any, Any, Any]]) -> Any:
        def begin() -> Deferred[Any]:
            self._running = Deferred.fromCoroutine(start(reactor))
            return self._running

        return blockingCallFromThread(reactor, begin)

    def _cancel(self) -> None:
        """A thread that waits when a test has failed would wait for ever."""
        if self._running is not None:
            self._running.cancel()


class CtlCase(AdminCase):
    """A relay in this process, and ``ctl`` for it."""

    def setUp(self) -> None:
        super().setUp()
        self.beside = Beside(self)

    @property
    def where(self) -> str:
        """For ``--endpoint``."""
        host = self.administration.site.port.getHost()
        return f"unix:{os.fsdecode(host.name)}" if hasattr(host, "name") else f"tcp:127.0.0.1:{host.port}"

    async def ctl(self, *arguments: object, token: str | None = WRITE_TOKEN, env: Mapping[str, str] | None = None) -> Result:
        """Run a command of ``ctl`` to its end."""
        await self.setup.ready()
        shown = {"ZRC_RELAY_CTL_TOKEN": token} if token is not None else {}
        environment = {"ZRC_RELAY_CTL_ENDPOINT": self.where, **shown, **(env or {})}
        return await self.beside("ctl", *arguments, env=environment)

    async def done(self, *arguments: object, **more: Any) -> str:
        """What a command prints; it must end well."""
        result = await self.ctl(*arguments, **more)
        self.assertEqual((result.exit_code, result.stderr), (0, ""), result.output)
        return result.stdout


class Terminal:
    """A program in a pseudo-terminal, and the screen that a person would see."""

    def __init__(
        self, case: TestCase, *arguments: str, env: Mapping[str, str], columns: int = 100, lines: int = 24, term: str = "xterm"
    ) -> None:
        self._master, self.slave = pty.openpty()
        case.addCleanup(os.close, self._master)
        case.addCleanup(os.close, self.slave)
        os.set_blocking(self._master, False)
        termios.tcsetwinsize(self.slave, (lines, columns))
        self.screen = pyte.Screen(columns, lines)
        self._stream = pyte.ByteStream(self.screen)
        self.raw = b""
        """All that was written to the terminal."""
        environment = {name: value for name, value in child_environment().items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
        self.process = subprocess.Popen(
            [sys.executable, "-c", IN_TERMINAL, *arguments],
            env={**environment, "TERM": term, **env},
            stdin=self.slave, stdout=self.slave, stderr=self.slave, start_new_session=True,
        )
        case.addCleanup(self._end)

    def read(self) -> None:
        """Take in what was written since."""
        while True:
            try:
                data = os.read(self._master, 65536)
            except BlockingIOError:
                return
            self.raw += data
            self._stream.feed(data)

    def lines(self) -> list[str]:
        """The lines of the screen as they are now."""
        self.read()
        return [line.rstrip() for line in self.screen.display]

    @property
    def text(self) -> str:
        """The same as one text."""
        return "\n".join(self.lines())

    def type(self, keys: bytes) -> None:
        """Press keys."""
        os.write(self._master, keys)

    def resize(self, columns: int, lines: int) -> None:
        """Make the terminal larger or smaller."""
        self.read()
        self.screen.resize(lines, columns)
        termios.tcsetwinsize(self._master, (lines, columns))

    def modes(self) -> list[Any]:
        """How the terminal is set."""
        return termios.tcgetattr(self.slave)

    async def shows(self, *wanted: str) -> None:
        """Wait until all of this is on the screen."""
        def look() -> bool:
            text = self.text
            return all(each in text for each in wanted)

        try:
            await eventually(look, f"{wanted} on the screen")
        except AssertionError as error:
            msg = f"{error}\n{self.text}"
            raise AssertionError(msg) from error

    async def ended(self) -> int:
        """Wait for the end of the program; its exit status."""
        await eventually(lambda: self.process.poll() is not None, "the end of the program")
        self.read()
        return int(self.process.returncode)

    def _end(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
        self.process.wait()
