"""Every way in which the relay says no, as ``docs/security.md`` lists them, each with a scene in which it happens.

A scene is a generator on a ``World`` (with packets) or a ``Scene`` (without). It prepares everything, yields, does the one thing
that is refused, and returns the answer that was got, in the words of the page. ``test_refusal_paths`` looks at what has changed
between the two moments.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from typing import Any, Final

from tests import raw_quic as raw
from tests.harness import World
from tests.raw_quic import Initial, Raw, ScriptedClient
from zrc_relay.core import stun
from zrc_relay.core.admission import PATTERN, AdmissionSettings
from zrc_relay.core.cidr import Access, Entry, Network
from zrc_relay.core.codes import ErrorCode
from zrc_relay.core.counters import Limit
from zrc_relay.core.sources import Rate
from zrc_relay.quic.retry import RetryTokens
from zrc_relay.quic.stateless import parse_long_header

Act = Generator[None, None, str]
HOST: Final = "203.0.113.9"
"""Where ``Raw`` and ``ScriptedClient`` of this file live."""
ADDRESS: Final = (32, 0xCB007109)
"""The same as a number."""
HELLO: Final = raw.crypto_frame(0, b"\x01\x00\x01\x00")
TRANSPORT_CODES: Final = {0x02: "CONNECTION_REFUSED", 0x0B: "INVALID_TOKEN"}
LIMITS: Final = AdmissionSettings(Rate(2, 60), Rate(2, 60), Rate(2, 60), Rate(2, 60))
OTHER_ID: Final = b"another one....."


@dataclass(frozen=True)
class Refusal:
    """One row of the page: what happens, what the other end is told, and who counts it."""

    when: str
    answer: str
    counter: Limit | ErrorCode
    act: Callable[[Any], Act]

    @property
    def event(self) -> str:
        """Its name."""
        return f"security.{self.counter.value}" if isinstance(self.counter, Limit) else "session.refused"

    @property
    def counted_by(self) -> str:
        """The counter, as the page has it."""
        limited = isinstance(self.counter, Limit)
        return f"limited[{self.counter.value}]" if limited else f"refused[{self.counter.name}]"

    @property
    def row(self) -> str:
        """The line of the table."""
        return f"| {self.when} | {self.answer} | `{self.event}` | `{self.counted_by}` |"


# -- before there is a connection: scenes on a World with LIMITS


def initial(token: bytes = b"", dcid: bytes = b"the id") -> bytes:
    """An Initial with a token."""
    whole = Initial(dcid.ljust(8, b".")).protect(HELLO)
    header = parse_long_header(whole)
    if header is None:
        msg = "it has a header"
        raise AssertionError(msg)
    return whole[: header.end] + raw.varint(len(token)) + token + whole[header.end + 1 :]


def answer_to(world: World, client: Raw, packet: bytes) -> str:
    """What comes back for one packet."""
    client.got.clear()
    client.send(packet)
    world.run(0.05)
    if not client.got:
        return "silence"
    (got,) = client.got
    header = parse_long_header(got)
    if header is not None and header.is_initial:
        return TRANSPORT_CODES[raw.transport_close_code(Initial(header.source).open(got, is_client=False))]
    return "Retry" if header is not None and header.first >> 4 & 3 == 3 else repr(got)


def good_token(world: World) -> bytes:
    """A Retry token of the stranger, for the connection id of ``initial``."""
    tokens: RetryTokens = vars(vars(world.endpoint)["_door"])["_tokens"]
    return tokens.create(HOST, 999, b"original", b"the id..", world.now())


def spend_connections(world: World) -> None:
    """Use up the stranger's ``connection_rate``, as handshakes that are complete do."""
    for _ in range(2):
        world.relay.admission.validated(ADDRESS, world.now())


def spend_refusals(world: World) -> None:
    """Use up the stranger's refusals."""
    while world.relay.admission.may_refuse(ADDRESS, world.now()):
        pass


def block(world: World) -> None:
    """Put the stranger on the blocklist."""
    world.relay.admission.lists.add(Entry(Network.of(ADDRESS), Access.BLOCK, world.wall() + 60), world.wall())


def blocked_initial(world: World) -> Act:
    """From a source that is not served."""
    client = Raw(world.network)
    block(world)
    yield
    return answer_to(world, client, initial(good_token(world)))


def blocked_stun(world: World) -> Act:
    """STUN from there."""
    client = Raw(world.network)
    block(world)
    yield
    return answer_to(world, client, stun.binding_request(bytes(12)))


def refused_connection(world: World) -> Act:
    """A validated source over its rate."""
    client = Raw(world.network)
    spend_connections(world)
    yield
    return answer_to(world, client, initial(good_token(world)))


def refused_in_silence(world: World) -> Act:
    """The same, too often."""
    client = Raw(world.network)
    spend_connections(world)
    spend_refusals(world)
    yield
    return answer_to(world, client, initial(good_token(world)))


def rate_retry(world: World) -> Act:
    """A source over its rate that is not validated."""
    client = Raw(world.network)
    spend_connections(world)
    yield
    return answer_to(world, client, initial())


