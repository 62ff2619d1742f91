"""What is fuzzed: everything that reads bytes of strangers before anybody has shown who he is (issue "nobody who should not").

Each target takes any bytes and raises only when something is wrong: an exception that the code under test should not let out, or
a promise that is not kept. They are fed by hypothesis and by atheris, and by the seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

from tests.harness import RELAY_ADDRESS, World
from zrc_relay.core import stun as stun_module
from zrc_relay.core.codes import NoticeCode
from zrc_relay.core.fields import Address, WireError
from zrc_relay.core.records import RecordDecoder
from zrc_relay.core.token import RelayToken, TokenError
from zrc_relay.core.wire import CLIENT_CAPSULES, RELAY_CAPSULES, Capsule, CapsuleDecoder, Notice, Unknown
from zrc_relay.quic.udp import Path

Target = Callable[[bytes], None]
PUBLIC_KEY: Final = bytes(range(32))
SOURCES: Final = (Address("192.0.2.1", 4000), Address("2001:db8::1", 4000))
MAX_AMPLIFICATION: Final = 3


class Broken(Exception):
    """A promise that was not kept."""


def check(kept: object, promise: str) -> None:
    """``Broken`` unless it is."""
    if not kept:
        raise Broken(promise)


def wire(data: bytes) -> None:
    """Capsules, of clients and of relays, in pieces of any size; then records of oversize datagrams."""
    if not data:
        return
    size, stream = data[0] % 40 + 1, data[1:]
    for known in (CLIENT_CAPSULES, RELAY_CAPSULES):
        whole, pieces = CapsuleDecoder(known), CapsuleDecoder(known)
        found, error = _decode(whole, [stream])
        cut, cut_error = _decode(pieces, [stream[at : at + size] for at in range(0, len(stream), size)])
        check(cut == found and cut_error == error, "how a stream is cut changes nothing")
        for capsule in found:
            if not isinstance(capsule, Unknown) and not _is_notice_of_the_future(capsule):
                again = CapsuleDecoder(known)
                again.feed(capsule.encode())
                check(list(again) == [capsule], "what was decoded is encoded as itself")
    records = RecordDecoder()
    try:
        payloads = [payload for at in range(0, len(stream), size) for payload in records.feed(stream[at : at + size])]
    except WireError:
        return
    check(sum(map(len, payloads)) <= len(stream), "no record holds more than came")


def _decode(decoder: CapsuleDecoder, pieces: list[bytes]) -> tuple[list[Capsule | Unknown], object]:
    found: list[Capsule | Unknown] = []
    try:
        for piece in pieces:
            decoder.feed(piece)
            for capsule in decoder:
                found.append(capsule)  # noqa: PERF402 - what was found before an error counts, too
    except WireError as error:
        return found, error.code
    return found, None


def _is_notice_of_the_future(capsule: object) -> bool:
    """Of such a one only the code is read, so it cannot be written."""
    return isinstance(capsule, Notice) and capsule.code not in set(NoticeCode)


def token(data: bytes) -> None:
    """Tokens, as bytes and as text."""
    parsed = None
    try:
        parsed = RelayToken.parse(data)
    except TokenError:
        pass
    else:
        check(parsed.encode() == data, "a token's bytes are its fields")
        check(RelayToken.from_text(parsed.to_text()) == parsed, "a token's text is its bytes")
        check(not parsed.is_signed_by(PUBLIC_KEY), "nobody has signed this")
    try:
        from_text = RelayToken.from_text(data.decode("utf-8", "surrogateescape"))
    except TokenError:
        return
    check(RelayToken.parse(from_text.encode()) == from_text, "what text says is a token")


def stun(data: bytes) -> None:
    """STUN messages, by the relay and by the client."""
    for source in SOURCES:
        answer = stun_module.answer(data, source)
        if answer is None:
            continue
        check(len(answer) <= MAX_AMPLIFICATION * len(data), "no answer is more than three times as long as its request")
        check(stun_module.answer(answer, source) is None, "no answer is answered")
        check(answer[8:20] == data[8:20], "an answer has the transaction of its request")
        found = stun_module.mapped_address(answer, data[8:20])
        check(found == (source if answer[0:2] == b"\x01\x01" else None), "an answer tells where the request came from")
    stun_module.mapped_address(data, data[8:20])


class Stage:
    """A relay with two clients that talk, and a stranger whose every packet is counted."""

    RESET_AFTER: Final = 2000
    """Inputs after which everything is built anew, so that what fails can be found again."""

    def __init__(self) -> None:
        self.world = World()
        self.device, self.peer = self.world.pair()
        self.came = 0
        self.went = 0
        self.inputs = 0
        self.stranger = self.world.network.attach(("203.0.113.9", 999))
        self.ids = [vars(client.quic)["_peer_cid"].cid for client in (self.device, self.peer)]
        self.world.network.filter = self._count

    def _count(self, data: bytes, _source: object, to: object) -> bytes:
        if to == self.stranger.sockaddr:
            self.went += len(data)
        return data

    def take(self, data: bytes) -> None:
        """One datagram of the stranger; the first byte says what is made of it."""
        world = self.world
        self.inputs += 1
        relay = world.network.hosts[RELAY_ADDRESS]
        path = Path(self.stranger.sockaddr, relay)
        world.endpoint.datagram_received(data, path)
        world.endpoint.batch_done()
        self.came += len(data)
        world.run(0.001)
        check(self.went <= MAX_AMPLIFICATION * self.came, "no more than three times goes to who has shown nothing")
        check(world.relay.counters.session_errors == 0, "nothing of ours fails")
        if self.inputs % 50 == 0:
            self.check_pair()

    def check_pair(self) -> None:
        """The two still talk."""
        self.peer.got.clear()
        self.device.send(b"still here")
        self.world.run(0.1)
        check(self.peer.got == [b"still here"], "who is there is not disturbed")


_stages: list[Stage] = []


def demultiplexer(data: bytes) -> None:
    """UDP datagrams of a stranger, as they are or made to look like QUIC."""
    if not _stages or _stages[0].inputs >= Stage.RESET_AFTER:
        _stages[:] = [Stage()]
    stage = _stages[0]
    kind, rest = (data[0] % 6, data[1:]) if data else (0, b"")
    if kind == 1:  # a short header with the id of a live connection
        rest = b"\x43" + stage.ids[len(rest) % 2] + rest
    elif kind == 2:  # a long header with one
        rest = b"\xc0\0\0\0\x01\x08" + stage.ids[len(rest) % 2] + rest
    elif kind == 3:  # an Initial of a stranger, as long as one has to be
        rest = (b"\xc3\0\0\0\x01\x08" + rest).ljust(1200, b"\0")
    elif kind == 4:  # one with a token
        rest = (b"\xc3\0\0\0\x01\x08strangerx\x08x-source" + rest).ljust(1200, b"\0")
    elif kind == 5:  # a short header of nobody
        rest = b"\x40" + rest
    try:
        stage.take(rest)
    except Exception:
        _stages.clear()
        raise


TARGETS: Final[Mapping[str, Target]] = MappingProxyType({
    "wire": wire, "token": token, "stun": stun, "demultiplexer": demultiplexer,
})
"""By name."""
