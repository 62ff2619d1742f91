"""What is left of a connection that is over, for a session that somebody still holds: who it was, and that it sends nothing."""

from __future__ import annotations

from dataclasses import dataclass

from zrc_relay.core.codes import ErrorCode
from zrc_relay.core.wire import Address


@dataclass(frozen=True, slots=True)
class GoneLink:
    """A ``Link`` without a connection. Nothing leads back to the session from here."""

    name: str
    remote: Address
    local: Address
    max_payload: int = 0
    patience: float = 0.0
    certificate_sha256: bytes = b""
    control_backlog: int = 0
    route: object = None

    def new_channel_id(self) -> bytes:
        """No channel is ever opened here."""
        return b""

    def send_packets(self, packets: list[bytes]) -> None:
        """Nobody is there."""

    def send_train(self, train: bytes, size: int) -> None:
        """Nobody is there."""

    def send_hello(self, data: bytes) -> None:
        """Nobody is there."""

    def send_control(self, data: bytes) -> None:
        """Nobody is there."""

    def send_datagrams(self, payloads: list[bytes], now: float) -> None:
        """Nobody is there."""

    def close(self, code: ErrorCode, reason: str) -> None:
        """It is closed."""
