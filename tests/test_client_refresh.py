"""New tokens before the old ones expire (R1.7, PROTOCOL §5): ``TokenRefresher``."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.trial.unittest import SynchronousTestCase

from tests.dialing import Resilient, restart
from tests.harness import World
from zrc_relay.client import RefreshFailed, TokenRefresher
from zrc_relay.client.errors import AllocationExpired, TokenExpired, TokenWrongPeer
from zrc_relay.client.refresh import FIRST_RETRY, LAST_RETRY, NotLater, refresh_delay
from zrc_relay.core.codes import Role
from zrc_relay.core.token import RelayToken


class Scene(World):
    """A pair whose device has a supplier; ``supply`` says what it gives, each token living ``life`` seconds from now."""

    def __init__(self, life: int, supply: Callable[[], Any] | None = None) -> None:
        super().__init__()
        self.life = life
        self.asked: list[float] = []
        self.token_now = self.fresh()
        self.device, self.peer = self.pair(self.token_now)
        self.supply = supply or self.fresh
        self.refresher = TokenRefresher(self.device, self.ask, clock=self.clock, wall=self.wall)
        self.refresher.start()

    def fresh(self) -> RelayToken:
        return self.token(expires_at=int(self.wall()) + self.life)

    def ask(self) -> Any:
        self.asked.append(self.now())
        return self.supply()

    def failures(self) -> list[RefreshFailed]:
        return [event for event in self.device.notices if isinstance(event, RefreshFailed)]

    def pending(self) -> list[object]:
        return [call for call in self.clock.getDelayedCalls() if getattr(call.func, "__self__", None) is self.refresher]


class TimeTests(SynchronousTestCase):
    """Issue "client library": refresh before expiry."""

    def test_when_four_fifths_have_passed_or_ten_seconds_before(self) -> None:
        delays = {3600: 2880, 100: 80, 50: 40, 40: 30, 30: 20, 12: 2, 10: 1, 5: 1, 1: 0.5, 0: 0, -5: 0}
        for left, delay in delays.items():
            self.assertEqual(refresh_delay(left), delay, left)

    def test_the_supplier_is_asked_then_and_both_ends_hear_the_new_limits(self) -> None:
        scene = Scene(1000)
        scene.run(795)
        self.assertEqual(scene.asked, [])
        scene.run(10)
        self.assertEqual(len(scene.asked), 1)
        for client in (scene.device, scene.peer):
            limits = client.limits
            self.assertEqual(limits.expires_at if limits else 0, int(scene.asked[0]) + 1_800_000_000 + 1000)
        identity = scene.device.identity
        self.assertEqual(identity.token.expires_at if identity else 0, int(scene.asked[0]) + 1_800_000_000 + 1000)
        self.assertEqual(scene.failures(), [])

    def test_an_allocation_goes_on_over_many_tokens(self) -> None:
        scene = Scene(60)
        scene.run(600)
        self.assertTrue(9 < len(scene.asked) < 16, len(scene.asked))
        scene.device.send(b"still there")
        scene.run(0.1)
        self.assertEqual(scene.peer.got, [b"still there"])
        self.assertEqual(scene.failures(), [])

    def test_without_it_the_allocation_ends(self) -> None:
        world = World()
        device, _ = world.pair(world.token(expires_at=int(world.wall()) + 60))
        world.run(65)
        self.assertIsInstance(device.error, AllocationExpired)

    def test_nobody_is_asked_when_the_other_side_was_faster(self) -> None:
        scene = Scene(100)
        scene.run(50)
        refreshed = scene.peer.refresh(scene.token(expires_at=int(scene.wall()) + 1000))
        scene.run(300)
        self.successResultOf(refreshed)
        self.assertEqual(scene.asked, [])
        scene.life = 2000
        scene.run(600)
        self.assertEqual(len(scene.asked), 1)
        self.assertEqual(scene.failures(), [])


class SupplierTests(SynchronousTestCase):
    """Suppliers of every kind, and suppliers that fail."""

    def test_it_may_give_a_token_or_text_now_or_later_or_be_a_coroutine(self) -> None:
        async def later(scene: Scene) -> RelayToken:
            return scene.fresh()

        kinds: list[Callable[[Scene], Any]] = [
            lambda scene: scene.fresh(),
            lambda scene: scene.fresh().to_text(),
            lambda scene: succeed(scene.fresh()),
            lambda scene: succeed(scene.fresh().to_text()),
            later,
        ]
        for kind in kinds:
            scene = Scene(100)
            scene.supply = partial(kind, scene)
            scene.run(90)
            self.assertEqual(len(scene.asked), 1)
            self.assertEqual(scene.failures(), [])
            identity = scene.device.identity
            self.assertGreater(identity.token.expires_at if identity else 0, scene.token_now.expires_at)

    def test_failures_are_told_and_tried_again_ever_more_slowly(self) -> None:
        def broken() -> RelayToken:
            msg = "no network"
            raise OSError(msg)

        scene = Scene(3600, broken)
        scene.run(3590)
        failures = scene.failures()
        self.assertEqual([failure.retry_in for failure in failures[:8]], [1, 2, 4, 8, 16, 32, LAST_RETRY, LAST_RETRY])
        self.assertTrue(all(isinstance(failure.error, OSError) for failure in failures))
        times = scene.asked
        self.assertEqual([round(later - earlier) for earlier, later in pairwise(times[:5])], [1, 2, 4, 8])
        scene.run(20)
        self.assertIsInstance(scene.device.error, AllocationExpired)
        self.assertEqual(scene.pending(), [])

    def test_one_that_recovers_saves_the_allocation(self) -> None:
        scene = Scene(100)

        def moody() -> RelayToken:
            if len(scene.asked) < 3:
                msg = "not now"
                raise OSError(msg)
            return scene.fresh()

        scene.supply = moody
        scene.run(200)
        self.assertEqual(len(scene.failures()), 2)
        self.assertFalse(scene.device.is_closed)

    def test_a_token_that_lives_no_longer_is_a_failure(self) -> None:
        scene = Scene(100, lambda: scene.token_now)
        scene.run(85)
        self.assertTrue(all(isinstance(failure.error, NotLater) for failure in scene.failures()))
        self.assertTrue(1 <= len(scene.failures()) <= 4)

    def test_text_that_is_no_token_is_a_failure(self) -> None:
        scene = Scene(100, lambda: "not a token")
        scene.run(85)
        self.assertTrue(all(isinstance(failure.error, ValueError) for failure in scene.failures()))
        self.assertNotEqual(scene.failures(), [])

    def test_what_the_relay_refuses_is_a_failure(self) -> None:
        scene = Scene(100)
        wrong = scene.token(expires_at=int(scene.wall()) + 200, peer_id=b"another peer".ljust(32))
        scene.supply = lambda: wrong
        scene.run(82)
        self.assertIsInstance(scene.failures()[0].error, TokenWrongPeer)
        self.assertFalse(scene.device.is_closed)

    def test_one_that_takes_its_time_is_waited_for_and_not_asked_twice(self) -> None:
        slow: list[Deferred[RelayToken]] = []

        def promise() -> Deferred[RelayToken]:
            slow.append(Deferred())
            return slow[-1]

        scene = Scene(100, promise)
        scene.run(95)
        self.assertEqual(len(slow), 1)
        slow[0].callback(scene.fresh())
        scene.run(1)
        self.assertEqual(scene.failures(), [])
        limits = scene.device.limits
        self.assertGreater(limits.expires_at if limits else 0, scene.token_now.expires_at)


class EndTests(SynchronousTestCase):
    """What is left when the connection ends: nothing."""

    def test_no_timer(self) -> None:
        scene = Scene(1000)
        self.assertEqual(len(scene.pending()), 1)
        scene.device.close()
        self.assertEqual(scene.pending(), [])

    def test_no_question(self) -> None:
        cancelled: list[object] = []
        scene = Scene(100, lambda: Deferred(cancelled.append))
        scene.run(90)
        scene.device.close()
        self.assertEqual(len(cancelled), 1)
        scene.run(200)
        self.assertEqual((len(scene.asked), scene.failures(), scene.pending()), (1, [], []))

    def test_a_handler_of_the_failure_may_close_the_connection(self) -> None:
        def broken() -> RelayToken:
            msg = "no network"
            raise OSError(msg)

        scene = Scene(100, broken)
        scene.device.on_notice = lambda _: scene.device.close()
        scene.run(200)
        self.assertEqual((len(scene.asked), scene.pending()), (1, []))


class ResilientTests(SynchronousTestCase):
    """A ``ResilientConnection`` refreshes each of its connections, and comes back with the token that is in force."""

    def test_it_refreshes_before_and_after_a_reconnection(self) -> None:
        world = World()
        asked: list[float] = []

        def supply() -> RelayToken:
            asked.append(world.now())
            return world.token(expires_at=int(world.wall()) + 100)

        first = world.token(expires_at=int(world.wall()) + 100)
        device = Resilient(world, Role.DEVICE, token=first, supplier=supply)
        Resilient(world, Role.PEER, token=first)
        world.run(85)
        self.assertEqual(len(asked), 1)
        restart(world)
        device.send(bytes(100))
        world.run(2)
        self.assertTrue(device.is_connected)
        self.assertGreater(device.dialer.tokens[-1].expires_at, first.expires_at)
        world.run(85)
        self.assertEqual(len(asked), 2)
        self.assertGreater(device.identity.token.expires_at, device.dialer.tokens[-1].expires_at)

    def test_without_a_supplier_the_end_of_the_token_is_the_end(self) -> None:
        world = World()
        device = Resilient(world, Role.DEVICE, token=world.token(expires_at=int(world.wall()) + 50))
        world.run(60)
        self.assertIsInstance(device.error, (AllocationExpired, TokenExpired))
        self.assertEqual(len(device.dialer.times), 1)


class RetryTests(SynchronousTestCase):
    """The numbers of the schedule."""

    def test_retries_begin_with_a_second(self) -> None:
        self.assertEqual((FIRST_RETRY, LAST_RETRY), (1.0, 60.0))
