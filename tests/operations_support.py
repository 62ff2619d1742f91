"""Operations on the relay of a simulated network, with a service around it that tests look into."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from nacl.signing import SigningKey
from twisted.internet.defer import Deferred, execute, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from tests.harness import OPEN_TIER, RELAY_ID, World
from zrc_relay.access import AccessStore
from zrc_relay.control.answers import AllocationPage
from zrc_relay.control.local import LocalTraffic
from zrc_relay.control.management import Clocks, FrontOperations
from zrc_relay.control.operations import AllocationFilter, AllocationName, Page, SortKey
from zrc_relay.control.sampler import Sampler
from zrc_relay.core.allocation import AllocationKey
from zrc_relay.core.cidr import AccessLists
from zrc_relay.core.keys import Device, DeviceKeys
from zrc_relay.core.relay import Policy
from zrc_relay.core.token import RelayToken, key_id
from zrc_relay.pins import PinnedKeys
from zrc_relay.qlogs import QlogRefused

MAX_ALLOCATIONS = 5000


@dataclass
class Report:
    """What a reload would say."""

    changed: tuple[str, ...] = ()
    not_reloadable: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    ended: int = 0


@dataclass
class Recorder:
    """Notes which allocations it should record."""

    directory: Path | None = None
    requested: list[AllocationKey] = field(default_factory=list)

    def request(self, key: AllocationKey) -> None:
        if self.directory is None:
            msg = "qlog_dir is not set"
            raise QlogRefused(msg)
        self.requested.append(key)


class Turns(Clock):
    """Counts how often somebody lets others have their turn."""

    count = 0

    def callLater(  # noqa: N802 - Twisted's name
        self, delay: float, callable: Callable[..., object], *args: object, **kw: object  # noqa: A002 - Twisted's name, too
    ) -> Any:
        self.count += 1
        return super().callLater(delay, callable, *args, **kw)


class WorldHost:
    """The service around the relay of a world."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.relay = world.relay
        self.device_keys = world.keys
        self.pins = PinnedKeys(None, run=execute)
        self.ready = True
        self.drain_deadline: float | None = None
        self.qlogs = Recorder()
        self.report = Report()
        self.lists = world.relay.admission.lists
        self.relay_id, self.instance_id = world.policy.relay_id, world.policy.instance_id
        self.tiers = world.policy.tiers
        self.access = AccessStore(self.lists, None, now=world.now, wall=world.wall, run=execute)

    @property
    def state(self) -> str:
        return "draining" if self.relay.draining else "ready" if self.ready else "starting"

    def lists_in_force(self) -> Deferred[None]:
        return succeed(None)

    def use_device_keys(self, configured: DeviceKeys | None = None) -> int:
        self.device_keys = configured or self.device_keys
        ended = self.relay.replace_keys(self.pins.over(self.device_keys), self.world.now(), self.world.wall())
        self.world.endpoint.sweep()
        return ended

    def drain(self) -> Deferred[None]:
        self.ready = False
        self.drain_deadline = self.world.wall() + 30
        self.relay.drain(self.drain_deadline)
        return succeed(None)

    def reload(self) -> Deferred[Report]:
        return succeed(self.report)


class OperationsCase(SynchronousTestCase):
    """Operations on a world."""

    lists: AccessLists | None = None

    def setUp(self) -> None:
        policy = Policy(relay_id=RELAY_ID, instance_id=bytes(8), default_tier=OPEN_TIER, max_allocations=MAX_ALLOCATIONS)
        self.world = World(policy=policy, lists=self.lists)
        self.host = WorldHost(self.world)
        self.sampler = Sampler(self.world.relay, self.world.endpoint, self.world.clock, self.world.now)
        self.sampler.startService()
        self.addCleanup(self.sampler.stopService)
        self.operations = self.operations_with(self.world.clock)

    def operations_with(self, clock: Clock) -> FrontOperations:
        """Operations on the world that let packets have their turn by ``clock``."""
        world = self.world
        clocks = Clocks(world.now, world.wall, clock)
        traffic = LocalTraffic(world.relay, world.endpoint, self.host.qlogs, self.sampler, clocks)
        return FrontOperations(self.host, traffic, clocks)

    def run_to_its_end(self, coroutine: Coroutine[Any, Any, Any]) -> Deferred[Any]:
        """Let an operation take as many turns of the reactor as it needs."""
        deferred = Deferred.fromCoroutine(coroutine)
        while not deferred.called:
            self.world.clock.advance(0)
        return deferred

    def do(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """What an operation gives."""
        return self.successResultOf(self.run_to_its_end(coroutine))

    def fails(self, kind: type[Exception], coroutine: Coroutine[Any, Any, Any]) -> Any:
        """The error that an operation raises."""
        return self.failureResultOf(self.run_to_its_end(coroutine), kind).value

    def listed(
        self, which: AllocationFilter | None = None, *, sort: SortKey = SortKey.ID, descending: bool = False, **page: int
    ) -> AllocationPage:
        """A page of allocations."""
        found: AllocationPage = self.do(
            self.operations.allocations(which or AllocationFilter(), sort, Page(**page), descending=descending)
        )
        return found

    def token(self, number: int, **changes: Any) -> RelayToken:
        """A token for another allocation."""
        return self.world.token(allocation_id=bytes((number,)) * 16, **changes)

    def other_device(self) -> SigningKey:
        """The key of another device that is pinned."""
        key = self.world.signing_key()
        devices = [Device(bytes(self.world.device_key.verify_key)), Device(bytes(key.verify_key), "paid")]
        self.host.use_device_keys(DeviceKeys(devices))
        return key

    def token_of(self, key: SigningKey, number: int) -> RelayToken:
        """A token by another device."""
        return replace(self.token(number), device_id=key_id(bytes(key.verify_key))).sign(key)

    def name_of(self, token: RelayToken, *, full: bool = True) -> AllocationName:
        return AllocationName(token.allocation_id, token.device_id if full else None)
