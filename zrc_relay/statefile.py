"""Writing what should outlive a restart: always a whole file, the old one or the new one (R8, ``state_dir``)."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path


def replace_file(path: Path, pieces: Iterable[str]) -> None:
    """Put a file of ``pieces``, which only its owner can read, in the place of ``path``, and see that it is on the disk.

    ``OSError`` when that is not possible, and then the old one is as it was. It may block; run it in a thread.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    scratch = path.with_suffix(".new")
    with os.fdopen(os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
        for piece in pieces:
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())
    scratch.replace(path)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)  # so that the new name is on the disk, too
    finally:
        os.close(directory)
