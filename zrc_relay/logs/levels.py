"""The words that settings about the log use."""

from __future__ import annotations

from enum import Enum, unique


@unique
class LogLevel(Enum):
    """How important a line is, the least important first; the names are Twisted's."""

    DEBUG = "debug"
    INFO = "info"
    WARN = "warn"
    ERROR = "error"
    CRITICAL = "critical"


@unique
class LogFormat(Enum):
    """What a line looks like."""

    AUTO = "auto"
    """Text on a terminal, else JSON."""
    TEXT = "text"
    JSON = "json"
