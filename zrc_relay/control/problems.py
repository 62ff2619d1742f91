"""Errors over HTTP: one exception, and one form on the wire, ``application/problem+json`` (RFC 9457)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from http import HTTPStatus
from types import MappingProxyType

from zrc_relay.control.operations import Ambiguous, Conflict, NotFound, OperationError, Unavailable


class Problem(Exception):
    """A request that is not granted: its status (400 to 599), a sentence for people, and headers that go with it."""

    def __init__(
        self,
        status: int,
        detail: str,
        *,
        headers: Mapping[str, str] = MappingProxyType({}),
        candidates: Iterable[str] = (),
        problems: Iterable[str] = (),
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.headers = headers
        self.candidates = tuple(candidates)
        self.problems = tuple(problems)

    def body(self) -> bytes:
        """The problem as JSON."""
        document: dict[str, object] = {
            "type": "about:blank", "title": HTTPStatus(self.status).phrase, "status": self.status, "detail": self.detail,
        }
        if self.candidates:
            document["candidates"] = self.candidates
        if self.problems:
            document["problems"] = self.problems
        return json.dumps(document).encode()


def problem_of(error: OperationError) -> Problem:
    """What an operation's error is over HTTP."""
    match error:
        case Ambiguous():
            return Problem(409, str(error), candidates=error.candidates)
        case Conflict():
            return Problem(409, str(error), problems=error.problems)
        case NotFound():
            return Problem(404, str(error))
        case Unavailable():
            return Problem(503, str(error), headers={"Retry-After": "1"})
        case _:
            return Problem(500, str(error))