def pressure_retry(world: World) -> Act:
    """Anybody, when many handshakes are open."""
    client = Raw(world.network)
    world.relay.admission.settings = replace(LIMITS, handshake_pressure=0)
    yield
    return answer_to(world, client, initial())


def pattern_retry(world: World) -> Act:
    """A source that has left handshakes unfinished."""
    client = Raw(world.network)
    for _ in range(PATTERN + 1):
        world.relay.admission.abandoned(ADDRESS, world.now())
    yield
    return answer_to(world, client, initial())


def pattern_found(world: World) -> Act:
    """It leaves the last one that was missing."""
    client = Raw(world.network)
    client.send(Initial(b"12345678").protect(HELLO))
    world.run(1)
    for _ in range(PATTERN):
        world.relay.admission.abandoned(ADDRESS, world.now())
    client.got.clear()
    yield
    world.run(6)
    return "silence"


def bad_token(world: World) -> Act:
    """A token that is nobody's."""
    client = Raw(world.network)
    yield
    return answer_to(world, client, initial(b"made up"))


def bad_token_in_silence(world: World) -> Act:
    """The same, too often."""
    client = Raw(world.network)
    spend_refusals(world)
    yield
    return answer_to(world, client, initial(b"made up"))


def stun_over_rate(world: World) -> Act:
    """STUN, too often."""
    client = Raw(world.network)
    for _ in range(2):
        world.relay.admission.answers_stun(ADDRESS, world.now())
    yield
    return answer_to(world, client, stun.binding_request(bytes(12)))


# -- when there is one: scenes on a World with LIMITS


def closed_with(world: World, client: ScriptedClient) -> str:
    """The code that a client is closed with."""
    world.run(2)
    return ErrorCode(client.close_code).name if client.close_code is not None else "nothing"


def established_over_rate(world: World) -> Act:
    """A handshake without a token that turns out to be one too many."""
    client = ScriptedClient(world)
    world.run(0.006)
    for _ in range(2):
        world.relay.admission.validated((32, 0xC6336408), world.now())
    yield
    return closed_with(world, client)


def blocked_session(world: World) -> Act:
    """A session of a source that becomes blocked."""
    client = ScriptedClient(world)
    world.run(0.5)
    yield
    world.relay.admission.lists.add(Entry(Network.parse("198.51.100.8"), Access.BLOCK), world.wall())
    return closed_with(world, client)


def blocked_during_handshake(world: World) -> Act:
    """The same, before its handshake is complete."""
    client = ScriptedClient(world)
    world.run(0.006)
    yield
    world.relay.admission.lists.add(Entry(Network.parse("198.51.100.8"), Access.BLOCK), world.wall())
    return closed_with(world, client)


def no_allocate(world: World) -> Act:
    """A client that never allocates."""
    client = ScriptedClient(world)
    world.run(1)
    yield
    world.run(9.5)
    return closed_with(world, client)


BEFORE: Final = (
    Refusal("Initial of a source that is not served: on the blocklist, or not on the allowlist", "silence", Limit.BLOCKED,
            blocked_initial),
    Refusal("STUN request of such a source", "silence", Limit.BLOCKED, blocked_stun),
    Refusal("Initial with a Retry token of a source over `connection_rate`", "CONNECTION_REFUSED", Limit.CONNECTION_RATE,
            refused_connection),
    Refusal("the same, beyond the rate of refusals", "silence", Limit.CONNECTION_RATE, refused_in_silence),
    Refusal("Initial without a token of a source over `connection_rate`", "Retry", Limit.CONNECTION_RATE, rate_retry),
    Refusal("Initial without a token under handshake pressure", "Retry", Limit.HANDSHAKE_PRESSURE, pressure_retry),
    Refusal("handshake that a source leaves unfinished, one too many within `amplification_block`", "silence",
            Limit.AMPLIFICATION, pattern_found),
    Refusal("Initial without a token of such a source", "Retry", Limit.AMPLIFICATION, pattern_retry),
    Refusal("Initial with a token that was made up, is too old or somebody else's", "INVALID_TOKEN", Limit.RETRY_INVALID,
            bad_token),
    Refusal("the same, beyond the rate of refusals", "silence", Limit.RETRY_INVALID, bad_token_in_silence),
    Refusal("STUN request over `stun_rate`", "silence", Limit.STUN_RATE, stun_over_rate),
)
"""On a ``World`` with ``LIMITS``, as seen from ``HOST``."""

CONNECTED: Final = (
    Refusal("handshake without a token that makes its source exceed `connection_rate`", "RATE_LIMITED", Limit.CONNECTION_RATE,
            established_over_rate),
    Refusal("source that is not served by the end of its handshake", "BLOCKED", Limit.BLOCKED, blocked_during_handshake),
    Refusal("session of a source that becomes blocked, or that moves to a blocked one", "BLOCKED", Limit.BLOCKED,
            blocked_session),
    Refusal("no ALLOCATE within 10 s", "ALLOCATE_TIMEOUT", ErrorCode.ALLOCATE_TIMEOUT, no_allocate),
)
"""Also on a ``World`` with ``LIMITS``."""
