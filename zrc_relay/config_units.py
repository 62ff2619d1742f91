"""Kinds of setting that are numbers, most of them with a unit: durations, sizes, rates (R8).

Theory of operation
-------------------
A number is read as a decimal, never as a binary float, so that "0.1 GB" is exactly 100,000,000 bytes. Behind it comes a unit;
without one it is seconds, bytes or bytes per second. Rules:

* Bits and bytes differ only in the case of one letter, as everywhere: "Mbit/s" and "MB/s" are accepted, and "mb/s", which could
  be either, is refused. The case of a prefix does not matter.
* "k" is 1000 and "Ki" is 1024.
* Bounds are inclusive, and are given as the text that complaints repeat.

``Kind`` in ``config_values`` says what the methods do.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Final

from zrc_relay.config_values import NOT_UNDERSTOOD, OUT_OF_RANGE, WRONG_TYPE, Quoted, Unquoted, quote, show, text_of
from zrc_relay.core.sources import Rate

AUTO: Final = 0
"""What "auto" is as a number; it must not be one that the setting can have."""
_AUTO_TEXT: Final = "auto"
_MAX_BITS: Final = 128
"""Longest native integer looked at: far beyond every bound, and short enough to be printed."""
_NUMBER: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*((?:[A-Za-z].*)?)", re.DOTALL)
_TIME_UNITS: Final[Mapping[str, Decimal]] = {
    "d": Decimal(86400), "h": Decimal(3600), "min": Decimal(60), "s": Decimal(1), "ms": Decimal("0.001"),
}
_TIME_ALIASES: Final[Mapping[str, str]] = {"": "s", "m": "min"}
_DECIMAL: Final[Mapping[str, int]] = {
    "E": 10**18, "P": 10**15, "T": 10**12, "G": 10**9, "M": 10**6, "k": 10**3,
}
_BINARY: Final[Mapping[str, int]] = {"Ei": 2**60, "Pi": 2**50, "Ti": 2**40, "Gi": 2**30, "Mi": 2**20, "Ki": 2**10}
_PREFIXES: Final[Mapping[str, int]] = {**_BINARY, **_DECIMAL, "": 1}
_SCALES: Final[Mapping[str, int]] = {prefix.lower(): scale for prefix, scale in _PREFIXES.items()}
_SIZE_UNIT: Final = re.compile(r"((?:[kKmMgGtTpPeE][iI]?)?)B")
_BYTE_RATE_UNIT: Final = re.compile(r"((?:[kKmMgGtTpPeE][iI]?)?)(B|bit)/s")
_PERIODS: Final[Mapping[str, int]] = {"s": 1, "min": 60, "h": 3600}
_EVENT_RATE: Final = re.compile(r"([0-9]{1,9})\s*/\s*(s|min|m|h)")


@dataclass(frozen=True, slots=True)
class Integer(Unquoted):
    """A whole number."""

    minimum: int
    maximum: int
    unit: str = ""
    """What is counted, for complaints and the reference page; may be empty."""

    @property
    def expected(self) -> str:
        """See ``Kind``."""
        return f"a whole number from {self.minimum} to {self.maximum}{self.unit and ' ' + self.unit}"

    def parse(self, raw: object, base: Path) -> int:  # noqa: ARG002 - the seam's signature
        """See ``Kind``."""
        number, unit = _number_and_unit(raw)
        if unit:
            raise ValueError(NOT_UNDERSTOOD)
        return _whole(number, Decimal(self.minimum), Decimal(self.maximum))


@dataclass(frozen=True, slots=True)
class OrAuto:
    """A whole number, or "auto", which becomes ``AUTO``: the program finds out by itself."""

    kind: Integer

    @property
    def expected(self) -> str:
        """See ``Kind``."""
        return f'{self.kind.expected}, or "{_AUTO_TEXT}"'

    def parse(self, raw: object, base: Path) -> int:
        """See ``Kind``."""
        if isinstance(raw, str) and raw.strip().lower() == _AUTO_TEXT:
            return AUTO
        return self.kind.parse(raw, base)

    def format(self, value: object) -> str:
        """See ``Kind``."""
        return _AUTO_TEXT if value == AUTO else self.kind.format(value)

    def toml(self, value: object) -> str:
        """See ``Kind``."""
        return quote(_AUTO_TEXT) if value == AUTO else self.kind.toml(value)


@dataclass(frozen=True, slots=True)
class Duration(Quoted):
    """A time in seconds."""

    minimum: str
    maximum: str

    @property
    def expected(self) -> str:
        """See ``Kind``."""
        return f'a duration from "{self.minimum}" to "{self.maximum}" (a plain number is seconds)'

    def parse(self, raw: object, base: Path) -> float:  # noqa: ARG002 - the seam's signature
        """See ``Kind``."""
        seconds = _seconds(raw)
        if not _seconds(self.minimum) <= seconds <= _seconds(self.maximum):
            raise ValueError(OUT_OF_RANGE)
        return float(seconds)

    def format(self, value: object) -> str:
        """See ``Kind``."""
        seconds = Decimal(str(value))
        for unit, scale in _TIME_UNITS.items():
            if seconds and seconds % scale == 0:
                return f"{int(seconds / scale)}{unit}"
        return f"{seconds.normalize():f}s"


@dataclass(frozen=True, slots=True)
class Size(Quoted):
    """A number of bytes."""

    minimum: str
    maximum: str

    @property
    def expected(self) -> str:
        """See ``Kind``."""
        return f'a size from "{self.minimum}" to "{self.maximum}" (a plain number is bytes)'

    def parse(self, raw: object, base: Path) -> int:  # noqa: ARG002 - the seam's signature
        """See ``Kind``."""
        return _whole(_bytes(raw), _bytes(self.minimum), _bytes(self.maximum))

    def format(self, value: object) -> str:
        """See ``Kind``."""
        return _with_prefix(int(str(value)), "B", _PREFIXES)


@dataclass(frozen=True, slots=True)
class ByteRate(Quoted):
    """Bytes per second."""

    minimum: str
    maximum: str

    @property
    def expected(self) -> str:
        """See ``Kind``."""
        return f'a bandwidth from "{self.minimum}" to "{self.maximum}" (a plain number is bytes per second)'

    def parse(self, raw: object, base: Path) -> int:  # noqa: ARG002 - the seam's signature
        """See ``Kind``."""
        return _whole(_bytes_per_second(raw), _bytes_per_second(self.minimum), _bytes_per_second(self.maximum))

    def format(self, value: object) -> str:
        """See ``Kind``."""
        rate = int(str(value))
        return _with_prefix(8 * rate, "bit/s", _DECIMAL) or _with_prefix(rate, "B/s", _PREFIXES)


@dataclass(frozen=True, slots=True)
class EventRate(Quoted):
    """Events per second, minute or hour, at least one."""

    @property
    def expected(self) -> str:
        """See ``Kind``."""
        return 'a rate such as "10/s", "30/min" or "5/h"'

    def parse(self, raw: object, base: Path) -> Rate:  # noqa: ARG002 - the seam's signature
        """See ``Kind``."""
        match = _EVENT_RATE.fullmatch(text_of(raw))
        if match is None:
            raise ValueError(NOT_UNDERSTOOD)
        if int(match[1]) == 0:
            raise ValueError(OUT_OF_RANGE)
        return Rate(int(match[1]), _PERIODS["min" if match[2] == "m" else match[2]])

    def format(self, value: object) -> str:
        """See ``Kind``."""
        if not isinstance(value, Rate):
            raise TypeError(value)
        period = next(name for name, seconds in _PERIODS.items() if seconds == value.seconds)
        return f"{value.events}/{period}"


def _number_and_unit(raw: object) -> tuple[Decimal, str]:
    """A TOML number, or text that is a number and perhaps a unit; the number is finite and not negative."""
    if isinstance(raw, str):
        match = _NUMBER.fullmatch(text_of(raw))
        if match is None:
            raise ValueError(NOT_UNDERSTOOD)
        return Decimal(match[1]), match[2]
    if isinstance(raw, bool) or not isinstance(raw, (int, float)):
        raise ValueError(WRONG_TYPE)  # noqa: TRY004 - whoever parses a setting catches one kind of error
    if isinstance(raw, int) and raw.bit_length() > _MAX_BITS:
        raise ValueError(OUT_OF_RANGE)
    number = Decimal(repr(raw))  # the digits that were written, not the binary fraction they became
    if not number.is_finite() or number < 0:
        raise ValueError(OUT_OF_RANGE)
    return number, ""


def _seconds(raw: object) -> Decimal:
    number, unit = _number_and_unit(raw)
    scale = _TIME_UNITS.get(_TIME_ALIASES.get(unit, unit))
    if scale is None:
        msg = f"has {show(unit)}, which is no unit of time"
        raise ValueError(msg)
    return number * scale


def _bytes(raw: object) -> Decimal:
    number, unit = _number_and_unit(raw)
    match = _SIZE_UNIT.fullmatch(unit or "B")
    if match is None:
        msg = f"has {show(unit)}, which is no unit of size"
        raise ValueError(msg)
    return number * _SCALES[match[1].lower()]


def _bytes_per_second(raw: object) -> Decimal:
    number, unit = _number_and_unit(raw)
    match = _BYTE_RATE_UNIT.fullmatch(unit or "B/s")
    if match is None:
        msg = f"has {show(unit)}, which is no unit of bandwidth"
        raise ValueError(msg)
    scaled = number * _SCALES[match[1].lower()]
    return scaled if match[2] == "B" else scaled / 8


def _whole(number: Decimal, minimum: Decimal, maximum: Decimal) -> int:
    if not minimum <= number <= maximum:
        raise ValueError(OUT_OF_RANGE)
    if number != number.to_integral_value():
        msg = "is not a whole number"
        raise ValueError(msg)
    return int(number)


def _with_prefix(number: int, unit: str, prefixes: Mapping[str, int]) -> str:
    """``number`` with the largest prefix that leaves a whole number of at least 1, or empty; 0 takes only the empty prefix."""
    fitting = [(scale, prefix) for prefix, scale in prefixes.items() if number % scale == 0 and (number or scale == 1)]
    if not fitting:
        return ""
    scale, prefix = max(fitting)
    return f"{number // scale} {prefix}{unit}"
