"""``Traffic`` over AMP: the parent's proxy of one worker, and what answers it there.

The worker's side tells every ``OperationError`` as it is, and any other error as one of those, with its details in the log: an
error that AMP does not know would end the connection, and with it the worker. On the parent's side a connection that is lost is
``Unavailable``. How long an answer may take is for whoever asks to say (``control.merged``).
"""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any, Protocol

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionClosed
from twisted.logger import Logger
from twisted.protocols import amp

from zrc_relay.control.answers import AllocationDetail, AllocationInfo, ConnectionInfo, QlogOrder, Termination
from zrc_relay.control.operations import AllocationFilter, AllocationName, OperationError, SortKey, Unavailable
from zrc_relay.control.traffic import Numbers, Ranking, Traffic
from zrc_relay.core.cidr import Network
from zrc_relay.metrics.snapshot import Snapshot
from zrc_relay.workers import commands
from zrc_relay.workers.commands import Refusal, RefusalKind


class Caller(Protocol):
    """The parent's end of an AMP connection to a worker."""

    def callRemote(self, commandType: Any, *a: Any, **kw: Any) -> Any:  # noqa: N802, N803 - Twisted's names
        """Give a command; a Deferred of its answer."""
        ...


class RemoteTraffic:
    """See ``Traffic``."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller

    async def rank_allocations(self, which: AllocationFilter, sort: SortKey, limit: int, *, descending: bool) -> Ranking:
        """See ``Traffic``, as for all of these."""
        found: Ranking = await self._ask(
            commands.RankAllocations, which=which, sort=sort, limit=limit, descending=descending
        )
        return found

    async def describe_allocations(self, names: tuple[str, ...]) -> tuple[AllocationInfo | None, ...]:
        """What is on a page."""
        found: tuple[AllocationInfo | None, ...] = await self._ask(commands.DescribeAllocations, names=names)
        return found

    async def rank_connections(self, source: Network | None, limit: int) -> Ranking:
        """The connections."""
        found: Ranking = await self._ask(commands.RankConnections, source=source, limit=limit)
        return found

    async def describe_connections(self, names: tuple[str, ...]) -> tuple[ConnectionInfo | None, ...]:
        """What is on a page."""
        found: tuple[ConnectionInfo | None, ...] = await self._ask(commands.DescribeConnections, names=names)
        return found

    async def allocation(self, name: AllocationName) -> AllocationDetail:
        """One allocation."""
        found: AllocationDetail = await self._ask(commands.ShowAllocation, name=name)
        return found

    async def terminate(self, name: AllocationName, reason: str) -> Termination:
        """End one."""
        found: Termination = await self._ask(commands.Terminate, name=name, reason=reason)
        return found

    async def trace(self, name: AllocationName) -> QlogOrder:
        """Record one."""
        found: QlogOrder = await self._ask(commands.Trace, name=name)
        return found

    async def stats(self) -> Numbers:
        """What statistics say."""
        found: Numbers = await self._ask(commands.TakeNumbers)
        return found

    async def snapshot(self) -> Snapshot:
        """All metrics."""
        found: Snapshot = await self._ask(commands.TakeSnapshot)
        return found

    async def _ask(self, command: type[amp.Command], **arguments: Any) -> Any:
        try:
            answer = await self._caller.callRemote(command, **arguments)
        except (ConnectionClosed, amp.AmpError) as error:
            msg = "the worker is gone"
            raise Unavailable(msg) from error
        refusal: Refusal | None = answer["refusal"]
        if refusal is not None:
            raise refusal.error()
        return answer["value"]


class TrafficResponder(amp.CommandLocator):
    """Answers the commands of ``RemoteTraffic`` with what ``traffic`` says."""

    _log = Logger()

    def __init__(self, traffic: Traffic) -> None:
        self._traffic = traffic

    @commands.RankAllocations.responder
    def _rank_allocations(self, which: AllocationFilter, sort: SortKey, limit: int, descending: bool) -> Any:  # noqa: FBT001 - AMP's way
        return self._answer(self._traffic.rank_allocations(which, sort, limit, descending=descending))

    @commands.DescribeAllocations.responder
    def _describe_allocations(self, names: tuple[str, ...]) -> Any:
        return self._answer(self._traffic.describe_allocations(names))

    @commands.RankConnections.responder
    def _rank_connections(self, source: Network | None, limit: int) -> Any:
        return self._answer(self._traffic.rank_connections(source, limit))

    @commands.DescribeConnections.responder
    def _describe_connections(self, names: tuple[str, ...]) -> Any:
        return self._answer(self._traffic.describe_connections(names))

    @commands.ShowAllocation.responder
    def _show_allocation(self, name: AllocationName) -> Any:
        return self._answer(self._traffic.allocation(name))

    @commands.Terminate.responder
    def _terminate(self, name: AllocationName, reason: str) -> Any:
        return self._answer(self._traffic.terminate(name, reason))

    @commands.Trace.responder
    def _trace(self, name: AllocationName) -> Any:
        return self._answer(self._traffic.trace(name))

    @commands.TakeNumbers.responder
    def _take_numbers(self) -> Any:
        return self._answer(self._traffic.stats())

    @commands.TakeSnapshot.responder
    def _take_snapshot(self) -> Any:
        return self._answer(self._traffic.snapshot())

    def _answer(self, asked: Awaitable[Any]) -> Deferred[dict[str, Any]]:
        return Deferred.fromCoroutine(self._told(asked))

    async def _told(self, asked: Awaitable[Any]) -> dict[str, Any]:
        try:
            return {"value": await asked}
        except OperationError as error:
            return {"refusal": Refusal.of(error)}
        except Exception:
            self._log.failure("the admin endpoint could not answer {action}", event="admin.failed", action="a worker's part")
            return {"refusal": Refusal(RefusalKind.OTHER, "an error in a worker of the relay; its log says more")}
