"""The memory in which the workers of a relay count their limits, and the locks on it (R4.1, R4.4, R6.1).

Theory of operation
-------------------
The parent makes a file without a name (``memfd_create``), which all workers inherit and map; it is gone when the last of them is.
What is in it is ``core.shared``'s business; its first bytes say with which layout and key it was made, so that a worker needs
nothing but the descriptor. Its size is sealed: nobody can make another's access to the mapping fail.

Guards are POSIX record locks (``fcntl.lockf``) of the bytes themselves: the kernel lets go of them when a process dies, however
it dies. Such a lock is also lost when its process closes *any* descriptor of the file, so nothing is closed while one is held;
and it belongs to the process, so two threads of one are not kept apart. A relay counts in its reactor's thread only.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from struct import Struct
from types import TracebackType
from typing import Final

from zrc_relay.core.routing import MAX_WORKERS, Share
from zrc_relay.core.shared import DEVICES, RESERVED, SOURCE_SLOTS, Layout, SharedLimits
from zrc_relay.core.sharedplaces import BIN

KEY_SIZE: Final = 16
_HEADER: Final = Struct("=8sQQQ16s")
_MAGIC: Final = b"zrclimit"


class NotLimits(ValueError):
    """The descriptor is not of memory that ``LimitsMemory.create`` made."""


class Lock:
    """Some bytes of a file, locked while this is entered."""

    __slots__ = ("_fd", "_length", "_offset")

    def __init__(self, fd: int, offset: int, length: int) -> None:
        self._fd = fd
        self._offset = offset
        self._length = length

    def __enter__(self) -> None:
        fcntl.lockf(self._fd, fcntl.LOCK_EX, self._length, self._offset)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        fcntl.lockf(self._fd, fcntl.LOCK_UN, self._length, self._offset)


class LimitsMemory:
    """Memory that is shared, as one process has it: ``create`` it in the parent, ``attach`` in a worker what was inherited."""

    def __init__(self, fd: int, layout: Layout, key: bytes, mapping: mmap.mmap) -> None:
        self.fd = fd
        self.layout = layout
        self._key = key
        self._memory = memoryview(mapping)

    @classmethod
    def create(
        cls, workers: int, key: bytes, *, devices: int = DEVICES, source_slots: int = SOURCE_SLOTS
    ) -> LimitsMemory:
        """New memory for ``workers`` (1 to 64) with 16 random bytes as ``key``; ``OSError`` when the kernel has none.

        Its descriptor is closed in programs that are started, unless it is handed to them. ``devices`` is how many devices are
        sure to find room for allocations at a time; who allows more allocations than ``DEVICES`` says how many. ``source_slots``
        is for each table of sources, a multiple of 64.
        """
        if len(key) != KEY_SIZE or not 1 <= workers <= MAX_WORKERS:
            msg = f"a key of {len(key)} bytes for {workers} workers"
            raise ValueError(msg)
        device_slots = 4 * -(-devices // BIN) * BIN
        layout = Layout(workers, source_slots, device_slots)
        fd = os.memfd_create("zrc-relay-limits", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(fd, layout.size)
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
            mapping = mmap.mmap(fd, layout.size)
        except OSError:
            os.close(fd)
            raise
        _HEADER.pack_into(mapping, 0, _MAGIC, workers, source_slots, device_slots, key)
        return cls(fd, layout, key, mapping)

    @classmethod
    def attach(cls, fd: int) -> LimitsMemory:
        """The memory whose descriptor this process was given, and owns from here on; ``NotLimits`` when it is something else."""
        size = os.fstat(fd).st_size
        header = os.pread(fd, _HEADER.size, 0) if size >= RESERVED else bytes(_HEADER.size)
        magic, workers, source_slots, device_slots, key = _HEADER.unpack(header)
        if magic != _MAGIC:
            msg = f"descriptor {fd} is of something else"
            raise NotLimits(msg)
        layout = Layout(workers, source_slots, device_slots)
        mapping = mmap.mmap(fd, layout.size)
        return cls(fd, layout, key, mapping)

    def limits(self, share: Share) -> SharedLimits:
        """The limits as the worker of ``share`` counts them."""
        return SharedLimits(self._memory, self.guard, share, key=self._key, layout=self.layout)

    def forget(self, index: int) -> None:
        """Give back the places of the worker ``index``. It must be dead, and its successor not started yet."""
        self.limits(Share(index, self.layout.workers)).forget(index)

    def close(self) -> None:
        """Let go of the descriptor; whoever was given limits must not use them any more. Once more does nothing."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1  # its number may be another file's by now

    def guard(self, offset: int, length: int) -> Lock:
        """Some bytes, locked against all other processes while it is entered (see ``core.sharing.Guard``)."""
        return Lock(self.fd, offset, length)
