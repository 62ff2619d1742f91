"""AMP commands for everything that a parent asks its workers, and what they report; see ``control.traffic`` for what it means.

Theory of operation
-------------------
An argument or answer of any type that ``values`` knows is a ``Value``. AMP's values end at 65,535 bytes, so what is longer goes
over several keys of its box: the name, the name and ``.1``, and so on.

What cannot be done is an answer like any other: each answer has a ``value`` or a ``refusal``, never both. (An error of AMP has
one text of bounded length, and the names that an ``Ambiguous`` lists know no bound; and an error that AMP has not been told of
ends the connection.)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, unique
from typing import Any, ClassVar, Final

from twisted.protocols import amp

from zrc_relay.control.answers import AllocationDetail, AllocationInfo, ConnectionInfo, QlogOrder, Termination
from zrc_relay.control.operations import (
    AllocationFilter,
    AllocationName,
    Ambiguous,
    Conflict,
    NotFound,
    OperationError,
    SortKey,
    Unavailable,
)
from zrc_relay.control.traffic import Numbers, Ranking, WorkerReport
from zrc_relay.core.cidr import Network
from zrc_relay.metrics.snapshot import Snapshot
from zrc_relay.workers.values import BadValue, decode, encode

LONGEST: Final = 0xFFFF
"""Bytes that one key of a box can hold."""
Arguments = list[tuple[bytes, amp.Argument]]
"""What a command takes or answers: names and types."""


class Value(amp.Argument):
    """An argument of the type ``kind``. An optional one that is None is not sent."""

    def __init__(self, kind: Any, *, optional: bool = False) -> None:
        super().__init__(optional)
        self._kind = kind

    def toBox(self, name: bytes, strings: Any, objects: dict[str, Any], proto: object) -> None:  # noqa: N802 - Twisted's name
        """Put the value into as many keys as it takes; ``BadValue`` when it has another type."""
        del proto
        value = objects.pop(_identifier(name), None) if self.optional else objects.pop(_identifier(name))
        if value is None and self.optional:
            return
        data = encode(value, self._kind)
        strings[name] = data[:LONGEST]
        for number, start in enumerate(range(LONGEST, len(data), LONGEST), 1):
            strings[b"%b.%d" % (name, number)] = data[start : start + LONGEST]

    def fromBox(self, name: bytes, strings: Any, objects: dict[str, Any], proto: object) -> None:  # noqa: N802 - Twisted's name
        """Take it out again; ``BadValue`` when it is not there, or is something else."""
        del proto
        pieces: list[bytes] = []
        piece = strings.pop(name, None)
        while piece is not None:
            pieces.append(piece)
            piece = strings.pop(b"%b.%d" % (name, len(pieces)), None)
        if not pieces and not self.optional:
            msg = f"{name.decode()} is not there"
            raise BadValue(msg)
        objects[_identifier(name)] = decode(b"".join(pieces), self._kind) if pieces else None


def _identifier(name: bytes) -> str:
    return name.decode("ascii")


@unique
class RefusalKind(Enum):
    """Which ``OperationError`` it is; see there."""

    NOT_FOUND = NotFound
    AMBIGUOUS = Ambiguous
    CONFLICT = Conflict
    UNAVAILABLE = Unavailable
    OTHER = OperationError


_KINDS: Final[Mapping[type, RefusalKind]] = {kind.value: kind for kind in RefusalKind}


@dataclass(frozen=True, slots=True)
class Refusal:
    """An ``OperationError`` on its way; ``items`` are the candidates or the problems, of the kinds that have any."""

    kind: RefusalKind
    detail: str
    items: tuple[str, ...] = ()

    @classmethod
    def of(cls, error: OperationError) -> Refusal:
        """That of ``error``."""
        items = tuple(getattr(error, "candidates", None) or getattr(error, "problems", None) or ())
        return cls(_KINDS.get(type(error), RefusalKind.OTHER), str(error), items)

    def error(self) -> OperationError:
        """The error again."""
        match self.kind:
            case RefusalKind.AMBIGUOUS:
                return Ambiguous(self.detail, self.items)
            case RefusalKind.CONFLICT:
                return Conflict(self.detail, self.items)
            case _:
                made: OperationError = self.kind.value(self.detail)
                return made


def answering(kind: Any) -> Arguments:
    """The response of a command that answers with a ``kind``, or refuses."""
    return [(b"value", Value(kind, optional=True)), (b"refusal", Value(Refusal, optional=True))]


# -- parent to worker


class RankAllocations(amp.Command):
    """See ``Traffic.rank_allocations``."""

    arguments: ClassVar[Arguments] = [
        (b"which", Value(AllocationFilter)), (b"sort", Value(SortKey)), (b"limit", Value(int)), (b"descending", Value(bool)),
    ]
    response: ClassVar[Arguments] = answering(Ranking)


class DescribeAllocations(amp.Command):
    """See ``Traffic.describe_allocations``."""

    arguments: ClassVar[Arguments] = [(b"names", Value(tuple[str, ...]))]
    response: ClassVar[Arguments] = answering(tuple[AllocationInfo | None, ...])


class RankConnections(amp.Command):
    """See ``Traffic.rank_connections``."""

    arguments: ClassVar[Arguments] = [(b"source", Value(Network | None)), (b"limit", Value(int))]
    response: ClassVar[Arguments] = answering(Ranking)


class DescribeConnections(amp.Command):
    """See ``Traffic.describe_connections``."""

    arguments: ClassVar[Arguments] = [(b"names", Value(tuple[str, ...]))]
    response: ClassVar[Arguments] = answering(tuple[ConnectionInfo | None, ...])


class ShowAllocation(amp.Command):
    """See ``Traffic.allocation``."""

    arguments: ClassVar[Arguments] = [(b"name", Value(AllocationName))]
    response: ClassVar[Arguments] = answering(AllocationDetail)


class Terminate(amp.Command):
    """See ``Traffic.terminate``."""

    arguments: ClassVar[Arguments] = [(b"name", Value(AllocationName)), (b"reason", Value(str))]
    response: ClassVar[Arguments] = answering(Termination)


class Trace(amp.Command):
    """See ``Traffic.trace``."""

    arguments: ClassVar[Arguments] = [(b"name", Value(AllocationName))]
    response: ClassVar[Arguments] = answering(QlogOrder)


class TakeNumbers(amp.Command):
    """See ``Traffic.stats``."""

    response: ClassVar[Arguments] = answering(Numbers)


class TakeSnapshot(amp.Command):
    """See ``Traffic.snapshot``."""

    response: ClassVar[Arguments] = answering(Snapshot)


# -- worker to parent


class Report(amp.Command):
    """How a worker is, once a second; nobody waits for an answer."""

    arguments: ClassVar[Arguments] = [(b"report", Value(WorkerReport))]
    requiresAnswer = False  # noqa: N815 - Twisted's name
