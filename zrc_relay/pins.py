"""Device keys that are pinned and unpinned while the relay runs (R1.2, R10).

Theory of operation
-------------------
The file of device keys says who may sign tokens; an administrator may say otherwise until the file is mended. What run time said
of a device **holds over the file**: a key that was taken away because it was stolen must not come back with the next reload. It
survives reloads, and restarts where there is a ``state_dir``. Two things can be said of a device: *pinned*, with tier and note,
or *unpinned*. Saying what the file says anyway is the same as saying nothing.

With a ``state_dir`` each change is written before it is answered, in a thread. When that fails the change holds all the same,
the log and ``/health`` say so (``problem``), and it is tried again with the next change. A file that is damaged keeps the relay
from starting: nobody should be let in because a disk has an error.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from twisted.internet.defer import Deferred, DeferredLock
from twisted.logger import Logger

from zrc_relay.core.keys import Device, DeviceKeys
from zrc_relay.core.token import key_id
from zrc_relay.statefile import replace_file

FILE_NAME: Final = "keys.json"
FORMAT: Final = 1
MAX_CHANGES: Final = 10_000
"""Devices that run time may say something of, some 5 MB: people say it one by one, and a file can hold the rest."""

Run = Callable[[Callable[[], None]], "Deferred[None]"]
"""Runs a function that may take long, somewhere else."""


class PinFileError(Exception):
    """The file with what run time said cannot be used; the message says which and why."""


class TooManyPins(Exception):
    """There are ``MAX_CHANGES`` already."""


class PinnedKeys:
    """What run time said of devices, kept in ``directory``, or nowhere when that is None; ``run`` runs what writes the file."""

    _log = Logger()

    def __init__(self, directory: Path | None, *, run: Run) -> None:
        self._path = directory / FILE_NAME if directory is not None else None
        self._run = run
        self._said: dict[bytes, Device | None] = {}
        self._writing = DeferredLock()
        self.failures = 0
        """Writes that failed."""
        self.problem: str | None = None
        """Why the last write failed, in a sentence; None when it did not."""
        self.revision = 0
        """Grows with each change at run time."""

    def __len__(self) -> int:
        return len(self._said)

    def __contains__(self, device_id: object) -> bool:
        return device_id in self._said

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._said)

    def get(self, device_id: bytes) -> Device | None:
        """What run time has pinned; None when it has unpinned the device, or says nothing of it."""
        return self._said.get(device_id)

    def load(self) -> None:
        """Take in what an earlier life kept; ``PinFileError`` when the file cannot be used."""
        if self._path is None:
            return
        try:
            text = self._path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return
        except (OSError, UnicodeDecodeError) as error:
            msg = f"cannot read {self._path}: {getattr(error, 'strerror', None) or error}"
            raise PinFileError(msg) from error
        try:
            self._said = dict(_decode(text))
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            msg = f"{self._path} is damaged ({error!r}); remove it to begin with the device keys of the configuration alone"
            raise PinFileError(msg) from error

    def over(self, configured: DeviceKeys) -> DeviceKeys:
        """The keys in force: those of the file, ``configured``, and over them what run time said."""
        return configured.with_changes(self._said)

    def pin(self, device: Device, configured: DeviceKeys) -> None:
        """Pin ``device`` from now on; ``TooManyPins`` when that is one too many."""
        device_id = key_id(device.public_key)
        self._say(device_id, device, nothing_new=configured.get(device_id) == device)

    def unpin(self, device_id: bytes, configured: DeviceKeys) -> None:
        """Unpin a device from now on; ``TooManyPins`` when that is one too many."""
        self._say(device_id, None, nothing_new=configured.get(device_id) is None)

    def _say(self, device_id: bytes, device: Device | None, *, nothing_new: bool) -> None:
        if nothing_new:
            self._said.pop(device_id, None)
        elif device_id not in self._said and len(self._said) >= MAX_CHANGES:
            raise TooManyPins
        else:
            self._said[device_id] = device
        self.revision += 1

    async def save(self) -> bool:
        """Write what holds now; whether it outlives a restart."""
        path = self._path
        if path is None:
            return False
        await self._writing.acquire()  # so that an older state never replaces a newer one
        text = _encode(self._said)
        try:
            await self._run(lambda: replace_file(path, (text,)))
        except OSError as error:
            self.failures += 1
            self.problem = f"device keys that were pinned at run time cannot be kept: {error}"
            self._log.error(
                "device keys that were pinned at run time cannot be kept: {problem}", event="keys.not_saved", problem=str(error)
            )
            return False
        finally:
            self._writing.release()
        self.problem = None
        return True


def _encode(said: dict[bytes, Device | None]) -> str:
    pinned = [
        {"public_key": device.public_key.hex(), "tier": device.tier, "note": device.note}
        for device in said.values() if device is not None
    ]
    unpinned = [device_id.hex() for device_id, device in said.items() if device is None]
    return json.dumps({"format": FORMAT, "pinned": pinned, "unpinned": unpinned}, indent=1) + "\n"


def _decode(text: str) -> Iterator[tuple[bytes, Device | None]]:
    document = json.loads(text)
    if document["format"] != FORMAT:
        msg = f"format {document['format']!r}"
        raise ValueError(msg)
    for item in document["pinned"]:
        public_key = _key(item["public_key"])
        yield key_id(public_key), Device(public_key, str(item["tier"]), str(item["note"]))
    for item in document["unpinned"]:
        yield _key(item), None


def _key(value: str) -> bytes:
    key = bytes.fromhex(value)
    if len(key) != 32:
        msg = f"{value!r} is not 32 bytes"
        raise ValueError(msg)
    return key
