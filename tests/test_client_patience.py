"""A peer that comes before its device, where the relay learns devices' keys as they come."""

from __future__ import annotations

from twisted.internet.defer import CancelledError, Deferred
from twisted.trial.unittest import SynchronousTestCase, TestCase

from tests.dialing import Dialer
from tests.harness import OPEN_TIER, RELAY_ID, World
from tests.real_relay import Setup, eventually, exchange
from zrc_relay.client import ClientConnection, Identity
from zrc_relay.client.backoff import is_final
from zrc_relay.client.dial import Handlers
from zrc_relay.client.errors import Blocked, DeviceUnknown, RelayError, TokenExpired
from zrc_relay.client.patience import JITTER, patient
from zrc_relay.core.authorisation import UNKNOWN_RETRY_AFTER
from zrc_relay.core.codes import ErrorCode, Role
from zrc_relay.core.keys import DeviceKeys
from zrc_relay.core.relay import Policy


class PatienceTests(SynchronousTestCase):
    """Issue "proof of possession": DEVICE_UNKNOWN with retry_after is waited for and retried."""

    def setUp(self) -> None:
        policy = Policy(relay_id=RELAY_ID, instance_id=bytes(8), default_tier=OPEN_TIER, self_certified_tier="free")
        self.world = World(policy=policy)
        self.world.relay.replace_keys(DeviceKeys(), self.world.now(), self.world.wall())
        self.dialer = Dialer(self.world)

    def connect(self, role: Role, patience: float = 60.0) -> Deferred[ClientConnection]:
        """An attempt as ``connect`` makes it."""
        dial = patient(self.dialer.dial, self.world.clock, patience=patience, now=self.world.now, random=lambda: 1.0)
        key = self.world.device_key if role is Role.DEVICE else self.world.peer_key
        identity = Identity(self.world.token(), role, key)

        async def attempt() -> ClientConnection:
            return await dial(identity, Handlers())

        return Deferred.fromCoroutine(attempt())

    def test_a_peer_gets_in_as_soon_as_its_device_has_come(self) -> None:
        peer = self.connect(Role.PEER)
        self.world.run(10)
        self.assertNoResult(peer)
        device = self.connect(Role.DEVICE)
        self.world.run(0.5)
        self.successResultOf(device)
        self.world.run(UNKNOWN_RETRY_AFTER + JITTER)
        self.assertIsNotNone(self.successResultOf(peer).allocated)

    def test_it_comes_as_often_as_it_was_told(self) -> None:
        self.connect(Role.PEER).addErrback(lambda _: None)
        self.world.run(20)
        pauses = [later - earlier for earlier, later in zip(self.dialer.times, self.dialer.times[1:], strict=False)]
        self.assertGreater(len(pauses), 3)
        for pause in pauses:
            self.assertGreaterEqual(pause, UNKNOWN_RETRY_AFTER + JITTER)
            self.assertLess(pause, UNKNOWN_RETRY_AFTER + JITTER + 0.5)

    def test_it_gives_up_when_its_patience_is_over(self) -> None:
        peer = self.connect(Role.PEER, patience=10.0)
        self.world.run(9)
        self.failureResultOf(peer, DeviceUnknown)
        self.assertEqual(len(self.dialer.times), 3)

    def test_without_patience_it_is_told_at_once(self) -> None:
        peer = self.connect(Role.PEER, patience=0.0)
        self.world.run(0.5)
        self.failureResultOf(peer, DeviceUnknown)

    def test_a_device_that_will_never_be_known_is_not_waited_for(self) -> None:
        self.world = World()
        self.world.relay.replace_keys(DeviceKeys(), self.world.now(), self.world.wall())
        self.dialer = Dialer(self.world)
        peer = self.connect(Role.PEER)
        self.world.run(0.5)
        self.failureResultOf(peer, DeviceUnknown)

    def test_who_no_longer_wants_to_wait_can_cancel(self) -> None:
        peer = self.connect(Role.PEER)
        self.world.run(1)
        peer.cancel()
        self.failureResultOf(peer, CancelledError)
        before = len(self.dialer.times)
        self.world.run(10)
        self.assertEqual(len(self.dialer.times), before)


class FinalTests(SynchronousTestCase):
    """PROTOCOL §5: where the relay says when to come again, an error is not final."""

    def test_codes_with_and_without_a_time(self) -> None:
        cases: tuple[tuple[type[RelayError], bool], ...] = ((DeviceUnknown, True), (Blocked, True), (TokenExpired, True))
        for error, final in cases:
            self.assertEqual(is_final(error("no")), final)
            self.assertFalse(is_final(error("retry_after=5;not yet")))


class RealTests(TestCase):
    """Issue "proof of possession", over real sockets: a relay that has no key file, and a peer that comes first."""

    timeout = 60.0

    async def test_a_relay_that_has_pinned_nobody(self) -> None:
        setup = Setup(self, settings={"trust": "self-certified"})
        (setup.made.directory / "devices.toml").write_text("")
        service = setup.service()
        refused = service.relay.counters.refused
        coming = Deferred.fromCoroutine(setup.connect(Role.PEER))
        await eventually(lambda: refused[ErrorCode.DEVICE_UNKNOWN] > 0, "the peer is told to come again")
        device = await setup.connect(Role.DEVICE)
        peer = await coming
        await exchange(device, peer)
