"""What a parent tells its workers to be and to do, and what they tell it unasked: the values, and the AMP commands.

Theory of operation
-------------------
Everything that a worker goes by is one ``Orders``, made of plain values, and crosses the socket pair as JSON (``values``). A
worker gets it once when it starts (``Begin``), which also says what only a start can say (``Post``), and again with each reload:
first ``Prepare``, which decodes and checks and changes nothing, then, when every worker has said that it can, ``Commit``. Device
keys, of which there may be ten thousand, cross whole with ``Begin`` only, before anybody waits for a packet; afterwards only what
has changed does, so that a key that is pinned or a reload makes no worker pause, however many there are.

What a worker has to tell comes in batches (``Tell``), in the order in which it happened: events of allocations and sessions,
records of security events, lines of its log. What it knows of allocations is kept for its successor (``Keep``, see ``keeping``).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, unique
from typing import Any, ClassVar, Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from twisted.protocols import amp

from zrc_relay.core.allocation import AllocationKey
from zrc_relay.core.cidr import AccessLists, Entry, Network
from zrc_relay.core.keys import Device, DeviceKeys, KeyChanges
from zrc_relay.core.remembered import Remembered
from zrc_relay.credentials import make_credentials
from zrc_relay.engine import EngineSettings
from zrc_relay.inputs import Inputs, log_settings_of
from zrc_relay.logs.levels import LogFormat
from zrc_relay.logs.observer import LogSettings
from zrc_relay.quic.settings import Credentials
from zrc_relay.workers.commands import Value

CHANNEL_FD: Final = 3
"""The worker's end of the socket pair."""
LIMITS_FD: Final = 4
"""The memory that all workers share."""
FIRST_SOCKET_FD: Final = 5


@dataclass(frozen=True, slots=True)
class CertificateText:
    """A certificate chain with its private key, in PEM, and what connections agree on; see ``make_credentials``."""

    chain: bytes
    key: bytes
    idle_timeout: float
    udp_payload: int
    stream_window: int
    max_streams: int

    @classmethod
    def of(cls, inputs: Inputs) -> CertificateText:
        """Those of ``inputs``."""
        config, configuration = inputs.config, inputs.credentials.configuration
        certificates = (configuration.certificate, *configuration.certificate_chain)
        chain = b"".join(certificate.public_bytes(Encoding.PEM) for certificate in certificates)
        key = configuration.private_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        return cls(
            chain, key, config.quic_idle_timeout, config.base_udp_payload, config.stream_window, config.max_streams
        )

    def credentials(self) -> Credentials:
        """What connections are made with."""
        return make_credentials(
            x509.load_pem_x509_certificates(self.chain), load_pem_private_key(self.key, password=None),
            idle_timeout=self.idle_timeout, udp_payload=self.udp_payload, stream_window=self.stream_window,
            max_streams=self.max_streams,
        )


@dataclass(frozen=True, slots=True)
class Orders:
    """Everything that a worker goes by, and that a reload can change."""

    settings: EngineSettings
    certificate: CertificateText
    allow: tuple[Network, ...]
    block: tuple[Network, ...]
    log: LogSettings
    """With the form that the parent's log has; never ``AUTO``."""

    @classmethod
    def of(cls, inputs: Inputs, settings: EngineSettings, form: LogFormat) -> Orders:
        """Those of ``inputs``."""
        config, log = inputs.config, log_settings_of(inputs.config)
        return cls(
            settings, CertificateText.of(inputs), tuple(config.allow), tuple(config.block),
            LogSettings(log.level, log.levels, form),
        )


def devices_of(keys: DeviceKeys) -> tuple[Device, ...]:
    """The devices themselves."""
    return tuple(device for device_id in keys if (device := keys.get(device_id)) is not None)


@dataclass(frozen=True, slots=True)
class SocketPlace:
    """A UDP socket that a worker was given: as which file descriptor, and the address that it is bound to."""

    fd: int
    host: str
    port: int


@dataclass(frozen=True, slots=True)
class Post:
    """What a worker is for as long as it lives: the ``index``-th of ``count``.

    ``sockets`` are its own, of the ``descriptors`` that were handed down to it from ``FIRST_SOCKET_FD`` on. ``secret`` is behind
    the stateless reset tokens of all of them. ``logs_security``: security events are lines of the log, too.
    ``cpus`` are those that it may run on, all when empty.
    """

    index: int
    count: int
    sockets: tuple[SocketPlace, ...]
    descriptors: int
    secret: bytes
    logs_security: bool
    cpus: tuple[int, ...]
    report_interval: float
    """Seconds between two reports."""


