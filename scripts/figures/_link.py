"""A relay, a link and two clients behind it: ``python -m figures._link FAMILY MTU [DROP]``, in a network namespace of its own.

Lets a relay listen at one end of a virtual link of that MTU, and both ends of an allocation (``_link_end``) live in another
namespace at the other end. With DROP, a minute after the beginning every IP packet above so many bytes is dropped without a word,
in both directions. Prints the JSON lines of the clients.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from figures._common import NO_RATES, Program, python_program
from zrc_relay.cli.dev_setup import make_dev_setup
from zrc_relay.cli.processes import Child, child_environment, relay_command

ADDRESSES: Final = {"IPv4": ("192.0.2.1", "192.0.2.2", "24"), "IPv6": ("2001:db8::1", "2001:db8::2", "64")}
MINUTE: Final = 60.0
PATIENCE: Final = 200.0
_LISTENING: Final = r"listening on UDP \S+:(\d+)"


def main(family: str, mtu: str, drop: str = "") -> None:
    """Build it all and let it run."""
    here, there, prefix = ADDRESSES[family]
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="prove-") as directory, namespace() as other, contextlib.ExitStack() as stack:
        ip("link add near type veth peer name far")
        ip(f"link set far netns {other}")
        for inside, device, address in (([], "near", here), (inside_of(other), "far", there)):
            ip("link set lo up", inside)
            # Trains are cut before the link, not behind it, so that it sees the packets.
            ip(f"link set {device} mtu {mtu} gso_max_segs 1", inside)
            ip(f"addr add {address}/{prefix} dev {device}{' nodad' if family == 'IPv6' else ''}", inside)
            ip(f"link set {device} up", inside)
        made = make_dev_setup(
            Path(directory, "setup"), listen=[here], port=0, tier="unlimited", settings={"drain_timeout": "0s", **NO_RATES}
        )
        relay = stack.enter_context(Child("relay", relay_command(made.config), made.directory, child_environment()))
        port = relay.wait_for(_LISTENING, timeout=PATIENCE).group(1)
        signal = Path(directory, "changed")
        command = [*inside_of(other), *python_program("figures._link_end", made.directory, here, port, signal)]
        clients = Program("clients", command, made.directory)
        stack.enter_context(clients.child)
        clients.child.wait_for(r"^\{", timeout=PATIENCE)
        if drop:
            time.sleep(max(0.0, begun + MINUTE - time.monotonic()))
            for inside in ([], inside_of(other)):
                drop_above(drop, inside)
        signal.touch()
        status = clients.wait(PATIENCE)
        sys.stdout.write(clients.child.output if status == 0 else clients.child.tail)
        sys.exit(status)


@contextlib.contextmanager
def namespace() -> Iterator[int]:
    """Another network namespace, as long as this lasts; known by the id of a process in it."""
    holder = subprocess.Popen(["unshare", "--net", "sleep", "1d"])  # noqa: S607 - found where it is installed
    try:
        own = Path("/proc/self/ns/net").readlink()
        while Path(f"/proc/{holder.pid}/ns/net").readlink() == own:
            time.sleep(0.01)
        yield holder.pid
    finally:
        holder.kill()
        holder.wait()


def inside_of(process: int) -> list[str]:
    """What a command begins with that runs in the network namespace of ``process``."""
    return ["nsenter", "--target", str(process), "--net"]


def ip(command: str, inside: list[str] | None = None) -> None:
    """Run iproute2."""
    subprocess.run([*(inside or []), "ip", *command.split()], check=True)


def drop_above(size: str, inside: list[str]) -> None:
    """Drop IP packets of more than ``size`` bytes that arrive, and tell nobody."""
    rules = f"""
        table inet hole {{
            chain arrive {{
                type filter hook prerouting priority raw
                meta length > {size} drop
            }}
        }}
    """
    subprocess.run([*inside, "nft", "-f", "-"], input=rules, text=True, check=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
