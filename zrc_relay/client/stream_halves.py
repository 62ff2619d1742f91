"""The two directions of a ``RelayStream``: ``Outgoing`` with its producer, ``Incoming`` with its credit.

Theory of operation
-------------------
``Outgoing`` writes at once and lets QUIC keep what is not acknowledged. A registered producer is held between two marks: it is
paused when more than ``HIGH_WATER`` bytes are unacknowledged and goes on below ``LOW_WATER``, so a reader that stops at the far
end (which stops the relay, which stops giving credit) stops the producer here. While the relay's stream limit does not let the
stream be opened, what is written waits here, and counts.

``Incoming`` holds what has arrived until it may be delivered. Credit is given back (``consume``) only for what was delivered, so
while delivery is paused the sender can send one window, and no more.

Neither calls the protocol; ``RelayStream`` does.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from enum import Enum, IntEnum, unique
from typing import Any, Final

from twisted.logger import Logger

from zrc_relay.quic.connection import Connection

HIGH_WATER: Final = 256 * 1024
"""Bytes written and not acknowledged above which a producer is paused: as much as one stream window of the relay."""
LOW_WATER: Final = 64 * 1024
"""Bytes below which it goes on."""


@unique
class StreamCode(IntEnum):
    """Codes that this library itself resets and stops streams with; applications may use any other but the relay's own."""

    DONE = 0
    """No more is wanted, and nothing is wrong."""
    ABORTED = 1
    """The stream was given up, like a TCP connection with RST."""
    REFUSED = 2
    """This end takes no streams."""


@unique
class SendState(Enum):
    """Where the sending direction is."""

    OPEN = "open"
    ENDING = "ending"
    """It ends when its producer does."""
    ENDED = "ended"
    """FIN was written."""
    RESET = "reset"
    STOPPED = "stopped"
    """The other end does not want it."""
    ABSENT = "absent"
    """A stream that only the other end sends on."""


@unique
class ReceiveState(Enum):
    """Where the receiving direction is."""

    OPEN = "open"
    ENDED = "ended"
    """FIN has arrived; data before it may still wait to be delivered."""
    RESET = "reset"
    STOPPED = "stopped"
    """We do not want it."""
    ABSENT = "absent"
    """A stream that only we send on."""


_WRITABLE: Final = (SendState.OPEN, SendState.ENDING)


class Outgoing:
    """The sending direction. ``wake`` says that there is something to send."""

    _log = Logger()

    def __init__(self, quic: Connection, wake: Callable[[], None], *, exists: bool) -> None:
        self.state = SendState.OPEN if exists else SendState.ABSENT
        self.stop_code = 0
        self._quic = quic
        self._wake = wake
        self._stream_id: int | None = None
        self._early = bytearray()
        self._reset_code = 0
        self._producer: Any = None
        self._streaming = False
        self._held = False
        self._asked = False

    def opened(self, stream_id: int, head: bytes) -> None:
        """The stream exists now. ``head`` goes before everything else."""
        self._stream_id = stream_id
        if head or self._early:
            self._quic.send_stream_data(stream_id, head + self._early)
            self._early.clear()
        if self.state is SendState.ENDED:
            self._quic.send_stream_data(stream_id, b"", end_stream=True)
        elif self.state is SendState.RESET:
            self._quic.reset_sending(stream_id, self._reset_code)
        self._wake()

    @property
    def is_writable(self) -> bool:
        """Whether what is written now will be sent."""
        return self.state in _WRITABLE

    @property
    def is_over(self) -> bool:
        """Whether the direction has ended; a FIN must have been acknowledged by the relay, with everything before it."""
        if self.state is SendState.ENDED:
            return self._stream_id is not None and self._quic.is_sending_done(self._stream_id)
        return not self.is_writable

    @property
    def buffered(self) -> int:
        """Bytes written and not acknowledged."""
        return len(self._early) if self._stream_id is None else self._quic.unsent(self._stream_id)

    def write(self, data: bytes) -> None:
        """Send ``data``; ignored once the direction has ended, as Twisted's transports do."""
        if not self.is_writable or not data:
            return
        self._asked = False
        if self._stream_id is None:
            self._early += data
        elif self._quic.reset_code(self._stream_id) is not None:
            return  # STOP_SENDING was received, its event comes next
        else:
            self._quic.send_stream_data(self._stream_id, data)
            self._wake()
        if self._producer is not None and self._streaming and not self._held and self.buffered > HIGH_WATER:
            self._held = True
            self._producer.pauseProducing()

    def end(self) -> None:
        """FIN after what was written, and after what a registered producer still has."""
        if self.state is not SendState.OPEN:
            return
        if self._producer is not None:
            self.state = SendState.ENDING
            return
        self._finish()

    def _finish(self) -> None:
        self.state = SendState.ENDED
        if self._stream_id is not None and self._quic.reset_code(self._stream_id) is None:
            self._quic.send_stream_data(self._stream_id, b"", end_stream=True)
            self._wake()

    def reset(self, code: int) -> None:
        """RESET_STREAM: what is not acknowledged is thrown away."""
        if self.state is SendState.ENDED and not self.is_over:
            self.state = SendState.OPEN  # the FIN is still on its way
        if not self.is_writable:
            return
        self._let_go(SendState.RESET)
        self._reset_code = code
        if self._stream_id is not None:
            self._quic.reset_sending(self._stream_id, code)
            self._wake()

    def stopped(self, code: int) -> bool:
        """The other end does not want any more; QUIC has reset the direction. Returns whether that changes anything."""
        if self.state is SendState.ENDED and not self.is_over:
            self.state = SendState.OPEN
        if not self.is_writable:
            return False
        self.stop_code = code
        self._let_go(SendState.STOPPED)
        return True

    def lost(self) -> None:
        """The connection is gone."""
        if self.is_writable:
            self._let_go(SendState.RESET)

    def _let_go(self, state: SendState) -> None:
        self.state = state
        self._early.clear()
        producer, self._producer = self._producer, None
        if producer is not None:
            self._call(producer.stopProducing)

    # -- producers

    def register(self, producer: Any, *, streaming: bool) -> None:
        """See ``IConsumer.registerProducer``."""
        if self._producer is not None:
            msg = f"{self._producer} is registered already"
            raise RuntimeError(msg)
        if self.state is not SendState.OPEN:
            producer.stopProducing()
            return
        self._producer, self._streaming = producer, streaming
        self._held = self._asked = False
        if streaming:
            if self.buffered > HIGH_WATER:
                self._held = True
                producer.pauseProducing()
        else:
            self.pump()

    def unregister(self) -> None:
        """See ``IConsumer.unregisterProducer``."""
        self._producer = None
        if self.state is SendState.ENDING:
            self._finish()

    def pump(self) -> None:
        """Let the producer go on if there is room."""
        producer = self._producer
        if producer is None or self.buffered >= LOW_WATER:
            return
        if self._streaming:
            if self._held:
                self._held = False
                self._call(producer.resumeProducing)
            return
        # A pull producer gives a piece each time it is asked; one that has none at hand writes later, and is then asked again.
        while self._producer is producer and not self._asked and self.buffered <= HIGH_WATER:
            self._asked = True
            self._call(producer.resumeProducing)

    def _call(self, function: Callable[[], object]) -> None:
        try:
            function()
        except Exception:
            self._log.failure("a producer failed; its stream is reset")
            self._producer = None
            self.reset(StreamCode.ABORTED)


