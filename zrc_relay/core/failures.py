"""Errors of our own that are kept to where they happened (R5.6)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from zrc_relay.core.allocation import AllocationKey
    from zrc_relay.core.session import Session


@dataclass(frozen=True, slots=True)
class Failure:
    """An error of our own: ``name`` is what people call where it happened, ``sessions`` the ones to close.

    ``key`` is of the allocation that it happened to; None when it was one session's.
    """

    name: str
    error: Exception
    sessions: tuple[Session, ...]
    key: AllocationKey | None = None
