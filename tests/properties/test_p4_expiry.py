"""P4: nothing outlives expires_at, whatever the two clocks do (R1.3, R2.5, R2.6, R2.8).

The monotonic clock runs, and the relay sweeps every quarter of a second as its service does. The wall clock runs along, but for
jumps in either direction, as an operator or NTP may set it. A plain model says after each sweep what must still be there: an
allocation that lives longer, even until the next sweep, fails, and so does one that ends too early.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from hypothesis import strategies as st
from hypothesis.stateful import Bundle, initialize, invariant, rule

from tests.fakes import DEVICE, FakeClient, Scene, id_of, make_token
from tests.properties.settings import Machine, PropertyTestCase
from zrc_relay.core.codes import ErrorCode, Role
from zrc_relay.core.token import RelayToken

SWEEP: Final = 0.25
"""Seconds between sweeps: far less than the second that R2.5 allows."""
WAIT, IDLE, UNREFRESHED, LONGEST = 60.0, 30.0, 90.0, 1000.0
"""wait_timeout, idle_timeout, allocation_timeout and max_token_lifetime, in seconds."""
ALLOCATIONS: Final = 3


@dataclass(slots=True)
class Life:
    """What is known of a live allocation: times of ``absent`` are monotonic, all others Unix seconds."""

    token: RelayToken
    accepted: float
    absent: dict[Role, float]
    present: dict[Role, list[FakeClient]] = field(default_factory=lambda: {role: [] for role in Role})
    was_there: set[Role] = field(default_factory=set)
    remembered: int = 0

    @property
    def expires_at(self) -> float:
        """R2.5."""
        return min(self.token.expires_at, self.accepted + UNREFRESHED)

    @property
    def gives_up_at(self) -> float:
        """R2.6: when an absent side has been waited for long enough, monotonic."""
        waits = [
            since + (IDLE if role in self.was_there else WAIT)
            for role, since in self.absent.items()
            if not self.present[role]
        ]
        return min(waits, default=float("inf"))


class Calendar(Machine):
    """Clients come, go and refresh while time passes and the wall clock jumps."""

    tokens = Bundle("tokens")

    def __init__(self) -> None:
        super().__init__()
        self.scene = Scene(
            proving_roles=frozenset(),
            max_connections_per_side=1000,
            wait_timeout=WAIT,
            idle_timeout=IDLE,
            allocation_timeout=UNREFRESHED,
            max_token_lifetime=LONGEST,
        )
        self.lives: dict[bytes, Life] = {}
        self.memory: dict[bytes, int] = {}
        self.clients: list[FakeClient] = []
        self.ended: list[tuple[FakeClient, ErrorCode]] = []

    # -- tokens and who uses them

    @initialize(target=tokens)
    def first_token(self) -> RelayToken:
        """There is always one."""
        return self._mint(0, 60)

    @rule(target=tokens, number=st.integers(0, ALLOCATIONS - 1), life=st.integers(-2, 200))
    def mint(self, number: int, life: int) -> RelayToken:
        """A token that lives so many seconds by the clock as it is now."""
        return self._mint(number, life)

    def _mint(self, number: int, life: int) -> RelayToken:
        return make_token(DEVICE, allocation_id=bytes((number,)) * 16, expires_at=int(self.scene.wall) + life)

    def _refusal(self, token: RelayToken) -> ErrorCode | None:
        """R1.3, on every use."""
        if token.expires_at <= self.scene.wall:
            return ErrorCode.TOKEN_EXPIRED
        if token.expires_at > self.scene.wall + LONGEST:
            return ErrorCode.TOKEN_TOO_LONG
        return None

    @rule(token=tokens, role=st.sampled_from(Role))
    def allocate(self, token: RelayToken, role: Role) -> None:
        """Come with a token, new or used before."""
        client = self.scene.connect()
        client.allocate(role, token, prove=False)
        refusal = self._refusal(token)
        if refusal is not None:
            self.case.assertEqual(client.close_code, refusal)
            return
        self.case.assertTrue(client.is_bound, client.link.closes)
        life = self.lives.get(token.allocation_id)
        if life is None:
            life = Life(token, self.scene.wall, dict.fromkeys(Role, self.scene.now))
            remembered = self.memory.pop(token.allocation_id, 0)
            life.remembered = remembered if remembered > self.scene.wall else 0
            self.lives[token.allocation_id] = life
        elif token.expires_at > life.token.expires_at:
            life.token = token
        life.accepted = self.scene.wall
        life.present[role].append(client)
        life.was_there.add(role)
        self.clients.append(client)
        self.case.assertEqual(client.allocated.expires_at, int(life.expires_at))

    @rule(numbers=st.lists(st.integers(0, ALLOCATIONS - 1), min_size=1, max_size=3), life=st.integers(1, 200))
    def both_allocate(self, numbers: list[int], life: int) -> None:
        """Both ends come, so that absence does not end everything before expiry can."""
        for number in numbers:
            for role in Role:
                self.allocate(self._mint(number, life), role)

    @rule(token=tokens, index=st.integers(0, 50))
    def refresh(self, token: RelayToken, index: int) -> None:
        """Bring another token."""
        bound = [client for client in self.clients if client.is_bound]
        if not bound:
            return
        self._refresh(bound[index % len(bound)], token)

    def _refresh(self, client: FakeClient, token: RelayToken) -> None:
        life = next(life for life in self.lives.values() if client in life.present[client.session.role])
        errors, answers = len(client.errors), len(client.refreshed)
        client.refresh(token)
        refusal = self._refusal(token)
        if refusal is None and token.allocation_id != life.token.allocation_id:
            refusal = ErrorCode.TOKEN_WRONG_ALLOCATION
        if refusal is None and token != life.token and token.expires_at <= life.token.expires_at:
            refusal = ErrorCode.TOKEN_EXPIRED
        if refusal is not None:
            self.case.assertEqual(client.errors[errors:], [refusal])
            return
        if token != life.token:
            life.token, life.accepted = token, self.scene.wall
        (answer,) = client.refreshed[answers:]
        self.case.assertEqual(answer.expires_at, int(life.expires_at))

    @rule(number=st.integers(0, ALLOCATIONS - 1), role=st.sampled_from(Role), more=st.integers(1, 60), early=st.integers(0, 8))
    def refresh_in_time(self, number: int, role: Role, more: int, early: int) -> None:
        """Bring a token that lives longer, shortly before the one in force expires, and stay beyond that."""
        life = self.lives.get(bytes((number,)) * 16)
        if life is None or not all(life.present.values()):
            return
        client = life.present[role][-1]
        before = life.expires_at
        self.scene.wall = before - early - SWEEP
        token = make_token(DEVICE, allocation_id=life.token.allocation_id, expires_at=life.token.expires_at + more)
        self._refresh(client, token)
        self.time_passes(4 * (early + 1))

    @rule(index=st.integers(0, 50))
    def lose(self, index: int) -> None:
        """A connection goes away."""
        bound = [client for client in self.clients if client.is_bound]
        if bound:
            client = bound[index % len(bound)]
            role = client.session.role
            client.lose()
            self.clients.remove(client)
            for life in self.lives.values():
                if client in life.present[role]:
                    life.present[role].remove(client)
                    if not life.present[role]:
                        life.absent[role] = self.scene.now

    @rule(index=st.integers(0, 50))
    def release(self, index: int) -> None:
        """An allocation ends before its time."""
        bound = [client for client in self.clients if client.is_bound]
        if bound:
            client = bound[index % len(bound)]
            key = next(key for key, life in self.lives.items() if client in life.present[client.session.role])
            client.release()
            self._end(key, ErrorCode.NO_ERROR)

    # -- time

    @rule(quarters=st.one_of(st.integers(1, 8), st.integers(1, 300)))
    def time_passes(self, quarters: int) -> None:
        """Both clocks run, with a sweep each quarter of a second."""
        for _ in range(quarters):
            self.scene.advance(SWEEP)
            self._sweep()

    @rule(number=st.integers(0, ALLOCATIONS - 1), early=st.sampled_from((-SWEEP, 0.0, SWEEP)))
    def until_it_expires(self, number: int, early: float) -> None:
        """The wall clock is set to just when an allocation expires, a sweep before or after it."""
        life = self.lives.get(bytes((number,)) * 16)
        if life is not None:
            self.scene.wall = life.expires_at - early
            self.time_passes(1)

    @rule(seconds=st.one_of(st.integers(-5, 5), st.integers(-2000, 2000)))
    def the_wall_clock_is_set(self, seconds: int) -> None:
        """Forth or back, while the monotonic clock stays."""
        self.scene.wall += seconds

    def _sweep(self) -> None:
        for key, life in list(self.lives.items()):
            if life.expires_at <= self.scene.wall:
                self._end(key, ErrorCode.EXPIRED)
            elif life.gives_up_at <= self.scene.now:
                self._end(key, ErrorCode.IDLE)
        self.memory = {key: until for key, until in self.memory.items() if until > self.scene.wall}
        table = self.scene.relay.table
        self.case.assertEqual({one.key for one in table}, {(id_of(DEVICE), key) for key in self.lives})
        self.case.assertEqual(table.tombstones, len(self.memory))

    def _end(self, key: bytes, code: ErrorCode) -> None:
        life = self.lives.pop(key)
        until = max(life.token.expires_at, life.remembered)
        if until > self.scene.wall:
            self.memory[key] = until
        for clients in life.present.values():
            self.ended += [(client, code) for client in clients]

    @invariant()
    def those_who_were_there_have_heard_it(self) -> None:
        """Each with the code of what ended it, and nothing that they send goes anywhere."""
        for client, code in self.ended:
            self.case.assertEqual(client.close_code, code)
            self.case.assertIsNone(client.session.allocation)
        self.ended.clear()

    @rule(number=st.integers(0, ALLOCATIONS - 1))
    def what_lives_forwards(self, number: int) -> None:
        """And what does not live does not."""
        life = self.lives.get(bytes((number,)) * 16)
        if life is not None and all(life.present.values()):
            before = self._received(life)
            life.present[Role.DEVICE][-1].datagram(b"?")
            self.case.assertEqual(self._received(life), before + 1)
        dead = [client for client in self.clients if not client.is_bound]
        counters = self.scene.relay.counters
        forwarded = counters.packets_forwarded
        for client in dead:
            client.datagram(b"?")
        self.case.assertEqual(counters.packets_forwarded, forwarded)

    @staticmethod
    def _received(life: Life) -> int:
        return sum(len(client.link.datagrams) for client in life.present[Role.PEER])


class ExpiryTests(PropertyTestCase):
    """P4: after each sweep exactly what has time left is there, live or remembered (R2.5, R2.6, R2.8)."""

    def test_nothing_outlives_its_time_and_nothing_ends_before_it(self) -> None:
        self.run_machine(Calendar, steps=30)
