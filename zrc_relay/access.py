"""Where the lists of networks are kept between two lives of the relay (R6.3).

Theory of operation
-------------------
Administrators and external systems change ``AccessLists`` while the relay runs. With a ``state_dir``, ``AccessStore`` keeps what
they added in one JSON file. It looks a few times a second whether something has changed (``sweep``), or at once for somebody who
wants to know (``keep``), and writes at most every ``SAVE_INTERVAL``, in a thread: a long list must not keep packets waiting. The
file is written beside the old one, flushed to the disk and then put in its place, so that there is always a whole one. When that
fails the lists hold all the same, the log and ``/health`` say so (``problem``), and it is tried again.

A file that is damaged keeps the relay from starting: nobody should be let in because a disk has an error. The configuration wins:
entries of the file for a network that it speaks of are passed over, and so are those whose time is over.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from math import inf, isfinite
from pathlib import Path
from typing import Any, Final

from twisted.internet.defer import Deferred, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from zrc_relay.core.cidr import Access, AccessLists, Entry, Network
from zrc_relay.statefile import replace_file

FILE_NAME: Final = "access.json"
FORMAT: Final = 1
SAVE_INTERVAL: Final = 5.0
"""Shortest time in seconds between the beginnings of two writes."""

Run = Callable[[Callable[[], None]], "Deferred[None]"]
"""Runs a function that may take long, somewhere else."""


class AccessFileError(Exception):
    """The file with the lists cannot be used; the message says which and why."""


class AccessStore:
    """Keeps what run time added to ``lists`` in ``directory``, or nowhere when that is None.

    ``now`` gives monotonic and ``wall`` Unix seconds; ``run`` runs what writes the file.
    """

    _log = Logger()

    def __init__(
        self, lists: AccessLists, directory: Path | None, *, now: Callable[[], float], wall: Callable[[], float], run: Run
    ) -> None:
        self._lists = lists
        self._path = directory / FILE_NAME if directory is not None else None
        self._now = now
        self._wall = wall
        self._run = run
        self._saving: Deferred[None] | None = None
        self._saved = lists.changes
        self._save_from = 0.0
        self.failures = 0
        """Writes that failed."""
        self.problem: str | None = None
        """Why the last write failed, in a sentence; None when it did not."""

    def load(self) -> int:
        """Take in what an earlier life kept; returns how many entries. ``AccessFileError`` when the file cannot be used."""
        if self._path is None:
            return 0
        try:
            text = self._path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return 0
        except (OSError, UnicodeDecodeError) as error:
            msg = f"cannot read {self._path}: {getattr(error, 'strerror', None) or error}"
            raise AccessFileError(msg) from error
        try:
            entries = list(_decode(text))
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            msg = f"{self._path} is damaged ({error!r}); remove it to begin with the lists of the configuration alone"
            raise AccessFileError(msg) from error
        wall = self._wall()
        taken = sum(self._lists.add(entry, wall) for entry in entries)
        self._saved = self._lists.changes
        return taken

    def sweep(self) -> None:
        """Take out what is over, and begin to write when something has changed; a few times a second."""
        self._lists.sweep(self._wall())
        if self._is_behind and self._saving is None and self._now() >= self._save_from:
            self._save()

    def finish(self) -> Deferred[None]:
        """Write what is not written yet; fires when that is done, or has failed."""
        if self._saving is not None:
            waiter: Deferred[None] = Deferred()
            self._saving.chainDeferred(waiter)
            return waiter.addCallback(lambda _: self.finish())
        return self._save() if self._is_behind else succeed(None)

    @property
    def is_kept(self) -> bool:
        """Whether what is added outlives a restart, as far as is known."""
        return self._path is not None and self.problem is None

    async def keep(self) -> bool:
        """Write what is not written yet, if a write may begin now; whether what holds now outlives a restart.

        Many changes may ask within ``SAVE_INTERVAL``: the answer to the later ones is what came of the write before.
        """
        saving = self._saving
        if saving is None and self._is_behind and self._now() >= self._save_from:
            saving = self._save()
        if saving is not None:
            waiter: Deferred[None] = Deferred()
            saving.chainDeferred(waiter)  # whoever asks may go away; the write is not his
            await waiter
        return self.is_kept

    @property
    def _is_behind(self) -> bool:
        return self._path is not None and self._lists.changes != self._saved

    def _save(self) -> Deferred[None]:
        self._save_from = self._now() + SAVE_INTERVAL
        changes, entries, path = self._lists.changes, self._lists.runtime_entries, self._path
        done: Deferred[None] = Deferred()
        self._saving = done

        def write() -> None:
            if path is not None:
                replace_file(path, _pieces(entries))

        def ended(result: Any) -> None:
            self._saving = None
            if isinstance(result, Failure):
                self.failures += 1
                self.problem = f"the lists of networks cannot be kept: {result.value}"
                self._log.error(
                    "the lists of networks cannot be kept: {problem}", event="access.not_saved", problem=str(result.value)
                )
            else:
                self._saved, self.problem = changes, None
            done.callback(None)

        self._run(write).addBoth(ended)
        return done


def _decode(text: str) -> Iterator[Entry]:
    document = json.loads(text)
    if document["format"] != FORMAT:
        msg = f"format {document['format']!r}"
        raise ValueError(msg)
    for item in document["entries"]:
        until = item.get("until", inf)
        if isinstance(until, bool) or not isinstance(until, int | float) or (until != inf and not isfinite(until)):
            msg = f"until {until!r}"
            raise ValueError(msg)
        yield Entry(Network.parse(item["network"], strict=True), Access(item["access"]), float(until), str(item.get("note", "")))


def _encode(entry: Entry) -> str:
    item: dict[str, object] = {"network": str(entry.network), "access": entry.access.value}
    if entry.until != inf:
        item["until"] = entry.until
    if entry.note:
        item["note"] = entry.note
    return json.dumps(item)


def _pieces(entries: Iterable[Entry]) -> Iterator[str]:
    # Entry by entry: encoding a long list in one call would keep the interpreter, and with it the packets, all the while.
    yield f'{{"format": {FORMAT}, "entries": ['
    separator = "\n"
    for entry in entries:
        yield separator + _encode(entry)
        separator = ",\n"
    yield "\n]}\n"
