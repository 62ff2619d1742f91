"""The byte by which packets find their worker: shares of it, ids that begin with it, and where a client goes that was wrong."""

from __future__ import annotations

import random
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from zrc_relay.core.codes import RedirectReason
from zrc_relay.core.routing import ALONE, MAX_WORKERS, Share, redirect
from zrc_relay.core.token import routing_byte
from zrc_relay.core.wire import Address, Redirect
from zrc_relay.quic.ids import CONNECTION_ID_SIZE, SECRET_SIZE, ConnectionIds

ADDRESS = Address("192.0.2.1", 4433)
COUNTS = st.integers(1, MAX_WORKERS)
SECRET = bytes(SECRET_SIZE)
DRAWS = 40_000


class ShareTests(SynchronousTestCase):
    """Issue "all cores": the worker of a byte is ``byte % N``."""

    @given(COUNTS, st.integers(0, 255))
    def test_each_byte_has_one_owner(self, count: int, byte: int) -> None:
        owners = [index for index in range(count) if Share(index, count).owns(byte)]
        self.assertEqual(owners, [byte % count])
        self.assertEqual({Share(index, count).owner_of(byte) for index in range(count)}, {byte % count})

    @given(COUNTS)
    def test_the_bytes_of_all_are_all_bytes(self, count: int) -> None:
        firsts = [Share(index, count).firsts for index in range(count)]
        self.assertEqual(sorted(b"".join(firsts)), list(range(256)))
        self.assertLessEqual(max(map(len, firsts)), 1.25 * min(map(len, firsts)))

    def test_who_is_alone_has_everything(self) -> None:
        self.assertEqual(ALONE, Share(0, 1))
        self.assertTrue(all(map(ALONE.owns, range(256))))

    def test_there_are_no_others(self) -> None:
        for index, count in ((-1, 2), (2, 2), (0, 0), (0, MAX_WORKERS + 1)):
            self.assertRaises(ValueError, Share, index, count)


class IdTests(SynchronousTestCase):
    """R5.9, issue "all cores": ids are random but for ``byte % N``."""

    def ids(self, share: Share, seed: int = 1) -> ConnectionIds:
        return ConnectionIds(SECRET, random.Random(seed).randbytes, share)  # noqa: S311 - the same draws each time

    @given(COUNTS, st.data())
    def test_ids_of_both_kinds_begin_with_a_byte_of_the_worker(self, count: int, data: st.DataObject) -> None:
        share = Share(data.draw(st.integers(0, count - 1)), count)
        ids = self.ids(share, data.draw(st.integers()))
        for made, size in ((ids.new(), CONNECTION_ID_SIZE), (ids.channel(), 7)):
            self.assertEqual(len(made), size)
            self.assertTrue(share.owns(made[0]))
            self.assertTrue(ids.owns(made))

    def test_every_value_of_the_first_byte_is_equally_likely(self) -> None:
        for share in (ALONE, Share(1, 2), Share(2, 3), Share(4, 7), Share(63, 64), Share(0, 51)):
            ids = self.ids(share)
            drawn = Counter(ids.new()[0] for _ in range(DRAWS))
            self.assertEqual(set(drawn), set(share.firsts))
            expected = DRAWS / len(share.firsts)
            chi_squared = sum((seen - expected) ** 2 / expected for seen in drawn.values())
            freedom = len(share.firsts) - 1
            self.assertLess(chi_squared, freedom + 5 * (2 * freedom) ** 0.5, share)

    def test_the_rest_of_an_id_is_random(self) -> None:
        ids = self.ids(Share(3, 4))
        made = [ids.new() for _ in range(8000)]
        self.assertEqual(len(set(made)), len(made))
        for place in range(1, CONNECTION_ID_SIZE):
            self.assertEqual(len({one[place] for one in made}), 256, place)

    def test_ids_of_others_are_known_by_their_first_byte(self) -> None:
        ids = self.ids(Share(1, 3))
        self.assertEqual([ids.owns(bytes((byte, 1, 2))) for byte in range(6)], [False, True, False] * 2)
        self.assertTrue(ids.owns(b""))

    def test_all_workers_of_a_relay_have_the_same_reset_tokens(self) -> None:
        tokens = {self.ids(Share(index, 4), seed=index).reset_token(b"one of us") for index in range(4)}
        self.assertEqual(len(tokens), 1)


class RedirectTests(SynchronousTestCase):
    """PROTOCOL §5: where a client goes on whose allocation another worker has."""

    @given(st.integers(2, MAX_WORKERS), st.binary(min_size=16, max_size=16), st.data())
    def test_to_the_port_of_the_worker_that_the_routing_byte_names(self, count: int, which: bytes, data: st.DataObject) -> None:
        share = Share(data.draw(st.integers(0, count - 1)), count)
        owner = routing_byte(which) % count
        answer = redirect(share, 5000, ADDRESS, which)
        if owner == share.index:
            self.assertIsNone(answer)
        else:
            target = Address("192.0.2.1", 5000 + owner)
            self.assertEqual(answer, Redirect(RedirectReason.OTHER_WORKER, routing_byte(which), (target,)))

    def test_nobody_is_sent_away_where_there_are_no_ports_to_go_to_or_no_other_workers(self) -> None:
        ids = [bytes((number,)) * 16 for number in range(50)]
        self.assertEqual({redirect(Share(0, 2), 0, ADDRESS, one) for one in ids}, {None})
        self.assertEqual({redirect(ALONE, 5000, ADDRESS, one) for one in ids}, {None})
        self.assertEqual(len({redirect(Share(0, 2), 5000, ADDRESS, one) is None for one in ids}), 2)
