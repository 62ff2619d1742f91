"""A bouncer: follows the decisions of a CrowdSec-style engine through its local API (R6.6).

Theory of operation
-------------------
``GET /v1/decisions/stream`` with ``startup=true`` answers with all decisions that are in force, without it with what is new and
what was deleted since the last time this key asked. So one lost answer would be lost for good. Therefore the next request after
one that failed, in whatever way, asks for everything again, and what is in force here and not in that answer is taken back. So is
what an earlier life of the relay left.

Followed are bans of the scopes Ip and Range. A decision has a duration, after which it ends here even if the engine is gone. An
answer is read to its end before anything of it is applied, so one that is cut off changes nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final

from twisted.logger import Logger

from zrc_relay.abuse.blocking import BlockList, in_slices, parse_network, parse_ttl
from zrc_relay.abuse.health import Health
from zrc_relay.abuse.http import HttpError, Requester
from zrc_relay.abuse.jsonstream import JsonError, array_items
from zrc_relay.abuse.loop import Loop
from zrc_relay.config_external import Secret
from zrc_relay.core.cidr import Network

MAX_DECISIONS: Final = 100_000
"""Decisions followed at a time; further ones are rejected, so that the lists keep room for others."""
TIMEOUT: Final = 30.0
"""Seconds within which the engine must have answered; all decisions together take it a while."""
MAX_ANSWER: Final = 32 * 1024 * 1024
"""Longest answer in bytes: 100,000 decisions at 250 bytes each, and some."""
MAX_DURATION_TEXT: Final = 64
STREAM: Final = "/v1/decisions/stream"

_UNITS: Final[Mapping[str, float]] = {
    "ns": 1e-9, "us": 1e-6, "\N{MICRO SIGN}s": 1e-6, "\N{GREEK SMALL LETTER MU}s": 1e-6, "ms": 1e-3,
    "s": 1.0, "m": 60.0, "h": 3600.0,
}
_PART: Final = r"(\d{1,18}(?:\.\d{0,18})?)(" + "|".join(_UNITS) + ")"
_DURATION: Final = re.compile(rf"(-?)((?:{_PART})+)", re.ASCII)
_PARTS: Final = re.compile(_PART, re.ASCII)


class Bouncer(Loop):
    """Follows an engine's decisions, asking every ``interval`` seconds; ``now`` gives monotonic seconds."""

    _log = Logger()

    def __init__(
        self,
        clock: Any,
        client: Requester,
        key: Secret,
        block_list: BlockList,
        *,
        interval: float,
        now: Callable[[], float],
        wall: Callable[[], float],
        random: Callable[[], float],
    ) -> None:
        super().__init__(clock, "bouncer")
        self._reactor = clock
        self._client = client
        self._key = key
        self._block_list = block_list
        self._interval = interval
        self._now = now
        self._health = Health("the engine that the bouncer follows", wall=wall, random=random)
        self._in_force: dict[Network, float] = {}
        """What was blocked for the engine, and until when; some of it may be over."""
        self._is_behind = True
        self.rejected = 0
        """Decisions that were not understood, too wide, or too many."""

    @property
    def decisions(self) -> int:
        """Decisions that are followed."""
        return len(self._in_force)

    @property
    def failures(self) -> int:
        """Requests that failed."""
        return self._health.failures

    @property
    def last_success(self) -> float | None:
        """When the decisions were last up to date, in Unix seconds."""
        return self._health.last_success

    async def step(self) -> float | None:
        """Ask once, and do what the answer says; see ``Loop``."""
        everything, self._is_behind = self._is_behind, True
        new: dict[Network, float] = {}
        deleted: dict[Network, float] = {}
        try:
            body = await self._ask(everything=everything)
            await in_slices(
                array_items(body.decode(), ("new", "deleted")),
                lambda item: self._read(item[1], new if item[0] == "new" else deleted), self._reactor,
            )
        except (HttpError, JsonError, UnicodeDecodeError) as error:
            self._health.failed(str(error))
            return max(self._interval, self._health.backoff())
        over = {*self._in_force, *self._block_list.networks()} if everything else deleted.keys()
        await in_slices((network for network in over if network not in new), self._unblock, self._reactor)
        self._make_room(len(new))
        await in_slices(new.items(), lambda entry: self._block(*entry), self._reactor)
        self._is_behind = False
        self._health.succeeded()
        if everything:
            self._log.info("{decisions} decisions are followed", event="bouncer.decisions", decisions=self.decisions)
        return self._interval

    async def _ask(self, *, everything: bool) -> bytes:
        headers = {"X-Api-Key": self._key.reveal().decode(), "Accept": "application/json"}
        response = await self._client.request("GET", f"{STREAM}?startup={str(everything).lower()}", headers)
        if response.status in (401, 403):
            msg = "it does not accept the API key"
            raise HttpError(msg)
        if response.status != 200:
            msg = f"it answered with status {response.status}"
            raise HttpError(msg)
        return response.body

    def _read(self, item: object, into: dict[Network, float]) -> None:
        """Take one decision into a table of networks and seconds; of several about one network the longest."""
        decision = item if isinstance(item, dict) else {"type": "ban", "scope": "ip"}
        if str(decision.get("type")).lower() != "ban" or decision.get("simulated") is True:
            return
        if str(decision.get("scope")).lower() not in ("ip", "range"):
            return
        try:
            network, seconds = parse_network(decision.get("value")), parse_duration(decision.get("duration"))
        except ValueError:
            self.rejected += 1
            return
        into[network] = max(seconds, into.get(network, seconds))

    def _block(self, network: Network, seconds: float) -> None:
        if seconds <= 0:
            return
        ttl = parse_ttl(seconds)
        has_room = network in self._in_force or len(self._in_force) < MAX_DECISIONS
        if has_room and self._block_list.block(network, ttl):
            self._in_force[network] = self._now() + ttl
        else:
            self.rejected += 1

    def _unblock(self, network: Network) -> None:
        self._in_force.pop(network, None)
        self._block_list.unblock(network)

    def _make_room(self, needed: int) -> None:
        """Forget what is over, when it takes room that is needed."""
        if len(self._in_force) + needed > MAX_DECISIONS:
            now = self._now()
            self._in_force = {network: until for network, until in self._in_force.items() if until > now}


def parse_duration(value: object) -> float:
    """Seconds of a duration as Go writes it, such as "4h59m0.5s" or "-1h"; ``ValueError`` for anything else."""
    match = _DURATION.fullmatch(value) if isinstance(value, str) and len(value) <= MAX_DURATION_TEXT else None
    if match is None:
        raise ValueError(value)
    seconds = sum(float(part[1]) * _UNITS[part[2]] for part in _PARTS.finditer(match[2]))
    return -seconds if match[1] else seconds
