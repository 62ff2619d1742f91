"""Kinds of setting that lead to other systems: their URLs, and the secrets shared with them (R6.6).

Theory of operation
-------------------
A secret never stands on a command line, where every user of the host can read it, and not in the TOML file, which gets copied,
committed and printed. It stands in a file of its own, which a ``..._path`` setting names, or in an environment variable. A
``Secret`` therefore has no text form: whatever prints a configuration prints a placeholder, and complaints do not quote it.
"""

from __future__ import annotations

import hmac
import re
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Final
from urllib.parse import SplitResult, urlsplit

from zrc_relay.config_values import Quoted, text_of

MAX_SECRET: Final = 512
"""Longest secret, in characters: it must fit an HTTP header."""
_SECRET: Final = re.compile(r"[\x21-\x7e]+")
_URL: Final = re.compile(r"[\x21-\x7e]+")


class Secret:
    """Bytes that nothing shows by accident; equal in constant time."""

    __slots__ = ("_value",)

    def __init__(self, value: bytes) -> None:
        self._value = value

    @classmethod
    def parse(cls, text: str, minimum: int) -> Secret:
        """From what a person wrote, at least ``minimum`` characters; ``ValueError`` says what is wrong without quoting it.

        Blanks around it, such as the newline at the end of a file, do not count.
        """
        text = text.strip()
        if not _SECRET.fullmatch(text):
            msg = "is not all printable ASCII without blanks" if text else "is empty"
            raise ValueError(msg)
        if not minimum <= len(text) <= MAX_SECRET:
            msg = f"is {len(text)} characters long"
            raise ValueError(msg)
        return cls(text.encode())

    def reveal(self) -> bytes:
        """The secret itself, for the one place that uses it."""
        return self._value

    def __repr__(self) -> str:
        return "<secret>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and hmac.compare_digest(self._value, other._value)

    def __hash__(self) -> int:
        return hash(self._value)


@dataclass(frozen=True, slots=True)
class HttpUrl(Quoted):
    """A URL of another system: https, or http where nobody can listen, on this host."""

    with_query: bool = False
    """Whether it may end in a query; what others append a path to may not."""

    @property
    def expected(self) -> str:
        """See ``Kind``."""
        return 'an "https://" URL, or "http://" to a loopback address'

    def parse(self, raw: object, base: Path) -> str:  # noqa: ARG002 - the seam's signature
        """See ``Kind``."""
        text = text_of(raw)
        if not _URL.fullmatch(text):
            msg = "is not all printable ASCII without blanks" if text else "is empty"
            raise ValueError(msg)
        wrong = self._wrong(text)
        if wrong:
            raise ValueError(wrong)
        return text

    def _wrong(self, text: str) -> str:
        try:
            parts = urlsplit(text)
            port = parts.port
        except ValueError:
            return "is no URL"
        return (
            "does not begin with https://" if parts.scheme not in ("http", "https")
            else "names no host" if not parts.hostname
            else "names port 0" if port == 0
            else "holds a user name or password" if "@" in parts.netloc
            else "holds a fragment" if "#" in text
            else "holds a query" if "?" in text and not self.with_query
            else "sends in the clear what others must not read" if parts.scheme == "http" and not is_loopback(parts)
            else ""
        )


def is_loopback(url: SplitResult) -> bool:
    """Whether the host of ``url`` is this one, told by its name or address alone."""
    host = url.hostname or ""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
