"""The two sides of an allocation and their connections: who must prove, who is current, what the other side hears."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from tests.fakes import EPOCH, STRANGER, FakeClient, Scene, make_token
from zrc_relay.core.codes import ErrorCode, NoticeCode, Role
from zrc_relay.core.session import SessionState
from zrc_relay.core.wire import Notice

EXPIRY = int(EPOCH) + 3600


class ProvenSideTests(SynchronousTestCase):
    """A side that has bound with proof is never again bound without (PROTOCOL §4, R6.8)."""

    def setUp(self) -> None:
        self.scene = Scene(proving_roles=frozenset())

    def code_without_proof(self, role: Role) -> ErrorCode | None:
        """How a join without proof ends."""
        client = self.scene.connect()
        client.allocate(role, prove=False)
        return client.close_code

    def test_without_a_proof_it_may_bind_as_long_as_nobody_proved(self) -> None:
        for _ in range(3):
            self.assertIsNone(self.code_without_proof(Role.DEVICE))

    def test_after_one_proof_all_must_prove(self) -> None:
        self.scene.bind(Role.DEVICE, prove=False)
        self.scene.bind(Role.DEVICE, prove=True)
        self.assertIs(self.code_without_proof(Role.DEVICE), ErrorCode.PROOF_REQUIRED)
        self.scene.bind(Role.DEVICE, prove=True)

    def test_it_holds_for_each_side_alone(self) -> None:
        self.scene.bind(Role.DEVICE, prove=True)
        self.assertIsNone(self.code_without_proof(Role.PEER))
        self.scene.bind(Role.PEER, prove=True)
        self.assertIs(self.code_without_proof(Role.PEER), ErrorCode.PROOF_REQUIRED)

    def test_it_holds_when_the_one_that_proved_is_gone(self) -> None:
        self.scene.bind(Role.PEER)
        self.scene.bind(Role.DEVICE, prove=True).lose()
        self.assertIs(self.code_without_proof(Role.DEVICE), ErrorCode.PROOF_REQUIRED)

    def test_it_holds_after_the_end_until_the_token_expires(self) -> None:
        self.scene.bind(Role.DEVICE, prove=True).release()
        self.assertIs(self.code_without_proof(Role.DEVICE), ErrorCode.PROOF_REQUIRED)
        self.assertEqual(len(self.scene.relay.table), 0)
        self.assertIsNone(self.code_without_proof(Role.PEER))
        self.assertIs(self.code_without_proof(Role.DEVICE), ErrorCode.PROOF_REQUIRED)
        self.scene.advance(3600.0)
        later = self.scene.connect()
        later.allocate(Role.DEVICE, make_token(expires_at=EXPIRY + 60), prove=False)
        self.assertTrue(later.is_bound)

    def test_a_refused_proof_proves_nothing(self) -> None:
        token = make_token()
        client = self.scene.connect()
        client.allocate(Role.DEVICE, token, proof=client.prove(STRANGER, token.encode(), Role.DEVICE))
        self.assertIs(client.close_code, ErrorCode.PROOF_INVALID)
        self.assertIsNone(self.code_without_proof(Role.DEVICE))


class SeveralConnectionsTests(SynchronousTestCase):
    """Several connections a side, one of them current; the other side hears of the first and the last (R5.2, PROTOCOL §5)."""

    JOINED, LEFT = NoticeCode.PEER_JOINED, NoticeCode.PEER_LEFT

    def setUp(self) -> None:
        self.scene = Scene(max_connections_per_side=3)
        self.device, self.peer = self.scene.pair()

    def test_so_many_a_side_and_no_more(self) -> None:
        others = [self.scene.bind(Role.PEER) for _ in range(2)]
        refused = self.scene.connect()
        refused.allocate(Role.PEER)
        self.assertIs(refused.close_code, ErrorCode.TOO_MANY_CONNECTIONS)
        self.assertEqual(list(self.scene.allocation().sides[Role.PEER].members), [one.session for one in (self.peer, *others)])
        self.scene.bind(Role.DEVICE)
        others[0].lose()
        self.scene.bind(Role.PEER)

    def test_a_refused_one_s_later_token_is_not_put_in_force(self) -> None:
        for _ in range(2):
            self.scene.bind(Role.PEER)
        refused = self.scene.connect()
        refused.allocate(Role.PEER, make_token(expires_at=EXPIRY + 60))
        self.assertIs(refused.close_code, ErrorCode.TOO_MANY_CONNECTIONS)
        self.assertEqual(self.scene.allocation().token, make_token())

    def test_the_newest_carries_egress_and_the_one_before_hears_it(self) -> None:
        newer = self.scene.bind(Role.PEER)
        self.assertEqual(self.peer.notices(), [Notice(NoticeCode.SUPERSEDED)])
        self.assertEqual(newer.notices(), [])
        self.device.datagram(b"x")
        self.assertEqual((self.peer.link.datagrams, newer.link.datagrams), ([], [b"x"]))

    def test_all_are_accepted_from(self) -> None:
        newer = self.scene.bind(Role.PEER)
        self.peer.datagram(b"old")
        newer.datagram(b"new")
        self.assertEqual(self.device.link.datagrams, [b"old", b"new"])

    def test_a_silent_one_loses_egress_to_an_older_one_that_is_heard(self) -> None:
        self.scene.advance(0.5)
        newer = self.scene.bind(Role.PEER)
        self.scene.advance(1.5)
        self.peer.datagram(b"still here")
        self.assertEqual(newer.notices(), [Notice(NoticeCode.SUPERSEDED)])
        self.device.datagram(b"x")
        self.assertEqual((self.peer.link.datagrams, newer.link.datagrams), ([b"x"], []))

    def test_the_first_of_a_side_is_announced_with_what_fits_towards_it(self) -> None:
        scene = Scene()
        device = scene.bind(Role.DEVICE)
        device.forget()
        peer = scene.connect()
        peer.link.max_payload = 1111
        peer.allocate(Role.PEER)
        self.assertEqual(device.notices(), [Notice(self.JOINED, 1111)])
        self.assertEqual(peer.notices(), [])

    def test_every_connection_of_the_other_side_hears_it(self) -> None:
        scene = Scene()
        devices = [scene.bind(Role.DEVICE) for _ in range(2)]
        scene.bind(Role.PEER).lose()
        for device in devices:
            self.assertEqual([notice.code for notice in device.notices(self.JOINED, self.LEFT)], [self.JOINED, self.LEFT])

    def test_a_second_connection_is_not_announced(self) -> None:
        self.scene.bind(Role.PEER)
        self.assertEqual(self.device.notices(), [])

    def test_only_the_last_one_s_leaving_is_told(self) -> None:
        newer = self.scene.bind(Role.PEER)
        newer.lose()
        self.assertEqual(self.device.notices(), [])
        self.peer.lose()
        self.assertEqual(self.device.notices(), [Notice(self.LEFT)])
        self.assertEqual(self.peer.notices(self.LEFT), [])

    def test_coming_back_is_told_again(self) -> None:
        self.peer.lose()
        self.device.forget()
        self.scene.bind(Role.PEER)
        self.assertEqual(self.device.notices(), [Notice(self.JOINED, 1200)])

    def test_when_the_current_one_leaves_another_takes_over_silently(self) -> None:
        newer = self.scene.bind(Role.PEER)
        self.peer.forget()
        newer.lose()
        self.device.datagram(b"x")
        self.assertEqual((self.peer.link.datagrams, self.peer.notices()), ([b"x"], []))

    def test_what_fits_towards_the_current_one_is_told_when_it_changes(self) -> None:
        newer = self.scene.bind(Role.PEER)
        for client, size in ((self.peer, 900), (newer, 1300), (newer, 70_000)):
            client.link.max_payload = size
            client.session.max_payload_changed()
        told = [notice.first for notice in self.device.notices(NoticeCode.MAX_PAYLOAD)]
        self.assertEqual((told, newer.notices()), ([1300, 65_535], []))

    def test_a_current_one_that_fell_silent_has_lost_egress_when_a_payload_comes(self) -> None:
        self.scene.advance(0.5)
        newer = self.scene.bind(Role.PEER)
        self.scene.advance(0.9)
        self.peer.datagram(b"heard while the newer one still counts")
        self.device.forget()
        self.scene.advance(0.2)
        self.device.datagram(b"x")
        self.assertEqual((self.peer.link.datagrams, newer.link.datagrams), ([b"x"], []))
        self.assertEqual(newer.notices(), [Notice(NoticeCode.SUPERSEDED)])

    def narrow(self, max_payload: int) -> FakeClient:
        """A newer connection of the peer, towards which only so much fits."""
        client = self.scene.connect()
        client.link.max_payload = max_payload
        client.allocate(Role.PEER)
        return client

    def test_when_egress_moves_the_other_side_hears_what_fits_now(self) -> None:
        second = self.scene.bind(Role.DEVICE)
        self.device.forget()
        narrow = self.narrow(900)
        told = [Notice(NoticeCode.MAX_PAYLOAD, 900)]
        self.assertEqual((self.device.notices(), second.notices(), narrow.notices()), (told, told, []))
        self.device.forget()
        narrow.lose()
        self.assertEqual(self.device.notices(), [Notice(NoticeCode.MAX_PAYLOAD, 1200)])
        self.assertEqual(self.peer.notices(), [Notice(NoticeCode.SUPERSEDED)])

    def test_also_when_it_moves_for_silence(self) -> None:
        self.narrow(900)
        self.device.forget()
        self.scene.advance(1.5)
        self.peer.datagram(b"still here")
        self.assertEqual(self.device.notices(), [Notice(NoticeCode.MAX_PAYLOAD, 1200)])

    def test_nothing_is_told_when_as_much_fits_as_before_or_nobody_is_left(self) -> None:
        self.narrow(1200).lose()
        self.assertEqual(self.device.notices(), [])
        self.peer.lose()
        self.assertEqual(self.device.notices(), [Notice(self.LEFT)])

    def test_one_that_is_not_current_may_leave_without_a_word(self) -> None:
        self.narrow(900)
        self.device.forget()
        self.peer.lose()
        self.assertEqual(self.device.notices(), [])

    def test_an_unbound_connection_s_max_payload_concerns_nobody(self) -> None:
        client = self.scene.connect()
        client.session.max_payload_changed()
        self.assertIs(client.session.state, SessionState.CHOOSING)
        self.assertEqual((self.device.notices(), self.peer.notices()), ([], []))
