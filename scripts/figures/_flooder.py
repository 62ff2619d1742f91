"""Sends Initials from made-up addresses: ``python -m figures._flooder PORT RATE SECONDS VICTIM``.

Each is a whole, well-protected Initial with a real ClientHello. Sources are random addresses of 127.0.0.0/8, which the kernel
lets a socket name as its own (IP_PKTINFO); one in ``VICTIM_SHARE`` is the address ``VICTIM``. Prints a JSON line when it begins
and one when it is done.
"""

from __future__ import annotations

import contextlib
import json
import random
import socket
import ssl
import struct
import sys
import time
from typing import Final

from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection

from tests.raw_quic import Initial

PACKETS: Final = 4096
"""Different ones that are made beforehand, and then sent again and again."""
VICTIM_SHARE: Final = 50
BURST: Final = 0.002
"""Seconds between two bursts: a sender of thousands of packets a second is never smoother."""
_IP_PKTINFO: Final = 8  # linux/in.h; the socket module has it only on some builds
_PKTINFO: Final = struct.Struct("=i4s4s")


def client_hello() -> bytes:
    """The frames of a client's first Initial."""
    configuration = QuicConfiguration(is_client=True, alpn_protocols=["zrc-relay"], verify_mode=ssl.CERT_NONE)
    client = QuicConnection(configuration=configuration)
    client.connect(("127.0.0.1", 4433), now=0.0)
    packet = client.datagrams_to_send(now=0.0)[0][0]
    return Initial(packet[6 : 6 + packet[5]]).open(packet, is_client=True)


def main(port: str, rate: str, seconds: str, victim: str) -> None:
    """Send."""
    rng = random.Random(1)  # noqa: S311 - the same addresses each time
    frames = client_hello().rstrip(b"\0")
    packets = [Initial(rng.randbytes(8)).protect(frames, scid=rng.randbytes(8)) for _ in range(PACKETS)]
    sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sender.settimeout(0)
    sender.bind(("0.0.0.0", 0))  # noqa: S104 - the source address is chosen for each packet
    to = ("127.0.0.1", int(port))
    say({"event": "begin"})
    began = time.monotonic()
    sent = 0
    while (now := time.monotonic() - began) < float(seconds):
        while sent < now * int(rate):
            address = socket.inet_aton(victim) if sent % VICTIM_SHARE == 0 else bytes((127, *rng.randbytes(3)))
            source = [(socket.IPPROTO_IP, _IP_PKTINFO, _PKTINFO.pack(0, address, bytes(4)))]
            with contextlib.suppress(OSError):  # x.255.255.255 is no address to send from, and buffers may be full
                sender.sendmsg([packets[sent % PACKETS]], source, 0, to)
            sent += 1
        time.sleep(BURST)
    say({"event": "end", "sent": sent, "seconds": time.monotonic() - began})


def say(line: dict[str, object]) -> None:
    """Print a JSON line."""
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
