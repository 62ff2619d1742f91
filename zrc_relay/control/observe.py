"""The observe endpoint: ``/health``, ``/ready`` and ``/metrics`` (R7.1, R7.2, R9.5).

It only tells, and what it tells holds no client's id, address or key, so there is no authentication; by default it listens on the
loopback interface. Errors have the form that the admin endpoint gives them, ``application/problem+json``.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable
from http import HTTPStatus
from typing import Any, Final, Protocol

from klein import Klein
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.resource import Resource
from werkzeug.exceptions import HTTPException, MethodNotAllowed

from zrc_relay.control.health import Report
from zrc_relay.control.problems import Problem

JSON: Final = "application/json"
PROBLEM: Final = "application/problem+json"


class Renderer(Protocol):
    """Where the text of ``/metrics`` comes from."""

    def render(self, accept: str) -> tuple[bytes, str] | Awaitable[tuple[bytes, str]]:
        """The text in the format that an Accept header asks for, and its content type."""
        ...


class Reporting(Protocol):
    """What knows how the relay is."""

    def report(self) -> Report:
        """Look now."""
        ...


class Observe:
    """The web application; ``resource`` is what a site serves."""

    app = Klein()
    app.url_map.merge_slashes = False  # what looks almost like a path is not redirected to it
    _log = Logger()

    def __init__(self, checks: Reporting, metrics: Renderer) -> None:
        self._checks = checks
        self._metrics = metrics

    def resource(self) -> Resource:
        """The resource at the root of a site."""
        return self.app.resource()

    @app.route("/health", methods=["GET"])
    def health(self, request: Any) -> bytes:
        """Whether the relay does its work: 200, or 503 with the reasons."""
        report = self._checks.report()
        return _json(request, report.is_healthy, {
            "status": "ok" if report.is_healthy else "failing", "reasons": report.failures, "warnings": report.warnings,
        })

    @app.route("/ready", methods=["GET"])
    def ready(self, request: Any) -> bytes:
        """Whether it takes new allocations: 200, or 503 with the reasons."""
        report = self._checks.report()
        return _json(request, report.is_ready, {
            "ready": report.is_ready, "reasons": (*report.failures, *report.unready),
        })

    @app.route("/metrics", methods=["GET"])
    async def metrics(self, request: Any) -> bytes:
        """The numbers."""
        rendered = self._metrics.render(request.getHeader("accept") or "")
        text, content_type = await rendered if isinstance(rendered, Awaitable) else rendered
        request.setHeader("vary", "accept")
        return _answer(request, 200, content_type, text)

    @app.handle_errors(HTTPException)
    def refused(self, request: Any, failure: Failure) -> bytes:
        """No such path, or no such method there."""
        error: Any = failure.value
        if isinstance(error, MethodNotAllowed):
            request.setHeader("allow", ", ".join(sorted(error.valid_methods or ())))
        return _problem(request, error.code)

    @app.handle_errors(Exception)
    def failed(self, request: Any, failure: Failure) -> bytes:
        """An error in here."""
        self._log.failure("a request for {path} failed", failure, event="observe.failed", path=request.path.decode("latin-1"))
        return _problem(request, 500)


def _problem(request: Any, status: int) -> bytes:
    return _answer(request, status, PROBLEM, Problem(status, HTTPStatus(status).description or HTTPStatus(status).phrase).body())


def _json(request: Any, is_well: bool, document: dict[str, object]) -> bytes:  # noqa: FBT001 - the answer's status in one word
    return _answer(request, 200 if is_well else 503, JSON, json.dumps(document).encode() + b"\n")


def _answer(request: Any, status: int, content_type: str, body: bytes) -> bytes:
    request.setResponseCode(status)
    request.setHeader("content-type", content_type)
    request.setHeader("content-length", str(len(body)))
    request.setHeader("cache-control", "no-store")
    request.setHeader("x-content-type-options", "nosniff")
    return body
