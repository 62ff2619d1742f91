"""A process that counts limits in memory it was given: ``python -m tests.limits_process FD INDEX WORKERS TASK``.

It waits for a line on its standard input before it begins, so that several can begin together, and prints what it was granted.
All of them take it to be the same moment, so what they are granted together is known exactly.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TypeVar

from zrc_relay.core.routing import Share
from zrc_relay.core.shared import SharedLimits
from zrc_relay.core.sources import Rate
from zrc_relay.workers.memory import LimitsMemory

T = TypeVar("T")
NOW = 5000.0
RATE = Rate(50_000, 60)
TOKENS = 50_000
PLACES = 20
PLACES_OF_DEVICE = 12
DEVICES = tuple(bytes((number,)) * 32 for number in range(3))
ROUNDS = 4000
LIMIT = 10_000_000
BURST = 1_000_000
TAKEN_AT_ONCE = 700


def source(limits: SharedLimits) -> str:
    """How many events of one source are counted until there are enough."""
    return count(lambda table: table.take(1, NOW), limits.sources("stun", RATE, NOW))


def tokens(limits: SharedLimits) -> str:
    """How many tokens are taken until there are none."""
    return count(lambda bucket: bucket.take(1, NOW), limits.bucket("all_refusals", 1, TOKENS, NOW))


def count(take: Callable[[T], bool], subject: T) -> str:
    """How often it works: long enough for all to be at it together."""
    done = 0
    while take(subject):
        done += 1
    return str(done)


def places(limits: SharedLimits) -> str:
    """Take places until there is a lack, then leave one, many times; at last, how many are held, and the most that there were.

    The first are of each device, the others of the relay and of a device as they were seen by who found a lack.
    """
    held, most = [0] * len(DEVICES), [0, 0]
    for attempt in range(ROUNDS):
        number = attempt % len(DEVICES)
        lack = limits.places.take(DEVICES[number], PLACES, PLACES_OF_DEVICE)
        if lack is None:
            held[number] += 1
            continue
        most[lack.is_of_device] = max(most[lack.is_of_device], lack.held)
        if held[number]:
            limits.places.leave(DEVICES[number])
            held[number] -= 1
    return " ".join(map(str, held + most))


def bandwidth(limits: SharedLimits) -> str:
    """How many bytes may be forwarded."""
    bucket = limits.bandwidth(LIMIT, BURST / LIMIT, NOW)
    return str(sum(TAKEN_AT_ONCE for _ in range(2 * BURST // TAKEN_AT_ONCE) if bucket.take(TAKEN_AT_ONCE, NOW)))


def forever(limits: SharedLimits) -> str:
    """Do everything until it is killed; prints a line now and then."""
    table = limits.sources("rejoins", RATE, NOW)
    bucket = limits.bucket("all_refusals", 100, 100, NOW)
    limits.places.take(DEVICES[0], PLACES, None)
    rounds = 0
    while True:
        table.take(rounds % 5000, NOW)
        bucket.take(1, NOW + rounds)
        if limits.places.take(DEVICES[rounds % 3], PLACES, None) is None:
            limits.places.leave(DEVICES[rounds % 3])
        rounds += 1
        if rounds % 500 == 0:
            say("alive")


TASKS: dict[str, Callable[[SharedLimits], str]] = {
    "source": source, "tokens": tokens, "places": places, "bandwidth": bandwidth, "forever": forever,
}


def say(line: str) -> None:
    """Print a line at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main(fd: str, index: str, workers: str, task: str) -> None:
    """Do ``task`` as the worker ``index``. ``hold`` is to hold the guard of the places until another line comes."""
    memory = LimitsMemory.attach(int(fd))
    limits = memory.limits(Share(int(index), int(workers)))
    say("ready")
    sys.stdin.readline()
    if task == "hold":
        with memory.guard(memory.layout.places, 1):
            say("held")
            sys.stdin.readline()
    else:
        say(TASKS[task](limits))


if __name__ == "__main__":
    main(*sys.argv[1:])
