"""Everything that can be asked of the admin endpoint: paths, parameters, bodies, scopes, answers (R10).

Theory of operation
-------------------
``ROUTES`` is the one table. The OpenAPI document is made of it; a request is held against the same schemas before a handler sees
it; and the scope that a request needs is looked up here. What a schema lets pass the handler must be able to deal with, and what
it does not let pass is a 422, so a schema says exactly what is accepted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, unique
from types import MappingProxyType
from typing import Final

from zrc_relay.config_values import TIER_NAME
from zrc_relay.control.answers import (
    AllocationDetail,
    AllocationPage,
    ConnectionPage,
    DrainState,
    EntryInfo,
    EntryPage,
    KeyChange,
    KeyPage,
    QlogOrder,
    ReloadResult,
    Stats,
    Termination,
)
from zrc_relay.control.operations import DEFAULT_PAGE, MAX_NOTE, MAX_PAGE, MAX_REASON, AllocationState, SortKey
from zrc_relay.control.schema import Schema

MAX_OFFSET: Final = 1_000_000
MAX_TTL: Final = 366 * 86400
"""Longest time in seconds that an entry may be added for; one without an end has no ttl."""
PREFIX: Final = "/admin"


@unique
class Scope(Enum):
    """What a token may be good for."""

    READ = "read"
    WRITE = "write"


@unique
class EventKind(Enum):
    """What listeners may choose to hear of: the first part of an event's name, but for refusals, which are about security."""

    ALLOCATION = "allocation"
    SESSION = "session"
    SECURITY = "security"
    WORKER = "worker"


@dataclass(frozen=True, slots=True)
class Parameter:
    """A part of the path, or of the query."""

    name: str
    schema: Schema
    help: str
    required: bool = False
    in_path: bool = False


@dataclass(frozen=True, slots=True)
class Link:
    """Where an answer leads: the ``route`` whose ``parameter`` it tells, and the JSON pointer to where in the body it stands."""

    route: str
    parameter: str
    pointer: str


@dataclass(frozen=True, slots=True)
class Route:
    """One operation.

    ``answer`` is the dataclass of the answer, None where it is something else. ``refusals`` are the statuses of its own, beside
    those that every route has.
    """

    name: str
    method: str
    path: str
    scope: Scope
    summary: str
    answer: type | None
    status: int = 200
    parameters: tuple[Parameter, ...] = ()
    body: Schema | None = None
    refusals: tuple[int, ...] = ()
    links: tuple[Link, ...] = ()


def _octet(least: str = "") -> str:
    return rf"{least}(25[0-5]|2[0-4][0-9]|1[0-9]{{2}}|[1-9]?[0-9])"


def _ipv6() -> str:
    """Every way to write an IPv6 address in hexadecimal (RFC 4291 §2.2), by where its two colons stand."""
    group = "[0-9a-fA-F]{1,4}"
    forms = ["::", f"({group}:){{7}}{group}", f"({group}:){{1,7}}:", f":(:{group}){{1,7}}"]
    forms += [f"({group}:){{1,{before}}}(:{group}){{1,{7 - before}}}" for before in range(1, 7)]
    return "|".join(forms)


_IPV4: Final = rf"{_octet()}(\.{_octet()}){{3}}"
NETWORK_PATTERN: Final = (
    rf"^({_IPV4}(/(3[0-2]|[12]?[0-9]))?|({_ipv6()})(/(12[0-8]|1[01][0-9]|[1-9]?[0-9]))?)$"
)
"""An IP address, or a network in CIDR notation."""
_ALLOCATION_PATTERN: Final = "^([0-9a-fA-F]{64}:)?[0-9a-fA-F]{32}$"
_HEX_64: Final = "^[0-9a-fA-F]{64}$"
_LINE: Final = r"[^\u0000-\u001f\u007f-\u009f\u2028\u2029]"
"""A character that does not end a line or command a terminal."""


def _text(least: int, most: int) -> Schema:
    return {"type": "string", "pattern": f"^{_LINE}{{{least},{most}}}$"}


_ALLOCATION: Final = Parameter(
    "id", {"type": "string", "pattern": _ALLOCATION_PATTERN},
    "The allocation: its id of 32 hex digits, or `device_id:allocation_id`, which is needed where two devices use the same id.",
    required=True, in_path=True)
_DEVICE: Final = Parameter(
    "device_id", {"type": "string", "pattern": _HEX_64}, "The device: SHA-256 of its public key.", required=True, in_path=True)
_PAGE: Final = (
    Parameter("limit", {"type": "integer", "minimum": 1, "maximum": MAX_PAGE, "default": DEFAULT_PAGE}, "Items of the page."),
    Parameter("offset", {"type": "integer", "minimum": 0, "maximum": MAX_OFFSET, "default": 0}, "Items before the page."),
)
_SORTS: Final = [sign + key.value for key in SortKey for sign in ("", "-")]
_NETWORK: Final[Schema] = {"type": "string", "pattern": NETWORK_PATTERN, "examples": ["192.0.2.0/24", "2001:db8::7"]}
_TIER: Final[Schema] = {"type": "string", "pattern": f"^({TIER_NAME.pattern})?$"}

