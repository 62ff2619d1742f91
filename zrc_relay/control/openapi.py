"""The OpenAPI document of the admin endpoint, made of the table of routes and the dataclasses of the answers (R10)."""

from __future__ import annotations

import json
from functools import cache
from http import HTTPStatus
from typing import Any, Final

from zrc_relay import __version__
from zrc_relay.control.routes import ROUTES, Link, Parameter, Route
from zrc_relay.control.schema import Schema, parts_of, schema_name, schema_of

PROBLEM_TYPE: Final = "application/problem+json"
JSON_TYPE: Final = "application/json"
EVENT_STREAM_TYPE: Final = "text/event-stream"

ALWAYS: Final = (400, 401, 403, 429)
"""Statuses that any request may get."""
WITH_INPUT: Final = (422,)
WITH_BODY: Final = (413, 415)

_MEANINGS: Final = {
    400: "The request is not HTTP or JSON as it should be.",
    401: "There is no token, or none that is known here.",
    403: "The token does not have the scope that this needs.",
    404: "There is no such thing.",
    409: "It does not go together with how things are; `candidates` or `problems` say more.",
    413: "The body is too long.",
    415: "The body is not `application/json`.",
    422: "Parameters or body are not as this document says; `problems` lists what is wrong.",
    429: "Too many requests from there were refused; try again after `Retry-After` seconds.",
    503: "There are too many listeners already, or what would have to answer does not do so just now; try again in a moment.",
}
_HEADERS: Final[dict[int, Schema]] = {
    401: {"WWW-Authenticate": {"schema": {"type": "string"}, "description": "How to authenticate."}},
    429: {"Retry-After": {"schema": {"type": "integer"}, "description": "Seconds to wait."}},
    503: {"Retry-After": {"schema": {"type": "integer"}, "description": "Seconds to wait."}},
}
_DESCRIPTION: Final = """\
What operators see and do of a running relay. Every request needs a bearer token with the scope of its operation (`x-scope`),
or, on a UNIX socket where the relay trusts them, the credentials of root or the relay's own user. Every request is written to the
audit log. Errors are `application/problem+json` (RFC 9457). Moments are UTC, durations seconds, bandwidths bytes a second."""
_EVENTS: Final = """\
Server-sent events, each with `id` (a number that counts up by one; a gap is what the filter left out), `event` (its name, such as
`allocation.created` or `session.refused`) and `data` (a JSON object with `time` and the fields of the event). A listener that
does not keep up gets a last event `overflow`; one that has listened for an hour gets `end`, as at a stop of the relay, and may
come again. `worker.lost` says that a worker died with all its allocations, of which no other event tells: list again when
`worker.replaced` comes. Comments keep idle connections alive."""
_EVENT: Final[Schema] = {
    "type": "object",
    "description": "One event.",
    "properties": {
        "id": {"type": "string"},
        "event": {"type": "string"},
        "data": {"type": "string", "contentMediaType": JSON_TYPE},
    },
    "required": ["event", "data"],
}
_PROBLEM: Final[Schema] = {
    "type": "object",
    "description": "What is wrong with a request (RFC 9457).",
    "properties": {
        "type": {"type": "string", "description": "Always `about:blank`: the status says it."},
        "title": {"type": "string", "description": "The status in words."},
        "status": {"type": "integer", "minimum": 400, "maximum": 599},
        "detail": {"type": "string", "description": "What is wrong, for people."},
        "candidates": {
            "type": "array", "items": {"type": "string"}, "description": "Full names, where a short one means several.",
        },
        "problems": {
            "type": "array", "items": {"type": "string"}, "description": "Everything that is wrong, one by one.",
        },
    },
    "required": ["type", "title", "status"],
    "additionalProperties": False,
}


@cache
def document() -> dict[str, Any]:
    """The document; the same object each time, which nobody changes."""
    paths: dict[str, Any] = {}
    schemas: dict[str, Schema] = {"Problem": _PROBLEM}
    for route in ROUTES.values():
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route)
        if route.answer is not None:
            schemas |= {schema_name(kind): schema_of(kind) for kind in parts_of(route.answer)}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "zrc-relay administration", "version": __version__, "description": _DESCRIPTION,
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "servers": [{"url": "/"}],
        "security": [{"token": []}],
        "tags": [{"name": name} for name in dict.fromkeys(_tag(route) for route in ROUTES.values())],
        "paths": paths,
        "components": {
            "schemas": dict(sorted(schemas.items())),
            "responses": {str(status): _refusal(status) for status in sorted(_MEANINGS)} | {"default": _default()},
            "securitySchemes": {
                "token": {
                    "type": "http", "scheme": "bearer", "description": "A token of the file that `admin_tokens_path` names.",
                },
            },
        },
    }


@cache
def document_bytes() -> bytes:
    """The document as it is sent."""
    return json.dumps(document()).encode()


def statuses(route: Route) -> tuple[int, ...]:
    """Every status with which a route may refuse."""
    found = {*ALWAYS, *route.refusals}
    if route.parameters or route.body is not None:
        found.update(WITH_INPUT)
    if route.body is not None:
        found.update(WITH_BODY)
    return tuple(sorted(found))


def _operation(route: Route) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": route.name,
        "summary": route.summary,
        "tags": [_tag(route)],
        "x-scope": route.scope.value,
        "parameters": [_parameter(parameter) for parameter in route.parameters],
        "responses": {
            str(route.status): _answer(route),
            **{str(status): {"$ref": f"#/components/responses/{status}"} for status in statuses(route)},
            "default": {"$ref": "#/components/responses/default"},
        },
    }
    if route.body is not None:
        operation["requestBody"] = {"required": True, "content": {JSON_TYPE: {"schema": route.body}}}
    return operation


def _parameter(parameter: Parameter) -> dict[str, Any]:
    return {
        "name": parameter.name,
        "in": "path" if parameter.in_path else "query",
        "required": parameter.required,
        "description": parameter.help,
        "schema": parameter.schema,
    }


def _answer(route: Route) -> dict[str, Any]:
    if route.answer is not None:
        schema: Schema = {"$ref": f"#/components/schemas/{schema_name(route.answer)}"}
        answer: dict[str, Any] = {
            "description": schema_of(route.answer)["description"], "content": {JSON_TYPE: {"schema": schema}},
        }
        if route.links:
            answer["links"] = {link.route: _link(link) for link in route.links}
        return answer
    if route.name == "listen":
        return {"description": _EVENTS, "content": {EVENT_STREAM_TYPE: {"schema": _EVENT}}}
    return {"description": "An OpenAPI document.", "content": {JSON_TYPE: {"schema": {"type": "object"}}}}


def _link(link: Link) -> dict[str, Any]:
    return {"operationId": link.route, "parameters": {link.parameter: f"$response.body#{link.pointer}"}}


def _refusal(status: int) -> dict[str, Any]:
    answer: dict[str, Any] = {
        "description": f"{HTTPStatus(status).phrase}. {_MEANINGS[status]}",
        "content": {PROBLEM_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
    }
    if status in _HEADERS:
        answer["headers"] = _HEADERS[status]
    return answer


def _default() -> dict[str, Any]:
    return {
        "description": "Anything else that went wrong.",
        "content": {PROBLEM_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
    }


def _tag(route: Route) -> str:
    return route.path.split("/")[2].removesuffix(".json")
