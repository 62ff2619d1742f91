"""Retry tokens: a client shows with one that it is where it says it is (RFC 9000 §8.1).

Theory of operation
-------------------
A token is sealed with a key that nobody else has (AES-128-GCM). Inside are when it ends and the Destination Connection ID of the
client's first Initial, which the handshake must repeat. What it is *for* is not inside but sealed along: the address and port it
was sent to and the connection id that the Retry proposed. A token from another address, or with another connection id, does not
open.

The key changes every ``KEY_LIFETIME`` seconds, when somebody looks, and the one before it is kept, so that a token is good for
its whole life. One bit of the first byte says which of the two sealed it. Nothing is kept for each token: one that is replayed
within its life, from the same address, begins another connection, which counts against that address like any other.

``now`` is monotonic seconds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

TOKEN_LIFETIME: Final = 30.0
"""Seconds that a token is good for: clients answer a Retry at once, and some send it again."""
KEY_LIFETIME: Final = 600.0
"""Seconds after which another key seals: 3 million tokens at 5000 a second, where random nonces are good for 2^32."""
_KEY_SIZE: Final = 16
_NONCE_SIZE: Final = 12
_TAG_SIZE: Final = 16
_TIME_SIZE: Final = 8
_MAX_ID_SIZE: Final = 20
_MARK: Final = 0x72
"""First byte of a token, whose last bit says which key sealed it."""
_MIN_SIZE: Final = 1 + _NONCE_SIZE + _TIME_SIZE + _TAG_SIZE
MAX_TOKEN_SIZE: Final = _MIN_SIZE + _MAX_ID_SIZE


class RetryTokens:
    """Makes and checks tokens. ``random`` gives that many random bytes."""

    def __init__(self, random: Callable[[int], bytes], now: float) -> None:
        self._random = random
        self._number = 0
        self._keys: dict[int, AESGCM] = {}
        self._next_key_at = now
        self._rotate(now)

    def create(self, host: str, port: int, original_id: bytes, retry_id: bytes, now: float) -> bytes:
        """A token for the client at ``host``:``port`` whose first Initial was for ``original_id``, when it uses ``retry_id``."""
        self._rotate(now)
        nonce = self._random(_NONCE_SIZE)
        ends = int((now + TOKEN_LIFETIME) * 1000)
        which = self._number & 1
        sealed = self._keys[which].encrypt(
            nonce, ends.to_bytes(_TIME_SIZE, "big") + original_id, _bound_to(host, port, retry_id)
        )
        return bytes((_MARK | which,)) + nonce + sealed

    def check(self, token: bytes, host: str, port: int, retry_id: bytes, now: float) -> bytes | None:
        """The ``original_id`` of a token that is good for that client now; None for any other."""
        self._rotate(now)
        if not _MIN_SIZE <= len(token) <= MAX_TOKEN_SIZE or token[0] & 0xFE != _MARK:
            return None
        key = self._keys.get(token[0] & 1)
        if key is None:
            return None
        try:
            opened = key.decrypt(token[1 : 1 + _NONCE_SIZE], token[1 + _NONCE_SIZE :], _bound_to(host, port, retry_id))
        except InvalidTag:
            return None
        if int.from_bytes(opened[:_TIME_SIZE], "big") <= now * 1000:
            return None
        return opened[_TIME_SIZE:]

    def _rotate(self, now: float) -> None:
        if now < self._next_key_at:
            return
        if now >= self._next_key_at + KEY_LIFETIME:
            self._keys.clear()  # nobody looked for so long that the last key is as old as one that is forgotten
        self._number += 1
        self._keys[self._number & 1] = AESGCM(self._random(_KEY_SIZE))
        self._next_key_at = now + KEY_LIFETIME


def _bound_to(host: str, port: int, retry_id: bytes) -> bytes:
    # Neither a host in text nor a port can hold a zero byte or a slash, so no two triples look alike.
    return f"{host}/{port}/".encode() + retry_id
