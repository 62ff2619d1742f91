"""What a request brings along: where it comes from, its parameters, its body, each held against the table of routes."""

from __future__ import annotations

import json
import re
import socket
import struct
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import parse_qsl

from twisted.internet.address import UNIXAddress

from zrc_relay.control.auth import Origin
from zrc_relay.control.openapi import JSON_TYPE
from zrc_relay.control.problems import Problem
from zrc_relay.control.routes import Parameter, Route
from zrc_relay.control.schema import problems
from zrc_relay.core.fields import Address
from zrc_relay.core.sources import numeric, source_of

MAX_BODY: Final = 16 * 1024
"""Longest body in bytes: many times what any operation takes."""
MAX_FIELDS: Final = 64
MAX_PROBLEMS: Final = 20
"""Problems that an answer lists."""
Inputs = dict[str, Any]

_INTEGER: Final = re.compile(r"-?[0-9]{1,15}")
_BOOLEANS: Final = {"true": True, "false": False}
_CREDENTIALS: Final = struct.Struct("iII")
"""``struct ucred`` of Linux: pid, uid, gid (unix(7))."""
_UNIX_SOURCES: Final = -1
"""Sources of UNIX sockets are numbers from here downwards; those of addresses are not negative."""


def origin_of(request: Any) -> Origin:
    """Where ``request`` comes from."""
    address = request.getClientAddress()
    if isinstance(address, UNIXAddress):
        peer = request.channel.transport.getHandle().getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        pid, uid, _ = _CREDENTIALS.unpack(peer)
        return Origin(f"unix uid={uid} pid={pid}", _UNIX_SOURCES - uid, uid)
    found = Address.of(address.host, address.port)
    return Origin(str(found), source_of(numeric(found.host)))


def inputs_of(request: Any, route: Route, parts: Mapping[str, str]) -> Inputs:
    """The parameters of path and query, with their defaults; 422 with everything that is not as ``route`` says."""
    given = dict(parts)
    wrong: list[str] = []
    for name, value in _query(request):
        if name in given:
            wrong.append(f"{name[:40]}: is given twice")
        given[name] = value
    known = {parameter.name: parameter for parameter in route.parameters}
    wrong += [f"{name[:40]}: is unknown" for name in given if name not in known]
    found: Inputs = {}
    for name, parameter in known.items():
        if name in given:
            found[name] = _parsed(parameter, given[name])
            wrong += [f"{where}: {what}" for where, what in problems(parameter.schema, found[name], name)]
        elif parameter.required:
            wrong.append(f"{name}: is required")
        elif "default" in parameter.schema:
            found[name] = parameter.schema["default"]
    _refuse(wrong, "the parameters are not as they should be")
    return found


def body_of(request: Any, route: Route) -> Inputs:
    """What the body says, if ``route`` has one: 413 when it is too long, 415 when it is no JSON, 400 or 422 when it is wrong."""
    if route.body is None:
        return {}
    kind = (request.getHeader("content-type") or "").partition(";")[0].strip().lower()
    if kind != JSON_TYPE:
        msg = f"the body must be {JSON_TYPE}"
        raise Problem(415, msg)
    request.content.seek(0)
    data = request.content.read(MAX_BODY + 1)
    if len(data) > MAX_BODY:
        msg = f"the body may have {MAX_BODY} bytes"
        raise Problem(413, msg)
    try:
        value = json.loads(data.decode(), parse_constant=_no_constant, object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        msg = f"the body is not JSON: {error}"
        raise Problem(400, msg) from error
    _refuse([f"{where}: {what}" for where, what in problems(route.body, value, "body")], "the body is not as it should be")
    return dict(value)


def _refuse(wrong: list[str], detail: str) -> None:
    if wrong:
        raise Problem(422, detail, problems=wrong[:MAX_PROBLEMS])


def _query(request: Any) -> list[tuple[str, str]]:
    query = request.uri.partition(b"?")[2]
    try:
        return parse_qsl(query.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=MAX_FIELDS)
    except ValueError as error:
        msg = f"the query cannot be read: {error}"
        raise Problem(400, msg) from error


def _parsed(parameter: Parameter, text: str) -> Any:
    """``text`` as the type that the parameter has; as it is when it says nothing of that type."""
    kind = parameter.schema["type"]
    if kind == "integer" and _INTEGER.fullmatch(text):
        return int(text)
    if kind == "boolean":
        return _BOOLEANS.get(text, text)
    return text


def _no_constant(name: str) -> float:
    msg = f"{name} is no number in JSON"
    raise ValueError(msg)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        msg = "a name comes twice in an object"
        raise ValueError(msg)
    return found
