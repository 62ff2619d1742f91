"""Channels: end-to-end encrypted packets that are passed on as they are (PROTOCOL §7).

Theory of operation
-------------------
An allocation has at most one ``Channel``, made when a side first asks for it, known by seven random bytes that are the same for
both sides and stay the same as long as the allocation lives. Each side's *end* is the session that opened it last. A packet is
``0x05 · channel_id[7] · payload``; it is passed on, header included, when

* its source is the validated path of exactly one of the two ends, and both ends are there, and
* the allocation's caps and quota let its payload pass (``Allocation.admit``), which counts it like any other.

Everything else is dropped without a word, since whoever sent it may be anybody. Paths are opaque here and compared by value. They
are asked of the ends for each batch, so a client that moves is heard again as soon as QUIC has validated its new path.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from zrc_relay.core.codes import Role
from zrc_relay.core.counters import Counters, InputDrop

if TYPE_CHECKING:
    from zrc_relay.core.allocation import Allocation
    from zrc_relay.core.session import Session

CHANNEL_ID_SIZE: Final = 7
CHANNEL_FIRST_BYTE: Final = 5
"""First byte of channel data (RFC 9443, PROTOCOL §1)."""
CHANNEL_HEADER: Final = 1 + CHANNEL_ID_SIZE


class Channel:
    """See the module's docstring."""

    __slots__ = ("_allocation", "_counters", "_ends", "channel_id")

    def __init__(self, channel_id: bytes, allocation: Allocation, counters: Counters) -> None:
        self.channel_id = channel_id
        self._allocation = allocation
        self._counters = counters
        self._ends: list[Session | None] = [None, None]

    def open(self, session: Session) -> None:
        """``session`` is its side's end from here on, in place of an earlier connection of that side."""
        self._ends[session.role] = session

    def close(self, session: Session) -> None:
        """``session`` is no end of it any longer, if it was."""
        if self._ends[session.role] is session:
            self._ends[session.role] = None

    @property
    def is_open(self) -> bool:
        """Whether both sides have opened it."""
        return None not in self._ends

    def sender(self, path: object) -> Session | None:
        """The end whose validated path ``path`` is; None when it is nobody's, or that of both."""
        device, peer = self._ends
        is_device = device is not None and device.link.route == path
        is_peer = peer is not None and peer.link.route == path
        if is_device is is_peer:
            return None
        return device if is_device else peer

    def receive_batch(self, packets: list[bytes], path: object, now: float, wall: float) -> None:
        """Packets with this channel's id that came by ``path``, in order, headers included."""
        del wall
        ends = self._between(path, len(packets))
        if ends is not None:
            sender, target = ends
            accepted = self._allocation.admit(sender, packets, CHANNEL_HEADER, now)
            if accepted:
                self._counters.channel_packets += len(accepted)
                target.link.send_packets(accepted)

    def receive_train(self, train: bytes, size: int, path: object, now: float, wall: float) -> None:
        """Packets of ``size`` bytes each, the last perhaps shorter, in one piece, each with this channel's id."""
        count = -(-len(train) // size)
        ends = self._between(path, count)
        if ends is None:
            return
        _, target = ends
        if self._allocation.admit_all(len(train) - count * CHANNEL_HEADER, count, now):
            self._counters.channel_packets += count
            target.link.send_train(train, size)
        else:
            self.receive_batch([train[start : start + size] for start in range(0, len(train), size)], path, now, wall)

    def _between(self, path: object, packets: int) -> tuple[Session, Session] | None:
        """Who sends and who is to get it; None, and the packets are counted as dropped, if it is not to be passed on."""
        sender = self.sender(path)
        target = self._ends[Role(sender.role).other] if sender is not None else None
        if sender is None or target is None:
            self._counters.input_dropped[InputDrop.CHANNEL] += packets
            return None
        return sender, target


def is_one_channel(train: bytes, size: int) -> bool:
    """Whether all packets of a train are of the channel that the first one is of.

    Packets of one socket may arrive in one piece although some are QUIC's, or another channel's. Looks at a column of the headers
    at a time: eight steps however long the train is.
    """
    count = -(-len(train) // size)
    if len(train) - (count - 1) * size < CHANNEL_HEADER:
        return False
    return all(train[column::size] == train[column : column + 1] * count for column in range(CHANNEL_HEADER))
