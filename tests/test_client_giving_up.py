"""When an end of an allocation does not connect again, and what it makes of the answers it gets (PROTOCOL §5, §9)."""

from __future__ import annotations

from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tests import raw_quic as raw
from tests.dialing import Dialer, Resilient, cut, mend
from tests.fake_relay import FakeRelay, FakeSession, allocated, fingerprint, server_configuration
from tests.harness import RELAY_ADDRESS, World
from tests.reconnecting import Scene, pending
from zrc_relay.client import AllocationTerminated, Reconnecting, Trust
from zrc_relay.client.backoff import FIRST_DELAY, is_final
from zrc_relay.client.errors import AllocationIdle, InternalError, QuotaExceeded, Terminated, TokenExpired, error_for
from zrc_relay.client.reconnect import STABLE, ResilientState
from zrc_relay.core.codes import ErrorCode, Role, TerminationReason


class GivingUpTests(SynchronousTestCase):
    """PROTOCOL §5, §9: what the relay has decided is not asked again."""

    def test_a_release_of_the_other_end_is_the_end(self) -> None:
        scene = Scene()
        closed = scene.device.when_closed()
        released = scene.peer.release()
        scene.run(1)
        self.assertIsNone(self.successResultOf(released))
        self.assertIsNone(self.successResultOf(closed))
        self.assertEqual(scene.device.state, ResilientState.CLOSED)
        self.assertIn(AllocationTerminated(TerminationReason.RELEASED), scene.device.notices)
        scene.run(30)
        self.assertEqual((len(scene.device.dialer.times), pending(scene)), (1, []))

    def test_what_an_administrator_or_the_quota_ended_stays_ended(self) -> None:
        for reason, error in (
            (TerminationReason.ADMINISTRATOR, Terminated),
            (TerminationReason.QUOTA, QuotaExceeded),
        ):
            scene = Scene()
            (allocation,) = scene.relay.table
            scene.relay.end(allocation, reason, scene.now(), scene.wall())
            scene.endpoint.batch_done()
            scene.run(5)
            self.assertIsInstance(scene.device.error, error)
            self.assertEqual(len(scene.device.dialer.times), 1)

    def test_an_allocation_whose_other_side_never_comes_back_is_let_go(self) -> None:
        scene = Scene()
        scene.peer.close()
        scene.run(35)
        self.assertIsInstance(scene.device.error, AllocationIdle)
        self.assertEqual(len(scene.device.dialer.times), 1)

    def test_a_failure_inside_the_relay_is_tried_again_even_when_it_ended_the_allocation(self) -> None:
        scene = Scene()
        (allocation,) = scene.relay.table
        scene.relay.end(allocation, TerminationReason.ERROR, scene.now(), scene.wall())
        scene.endpoint.batch_done()
        scene.run(2)
        self.assertIsInstance(scene.device.events(Reconnecting)[0].error, InternalError)
        scene.exchange(self, b"a new one")

    def test_a_token_that_expires_while_it_is_away_is_the_end(self) -> None:
        world = World()
        device = Resilient(world, Role.DEVICE, token=world.token(expires_at=int(world.wall()) + 30))
        world.run(0.5)
        cut(world)
        device.send(b"lost")
        world.run(60)
        self.assertIsInstance(device.error, TokenExpired)
        self.assertEqual(pending(world), [])

    def test_a_supplier_gives_the_token_to_come_back_with(self) -> None:
        world = World()
        late = world.token(expires_at=int(world.wall()) + 500)
        asked: list[float] = []

        def supply() -> Any:
            asked.append(world.now())
            if len(asked) < 3:
                msg = "the minting service is away too"
                raise OSError(msg)
            return late

        device = Resilient(world, Role.DEVICE, token=world.token(expires_at=int(world.wall()) + 30), supplier=supply)
        world.run(0.5)
        cut(world)
        device.send(b"lost")
        world.run(40)
        mend(world)
        world.run(30)
        self.assertTrue(device.is_connected)
        self.assertEqual(device.dialer.tokens[-1], late)
        self.assertEqual(device.identity.token, late)
        self.assertIn("minting service", str([event.error for event in device.events(Reconnecting)]))


