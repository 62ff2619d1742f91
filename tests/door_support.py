"""What the tests of the door share: Initials with tokens, and a look at what was counted and told."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from tests import raw_quic as raw
from tests.harness import World
from tests.raw_quic import Initial
from zrc_relay.core.admission import AdmissionSettings
from zrc_relay.core.counters import Limit
from zrc_relay.quic.stateless import parse_long_header

ALWAYS = AdmissionSettings(handshake_pressure=0, amplification_block=None)
"""Every client is asked for a Retry."""
HELLO = raw.crypto_frame(0, b"\x01\x00\x01\x00")


def is_retry(packet: bytes) -> bool:
    """Whether it is a Retry of either version."""
    header = parse_long_header(packet)
    return header is not None and header.first >> 4 & 3 == {raw.V1: 3, raw.V2: 0}.get(header.version)


class DoorTestCase(SynchronousTestCase):
    """Helpers."""

    world: World

    def limited(self) -> dict[Limit, int]:
        """What was limited how often."""
        return {limit: count for limit, count in self.world.relay.counters.limited.items() if count}

    def events(self, limit: Limit) -> list[tuple[object, object]]:
        """Cause and validation of each event about a limit."""
        return [(fields["cause"], fields["validated"]) for fields in self.world.recorder.named(f"security.{limit.value}")]

    def initial(self, dcid: bytes, token: bytes = b"", frames: bytes = HELLO, size: int = 1200) -> bytes:
        """An Initial with a token, which ``Initial.protect`` does not make: the length of the packet is left as it is."""
        whole = Initial(dcid).protect(frames, size=size)
        header = parse_long_header(whole)
        if header is None:
            self.fail("it has a header")
        return whole[: header.end] + raw.varint(len(token)) + token + whole[header.end + 1 :]

    def close_of(self, dcid: bytes, packets: list[bytes]) -> int:
        """The transport error that the only packet tells."""
        (packet,) = packets
        return raw.transport_close_code(Initial(dcid).open(packet, is_client=False))
