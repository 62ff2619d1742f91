"""The kinds of value a setting can have, but for numbers with units: how each is read, written and bounded (R8).

Theory of operation
-------------------
A ``Kind`` turns what a person wrote, text from a variable or option or a native TOML value, into a checked Python value, and
back into text. The rules:

* ``parse`` raises ``ValueError`` for everything it does not accept. The message is a predicate of the value, "is out of range";
  ``expected`` says what would be right, bounds included. So every complaint about a setting reads alike.
* ``parse(format(value)) == value`` for every value that ``parse`` can return, and likewise for ``toml``.
* A thing that is absent is written "none" (or "off"), never 0: on the wire 0 means "no limit" in one place and "the tier's own"
  in another, and in a file nobody should have to know which.

Numbers with units are in ``config_units``, endpoints in ``config_endpoints``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from ipaddress import IPv6Address, ip_address
from pathlib import Path
from typing import Final, Generic, Protocol, TypeVar

from zrc_relay.core.cidr import Network

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
E = TypeVar("E", bound=Enum)

MAX_TEXT: Final = 4096
"""Longest text looked at, in characters; nothing that a setting can mean is longer."""
MAX_PORT: Final = 65535
_MAX_SHOWN: Final = 60
"""Longest quotation in a complaint, in characters: with the rest of the sentence it fits two lines of a terminal."""

OUT_OF_RANGE: Final = "is out of range"
NOT_UNDERSTOOD: Final = "is not understood"
WRONG_TYPE: Final = "has the wrong type"

_ABSENT: Final = ("none", "off")
_BOOLEANS: Final[Mapping[str, bool]] = {
    "true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False,
}
TIER_NAME: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")
"""What a tier may be called: short and plain, because metrics are labelled with it."""
NAMESPACE: Final = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", re.ASCII)
"""What a part of the program may be called in the log."""
_HEX: Final = re.compile(r"[0-9a-fA-F]+")


class Kind(Protocol[T_co]):
    """What a setting's value may be."""

    @property
    def expected(self) -> str:
        """What would be right: a noun phrase that fits behind "must be"."""
        ...

    def parse(self, raw: object, base: Path) -> T_co:
        """The value that ``raw`` (text, or a native TOML value) means; ``ValueError`` says what is wrong with it.

        ``base`` is the absolute directory that relative paths start from.
        """
        ...

    def format(self, value: object) -> str:
        """The text that ``parse`` reads as ``value``, which must be one that ``parse`` can return."""
        ...

    def toml(self, value: object) -> str:
        """The same as a TOML value."""
        ...


def text_of(raw: object) -> str:
    """``raw`` if it is text, without surrounding blanks; ``ValueError`` otherwise."""
    if not isinstance(raw, str):
        raise ValueError(WRONG_TYPE)  # noqa: TRY004 - whoever parses a setting catches one kind of error
    if len(raw) > MAX_TEXT:
        msg = f"is longer than {MAX_TEXT} characters"
        raise ValueError(msg)
    return raw.strip()


def quote(text: str) -> str:
    """``text`` as a TOML basic string."""
    return '"' + "".join(map(_escape, text)) + '"'


def _escape(char: str) -> str:
    if char in '"\\':
        return "\\" + char
    if char.isprintable():
        return char
    code = ord(char)
    return f"\\u{code:04X}" if code <= 0xFFFF else f"\\U{code:08X}"


def show(raw: object) -> str:
    """``raw`` as a complaint quotes it: on one line, short, and much as TOML has it."""
    if isinstance(raw, str):
        text = quote(raw[:_MAX_SHOWN + 1])
    elif isinstance(raw, bool):
        text = str(raw).lower()
    elif isinstance(raw, list):
        text = f"[{', '.join(show(item) for item in raw[:_MAX_SHOWN])}]"
    else:
        try:
            text = repr(raw)
        except ValueError:  # an integer of thousands of digits, which TOML can say in hexadecimal
            text = "a very large number"
    return text if len(text) <= _MAX_SHOWN else text[: _MAX_SHOWN - 3] + "..."


class Quoted:
    """What kinds whose TOML form is a string have in common."""

    __slots__ = ()

    def format(self, value: object) -> str:
        """See ``Kind``."""
        return str(value)

    def toml(self, value: object) -> str:
        """See ``Kind``."""
        return quote(self.format(value))