class FakedScene(World):
    """A scripted relay: each connection gets the next answer to its ALLOCATE; the last one goes on."""

    def __init__(self, *answers: Any, supplier: Any = None) -> None:
        super().__init__()
        self.answers = list(answers)
        self.fake = FakeRelay(self.clock, self.now, self.answer)
        self.network.attach(RELAY_ADDRESS, self.fake)
        dialer = Dialer(self, Trust(fingerprint=fingerprint(server_configuration())))
        self.device = Resilient(self, Role.DEVICE, dialer=dialer, supplier=supplier)
        self.run(0.5)

    def answer(self, session: FakeSession, kind: int, _value: bytes) -> None:
        if kind == raw.ALLOCATE:
            answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
            if answer is None:
                session.send(allocated())
            else:
                code, reason = answer
                session.close(code, reason)

    def lose(self) -> None:
        """The connection that there is now ends with a failure inside the relay."""
        self.fake.sessions[-1].close(ErrorCode.INTERNAL)
        self.run(0.05)


class ScriptedTests(SynchronousTestCase):
    """PROTOCOL §5, §9: answers of a relay to one who comes back."""

    def test_a_close_is_heard_as_soon_as_it_arrives(self) -> None:
        scene = FakedScene(None)
        scene.fake.sessions[-1].close(ErrorCode.INTERNAL, "sorry")
        scene.run(0.006)
        (event,) = scene.device.events(Reconnecting)
        self.assertEqual(str(event.error), "INTERNAL: sorry")

    def test_each_final_code_ends_it_after_one_attempt(self) -> None:
        for code in ErrorCode:
            if code is ErrorCode.NO_ERROR or not is_final(error_for(code, "")):
                continue
            scene = FakedScene(None, (code, "no"))
            scene.lose()
            scene.run(30)
            self.assertEqual(getattr(scene.device.error, "code", None), code)
            self.assertEqual(len(scene.device.dialer.times), 2, code.name)

    def test_each_passing_code_is_tried_again_until_it_passes(self) -> None:
        for code in ErrorCode:
            if code is ErrorCode.NO_ERROR or is_final(error_for(code, "")):
                continue
            scene = FakedScene(None, (code, "not now"), (code, "not now"), None)
            scene.lose()
            scene.run(10)
            self.assertEqual((len(scene.device.dialer.times), scene.device.is_connected), (4, True), code.name)

    def test_an_end_in_peace_is_the_end(self) -> None:
        scene = FakedScene(None)
        scene.fake.sessions[-1].close(ErrorCode.NO_ERROR)
        scene.run(10)
        self.assertTrue(scene.device.is_closed)
        self.assertIsNone(scene.device.error)

    def test_retry_after_is_waited_for(self) -> None:
        scene = FakedScene(None, (ErrorCode.RATE_LIMITED, "retry_after=25; too many"), None)
        scene.lose()
        scene.run(24)
        self.assertFalse(scene.device.is_connected)
        scene.run(2)
        self.assertTrue(scene.device.is_connected)
        self.assertEqual([event.delay for event in scene.device.events(Reconnecting)], [FIRST_DELAY, 25.0])

    def test_a_relay_that_takes_and_drops_again_and_again_is_not_hammered(self) -> None:
        scene = FakedScene(None)
        for _ in range(400):
            if scene.device.is_connected:
                scene.lose()
            scene.run(0.25)
        self.assertLess(len(scene.device.dialer.times), 20)

    def test_one_that_held_for_a_while_is_come_back_to_at_once(self) -> None:
        scene = FakedScene(None)
        for _ in range(4):
            scene.lose()
            scene.run(3)
        scene.run(STABLE)
        self.assertTrue(scene.device.is_connected)
        scene.lose()
        self.assertEqual(scene.device.events(Reconnecting)[-1].delay, FIRST_DELAY)

    def test_an_expired_token_is_replaced_by_the_suppliers_and_only_by_a_later_one(self) -> None:
        given: list[Any] = []

        def supply() -> Any:
            return given.pop(0)

        scene = FakedScene(None, (ErrorCode.TOKEN_EXPIRED, ""), (ErrorCode.TOKEN_EXPIRED, ""), None, supplier=supply)
        same, later, last = (scene.token(expires_at=int(scene.wall()) + 3600 + extra) for extra in (0, 100, 200))
        given += [same, later, last]
        scene.lose()
        scene.run(15)
        self.assertEqual([token.expires_at - same.expires_at for token in scene.device.dialer.tokens], [0, 0, 100, 200])
        self.assertTrue(scene.device.is_connected)
        self.assertIn("does not live longer", str([event.error for event in scene.device.events(Reconnecting)]))
