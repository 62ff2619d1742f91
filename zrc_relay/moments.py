"""Moments as text (RFC 3339), in UTC, to the millisecond: in log lines, records and answers."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import lru_cache


def timestamp(unix: float) -> str:
    """``unix`` seconds as ``2026-01-02T03:04:05.678Z``; ``ValueError``, ``OverflowError`` or ``OSError`` beyond the calendar."""
    seconds, microseconds = divmod(round(unix * 1_000_000), 1_000_000)
    return f"{_second(seconds)}.{microseconds // 1000:03d}Z"


@lru_cache(maxsize=4)
def _second(unix: int) -> str:
    """All that lines of one second have in common; when there are many, there are many in each."""
    return datetime.fromtimestamp(unix, UTC).replace(tzinfo=None).isoformat()
