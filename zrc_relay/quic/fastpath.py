"""The short way of a 1-RTT packet: opened, acknowledged, forwarded and sealed without the general machinery.

Theory of operation
-------------------
Nearly every packet of a busy relay holds only DATAGRAM, ACK, PING and PADDING frames, comes from the address in use, to the
connection id in use, under the keys in use. ``FastPath`` deals with such packets of one connection a batch at a time, on the
*same state* as ``QuicConnection``: packet number spaces, acknowledgement ranges, RTT, congestion window, pacer, idle timer.
Everything else goes the general way, packet by packet, and comes back.

The rules:

* **Nothing happens before everything is understood.** A packet is decrypted and its frames are parsed first; if anything in it is
  unusual it is handed over as it came, and the general machinery opens it again.
* **No meaning of its own.** What a frame does here is what it does there; a differential test feeds both the same packets.
* **Batches.** Header protection is AES in ECB mode over a sample of each packet: one call makes the masks of a whole batch.
  What is the same for all packets of a batch is looked up once and written back once.

**When to acknowledge** is ours to choose (RFC 9000 §13.2.2): at once after ``ACK_EVERY`` packets that ask for it, or when one is
missing; after a quarter of the RTT for fewer (``MIN_ACK_DELAY`` to ``MAX_ACK_DELAY``); a single one waits for company. At the
begin of a connection, while the peer's window is small, every second packet is acknowledged. An acknowledgement that is owed
rides along with the next datagram that it fits beside.

aioquic's private attributes are touched in this module and in ``connection.py`` only.
"""

from __future__ import annotations

from itertools import islice
from math import inf
from typing import Any, ClassVar, Final, cast

from aioquic.quic.congestion.base import K_GRANULARITY
from aioquic.quic.connection import QuicConnectionState
from aioquic.quic.packet import QuicPacketType
from aioquic.quic.packet_builder import QuicDeliveryState
from aioquic.quic.recovery import MAX_ACK_RANGES
from aioquic.tls import CipherSuite, Epoch
from cryptography.exceptions import InvalidTag

from zrc_relay.quic.connection import ACKS_PER_PING, Connection
from zrc_relay.quic.egress import EgressQueue
from zrc_relay.quic.frames import ack_frame, parse
from zrc_relay.quic.recent import WINDOW, WINDOW_MASK

ACK_EVERY: Final = 10
"""Ack-eliciting packets after which an acknowledgement leaves at once."""
ACK_EVERY_AT_FIRST: Final = 2
"""The same for the first ``FIRST_PACKETS``."""
FIRST_PACKETS: Final = 100
MIN_ACK_DELAY: Final = 0.001
"""Seconds: the granularity of timers (RFC 9002 §6.1.2)."""
MAX_ACK_DELAY: Final = 0.020
"""Seconds: less than the max_ack_delay that is advertised (25 ms), by what a timer may be late."""
ACK_TICK: Final = 0.005
"""Single packets are acknowledged at multiples of this many seconds, so that many connections share a wake-up."""
_DCID_END: Final = 9
"""First byte and our 8-byte connection id."""
_SAMPLE_OFFSET: Final = _DCID_END + 4
_SAMPLE_END: Final = _SAMPLE_OFFSET + 16
_MIN_PACKET: Final = _SAMPLE_END
_TAG: Final = 16
_AES: Final = (CipherSuite.AES_128_GCM_SHA256, CipherSuite.AES_256_GCM_SHA384)
_CONNECTED: Final = QuicConnectionState.CONNECTED
_ACK_ROOM: Final = 32
"""Bytes that an ACK frame and a DATAGRAM header take at most where nothing is missing."""
_DATAGRAM: Final = 0x31


class SentPacket:
    """A packet that went out on the short way, with the attributes that loss recovery looks at.

    The same as aioquic's ``QuicSentPacket`` where it matters, at a quarter of the cost: what never differs is a class attribute.
    """

    __slots__ = ("delivery_handlers", "in_flight", "is_ack_eliciting", "packet_number", "sent_bytes", "sent_time")

    epoch: ClassVar = Epoch.ONE_RTT
    is_crypto_packet: ClassVar = False
    packet_type: ClassVar = QuicPacketType.ONE_RTT

    def __init__(self, packet_number: int, sent_time: float, sent_bytes: int, handlers: Any, *, eliciting: bool) -> None:
        self.packet_number = packet_number
        self.sent_time = sent_time
        self.sent_bytes = sent_bytes
        self.delivery_handlers = handlers
        self.in_flight = eliciting
        self.is_ack_eliciting = eliciting


