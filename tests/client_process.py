"""A client that is a process of its own, for tests and proofs that kill it: ``python -m tests.client_process DIR PORT ROLE``.

DIR holds the files of ``zrc-relay dev-setup``. It connects, prints ``allocated`` and every payload it gets in hex, sends each
payload back when ROLE is ``peer``, and stays until it is killed or the relay ends it; then it prints why.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import react

from zrc_relay.cli.keyfiles import read_key
from zrc_relay.client.connect import connect
from zrc_relay.client.trust import Trust


async def main(reactor: Any, directory: str, port: str, role: str) -> None:
    """Connect and stay."""
    files = Path(directory)
    relay = await connect(
        reactor, "localhost", int(port),
        token=(files / "token.txt").read_text(), key=read_key(files / f"{role}.key"), trust=Trust(ca_file=files / "cert.pem"),
    )
    say("allocated")
    async for payload in relay.datagrams():
        say(payload.hex())
        if role == "peer":
            relay.send(payload)
    say(f"closed {relay.error}")


def say(line: str) -> None:
    """Print a line at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    react(lambda reactor: Deferred.fromCoroutine(main(reactor, *sys.argv[1:4])))
