"""Keys of 1-RTT packets through key updates (RFC 9001 §6).

aioquic forgets the keys for receiving as soon as they are updated, and with them every packet that the peer sent before it took
part: what is on its way at that moment, and what is reordered, would be lost. ``KeyPair`` keeps the keys of the phase before
(RFC 9001 §6.5) until whoever owns it says that nothing can be on its way any more.
"""

from __future__ import annotations

from aioquic._crypto import CryptoError
from aioquic.quic.crypto import CryptoContext, CryptoPair
from aioquic.quic.packet import decode_packet_number

_KEY_PHASE = 0x04
_NUMBER_SIZE = 0x03


class KeyPair(CryptoPair):
    """The keys of both directions; only for 1-RTT packets."""

    def __init__(self) -> None:
        super().__init__()
        self.updates = 0
        """How often the keys were updated, by either side."""
        self.is_settled = True
        """Whether the peer was heard with the keys that are in use now."""
        self._previous: CryptoContext | None = None

    @property
    def holds_previous(self) -> bool:
        """Whether packets of the phase before can be opened."""
        return self._previous is not None

    def forget_previous(self) -> None:
        """Packets of the phase before are not expected any more."""
        self._previous = None

    def decrypt_packet(self, packet: bytes, encrypted_offset: int, expected_packet_number: int) -> tuple[bytes, bytes, int]:
        """Header, payload and number of a packet; ``CryptoError`` when no key that may have been used opens it."""
        try:
            opened: tuple[bytes, bytes, int] = super().decrypt_packet(packet, encrypted_offset, expected_packet_number)
        except CryptoError:
            if self._previous is None:
                raise
            return _open(self._previous, packet, encrypted_offset, expected_packet_number)
        self.is_settled = True
        return opened

    def _update_key(self, trigger: str) -> None:
        previous = CryptoContext(key_phase=self.recv.key_phase)
        previous.aead, previous.hp = self.recv.aead, self.recv.hp
        super()._update_key(trigger)
        self._previous = previous
        self.is_settled = False
        self.updates += 1


class InitialKeys(dict[int, CryptoPair]):
    """The keys of a server's Initial packets (RFC 9001 §5.2) by the version of QUIC: made when a client speaks that.

    ``connection_id`` is the Destination Connection ID of the client's first Initial. Who asks has seen that the version is known.
    Once they are discarded (RFC 9001 §4.9.1) there are none for any version: everyone who saw the handshake could make them.
    """

    def __init__(self, connection_id: bytes) -> None:
        super().__init__()
        self._connection_id: bytes | None = connection_id

    def discard(self) -> None:
        """Make no more; those that were made are torn down by who used them."""
        self._connection_id = None

    def __missing__(self, version: int) -> CryptoPair:
        pair = self[version] = CryptoPair()
        if self._connection_id is not None:
            pair.setup_initial(cid=self._connection_id, is_client=False, version=version)
        return pair


def _open(keys: CryptoContext, packet: bytes, encrypted_offset: int, expected_packet_number: int) -> tuple[bytes, bytes, int]:
    """Open a packet with exactly these keys, where ``CryptoContext.decrypt_packet`` would go on to the next ones."""
    if keys.aead is None or keys.hp is None:
        msg = "the keys are gone"
        raise CryptoError(msg)
    header, number = keys.hp.remove(packet, encrypted_offset)
    if (header[0] & _KEY_PHASE != 0) != bool(keys.key_phase):
        msg = "the packet is of another phase"
        raise CryptoError(msg)
    number = decode_packet_number(number, 8 * ((header[0] & _NUMBER_SIZE) + 1), expected_packet_number)
    return header, keys.aead.decrypt(packet[len(header) :], header, number), number
