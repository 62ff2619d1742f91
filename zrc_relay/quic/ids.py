"""Connection ids, stateless reset tokens (RFC 9000 §5.1, §10.3; R5.9) and channel ids.

Ids are 8 random bytes, so that nobody can link two of them. Where a relay is several workers, the first byte says which of them
has the id (``core.routing``), and is random among the values that say so. The reset token of an id is derived from a secret: a
relay that kept its secret can reset connections of an earlier life, and the peer can recognise that.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Final

from zrc_relay.core.channel import CHANNEL_ID_SIZE
from zrc_relay.core.routing import ALONE, BYTES, Share

CONNECTION_ID_SIZE: Final = 8
RESET_TOKEN_SIZE: Final = 16
SECRET_SIZE: Final = 32


class ConnectionIds:
    """Makes connection ids and the reset tokens that go with them.

    ``secret`` is 32 bytes; ``random`` gives that many random bytes; ``share`` is the part of the ids that is ours.
    """

    def __init__(self, secret: bytes, random: Callable[[int], bytes], share: Share = ALONE) -> None:
        if len(secret) != SECRET_SIZE:
            msg = f"the reset secret is {SECRET_SIZE} bytes, not {len(secret)}"
            raise ValueError(msg)
        self._secret = secret
        self._random = random
        self._share = share
        self._firsts = share.firsts
        self._fair = BYTES - BYTES % len(self._firsts)
        """Random bytes below this fall on each value of ``_firsts`` equally often; others are drawn again."""

    def new(self) -> bytes:
        """A fresh connection id."""
        return self._make(CONNECTION_ID_SIZE)

    def channel(self) -> bytes:
        """A fresh channel id (PROTOCOL §7)."""
        return self._make(CHANNEL_ID_SIZE)

    def owns(self, identifier: bytes) -> bool:
        """Whether a connection or channel id can be one of ours; one that is another worker's cannot. Empty ones are nobody's."""
        return not identifier or self._share.owns(identifier[0])

    def reset_token(self, connection_id: bytes) -> bytes:
        """The 16-byte stateless reset token of ``connection_id``."""
        return hashlib.blake2b(connection_id, key=self._secret, digest_size=RESET_TOKEN_SIZE).digest()

    def _make(self, size: int) -> bytes:
        made = self._random(size)
        firsts = self._firsts
        if len(firsts) == BYTES:
            return made
        drawn = made[0]
        while drawn >= self._fair:
            drawn = self._random(1)[0]
        return firsts[drawn % len(firsts)].to_bytes(1, "big") + made[1:]
