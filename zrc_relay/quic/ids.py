"""Connection ids, stateless reset tokens (RFC 9000 §5.1, §10.3; R5.9) and channel ids.

Ids are 8 random bytes, so that nobody can link two of them. The reset token of an id is derived from a secret: a relay that kept
its secret can reset connections of an earlier life, and the peer can recognise that.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Final

from zrc_relay.core.channel import CHANNEL_ID_SIZE

CONNECTION_ID_SIZE: Final = 8
RESET_TOKEN_SIZE: Final = 16
SECRET_SIZE: Final = 32


class ConnectionIds:
    """Makes connection ids and the reset tokens that go with them.

    ``secret`` is 32 bytes; ``random`` gives that many random bytes.
    """

    def __init__(self, secret: bytes, random: Callable[[int], bytes]) -> None:
        if len(secret) != SECRET_SIZE:
            msg = f"the reset secret is {SECRET_SIZE} bytes, not {len(secret)}"
            raise ValueError(msg)
        self._secret = secret
        self._random = random

    def new(self) -> bytes:
        """A fresh connection id."""
        return self._random(CONNECTION_ID_SIZE)

    def channel(self) -> bytes:
        """A fresh channel id (PROTOCOL §7)."""
        return self._random(CHANNEL_ID_SIZE)

    def reset_token(self, connection_id: bytes) -> bytes:
        """The 16-byte stateless reset token of ``connection_id``."""
        return hashlib.blake2b(connection_id, key=self._secret, digest_size=RESET_TOKEN_SIZE).digest()
