"""Waiting for a device that the relay does not know yet (PROTOCOL §5, DEVICE_UNKNOWN with ``retry_after``).

Where devices are not pinned, a relay knows the key of one from the moment it allocates. A peer that comes first is told when to
come again, and does so here until its device is there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from twisted.internet.task import deferLater

from zrc_relay.client.connection import ClientConnection
from zrc_relay.client.dial import Dial, Handlers
from zrc_relay.client.errors import DeviceUnknown
from zrc_relay.client.identity import Identity

DEVICE_PATIENCE: Final = 60.0
"""Seconds that a peer waits for its device: as long as the relay, by default, waits for the side that comes second."""
JITTER: Final = 0.5
"""Seconds by which a wait is longer, at most: peers that were told the same time should not all come at once."""


def patient(
    dial: Dial, clock: Any, *, patience: float, now: Callable[[], float], random: Callable[[], float]
) -> Dial:
    """``dial``, which is tried again for ``patience`` seconds as long as the relay says that the device may still come.

    ``now`` gives monotonic seconds and ``random`` numbers from 0 to 1.
    """

    async def dial_patiently(identity: Identity, handlers: Handlers) -> ClientConnection:
        last = now() + patience
        while True:
            try:
                return await dial(identity, handlers)
            except DeviceUnknown as error:
                wait = error.retry_after + JITTER * random()
                if not error.retry_after or now() + wait > last:
                    raise
            await deferLater(clock, wait)

    return dial_patiently