class FastPath:
    """The short way of one connection; ``usable`` says whether it may be taken at all."""

    def __init__(self, quic: Connection) -> None:
        self._quic = quic
        self._space = quic._spaces[Epoch.ONE_RTT]
        self._crypto = quic._keys
        self._on_ack_delivery = quic._on_ack_delivery
        self._idle_timeout = min(quic._configuration.idle_timeout, quic._remote_max_idle_timeout or inf)
        self._owed = 0
        """Ack-eliciting packets that were received and not acknowledged, as far as they came this way."""
        self._owed_since = 0.0

    @staticmethod
    def usable(quic: Connection) -> bool:
        """Whether ``quic`` is far enough, and its cipher one that masks can be made for in batches."""
        if not quic._handshake_confirmed or quic._state is not _CONNECTED or quic._quic_logger is not None:
            return False
        return quic._cryptos[Epoch.ONE_RTT].recv.cipher_suite in _AES

    # -- in

    def receive(self, packets: list[bytes], path: Any, now: float) -> tuple[list[bytes], list[bytes]]:
        """Open a batch of short-header packets from one path, in order.

        Returns the DATAGRAM payloads in order of arrival, and the packets from the first unusual one on; the caller gives that
        one to ``Connection.receive_datagram``.
        """
        quic = self._quic
        network_path = quic._network_paths[0]
        if (
            quic._state is not _CONNECTED
            or quic._close_pending
            or not network_path.is_validated
            or (network_path.addr is not path and network_path.addr != path)
        ):
            return [], packets
        recv: Any = self._crypto.recv
        own_id = quic.host_cid
        samples = []
        for packet in packets:
            if len(packet) < _MIN_PACKET or packet[1:_DCID_END] != own_id:
                break
            samples.append(packet[_SAMPLE_OFFSET:_SAMPLE_END])
        if not samples:
            return [], packets
        masks = recv.hp._encryptor.update(b"".join(samples))
        decrypt = recv.aead._aead.decrypt
        iv = recv.aead._iv
        phase = 0x04 if recv.key_phase else 0
        space = self._space
        recent: Any = space.received_packets
        highest, bits = recent.highest, recent.bits
        expected = space.expected_packet_number
        ranges = space.ack_queue._RangeSet__ranges  # type: ignore[attr-defined]
        tail_start, tail_stop = (ranges[-1].start, ranges[-1].stop) if ranges else (-1, -1)
        payloads: list[bytes] = []
        handled = 0
        heard = has_gap = False
        eliciting_packets = 0
        offset = 0
        for packet in islice(packets, len(samples)):
            first = packet[0] ^ (masks[offset] & 0x1F)
            if first & 0x1C != phase:  # reserved bits set, or another key phase
                break
            size = (first & 3) + 1
            end = _DCID_END + size
            protected = int.from_bytes(packet[_DCID_END:end], "big")
            truncated = protected ^ int.from_bytes(masks[offset + 1 : offset + 1 + size], "big")
            offset += 16
            # RFC 9000 appendix A.3
            span = 1 << (8 * size)
            number = (expected & -span) | truncated
            if number <= expected - (span >> 1):
                number += span
            elif number > expected + (span >> 1) and number >= span:
                number -= span
            header = first.to_bytes(1, "big") + own_id + truncated.to_bytes(size, "big")
            try:
                plain = decrypt((iv ^ number).to_bytes(12, "big"), packet[end:], header)
            except InvalidTag:
                handled += 1  # not from our peer, or damaged: dropped
                continue
            ahead = number - highest
            if ahead <= 0 and (ahead <= -WINDOW or bits >> -ahead & 1):
                handled += 1  # a duplicate, or as good as one
                continue
            before = len(payloads)
            # One DATAGRAM of 64 bytes or more and nothing else: most packets are that.
            if plain[0] == _DATAGRAM and len(plain) > 2 and len(plain) == 3 + (plain[1] << 8 | plain[2]) - 0x4000:
                payloads.append(plain[3:])
                eliciting, acked = True, None
            else:
                found = parse(plain, payloads)
                if found is None:
                    break  # the general machinery opens it once more and does it, or says what is wrong with it
                eliciting, acked = found
                if acked is not None and acked[1][0][1] <= quic._path_since:
                    del payloads[before:]
                    break  # about packets that took another path
            handled += 1
            heard = True
            if number > expected:
                expected = number + 1
            if number > quic._spin_highest_pn:
                quic._spin_bit = first & 0x20 != 0
                quic._spin_highest_pn = number
            if acked is not None:
                if ranges and tail_stop != ranges[-1].stop:
                    ranges[-1] = range(tail_start, tail_stop)
                self._acknowledged(*acked, now)
                tail_start, tail_stop = (ranges[-1].start, ranges[-1].stop) if ranges else (-1, -1)
            if ahead > 0:
                bits = (bits << ahead | 1) & WINDOW_MASK if ahead < WINDOW else 1
                highest = number
            else:
                bits |= 1 << -ahead
            if number == tail_stop:
                tail_stop += 1
            else:
                if ranges:
                    ranges[-1] = range(tail_start, tail_stop)
                    has_gap = True
                space.ack_queue.add(number)
                if len(ranges) > MAX_ACK_RANGES:
                    space.ack_queue.shift()
                tail_start, tail_stop = ranges[-1].start, ranges[-1].stop
            if eliciting:
                eliciting_packets += 1
        if heard:
            if tail_stop != ranges[-1].stop:
                ranges[-1] = range(tail_start, tail_stop)
            if highest > space.largest_received_packet:
                space.largest_received_packet = highest
                space.largest_received_time = now
            recent.highest, recent.bits = highest, bits
            space.expected_packet_number = expected
            quic._close_at = now + max(self._idle_timeout, 3 * self._probe_timeout())  # RFC 9000 §10.1
            if eliciting_packets:
                self._owe(eliciting_packets, now, at_once=has_gap)
        return payloads, packets[handled:]

    def _owe(self, packets: int, now: float, *, at_once: bool) -> None:
        """Set when ``packets`` more that ask for an acknowledgement get it."""
        space = self._space
        if space.ack_at is None or not self._owed:
            self._owed = 0  # acknowledged since, perhaps on the general way
            self._owed_since = now
        owed = self._owed = self._owed + packets
        if at_once or owed >= ACK_EVERY or (owed >= ACK_EVERY_AT_FIRST and space.largest_received_packet < FIRST_PACKETS):
            at = now
        elif owed == 1:
            at = ((now + MAX_ACK_DELAY) // ACK_TICK) * ACK_TICK
        else:
            at = self._owed_since + min(max(self._quic._loss._rtt_smoothed / 4, MIN_ACK_DELAY), MAX_ACK_DELAY)
        if at <= now:
            space.ack_at = now - K_GRANULARITY  # overdue: aioquic lets pacing hold back one that is due right now
        elif space.ack_at is None or at < space.ack_at:
            space.ack_at = at

    def _acknowledged(self, delay: int, ranges: list[tuple[int, int]], now: float) -> None:
        """Process an ACK frame (RFC 9002 §A.7), as ``QuicPacketRecovery.on_ack_received`` does."""
        quic, space = self._quic, self._space
        loss = quic._loss
        congestion: Any = loss._cc
        loss.peer_completed_address_validation = True
        largest = ranges[0][1] - 1
        space.largest_acked_packet = max(space.largest_acked_packet, largest)
        sent: dict[int, Any] = space.sent_packets  # ours have the attributes that are looked at
        newest: Any = None
        eliciting = 0
        in_flight = []
        if sent:
            lowest = next(iter(sent))
            for start, stop in reversed(ranges):
                if stop <= lowest:
                    continue
                numbers = range(max(start, lowest), stop)
                if len(numbers) > 2 * len(sent):
                    candidates = [number for number in sent if number in numbers]
                else:
                    candidates = [number for number in numbers if number in sent]
                for number in candidates:
                    newest = packet = sent.pop(number)
                    if packet.is_ack_eliciting:
                        eliciting += 1
                    if packet.in_flight:
                        in_flight.append(packet)
                    for handler, arguments in packet.delivery_handlers:
                        handler(QuicDeliveryState.ACKED, *arguments)
                        if handler is not self._on_ack_delivery:
                            quic.attention = True
        if newest is None:
            return
        space.ack_eliciting_in_flight -= eliciting
        if in_flight:
            congestion.on_packets_acked(in_flight)
        if newest.packet_number == largest and eliciting:
            latest = now - cast(float, newest.sent_time)
            ack_delay = min((delay << quic._remote_ack_delay_exponent) / 1_000_000, loss.max_ack_delay)
            rtt = max(latest, 0.001)
            lowest_rtt = loss._rtt_min = min(loss._rtt_min, rtt)
            if rtt > lowest_rtt + ack_delay:
                rtt -= ack_delay
            loss._rtt_latest = rtt
            if not loss._rtt_initialized:
                loss._rtt_first_sample_time = now
                loss._rtt_initialized = True
                loss._rtt_variance = latest / 2
                loss._rtt_smoothed = latest
            else:
                loss._rtt_variance = 3 / 4 * loss._rtt_variance + 1 / 4 * abs(lowest_rtt - rtt)
                loss._rtt_smoothed = 7 / 8 * loss._rtt_smoothed + 1 / 8 * rtt
            congestion.on_rtt_measurement(now=now, rtt=latest)
            loss._pacer.update_rate(congestion.congestion_window, loss._rtt_smoothed)
        if sent and next(iter(sent)) <= space.largest_acked_packet:
            loss._detect_loss(now=now, space=space)
            quic.attention = True
        else:
            space.loss_time = None
        loss._pto_count = 0

    # -- out

    def wants_to_send(self, now: float) -> bool:
        """Whether ``seal`` may have something to send."""
        ack_at = self._space.ack_at
        return bool(self._quic.egress) or (ack_at is not None and ack_at <= now)

    def seal(self, now: float) -> list[bytes]:
        """Packets with the payloads that may leave now and the acknowledgement that is due.

        Only while nothing else is to be sent (``Connection.attention``); congestion window and pacer hold payloads back as ever.
        """
        quic, space = self._quic, self._space
        queue = quic.egress.payloads
        ack_at = space.ack_at
        ack_due = ack_at is not None and ack_at <= now
        quic._pacing_at = None
        if not ack_due and not queue:
            return []
        loss = quic._loss
        congestion = loss._cc
        room = congestion.congestion_window - congestion.bytes_in_flight
        pacer = loss._pacer
        step = pacer.packet_time
        credit = 0.0
        if step is not None:
            pacer.update_bucket(now)
            credit = pacer.bucket_time
        send: Any = self._crypto.send
        destination = quic._peer_cid.cid
        overhead = 3 + len(destination) + _TAG
        capacity = quic._max_datagram_size - overhead
        first = 0x41 | (0x20 if quic._spin_bit else 0) | (0x04 if send.key_phase else 0)
        prefix = first.to_bytes(1, "big") + destination
        encrypt = send.aead._aead.encrypt
        iv = send.aead._iv
        number = quic._packet_number
        sent: dict[int, Any] = space.sent_packets  # ours have the attributes that are looked at
        bodies: list[bytes] = []
        samples: list[bytes] = []
        flight = eliciting = taken = cost = 0
        while queue or ack_due:
            frames: list[bytes] = []
            handlers: Any = ()
            left, window = capacity, room - flight - overhead
            if ack_due or (ack_at is not None and not bodies and len(queue[0]) + _ACK_ROOM <= min(capacity, room - overhead)):
                ack_due = False
                frames.append(self._ack_frame(now))
                left -= len(frames[0])
                window -= len(frames[0])
                handlers = ((self._on_ack_delivery, (space, space.largest_received_packet)),)
                ack_at = space.ack_at = None
                self._owed = 0
                quic.acks_sent += 1
                wants_answer = (len(space.ack_queue) > 1 and number % 8 == 0) or quic.acks_sent % ACKS_PER_PING == 0
                if wants_answer and window > 0:
                    frames.append(b"\x01")  # so that the peer acknowledges an acknowledgement, and what is old can go
                    left -= 1
                    window -= 1
            elif step is not None and credit <= 0:
                quic._pacing_at = now + step
                break
            left = min(left, window)
            in_flight = len(frames) > 1
            while queue:
                size = len(queue[0])
                if size < 0x40:
                    if size + 2 > left:
                        break
                    frames.append(bytes((_DATAGRAM, size)))
                    left -= size + 2
                    cost += EgressQueue.MIN_COST
                else:
                    if size + 3 > left:
                        break
                    frames.append((0x314000 | size).to_bytes(3, "big"))
                    left -= size + 3
                    cost += size
                frames.append(queue.popleft())
                taken += 1
                in_flight = True
            if not frames:
                break  # the congestion window is full
            body = encrypt(
                (iv ^ number).to_bytes(12, "big"), b"".join(frames), prefix + (number & 0xFFFF).to_bytes(2, "big")
            )
            size = overhead - _TAG + len(body)
            sent[number] = SentPacket(number, now, size, handlers, eliciting=in_flight)
            if in_flight:
                flight += size
                eliciting += 1
            if step is not None:
                credit = credit - step if credit >= step else 0.0
            bodies.append(body)
            samples.append(body[2:18])
            number += 1
        if taken:
            quic.egress.took(taken, cost)
        if not bodies:
            return []
        if step is not None:
            pacer.bucket_time = credit
        if eliciting:
            space.ack_eliciting_in_flight += eliciting
            congestion.bytes_in_flight += flight
            loss._time_of_last_sent_ack_eliciting_packet = now
        masks = send.hp._encryptor.update(b"".join(samples))
        packets = []
        offset = 0
        number = quic._packet_number
        for body in bodies:
            protected = (number & 0xFFFF) ^ (masks[offset + 1] << 8 | masks[offset + 2])
            packets.append(
                b"".join(
                    ((first ^ (masks[offset] & 0x1F)).to_bytes(1, "big"), destination, protected.to_bytes(2, "big"), body)
                )
            )
            offset += 16
            number += 1
        quic._packet_number = number
        if number - quic._keys_since >= quic.key_update_packets or self._crypto.holds_previous:
            quic.attention = True
        return packets

    def _probe_timeout(self) -> float:
        """The PTO in seconds without backoff (RFC 9002 §6.2.1)."""
        loss = self._quic._loss
        if not loss._rtt_initialized:
            return loss.get_probe_timeout()
        return loss._rtt_smoothed + max(4 * loss._rtt_variance, K_GRANULARITY) + loss.max_ack_delay

    def recovery_deadline(self, idle_margin: float) -> float:
        """When the loss detection timer expires (RFC 9002 §A.8), or ``idle_margin`` seconds before the idle timer does."""
        space, loss = self._space, self._quic._loss
        at = cast(float, self._quic._close_at) - idle_margin
        if space.loss_time is not None:
            return min(at, space.loss_time)
        if space.ack_eliciting_in_flight:
            return min(at, loss._time_of_last_sent_ack_eliciting_packet + self._probe_timeout() * (1 << loss._pto_count))
        return at

    def deadline(self, idle_margin: float) -> float:
        """The same, or before that when an acknowledgement or a packet that the pacer holds back is due."""
        at = self.recovery_deadline(idle_margin)
        ack_at, pacing_at = self._space.ack_at, self._quic._pacing_at
        if ack_at is not None and ack_at < at:
            at = ack_at
        return pacing_at if pacing_at is not None and pacing_at < at else at

    def _ack_frame(self, now: float) -> bytes:
        """An ACK frame for what was received (RFC 9000 §19.3)."""
        space = self._space
        delay = int((now - cast(float, space.largest_received_time)) * 1_000_000) >> self._quic._local_ack_delay_exponent
        return ack_frame(list(space.ack_queue), max(0, delay))
