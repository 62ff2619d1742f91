"""Files that lines are appended to and nothing else, for logs that others read while they grow.

A line is one ``write``, so that lines of several processes do not mix. A disk that is full or a file that cannot be written costs
lines, not the relay: they are counted, and the log hears of the first one and of the end. The file may be renamed at any time;
``reopen`` then goes on in a new one.
"""

from __future__ import annotations

import os
from io import FileIO
from pathlib import Path

from twisted.logger import Logger


class LineFile:
    """The file at ``path``, made when it is not there, for its owner and group to read; ``OSError`` when it cannot be opened."""

    _log = Logger()

    def __init__(self, path: Path) -> None:
        self.path = path
        self.failures = 0
        """Lines that could not be written, or not wholly."""
        self._failing = False
        self._torn = False
        self._file: FileIO | None = _open(path)

    @property
    def is_failing(self) -> bool:
        """Whether the last line could not be written."""
        return self._failing

    def write(self, line: str) -> None:
        """Append ``line`` and a newline in one call, so that lines of several processes do not mix."""
        if self._file is None:
            return
        data = f"\n{line}\n".encode() if self._torn else f"{line}\n".encode()
        try:
            written = self._file.write(data)
        except OSError as error:
            self._failed(error.strerror or str(error))
            return
        if written != len(data):
            self._torn = bool(written) or self._torn
            self._failed("no room")
            return
        self._torn = False
        if self._failing:
            self._failing = False
            self._log.info(
                "{path} can be written again; {failures} lines were lost", event="file.recovered",
                path=str(self.path), failures=self.failures,
            )

    def reopen(self) -> None:
        """Go on in the file that has the name now, after it was rotated; if that fails, in the one that is open."""
        if self._file is None:
            return
        try:
            opened = _open(self.path)
        except OSError as error:
            self._log.error(
                "{path} cannot be opened again, the old file goes on: {problem}", event="file.not_reopened",
                path=str(self.path), problem=str(error.strerror),
            )
            return
        self._file.close()
        self._file = opened
        self._torn = False

    def close(self) -> None:
        """Write nothing from here on."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _failed(self, problem: str) -> None:
        self.failures += 1
        if not self._failing:
            self._failing = True
            self._log.error("cannot write to {path}: {problem}", event="file.failed", path=str(self.path), problem=problem)


def _open(path: Path) -> FileIO:
    # Non-blocking, because a named pipe that nobody reads must not stop the relay.
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK
    return FileIO(os.open(path, flags, 0o640), "wb")
