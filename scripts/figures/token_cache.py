"""A token that was verified before is accepted in at most 5 microseconds; its verification takes many times that.

Both are the whole of what ``Authoriser.token`` does: parsing, the device, the signature or the memory of it, and all that is
checked on every use. Rounds of both take turns, in CPU time of this process, and of each the median counts.
"""

from __future__ import annotations

import time
from dataclasses import replace
from statistics import median
from typing import Final

from figures._common import Verdict
from tests.fakes import DEVICE, EPOCH, RELAY_ID, make_token, public
from zrc_relay.core.authorisation import Authoriser
from zrc_relay.core.counters import Counters
from zrc_relay.core.keys import Device, DeviceKeys

MAX_HIT: Final = 5.0
"""Microseconds."""
MIN_RATIO: Final = 5.0
ROUNDS: Final = 60
TOKENS: Final = 200
"""Tokens that are new to the relay in each round."""
HITS: Final = 2000
"""Tokens in a round that it knows."""


def prove() -> Verdict:
    """Measure."""
    counters = Counters()
    keys = DeviceKeys([Device(public(DEVICE))])
    authoriser = Authoriser(
        relay_id=RELAY_ID, keys=keys, max_token_lifetime=86400.0, proving_roles=(), counters=counters
    )
    hits: list[float] = []
    misses: list[float] = []
    for number in range(ROUNDS):
        template = make_token(allocation_id=number.to_bytes(16, "big"))
        fresh = [replace(template, quota_bytes=quota).sign(DEVICE).encode() for quota in range(TOKENS)]
        misses.append(_each(authoriser, fresh))
        hits.append(_each(authoriser, fresh * (HITS // TOKENS)))
    hit, miss = median(hits), median(misses)
    counted = (counters.token_cache_misses, counters.token_cache_hits) == (ROUNDS * TOKENS, ROUNDS * HITS)
    return Verdict(counted and hit <= MAX_HIT and miss >= MIN_RATIO * hit, (
        f"a token that is known takes {hit:.2f} \N{MICRO SIGN}s (at most {MAX_HIT:g}), one that is new {miss:.1f} "
        f"\N{MICRO SIGN}s, {miss / hit:.1f} times as long; medians of {ROUNDS} rounds, {min(hits):.2f} to {max(hits):.2f} and "
        f"{min(misses):.1f} to {max(misses):.1f}"
    ))


def _each(authoriser: Authoriser, tokens: list[bytes]) -> float:
    """Microseconds for each of ``tokens``."""
    check = authoriser.token
    begun = time.process_time()
    for token in tokens:
        check(token, EPOCH)
    return 1e6 * (time.process_time() - begun) / len(tokens)