_NEW_ENTRY: Final[Schema] = {
    "type": "object",
    "properties": {
        "network": {**_NETWORK, "description": "An address or a network; bits behind the prefix do not matter."},
        "access": {"type": "string", "enum": ["allow", "block"], "description": "Whether its addresses are served."},
        "ttl": {
            "type": ["number", "null"], "minimum": 1, "maximum": MAX_TTL,
            "description": "For how many seconds; without end when it is not given.",
        },
        "note": {**_text(0, MAX_NOTE), "description": "Why, for whoever reads the list."},
    },
    "required": ["network", "access"],
    "additionalProperties": False,
    "examples": [{"network": "192.0.2.0/24", "access": "block", "ttl": 3600, "note": "floods us"}],
}
_NEW_KEY: Final[Schema] = {
    "type": "object",
    "properties": {
        "public_key": {"type": "string", "pattern": _HEX_64, "description": "The device's Ed25519 public key, in hexadecimal."},
        "tier": {**_TIER, "description": "Its tier, which must exist; empty or not given for the defaults."},
        "note": {**_text(0, MAX_NOTE), "description": "What to note about it."},
    },
    "required": ["public_key"],
    "additionalProperties": False,
    "examples": [{"public_key": "ab" * 32, "tier": "paid", "note": "the gateway in the cellar"}],
}

_READ, _WRITE = Scope.READ, Scope.WRITE
ROUTES: Final[Mapping[str, Route]] = MappingProxyType({route.name: route for route in (
    Route("listAllocations", "GET", "/admin/allocations", _READ, "List the live allocations", AllocationPage, parameters=(
        Parameter("state", {"type": "string", "enum": [state.value for state in AllocationState]}, "Only those in this state."),
        Parameter("device", {"type": "string", "pattern": _HEX_64}, "Only those of this device id."),
        Parameter("peer", {"type": "string", "pattern": _HEX_64}, "Only those with this peer id."),
        Parameter("tier", _TIER, "Only those in this tier; empty for those without one."),
        Parameter("pinned", {"type": "boolean"}, "Only those whose device is pinned, or is not."),
        Parameter("source", _NETWORK, "Only those with a connection from this address or network."),
        Parameter("sort", {"type": "string", "enum": _SORTS, "default": "id"}, "What to sort by; with `-` the largest first."),
        *_PAGE,
    ), links=(
        Link("showAllocation", "id", "/items/0/id"),
        Link("traceAllocation", "id", "/items/0/id"),
        Link("terminateAllocation", "id", "/items/0/id"),
    )),
    Route("showAllocation", "GET", "/admin/allocations/{id}", _READ, "Show an allocation and its connections", AllocationDetail,
          parameters=(_ALLOCATION,), refusals=(404, 409, 503)),
    Route("terminateAllocation", "DELETE", "/admin/allocations/{id}", _WRITE, "End an allocation until its token expires",
          Termination, parameters=(
              _ALLOCATION, Parameter("reason", _text(1, MAX_REASON), "Why, for the audit log.", required=True),
          ), refusals=(404, 409, 503)),
    Route("traceAllocation", "POST", "/admin/allocations/{id}/qlog", _WRITE, "Write a qlog of an allocation's next connection",
          QlogOrder, 202, parameters=(_ALLOCATION,), refusals=(404, 409, 503)),
    Route("showStats", "GET", "/admin/stats", _READ, "Show the relay at a glance", Stats),
    Route("listConnections", "GET", "/admin/connections", _READ, "List the QUIC connections", ConnectionPage, parameters=(
        Parameter("source", _NETWORK, "Only those from this address or network."), *_PAGE,
    )),
    Route("listNetworks", "GET", "/admin/lists", _READ, "List the networks that are allowed and blocked", EntryPage, parameters=(
        Parameter("access", {"type": "string", "enum": ["allow", "block"]}, "Only those."), *_PAGE,
    )),
    Route("addNetwork", "POST", "/admin/lists", _WRITE, "Allow or block a network", EntryInfo, 201, body=_NEW_ENTRY,
          refusals=(409,), links=(Link("removeNetwork", "network", "/network"),)),
    Route("removeNetwork", "DELETE", "/admin/lists", _WRITE, "Take back what was said of a network at run time", EntryInfo,
          parameters=(Parameter("network", _NETWORK, "The network, as it was added.", required=True),), refusals=(404, 409)),
    Route("listKeys", "GET", "/admin/keys", _READ, "List the devices that may sign tokens", KeyPage, parameters=_PAGE),
    Route("pinKey", "POST", "/admin/keys", _WRITE, "Let a device sign tokens", KeyChange, 201, body=_NEW_KEY, refusals=(409,),
          links=(Link("unpinKey", "device_id", "/key/device_id"),)),
    Route("unpinKey", "DELETE", "/admin/keys/{device_id}", _WRITE, "Let a device sign no more tokens", KeyChange,
          parameters=(_DEVICE,), refusals=(404, 409)),
    Route("drain", "POST", "/admin/drain", _WRITE, "Take nobody new and ask everybody to leave", DrainState, 202),
    Route("reload", "POST", "/admin/reload", _WRITE, "Read the configuration again", ReloadResult, refusals=(409,)),
    Route("listen", "GET", "/admin/events", _READ, "Hear of events as they happen", None, parameters=(
        Parameter("kind", {"type": "string", "enum": [kind.value for kind in EventKind]}, "Only events of this kind."),
    ), refusals=(503,)),
    Route("showDocument", "GET", "/admin/openapi.json", _READ, "This document", None),
)})
"""The table, by operation id."""
