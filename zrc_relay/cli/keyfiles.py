"""Key files: 64 hex digits of an Ed25519 seed, for nobody's eyes but their owner's.

Whoever can read a device's key can mint tokens in its name, so a key file is made with mode 0600 from its first moment on, and
one that group or others have any access to is refused until that is mended, as ssh does it.
"""

from __future__ import annotations

import os
import re
import secrets
import stat
from pathlib import Path
from typing import Final

from nacl.signing import SigningKey

from zrc_relay.cli.errors import BadInput, Failure

PRIVATE_MODE: Final = 0o600
MAX_SIZE: Final = 4096
"""Bytes of a key file that are looked at: more than 64 digits and blanks would ever need."""
_SEED: Final = re.compile(r"[0-9a-fA-F]{64}")


def read_key(path: Path) -> SigningKey:
    """The key in the file at ``path``; ``BadInput`` when it cannot be read, is open to others, or holds no key."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            mode = stat.S_IMODE(os.fstat(descriptor).st_mode)
            if mode & 0o077:
                msg = f"the key file {path} is open to group or others (mode {mode:04o}); mend it with: chmod 600 {path}"
                raise BadInput(msg)
            data = file.read(MAX_SIZE)
    except OSError as error:
        msg = f"cannot read the key file {path}: {error.strerror or error}"
        raise BadInput(msg) from error
    text = data.decode("ascii", errors="replace").strip()
    if not _SEED.fullmatch(text):
        msg = f"{path} is no key file: it must hold 64 hex digits and nothing else"
        raise BadInput(msg)
    return SigningKey(bytes.fromhex(text))


def write_key(path: Path, key: SigningKey, *, replace: bool = False) -> None:
    """Write ``key`` to a file of mode 0600; see ``write_private``."""
    write_private(path, bytes(key).hex() + "\n", replace=replace)


def write_private(path: Path, text: str, *, replace: bool = False) -> None:
    """Write ``text`` to a new file of mode 0600.

    A file that exists is ``BadInput`` unless ``replace``; it is then replaced at once, never half. ``Failure`` when the system
    does not let us write.
    """
    target = path.with_name(f".{path.name}.{secrets.token_hex(4)}") if replace else path
    try:
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, PRIVATE_MODE)
    except FileExistsError as error:
        msg = f"{path} exists already; --force replaces it"
        raise BadInput(msg) from error
    except OSError as error:
        raise _cannot_write(path, error) from error
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            os.fchmod(descriptor, PRIVATE_MODE)  # a strange umask may have taken the owner's bits away
            file.write(text)
            file.flush()
            os.fsync(descriptor)
        if replace:
            target.replace(path)
    except OSError as error:
        target.unlink(missing_ok=True)
        raise _cannot_write(path, error) from error


def _cannot_write(path: Path, error: OSError) -> Failure:
    return Failure(f"cannot write {path}: {error.strerror or error}")