class Unquoted(Quoted):
    """What kinds whose TOML form is their text have in common."""

    __slots__ = ()

    def toml(self, value: object) -> str:
        """See ``Kind``."""
        return self.format(value)


@dataclass(frozen=True, slots=True)
class Boolean(Unquoted):
    """Yes or no."""

    @property
    def expected(self) -> str:
        """See ``Kind``."""
        return "true or false"

    def parse(self, raw: object, base: Path) -> bool:  # noqa: ARG002 - the seam's signature
        """See ``Kind``."""
        if isinstance(raw, bool):
            return raw
        value = _BOOLEANS.get(text_of(raw).lower())
        if value is None:
            raise ValueError(NOT_UNDERSTOOD)
        return value

    def format(self, value: object) -> str:
        """See ``Kind``."""
        return str(value).lower()


@dataclass(frozen=True, slots=True)
class Choice(Quoted, Generic[E]):
    """One of an enumeration whose values are text."""

    choices: type[E]

    @property
    def expected(self) -> str:
        """See ``Kind``."""
        *most, last = (f'"{choice.value}"' for choice in self.choices)
        return f"{', '.join(most)} or {last}"

    def parse(self, raw: object, base: Path) -> E:  # noqa: ARG002 - the seam's signature
        """See ``Kind``."""
        text = text_of(raw).lower()
        for choice in self.choices:
            if choice.value == text:
                return choice
        raise ValueError(NOT_UNDERSTOOD)

    def format(self, value: object) -> str:
        """See ``Kind``."""
        return str(self.choices(value).value)


@dataclass(frozen=True, slots=True)
class HexId(Quoted):
    """``size`` bytes, written as twice as many hex digits."""

    size: int

    @property
    def expected(self) -> str:
        """See ``Kind``."""
        return f"{2 * self.size} hex digits"

    def parse(self, raw: object, base: Path) -> bytes:  # noqa: ARG002 - the seam's signature
        """See ``Kind``."""
        text = text_of(raw)
        if len(text) != 2 * self.size:
            msg = f"is {len(text)} characters long"
            raise ValueError(msg)
        if not _HEX.fullmatch(text):  # bytes.fromhex would let blanks pass
            msg = "is not all hex digits"
            raise ValueError(msg)
        return bytes.fromhex(text)

    def format(self, value: object) -> str:
        """See ``Kind``."""
        if not isinstance(value, bytes):
            raise TypeError(value)
        return value.hex()


@dataclass(frozen=True, slots=True)
class FilePath(Quoted):
    """A file or directory, made absolute."""

    @property
    def expected(self) -> str:
        """See ``Kind``."""
        return "a path"

    def parse(self, raw: object, base: Path) -> Path:
        """See ``Kind``."""
        if not text_of(raw):
            msg = "is empty"
            raise ValueError(msg)
        if "\0" in str(raw):
            msg = "holds a zero byte"
            raise ValueError(msg)
        return base / str(raw)


@dataclass(frozen=True, slots=True)
class IPAddress(Quoted):
    """One IPv4 or IPv6 address as text, in its canonical form; IPv4-mapped ones become IPv4, as on the wire (PROTOCOL §2)."""

    allow_unspecified: bool = False
    """Whether 0.0.0.0 and :: will do: to a listener they mean "all", to anyone else nothing."""

    @property
    def expected(self) -> str:
        """See ``Kind``."""
        return "an IP address" if self.allow_unspecified else 'an IP address that clients can reach, such as "192.0.2.1"'

    def parse(self, raw: object, base: Path) -> str:  # noqa: ARG002 - the seam's signature
        """See ``Kind``."""
        text = text_of(raw)
        try:
            address = ip_address(text)
        except ValueError as error:
            msg = "is not an IP address"
            raise ValueError(msg) from error
        if isinstance(address, IPv6Address):
            address = address.ipv4_mapped or address
        wrong = (
            "has a scope" if "%" in text
            else "is a multicast address" if address.is_multicast
            else "is the unspecified address" if address.is_unspecified and not self.allow_unspecified
            else ""
        )
        if wrong:
            raise ValueError(wrong)
        return str(address)


