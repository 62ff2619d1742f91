"""P3: the quota is never exceeded, not by one byte and not by ending and beginning again (R3.6, R3.7, R2.8, PROTOCOL §5)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, rule

from tests.fakes import DEVICE, FakeClient, Scene, id_of, make_token
from tests.properties.settings import Machine, PropertyTestCase
from zrc_relay.core.allocation import Allocation
from zrc_relay.core.codes import ErrorCode, Role
from zrc_relay.core.tiers import Tier
from zrc_relay.core.token import RelayToken

ALLOCATIONS: Final = 2
MAX_PAYLOAD: Final = 65_535
TIER_QUOTA: Final = 150_000

_numbers: Final = st.integers(0, ALLOCATIONS - 1)
_roles: Final = st.sampled_from(Role)
_quotas: Final = st.one_of(st.just(0), st.integers(1, 3000), st.integers(1, 200_000))
"""What a token may ask for; 0 asks for the tier's."""
_sizes: Final = st.one_of(st.integers(0, 2000), st.integers(0, MAX_PAYLOAD))
_lives: Final = st.one_of(st.sampled_from((2, 40, 400)), st.integers(1, 400))


@dataclass(slots=True)
class Account:
    """What the world outside knows of an allocation, whether it lives or not.

    ``used`` are the bytes that really came out at the other end, ``until`` is when they are forgotten (Unix seconds, the latest
    expiry of a token that was in force), and ``is_closed`` says that the quota has ended it.
    """

    used: int = 0
    until: int = 0
    is_closed: bool = False


