"""``Identity``: who a client is in an allocation, and how it says so (PROTOCOL §4)."""

from __future__ import annotations

from dataclasses import dataclass

from nacl.signing import SigningKey

from zrc_relay.core.codes import HelloFeature, Role
from zrc_relay.core.token import RelayToken, key_id, proof_digest
from zrc_relay.core.wire import Address, Allocate, Hello


@dataclass(frozen=True, slots=True)
class Identity:
    """Who the client is: the token, its role in it, and the key that proves the role (None: no proof is given)."""

    token: RelayToken
    role: Role
    key: SigningKey | None

    @classmethod
    def of(cls, token: RelayToken, key: SigningKey | None, role: Role | None = None) -> Identity:
        """With the role that ``key`` has in ``token``; ``ValueError`` if it has none, or if neither key nor role is given."""
        if key is None:
            if role is None:
                msg = "without a key the role must be given"
                raise ValueError(msg)
            return cls(token, role, None)
        own_id = key_id(bytes(key.verify_key))
        roles = [r for r, owner in ((Role.DEVICE, token.device_id), (Role.PEER, token.peer_id)) if owner == own_id]
        if role is None and roles:
            role = roles[0]
        if role not in roles:
            wanted = "device or peer" if role is None else role.name.lower()
            msg = f"the key is not that of the token's {wanted}"
            raise ValueError(msg)
        return cls(token, role, key)

    def satisfies(self, hello: Hello) -> bool:
        """Whether the relay that sent ``hello`` gets the proof that it wants."""
        wanted = HelloFeature.DEVICES_PROVE if self.role is Role.DEVICE else HelloFeature.PEERS_PROVE
        return self.key is not None or not hello.features & wanted

    def request(self, hello: Hello, certificate_sha256: bytes, address: Address) -> Allocate:
        """ALLOCATE for the connection on which ``hello`` came, with the proof of possession; ``address`` is our own."""
        token = self.token.encode()
        public_key = proof = b""
        if self.key is not None:
            digest = proof_digest(
                relay_id=hello.relay_id,
                certificate_sha256=certificate_sha256,
                token=token,
                challenge=hello.challenge,
                role=self.role,
            )
            public_key, proof = bytes(self.key.verify_key), self.key.sign(digest).signature
        return Allocate(
            role=self.role,
            allocation_id=self.token.allocation_id,
            peer_id=self.token.peer_id,
            token=token,
            client_addr=address,
            public_key=public_key,
            proof=proof,
        )
