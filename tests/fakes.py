"""Stand-ins for what surrounds the core, and a scene to play in, all without packets.

``Scene`` holds a ``Relay`` and its two clocks, which are plain numbers. ``Scene.connect`` gives a ``FakeClient``: a session on a
``FakeLink``, with the methods of a client that speaks the protocol rightly unless a test tells it otherwise. ``FakeMember`` and
``FakeEvents`` are for tests of an allocation alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Any, cast

from nacl.signing import SigningKey

from zrc_relay.core.admission import Admission, AdmissionSettings
from zrc_relay.core.allocation import Allocation
from zrc_relay.core.authorisation import Refused
from zrc_relay.core.cidr import AccessLists
from zrc_relay.core.codes import DropCause, ErrorCode, NoticeCode, Role, TerminationReason
from zrc_relay.core.keys import Device, DeviceKeys
from zrc_relay.core.relay import Policy, Relay
from zrc_relay.core.session import Session
from zrc_relay.core.tiers import Tier
from zrc_relay.core.token import RelayToken, key_id, proof_digest
from zrc_relay.core.wire import (
    RELAY_CAPSULES,
    Address,
    Allocate,
    Allocated,
    Capsule,
    CapsuleDecoder,
    Error,
    Hello,
    Notice,
    Refresh,
    Refreshed,
    Release,
    Unknown,
)

START = 5_000.0
"""Monotonic seconds at which every scene begins."""
EPOCH = 1_800_000_000.0
"""Unix seconds at which every scene begins."""
RELAY_ID = bytes(range(16))
ALLOCATION_ID = b"an allocation..."
CERTIFICATE = hashlib.sha256(b"the relay's certificate").digest()
DEVICE = SigningKey(b"d" * 32)
PEER = SigningKey(b"p" * 32)
STRANGER = SigningKey(b"s" * 32)
OPEN_TIER = Tier("", None, None, None)
RELAY_ADDRESS = Address("192.0.2.1", 4433)


def public(key: SigningKey) -> bytes:
    """The 32-byte public key."""
    return bytes(key.verify_key)


def id_of(key: SigningKey) -> bytes:
    """The device or peer id of a key."""
    return key_id(public(key))


def make_token(key: SigningKey = DEVICE, **changes: Any) -> RelayToken:
    """A token signed by ``key`` that is good for an hour from ``EPOCH``, with ``changes``."""
    token = RelayToken(
        relay_id=RELAY_ID, allocation_id=ALLOCATION_ID, device_id=id_of(key), peer_id=id_of(PEER), expires_at=int(EPOCH) + 3600,
    )
    return replace(token, **changes).sign(key)


def refusal_of(call: Callable[[], object]) -> Refused:
    """What ``call`` is refused with; it is an error when it is granted."""
    try:
        granted = call()
    except Refused as refusal:
        return refusal
    msg = f"it was granted: {granted!r}"
    raise AssertionError(msg)


class FakeObserver:
    """An ``Observer`` that remembers."""

    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, object]]] = []

    def event(self, name: str, **fields: object) -> None:
        """Remember."""
        self.events.append((name, fields))

    def named(self, name: str) -> list[dict[str, object]]:
        """The fields of every event of that name."""
        return [fields for one, fields in self.events if one == name]


class FakeEvents:
    """``Events`` of an allocation that remembers: the bytes used at each warning, and how often the quota stopped it."""

    def __init__(self) -> None:
        self.warnings: list[int] = []
        self.exceeded = 0

    def quota_warning(self, allocation: Allocation) -> None:
        """Remember."""
        self.warnings.append(allocation.bytes_transferred)

    def quota_exceeded(self, allocation: Allocation) -> None:
        """Remember."""
        del allocation
        self.exceeded += 1


class FakeMember:
    """A ``Member`` that remembers what it is asked to do."""

    def __init__(self, role: Role = Role.DEVICE, *, last_heard: float = START, patience: float = 1.0) -> None:
        self.role = role
        self.last_heard = last_heard
        self.patience = patience
        self.max_payload = 1200
        self.payloads: list[bytes] = []
        self.drops: list[tuple[DropCause, int]] = []
        self.times_superseded = 0
        self.sent: list[bytes] = []
        self.terminated: list[TerminationReason] = []

    def send_datagrams(self, payloads: list[bytes], now: float) -> None:
        """Remember."""
        del now
        self.payloads += payloads

    def note_drop(self, cause: DropCause, size: int, now: float) -> None:
        """Remember."""
        del now
        self.drops.append((cause, size))

    def superseded(self) -> None:
        """Count."""
        self.times_superseded += 1

    def send(self, data: bytes) -> None:
        """Remember."""
        self.sent.append(data)

    def terminate(self, reason: TerminationReason) -> None:
        """Remember."""
        self.terminated.append(reason)


class FakeLink:
    """A ``Link`` whose client reads everything at once, unless ``stalled``; then control output piles up as its backlog."""

    def __init__(self, number: int) -> None:
        self.name = f"{number:016x}"
        self.remote = Address("198.51.100.7", 10_000 + number)
        self.local = RELAY_ADDRESS
        self.max_payload = 1200
        self.patience = 1.0
        self.certificate_sha256 = CERTIFICATE
        self.stalled = False
        self.control_backlog = 0
        self.hellos: list[bytes] = []
        self.capsules: list[Capsule | Unknown] = []
        self.datagrams: list[bytes] = []
        self.route: object = (self.remote, self.local)
        self.packets: list[bytes] = []
        self.closes: list[tuple[ErrorCode, str]] = []
        self._decoder = CapsuleDecoder(RELAY_CAPSULES)

    def new_channel_id(self) -> bytes:
        """One that depends on the link."""
        return bytes.fromhex(self.name)[1:]

    def send_packets(self, packets: list[bytes]) -> None:
        """Remember."""
        self.packets += packets

    def send_train(self, train: bytes, size: int) -> None:
        """Remember."""
        self.packets += [train[start : start + size] for start in range(0, len(train), size)]

    def send_hello(self, data: bytes) -> None:
        """Remember."""
        self.hellos.append(data)

    def send_control(self, data: bytes) -> None:
        """Decode as a client would; nothing may follow a close."""
        if self.closes:
            msg = "control output after the close"
            raise AssertionError(msg)
        if self.stalled:
            self.control_backlog += len(data)
        self._decoder.feed(data)
        self.capsules += self._decoder

    def drain(self) -> None:
        """The client reads again: nothing waits any more."""
        self.stalled = False
        self.control_backlog = 0

    def send_datagrams(self, payloads: list[bytes], now: float) -> None:
        """Remember."""
        del now
        self.datagrams += payloads

    def close(self, code: ErrorCode, reason: str) -> None:
        """Remember."""
        self.closes.append((code, reason))


class FakeClient:
    """A session on a fake link, and what its client would do."""

    def __init__(self, scene: Scene, link: FakeLink, nonce: bytes) -> None:
        self.scene = scene
        self.link = link
        self.nonce = nonce
        self.session = Session(scene.relay, link, nonce, scene.now)

    # -- what it says

    def feed(self, data: bytes) -> None:
        """Bytes on the control stream; like the shell, report that the client was heard."""
        self.session.control_received(data, self.scene.now, self.scene.wall)
        self.session.heard(self.scene.now)

    def request(self, role: Role, token: RelayToken, *, prove: bool = True, **changes: Any) -> Allocate:
        """The ALLOCATE that a client of ``role`` sends, with a right proof unless told otherwise."""
        request = Allocate(role, token.allocation_id, token.peer_id, token.encode())
        if prove:
            device = STRANGER if token.device_id == id_of(STRANGER) else DEVICE
            key = device if role is Role.DEVICE else PEER
            request = replace(request, public_key=public(key), proof=self.prove(key, request.token, role))
        return replace(request, **changes)

    def prove(self, key: SigningKey, token: bytes, role: Role, **changes: Any) -> bytes:
        """A proof of possession by ``key`` for this connection, over other inputs where ``changes`` say so."""
        inputs: dict[str, Any] = {
            "relay_id": RELAY_ID, "certificate_sha256": CERTIFICATE, "token": token, "challenge": self.nonce, "role": role,
        }
        return bytes(key.sign(proof_digest(**inputs | changes)).signature)

    def allocate(self, role: Role, token: RelayToken | None = None, *, prove: bool = True, **changes: Any) -> None:
        """Send ALLOCATE."""
        self.feed(self.request(role, token or make_token(), prove=prove, **changes).encode())

    def refresh(self, token: RelayToken) -> None:
        """Send REFRESH."""
        self.feed(Refresh(token.encode()).encode())

    def release(self) -> None:
        """Send RELEASE."""
        self.feed(Release().encode())

    def datagram(self, payload: bytes) -> None:
        """Send a DATAGRAM."""
        self.session.datagrams_received([payload], self.scene.now)
        self.session.heard(self.scene.now)

    def lose(self) -> None:
        """The connection goes away."""
        self.session.lost(self.scene.now, self.scene.wall)

    # -- what it got

    @property
    def hello(self) -> Hello:
        """The HELLO of the connection."""
        decoder = CapsuleDecoder(RELAY_CAPSULES)
        for data in self.link.hellos:
            decoder.feed(data)
        (hello,) = decoder
        return cast(Hello, hello)

    @property
    def allocated(self) -> Allocated:
        """The one ALLOCATED that came."""
        (answer,) = [capsule for capsule in self.link.capsules if isinstance(capsule, Allocated)]
        return answer

    @property
    def is_bound(self) -> bool:
        """Whether ALLOCATED came and the connection was not closed."""
        return any(isinstance(capsule, Allocated) for capsule in self.link.capsules) and not self.link.closes

    @property
    def close_code(self) -> ErrorCode | None:
        """The code it was closed with, None while it is open."""
        if not self.link.closes:
            return None
        ((code, _),) = self.link.closes
        return code

    @property
    def refreshed(self) -> list[Refreshed]:
        """Every REFRESHED."""
        return [capsule for capsule in self.link.capsules if isinstance(capsule, Refreshed)]

    @property
    def errors(self) -> list[int]:
        """The code of every ERROR."""
        return [capsule.code for capsule in self.link.capsules if isinstance(capsule, Error)]

    def notices(self, *codes: NoticeCode) -> list[Notice]:
        """Every NOTICE, or those of certain codes."""
        notices = [capsule for capsule in self.link.capsules if isinstance(capsule, Notice)]
        return [notice for notice in notices if not codes or notice.code in codes]

    def forget(self) -> None:
        """Let the next look see only what comes from here on."""
        self.link.capsules.clear()
        self.link.datagrams.clear()


class Scene:
    """A relay with its clocks; ``policy`` are fields of ``Policy``. The keys of ``devices`` are pinned, in no tier.

    Sources are held to ``limits``, by default to none.
    """

    def __init__(
        self,
        *,
        devices: Collection[SigningKey] = (DEVICE,),
        keys: DeviceKeys | None = None,
        limits: AdmissionSettings | None = None,
        **policy: Any,
    ) -> None:
        self.now = START
        self.wall = EPOCH
        self.observer = FakeObserver()
        settings: dict[str, Any] = {"relay_id": RELAY_ID, "instance_id": b"instance", "default_tier": OPEN_TIER}
        if keys is None:
            keys = DeviceKeys([Device(public(key)) for key in devices])
        admission = Admission(limits or AdmissionSettings(), AccessLists(), now=self.now)
        self.relay = Relay(Policy(**settings | policy), keys, self.observer, now=self.now, admission=admission)
        self._connections = 0

    def connect(self, *, handshake: bool = True) -> FakeClient:
        """A new connection, greeted and, unless told otherwise, with its handshake complete."""
        self._connections += 1
        client = FakeClient(self, FakeLink(self._connections), hashlib.sha256(b"%d" % self._connections).digest())
        client.session.greet()
        if handshake:
            client.session.handshake_completed(self.now)
        return client

    def bind(self, role: Role, token: RelayToken | None = None, *, prove: bool = True) -> FakeClient:
        """A new connection with its ALLOCATE granted."""
        client = self.connect()
        client.allocate(role, token, prove=prove)
        if not client.is_bound:
            msg = f"ALLOCATE was not granted: {client.link.closes}"
            raise AssertionError(msg)
        return client

    def pair(self, token: RelayToken | None = None) -> tuple[FakeClient, FakeClient]:
        """Device and peer, bound, with what they were told so far forgotten."""
        token = token or make_token()
        device, peer = self.bind(Role.DEVICE, token), self.bind(Role.PEER, token)
        device.forget()
        peer.forget()
        return device, peer

    def allocation(self, allocation_id: bytes = ALLOCATION_ID, key: SigningKey = DEVICE) -> Allocation:
        """The live allocation with that id."""
        return next(one for one in self.relay.table if one.key == (id_of(key), allocation_id))

    def advance(self, seconds: float) -> None:
        """Let both clocks go on, then sweep."""
        self.now += seconds
        self.wall += seconds
        self.relay.sweep(self.now, self.wall)
        self._complain()

    def settle(self) -> None:
        """The end of a batch."""
        self.relay.settle(self.now, self.wall)
        self._complain()

    def _complain(self) -> None:
        # The relay keeps what goes wrong on its way for the shell; what a fake had to complain of is for the test.
        for failure in self.relay.failures:
            if isinstance(failure.error, AssertionError):
                raise failure.error