class Spender(Machine):
    """Both ends of two allocations send, go, come back and bring other tokens."""

    @initialize(tier=st.sampled_from((None, TIER_QUOTA)))
    def begin(self, tier: int | None) -> None:
        """Nothing is there yet."""
        self.tier = tier
        self.scene = Scene(
            proving_roles=frozenset(),
            default_tier=Tier("", None, tier, None),
            max_connections_per_side=1000,
            allocation_timeout=300.0,
        )
        self.accounts = [Account() for _ in range(ALLOCATIONS)]
        self.clients: list[FakeClient] = []

    # -- what the model knows

    def _effective(self, quota: int) -> int | None:
        if not quota:
            return self.tier
        return quota if self.tier is None else min(quota, self.tier)

    def _live(self, number: int) -> Allocation | None:
        return self.scene.relay.table.get((id_of(DEVICE), bytes((number,)) * 16))

    def _account(self, number: int) -> Account:
        """The account as it stands: forgotten when its time is over and nothing lives that counts on."""
        account = self.accounts[number]
        if self._live(number) is None and account.until <= self.scene.wall:
            account = self.accounts[number] = Account()
        return account

    def _token(self, number: int, life: int, quota: int) -> RelayToken:
        return make_token(
            DEVICE, allocation_id=bytes((number,)) * 16, expires_at=int(self.scene.wall) + life, quota_bytes=quota
        )

    def _current(self, number: int, role: Role) -> FakeClient | None:
        allocation = self._live(number)
        member = allocation.sides[role].current if allocation is not None else None
        return next((client for client in self.clients if client.session is member), None)

    # -- coming and going

    @rule(number=_numbers, role=_roles, life=_lives, quota=_quotas)
    def allocate(self, number: int, role: Role, life: int, quota: int) -> None:
        """Come with a token: it is taken unless it allows less than was used, or the quota has ended the allocation before."""
        token = self._token(number, life, quota)
        account, allocation = self._account(number), self._live(number)
        effective = self._effective(quota)
        enough = effective is None or effective >= account.used
        changes = allocation is None or token.expires_at > allocation.token.expires_at
        client = self.scene.connect()
        client.allocate(role, token, prove=False)
        if (changes and not enough) or account.is_closed:
            self.case.assertEqual(client.close_code, ErrorCode.QUOTA_EXCEEDED)
            return
        self.case.assertTrue(client.is_bound, client.link.closes)
        self.case.assertEqual(client.allocated.bytes_transferred, account.used)
        self.clients.append(client)
        if changes:
            account.until = max(account.until, token.expires_at)

    @rule(number=_numbers, life=_lives, quota=_quotas)
    def both_allocate(self, number: int, life: int, quota: int) -> None:
        """Both ends come, so that something can be sent."""
        for role in Role:
            self.allocate(number, role, life, quota)

    @rule(number=_numbers, role=_roles, life=_lives, quota=_quotas)
    def refresh(self, number: int, role: Role, life: int, quota: int) -> None:
        """Another token: more, or less, but never less than was used."""
        client, allocation = self._current(number, role), self._live(number)
        if client is None or allocation is None:
            return
        account, in_force = self._account(number), allocation.token
        token, effective = self._token(number, life, quota), self._effective(quota)
        expected: list[int] = []
        if token.expires_at <= in_force.expires_at and token != in_force:
            expected.append(ErrorCode.TOKEN_EXPIRED)
        elif effective is not None and effective < account.used:
            expected.append(ErrorCode.QUOTA_EXCEEDED)
        before, errors = allocation.quota, len(client.errors)
        client.refresh(token)
        self.case.assertEqual(client.errors[errors:], expected)
        self.case.assertEqual(allocation.quota, before if expected else effective)
        if not expected:
            account.until = max(account.until, token.expires_at)

    @rule(number=_numbers, role=_roles)
    def release(self, number: int, role: Role) -> None:
        """End it at once."""
        client = self._current(number, role)
        if client is not None:
            client.release()

    @rule(number=_numbers, role=_roles, life=st.integers(1, 5), quota=_quotas)
    def a_short_life(self, number: int, role: Role, life: int, quota: int) -> None:
        """Release it, create it again with a token that soon expires, and let it: the longer memory of earlier tokens stays."""
        self.release(number, role)
        self.both_allocate(number, life, quota)
        self.time_passes(life + 1.0)

    @rule(number=_numbers, role=_roles)
    def lose(self, number: int, role: Role) -> None:
        """A connection goes away; the absent side is waited for, for a while."""
        client = self._current(number, role)
        if client is not None:
            client.lose()

    @rule(seconds=st.sampled_from((0.25, 3.0, 31.0, 61.0, 200.0, 500.0)))
    def time_passes(self, seconds: float) -> None:
        """Allocations end because a side is absent, because their token expires, because they were not refreshed."""
        self.scene.advance(seconds)
        for number in range(ALLOCATIONS):
            self._account(number)

    # -- spending

    @rule(
        number=_numbers,
        role=_roles,
        batches=st.lists(st.lists(_sizes, min_size=1, max_size=6), max_size=3),
    )
    def datagrams(self, number: int, role: Role, batches: list[list[int]]) -> None:
        """Datagrams of any sizes, one at a time or in batches."""
        for sizes in batches:
            self._send(number, role, *sizes)
        self._settle()

    @rule(number=_numbers, role=_roles, beyond=st.integers(-2, 2), more=st.integers(0, 3))
    def up_to_the_quota(self, number: int, role: Role, beyond: int, more: int) -> None:
        """Just what is left, or a byte less or more; and then something in the same batch, which may have to wait for its end."""
        allocation = self._live(number)
        if allocation is not None and allocation.quota is not None:
            left = allocation.quota - allocation.bytes_transferred + beyond
            while left > MAX_PAYLOAD:
                self._send(number, role, MAX_PAYLOAD)
                left -= MAX_PAYLOAD
            self._send(number, role, max(0, left))
            for _ in range(more):
                self._send(number, role.other, 1)
        self._settle()

    @rule(number=_numbers, wanted=st.lists(st.integers(1, MAX_PAYLOAD), min_size=1, max_size=4))
    def stream_bytes(self, number: int, wanted: list[int]) -> None:
        """Streams take what there is, and no more."""
        allocation, account = self._live(number), self._account(number)
        if allocation is None:
            return
        for size in wanted:
            granted, _ = allocation.grant_stream_bytes(size, self.scene.now)
            left = None if allocation.quota is None else allocation.quota - account.used
            self.case.assertEqual(granted, size if left is None else min(size, left))
            account.used += granted
            account.is_closed = account.is_closed or granted == 0
        self._settle()

    def _send(self, number: int, role: Role, *sizes: int) -> None:
        sender, receiver = self._current(number, role), self._current(number, role.other)
        allocation, account = self._live(number), self._account(number)
        if sender is None or receiver is None or allocation is None:
            return
        expected: list[int] = []
        for size in sizes:
            if allocation.quota is not None and account.used + sum(expected) + size > allocation.quota:
                account.is_closed = True
                break  # nothing passes after it, however small
            expected.append(size)
        before = len(receiver.link.datagrams)
        sender.session.datagrams_received([bytes(size) for size in sizes], self.scene.now)
        arrived = [len(payload) for payload in receiver.link.datagrams[before:]]
        self.case.assertEqual(arrived, expected, f"of {sizes} after {account.used} bytes, with a quota of {allocation.quota}")
        account.used += sum(arrived)

    def _settle(self) -> None:
        """The end of a batch: what the quota has ended is over."""
        self.scene.settle()
        for number, account in enumerate(self.accounts):
            if account.is_closed:
                self.case.assertIsNone(self._live(number))

    @invariant()
    def what_is_counted_has_arrived_and_is_allowed(self) -> None:
        """To the byte."""
        for number in range(ALLOCATIONS) if hasattr(self, "accounts") else ():
            allocation = self._live(number)
            if allocation is not None:
                self.case.assertEqual(allocation.bytes_transferred, self.accounts[number].used)
                if allocation.quota is not None:
                    self.case.assertLessEqual(self.accounts[number].used, allocation.quota)


class QuotaTests(PropertyTestCase):
    """P3: bytes that arrive never exceed the quota in force, over all lives of an allocation (R3.7, R2.8)."""

    def test_all_that_the_quota_allows_arrives_and_nothing_beyond_it(self) -> None:
        self.run_machine(Spender, steps=30)
