"""The path MTU on links of MTU 1280 and 1500, and on one that after a minute drops silently what is above 1300 (R5.8).

On each, both ends of an allocation and the relay find out what fits, on all four ways between them: at most what the link
carries, and less than the search's step below it. Every datagram of the size that was found arrives, as a DATAGRAM.

The links are virtual ones between network namespaces, where that is allowed; where it is not, links of the simulated network,
and the line says so.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from figures._common import Verdict, python_program
from figures._link_end import FULL
from tests.harness import TestClient, World
from tests.relay_view import DATAGRAM_OVERHEAD
from zrc_relay.core.codes import Role
from zrc_relay.quic.pmtu import STEP

HEADERS: Final = {"IPv4": 20 + 8, "IPv6": 40 + 8}
"""Bytes of IP and UDP header."""
MAX_UDP_PAYLOAD: Final = 1452
"""The default of ``max_udp_payload``: more is not tried."""
COUNT: Final = 200
MINUTE: Final = 60.0
PATIENCE: Final = 300.0
PLACES: Final = {"IPv4": ("198.51.100.70", ()), "IPv6": ("2001:db8::70", (0, 0))}


@dataclass(frozen=True, slots=True)
class Link:
    """A link between clients and relay; above ``hole`` bytes it drops after a minute."""

    family: str
    mtu: int
    hole: int | None = None

    def fits(self, phase: int) -> int:
        """The UDP payload that it carries, at the beginning and at the end."""
        mtu = self.hole if phase and self.hole else self.mtu
        return min(mtu - HEADERS[self.family], MAX_UDP_PAYLOAD)

    def __str__(self) -> str:
        return f"{self.family} {self.mtu}" + (f", later {self.hole}" if self.hole else "")


LINKS: Final = (Link("IPv4", 1280), Link("IPv6", 1280), Link("IPv4", 1500), Link("IPv6", 1500), Link("IPv4", 1500, 1300))


def prove() -> Verdict:
    """Try every link."""
    prefix = namespaces()
    told, kept = [], True
    for link in LINKS:
        lines = real(link, prefix) if prefix else simulated(link)
        kept = kept and all(is_right(link, phase, line) for phase, line in enumerate(lines)) and len(lines) == 2
        found = " then ".join(
            f"{min(line['sizes'])}" + ("" if len(set(line["sizes"])) == 1 else f" to {max(line['sizes'])}") for line in lines
        )
        arrived, sent = sum(sum(line["arrived"]) for line in lines), 2 * COUNT * len(lines)
        told.append(f"{link}: {found} ({arrived} of {sent} arrived)")
    where = "between network namespaces" if prefix else "on the SIMULATED network, since namespaces cannot be had here"
    return Verdict(kept, f"bytes of UDP payload found {where}, by link of MTU: {'; '.join(told)}")


def is_right(link: Link, phase: int, line: dict[str, Any]) -> bool:
    """Whether all four sizes are right, and all datagrams arrived."""
    fits = link.fits(phase)
    return all(fits - STEP < size <= fits for size in line["sizes"]) and line["arrived"] == [COUNT, COUNT]


def namespaces() -> list[str]:
    """What a program begins with that has a network namespace of its own; nothing where that is not to be had."""
    if not all(map(shutil.which, ("unshare", "nsenter", "ip", "nft"))):
        return []
    prefix = ["unshare", "--net"] if os.geteuid() == 0 else ["unshare", "--user", "--map-root-user", "--net"]
    trial = (
        "ip link add near type veth peer name far && nft add table inet hole && ip link set near gso_max_segs 1 && "
        "unshare --net true"
    )
    done = subprocess.run([*prefix, "sh", "-c", trial], capture_output=True, check=False)
    return prefix if done.returncode == 0 else []


def real(link: Link, prefix: list[str]) -> list[dict[str, Any]]:
    """What is found on a virtual link."""
    scripts = str(Path(__file__).resolve().parent.parent)
    paths = filter(None, (scripts, os.environ.get("PYTHONPATH")))
    done = subprocess.run(
        [*prefix, *python_program("figures._link", link.family, link.mtu, link.hole or "")],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)}, capture_output=True, text=True, timeout=PATIENCE, check=False,
    )
    if done.returncode:
        sys.stderr.write(done.stdout + done.stderr)
        return []
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def simulated(link: Link) -> list[dict[str, Any]]:
    """What is found on a link of the simulated network."""
    world = World()
    mtu = link.mtu

    def carry(data: bytes, _source: object, _to: object) -> bytes | None:
        return data if len(data) + HEADERS[link.family] <= mtu else None

    world.network.filter = carry
    host, rest = PLACES[link.family]
    token = world.token()
    ends = [world.client(role, token, sockaddr=(host, 7000 + role, *rest)) for role in Role]
    world.run(10)
    lines = [try_out(world, ends)]
    world.run(max(0.0, MINUTE - world.now()))
    mtu = link.hole or mtu
    for _ in range(200):
        for end in ends:
            end.send(bytes(FULL))
        world.run(0.05)
    world.run(5)
    return [*lines, try_out(world, ends)]


def try_out(world: World, ends: list[TestClient]) -> dict[str, Any]:
    """The sizes, and what arrives of datagrams of these sizes."""
    fits = [end.max_payload for end in ends] + [end.peer_max_payload for end in ends]
    for end in ends:
        end.got.clear()
    for _ in range(COUNT):
        for end in ends:
            end.send(bytes(min(end.max_payload, end.peer_max_payload)))
        world.run(0.01)
    world.run(1)
    return {"sizes": [size + DATAGRAM_OVERHEAD for size in fits], "arrived": [len(end.got) for end in ends]}