@dataclass(frozen=True, slots=True)
class IPAddressList:
    """IP addresses to listen on: text with commas between them, or a TOML list; at least one, none twice."""

    @property
    def expected(self) -> str:
        """See ``Kind``."""
        return 'one IP address or several, such as "0.0.0.0, ::"'

    def parse(self, raw: object, base: Path) -> tuple[str, ...]:
        """See ``Kind``."""
        items = raw if isinstance(raw, list) else [item.strip() for item in text_of(raw).split(",")]
        kind = IPAddress(allow_unspecified=True)
        addresses: list[str] = []
        for item in items:
            try:
                address = kind.parse(item, base)
            except ValueError as error:
                msg = f"holds {show(item)}, which {error}" if len(items) > 1 else str(error)
                raise ValueError(msg) from error
            if address in addresses:
                msg = f"holds {show(address)} twice"
                raise ValueError(msg)
            addresses.append(address)
        if not addresses:
            msg = "is empty"
            raise ValueError(msg)
        return tuple(addresses)

    def format(self, value: object) -> str:
        """See ``Kind``."""
        return ", ".join(_strings(value))

    def toml(self, value: object) -> str:
        """See ``Kind``."""
        return f"[{', '.join(map(quote, _strings(value)))}]"


@dataclass(frozen=True, slots=True)
class NetworkList:
    """Networks and single addresses: text with commas between them, or a TOML list; none twice, and perhaps none at all."""

    @property
    def expected(self) -> str:
        """See ``Kind``."""
        return 'networks or addresses such as "192.0.2.0/24, 2001:db8::/32", or "none"'

    def parse(self, raw: object, base: Path) -> tuple[Network, ...]:  # noqa: ARG002 - the seam's signature
        """See ``Kind``."""
        if isinstance(raw, str) and text_of(raw).lower() in _ABSENT:
            return ()
        items = raw if isinstance(raw, list) else [item.strip() for item in text_of(raw).split(",")]
        networks: dict[Network, None] = {}
        for item in items:
            try:
                network = _network(item)
            except ValueError as error:
                msg = f"holds {show(item)}, which {error}" if len(items) > 1 else str(error)
                raise ValueError(msg) from error
            if network in networks:
                msg = f"holds {network} twice"
                raise ValueError(msg)
            networks[network] = None
        return tuple(networks)

    def format(self, value: object) -> str:
        """See ``Kind``."""
        return ", ".join(_strings(value)) or _ABSENT[0]

    def toml(self, value: object) -> str:
        """See ``Kind``."""
        return f"[{', '.join(map(quote, _strings(value)))}]"


def _network(item: object) -> Network:
    text = text_of(item)
    try:
        network = Network.parse(text)
    except ValueError as error:
        msg = "is neither a network nor an IP address"
        raise ValueError(msg) from error
    try:
        return Network.parse(text, strict=True)
    except ValueError as error:
        msg = f"has bits behind its prefix: the network is {network}"
        raise ValueError(msg) from error


@dataclass(frozen=True, slots=True)
class TierName(Quoted):
    """The name of a tier; whether there is one of that name is found out when all tiers are known."""

    @property
    def expected(self) -> str:
        """See ``Kind``."""
        return "the name of a tier"

    def parse(self, raw: object, base: Path) -> str:  # noqa: ARG002 - the seam's signature
        """See ``Kind``."""
        text = text_of(raw)
        if not TIER_NAME.fullmatch(text):
            raise ValueError(NOT_UNDERSTOOD)
        return text


def _strings(value: object) -> list[str]:
    if not isinstance(value, tuple):
        raise TypeError(value)
    return [str(item) for item in value]


@dataclass(frozen=True, slots=True)
class OrNone(Generic[T]):
    """Another kind, or "none" (or "off") for nothing."""

    kind: Kind[T]

    @property
    def expected(self) -> str:
        """See ``Kind``."""
        return f'{self.kind.expected}, or "none"'

    def parse(self, raw: object, base: Path) -> T | None:
        """See ``Kind``."""
        if isinstance(raw, str) and raw.strip().lower() in _ABSENT:
            return None
        return self.kind.parse(raw, base)

    def format(self, value: object) -> str:
        """See ``Kind``."""
        return _ABSENT[0] if value is None else self.kind.format(value)

    def toml(self, value: object) -> str:
        """See ``Kind``."""
        return quote(_ABSENT[0]) if value is None else self.kind.toml(value)