@dataclass(frozen=True, slots=True)
class Beginning:
    """The first thing that a worker hears. ``keys`` are of the devices that may sign, ``entries`` what run time says of networks.

    ``remembered`` is what earlier workers in its place knew of allocations, the longest known first.
    """

    post: Post
    orders: Orders
    keys: tuple[Device, ...]
    entries: tuple[Entry, ...]
    remembered: tuple[Remembered, ...] = ()


@dataclass(frozen=True, slots=True)
class ListChange:
    """Run time says something of a network, or, without an ``entry``, no longer."""

    network: Network
    entry: Entry | None

    def apply(self, lists: AccessLists, wall: float) -> None:
        """Do as it says."""
        if self.entry is None:
            lists.remove(self.network)
        else:
            lists.add(self.entry, wall)


@unique
class Kind(Enum):
    """What a worker tells: see ``Said``."""

    EVENT = "event"
    RECORD = "record"
    LINE = "line"


@dataclass(frozen=True, slots=True)
class Said:
    """One thing that a worker tells: an event ``name`` with ``fields``, the record of a security event, or a line of its log.

    ``fields`` is a JSON object. A line's name is its level, and its text is the field ``line``.
    """

    kind: Kind
    name: str
    fields: str

    @classmethod
    def of(cls, kind: Kind, name: str, fields: Mapping[str, object]) -> Said:
        """With ``fields`` as JSON can have them."""
        shown = {key: plain for key, value in fields.items() if (plain := _plain(value)) is not None}
        return cls(kind, name, json.dumps(shown, separators=(",", ":")))

    @property
    def values(self) -> dict[str, Any]:
        """The fields."""
        found: dict[str, Any] = json.loads(self.fields)
        return found


def _plain(value: object) -> object:
    """``value`` as JSON can have it; None for bytes, which are never shown."""
    match value:
        case None | bytes() | bytearray() | memoryview():
            return None
        case Enum():
            return value.name
        case str() | int() | float():
            return value
        case list() | tuple():
            return [plain for item in value if (plain := _plain(item)) is not None]
        case Mapping():
            return {str(key): plain for key, item in value.items() if (plain := _plain(item)) is not None}
        case _:
            return str(value)


# -- parent to worker


class Begin(amp.Command):
    """Be the relay that ``beginning`` describes; answered when it listens."""

    arguments: ClassVar = [(b"beginning", Value(Beginning))]


class Prepare(amp.Command):
    """Be ready to go by ``orders``, with these changes of keys; ``problem`` says why not, and is empty when all is well."""

    arguments: ClassVar = [(b"orders", Value(Orders)), (b"changes", Value(KeyChanges))]
    response: ClassVar = [(b"problem", amp.Unicode())]


class Commit(amp.Command):
    """Go by what was prepared; how many allocations ended."""

    response: ClassVar = [(b"ended", amp.Integer())]


class ChangeKeys(amp.Command):
    """Let other devices sign tokens, as the changes say; how many allocations ended."""

    arguments: ClassVar = [(b"changes", Value(KeyChanges))]
    response: ClassVar = [(b"ended", amp.Integer())]


class ChangeLists(amp.Command):
    """Run time says this of networks, in this order."""

    arguments: ClassVar = [(b"changes", Value(tuple[ListChange, ...]))]


class Remember(amp.Command):
    """A predecessor knew that, too; it was read only after ``Begin``."""

    arguments: ClassVar = [(b"entries", Value(tuple[Remembered, ...]))]


class Drain(amp.Command):
    """Take nobody new, tell who is there to leave; answered when all have left."""

    arguments: ClassVar = [(b"deadline", amp.Float())]


class Stop(amp.Command):
    """Close what is there, and end; answered when everything is closed."""


# -- worker to parent


class Tell(amp.Command):
    """Things that happened, in this order. ``lost`` things before it could not wait any longer and will never be told."""

    arguments: ClassVar = [(b"said", Value(tuple[Said, ...])), (b"lost", amp.Integer())]


class Keep(amp.Command):
    """What a successor must know of these allocations, instead of what was told before; of ``forgotten`` ones, nothing."""

    arguments: ClassVar = [
        (b"entries", Value(tuple[Remembered, ...])), (b"forgotten", Value(tuple[AllocationKey, ...])),
    ]
