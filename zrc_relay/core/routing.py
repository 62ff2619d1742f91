"""Which of several workers has what: the one byte that all of it hangs on (PROTOCOL §1, §5).

Theory of operation
-------------------
A relay may run as several processes, the workers, behind one UDP port. The kernel gives each packet to the worker whose index is
``byte % count``, and knows nothing but the packet (``quic.steering``). So all by which packets find their way begins with a byte
that says whose it is:

* connection ids and channel ids, which are ours: random but for that;
* the first Destination Connection ID of a client, if it follows the protocol: the routing byte of its allocation.

An allocation belongs to the worker that its routing byte names, so both of its ends meet there, and no worker has to know what
another one has. A client that came to the wrong one is sent to a port that leads to the right one only (REDIRECT reason 3).

``Share`` is one worker's part. ``ALONE``, the part of a relay that is one process, is everything.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from zrc_relay.core.codes import RedirectReason
from zrc_relay.core.fields import Address
from zrc_relay.core.token import routing_byte
from zrc_relay.core.wire import Redirect

MAX_WORKERS: Final = 64
"""Most workers of one relay. Each has at least four of the 256 values, so no worker gets more than 5/4 of what another gets."""
BYTES: Final = 256


@dataclass(frozen=True, slots=True)
class Share:
    """The part of the worker ``index`` of ``count``: the bytes for which ``byte % count == index``."""

    index: int = 0
    count: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count <= MAX_WORKERS:
            msg = f"there is no worker {self.index} of {self.count}"
            raise ValueError(msg)

    def owns(self, byte: int) -> bool:
        """Whether what begins with ``byte`` (0 to 255) is this worker's."""
        return byte % self.count == self.index

    def owner_of(self, byte: int) -> int:
        """Index of the worker whose it is."""
        return byte % self.count

    @property
    def firsts(self) -> bytes:
        """All bytes that are this worker's, in order."""
        return bytes(range(self.index, BYTES, self.count))


ALONE: Final = Share()


def redirect(share: Share, worker_port_base: int, address: Address, allocation_id: bytes) -> Redirect | None:
    """Where a client goes on that brought ``allocation_id`` to the worker of ``share``; None when it is right here.

    ``address`` is the relay's as clients know it. Worker n listens on port ``worker_port_base`` + n, too; 0 says that there are
    no such ports, and then nobody is sent anywhere.
    """
    byte = routing_byte(allocation_id)
    if worker_port_base == 0 or share.owns(byte):
        return None
    target = Address(address.host, worker_port_base + share.owner_of(byte))
    return Redirect(RedirectReason.OTHER_WORKER, byte, (target,))