class Incoming:
    """The receiving direction."""

    def __init__(self, quic: Connection, wake: Callable[[], None], *, exists: bool) -> None:
        self.state = ReceiveState.OPEN if exists else ReceiveState.ABSENT
        self.reset_code = 0
        self._quic = quic
        self._wake = wake
        self._stream_id: int | None = None
        self._stop_code = 0
        self._chunks: deque[bytes] = deque()

    def opened(self, stream_id: int) -> None:
        """The stream exists now."""
        self._stream_id = stream_id
        if self.state is ReceiveState.STOPPED:
            self._quic.stop_receiving(stream_id, self._stop_code)

    @property
    def has_data(self) -> bool:
        """Whether something waits to be delivered."""
        return bool(self._chunks)

    @property
    def is_over(self) -> bool:
        """Whether nothing more will be delivered."""
        return self.state is not ReceiveState.OPEN and not self._chunks

    def received(self, data: bytes, *, ended: bool) -> None:
        """Bytes have arrived in order."""
        if self.state is not ReceiveState.OPEN:
            self._consume(len(data))
            return
        if data:
            self._chunks.append(data)
        if ended:
            self.state = ReceiveState.ENDED

    def take(self) -> bytes:
        """The next piece to deliver; the other end may send as much again."""
        data = self._chunks.popleft()
        self._consume(len(data))
        return data

    def reset(self, code: int) -> bool:
        """The other end gave up; what was not delivered is dropped. Returns whether that changes anything."""
        if self._stream_id is not None:
            self._quic.forget_received(self._stream_id)
        if self.state is not ReceiveState.OPEN:
            return False
        self._chunks.clear()  # `forget_received` has given the credit back
        self.state = ReceiveState.RESET
        self.reset_code = code
        return True

    def stop(self, code: int) -> None:
        """STOP_SENDING: what has arrived and what still comes is dropped."""
        if self.state is ReceiveState.OPEN and self._stream_id is not None:
            self._quic.stop_receiving(self._stream_id, code)
        if self.state in (ReceiveState.OPEN, ReceiveState.ENDED):
            self.state = ReceiveState.STOPPED
            self._stop_code = code
            while self._chunks:
                self._consume(len(self._chunks.popleft()))
            self._wake()

    def lost(self) -> None:
        """The connection is gone; nobody needs credit any more."""
        self._chunks.clear()
        if self.state is ReceiveState.OPEN:
            self.state = ReceiveState.RESET

    def _consume(self, size: int) -> None:
        if self._stream_id is not None and size:
            self._quic.consume(self._stream_id, size)
            self._wake()
