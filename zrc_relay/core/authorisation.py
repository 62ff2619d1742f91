"""Whether a token may be used here, now, by who presents it (R1, R6.8, PROTOCOL §5).

Theory of operation
-------------------
``Authoriser`` answers for ALLOCATE and for REFRESH, in the order of PROTOCOL §5: version, malformed, device known, signature,
expired, too long, relay, allocation, peer, proof. The first failure raises ``Refused`` with its own code; nothing is created by
asking. Capacity and rates come after and are not known here.

A verified signature is remembered by the token's 180 bytes, which are every signed byte and the signature: a forged limit is
another key. What depends on time or on the request is never remembered, it is checked on every use.

Where trust is *self-certified*, a device that is not pinned is known as soon as it proves possession of the key that its id is
the hash of, in a tier of its own kind. Its key is remembered while an allocation of it lives (``remember``, ``forget``), so that
its peer can join and its tokens can be refreshed. A peer that comes first is told to come again.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection
from dataclasses import dataclass, replace

from zrc_relay.core.codes import ErrorCode, Role
from zrc_relay.core.counters import Counters, Limit
from zrc_relay.core.keys import Device, DeviceKeys
from zrc_relay.core.token import RelayToken, TokenError, key_id, proof_digest, verify
from zrc_relay.core.wire import PROTOCOL_VERSION, Allocate

UNKNOWN_RETRY_AFTER = 3
"""Seconds after which a peer whose device was not here yet should come again: 20 times a minute, within both rates of R6.1."""
TOKEN_CACHE_SIZE = 4096
"""Verified tokens remembered; about 1 MB. Past it the least recently used goes."""


class Refused(Exception):
    """A request that is not granted: the close code (or ERROR code), and a sentence for people.

    ``retry_after`` is in seconds, 0 when trying again would not help. ``limit`` says which limit of the source it is for, if any.
    """

    def __init__(self, code: ErrorCode, reason: str, *, retry_after: int = 0, limit: Limit | None = None) -> None:
        super().__init__(reason)
        self.code = code
        self.limit = limit
        self.reason = f"retry_after={retry_after};{reason}" if retry_after else reason
        self.retry_after = retry_after


@dataclass(frozen=True, slots=True)
class Grant:
    """A token that was found good: who signed it, and whether the presenter proved to hold the key of its role."""

    token: RelayToken
    device: Device
    proven: bool


@dataclass(frozen=True, slots=True)
class Challenge:
    """What a proof on one connection must cover besides the token."""

    relay_id: bytes
    certificate_sha256: bytes
    nonce: bytes


class Authoriser:
    """Checks tokens and proofs against the pinned keys.

    ``max_token_lifetime`` is in seconds; ``proving_roles`` are the roles that must prove possession of their key. Devices
    that are not pinned are known in ``self_certified_tier``; None knows none of them.
    """

    def __init__(
        self,
        *,
        relay_id: bytes,
        keys: DeviceKeys,
        max_token_lifetime: float,
        proving_roles: Collection[Role],
        counters: Counters,
        self_certified_tier: str | None = None,
    ) -> None:
        self._relay_id = relay_id
        self._keys = keys
        self._max_token_lifetime = max_token_lifetime
        self._proving_roles = frozenset(proving_roles)
        self._counters = counters
        self._verified: OrderedDict[bytes, None] = OrderedDict()
        self._self_certified_tier = self_certified_tier
        self._remembered: dict[bytes, Device] = {}

    def must_prove(self, role: Role) -> bool:
        """Whether a connection of ``role`` has to prove possession, or may have to: for a device that is not pinned."""
        return role in self._proving_roles or (role is Role.DEVICE and self._self_certified_tier is not None)

    def remember(self, device: Device) -> None:
        """A self-certified device has an allocation; there are never more of them than allocations."""
        self._remembered[key_id(device.public_key)] = device

    def forget(self, device_id: bytes) -> None:
        """A device has no allocation any more; what was remembered of it, if it was self-certified, goes."""
        if self._remembered.pop(device_id, None) is not None:
            for data in [data for data in self._verified if data[32:64] == device_id]:
                del self._verified[data]

    def replace_keys(self, keys: DeviceKeys) -> list[bytes]:
        """Use ``keys`` from now on; returns the device ids that are gone, whose verified tokens are forgotten."""
        gone = [device_id for device_id in self._keys if keys.get(device_id) is None]
        self._keys = keys
        for data in [data for data in self._verified if self._known(data[32:64]) is None]:
            del self._verified[data]
        return gone

    def reconfigure(
        self, *, max_token_lifetime: float, proving_roles: Collection[Role], self_certified_tier: str | None
    ) -> list[bytes]:
        """Use other settings from now on; returns the ids of devices that are known no more, because nobody has pinned them."""
        self._max_token_lifetime = max_token_lifetime
        self._proving_roles = frozenset(proving_roles)
        self._self_certified_tier = self_certified_tier
        if self_certified_tier is not None:
            self._remembered = {
                device_id: replace(device, tier=self_certified_tier) for device_id, device in self._remembered.items()
            }
            return []
        forgotten = list(self._remembered)
        for device_id in forgotten:
            self.forget(device_id)
        return [device_id for device_id in forgotten if self._keys.get(device_id) is None]

    def device(self, device_id: bytes) -> Device | None:
        """The device of that id, if it is known."""
        return self._known(device_id)

    def allocate(self, request: Allocate, challenge: Challenge, wall: float) -> Grant:
        """Check an ALLOCATE at ``wall`` (Unix seconds); ``Refused`` otherwise."""
        if request.version != PROTOCOL_VERSION:
            raise Refused(ErrorCode.VERSION, f"version {request.version} is not spoken here, only {PROTOCOL_VERSION}")
        token, device = self.token(request.token, wall, request)
        if token.allocation_id != request.allocation_id:
            raise Refused(ErrorCode.TOKEN_WRONG_ALLOCATION, "the token is for another allocation")
        if token.peer_id != request.peer_id:
            raise Refused(ErrorCode.TOKEN_WRONG_PEER, "the token is for another peer")
        return Grant(token, device, self._check_proof(request, token, device, challenge))

    def token(self, data: bytes, wall: float, request: Allocate | None = None) -> tuple[RelayToken, Device]:
        """Check what does not depend on the request, if there is one: the first seven steps of PROTOCOL §5.

        Only a ``request`` can make a device known that was not.
        """
        try:
            token = RelayToken.parse(data)
        except TokenError as error:
            raise Refused(ErrorCode.TOKEN_MALFORMED, str(error)) from error
        device = self._known(token.device_id) or self._introduced(token, request)
        if not self._is_signed(data, token, device):
            raise Refused(ErrorCode.TOKEN_BAD_SIGNATURE, "the token's signature is not the device's")
        if token.expires_at <= wall:
            raise Refused(ErrorCode.TOKEN_EXPIRED, "the token has expired")
        if token.expires_at > wall + self._max_token_lifetime:
            raise Refused(ErrorCode.TOKEN_TOO_LONG, "the token lives longer than this relay allows")
        if token.relay_id != self._relay_id:
            raise Refused(ErrorCode.TOKEN_WRONG_RELAY, "the token is for another relay")
        return token, device

    def _known(self, device_id: bytes) -> Device | None:
        return self._keys.get(device_id) or self._remembered.get(device_id)

    def _introduced(self, token: RelayToken, request: Allocate | None) -> Device:
        """A device that nobody has pinned, by the key that it shows; ``_check_proof`` makes sure that it is its own."""
        tier = self._self_certified_tier
        if tier is None:
            raise Refused(ErrorCode.DEVICE_UNKNOWN, "the device's key is not pinned here")
        if request is None or request.role == Role.PEER:
            reason = "the device has not been here yet"
            raise Refused(ErrorCode.DEVICE_UNKNOWN, reason, retry_after=UNKNOWN_RETRY_AFTER)
        if not request.proof or key_id(request.public_key) != token.device_id:
            raise Refused(ErrorCode.DEVICE_UNKNOWN, "a device that is not pinned must prove possession of its key here")
        return Device(request.public_key, tier, self_certified=True)

    def _is_signed(self, data: bytes, token: RelayToken, device: Device) -> bool:
        if data in self._verified:
            self._verified.move_to_end(data)
            self._counters.token_cache_hits += 1
            return True
        self._counters.token_cache_misses += 1
        if not token.is_signed_by(device.public_key):
            return False
        self._verified[data] = None
        if len(self._verified) > TOKEN_CACHE_SIZE:
            self._verified.popitem(last=False)
        return True

    def _check_proof(self, request: Allocate, token: RelayToken, device: Device, challenge: Challenge) -> bool:
        role = Role(request.role)
        if not request.proof:
            if role in self._proving_roles or (role is Role.DEVICE and device.self_certified):
                raise Refused(ErrorCode.PROOF_REQUIRED, f"a {role.name.lower()} must prove possession of its key here")
            return False
        digest = proof_digest(
            relay_id=challenge.relay_id,
            certificate_sha256=challenge.certificate_sha256,
            token=request.token,
            challenge=challenge.nonce,
            role=role,
        )
        owner = token.device_id if role is Role.DEVICE else token.peer_id
        if key_id(request.public_key) != owner or not verify(request.public_key, digest, request.proof):
            raise Refused(ErrorCode.PROOF_INVALID, "the proof of possession is not right")
        return True
