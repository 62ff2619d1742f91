"""Where log lines go: the standard output, a file, or the system's log."""

from __future__ import annotations

import syslog
from typing import Final, Protocol, TextIO

from zrc_relay.linefile import LineFile
from zrc_relay.logs.levels import LogLevel

_PRIORITIES: Final = {
    LogLevel.DEBUG: syslog.LOG_DEBUG,
    LogLevel.INFO: syslog.LOG_INFO,
    LogLevel.WARN: syslog.LOG_WARNING,
    LogLevel.ERROR: syslog.LOG_ERR,
    LogLevel.CRITICAL: syslog.LOG_CRIT,
}


class Output(Protocol):
    """Takes lines. Nothing here raises: a log that cannot be written costs lines, not the relay."""

    @property
    def is_terminal(self) -> bool:
        """Whether a person reads along."""
        ...

    def write(self, line: str, level: LogLevel) -> None:
        """Append ``line``."""
        ...

    def reopen(self) -> None:
        """Go on in a new file, after the old one was renamed."""
        ...


class StreamOutput:
    """A stream that is open already: the standard output, as it was before Twisted redirected it into the log."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.failures = 0
        """Lines that could not be written."""

    @property
    def is_terminal(self) -> bool:
        """See ``Output``."""
        try:
            return self._stream.isatty()
        except ValueError:  # closed
            return False

    def write(self, line: str, level: LogLevel) -> None:
        """See ``Output``."""
        del level
        try:
            self._stream.write(f"{line}\n")
            self._stream.flush()
        except (OSError, ValueError):
            self.failures += 1

    def reopen(self) -> None:
        """See ``Output``; a stream has no name to be opened by."""


class FileOutput:
    """A file that is appended to, and may be renamed while it is; see ``LineFile``."""

    is_terminal = False

    def __init__(self, file: LineFile) -> None:
        self._file = file

    def write(self, line: str, level: LogLevel) -> None:
        """See ``Output``."""
        del level
        self._file.write(line)

    def reopen(self) -> None:
        """See ``Output``."""
        self._file.reopen()


class SyslogOutput:
    """The system's log, under the name ``prefix``; each line with the priority that its level has there."""

    is_terminal = False

    def __init__(self, prefix: str) -> None:
        syslog.openlog(prefix)

    def write(self, line: str, level: LogLevel) -> None:
        """See ``Output``."""
        for row in line.splitlines():
            syslog.syslog(_PRIORITIES[level], row)

    def reopen(self) -> None:
        """See ``Output``; the system rotates its log."""
