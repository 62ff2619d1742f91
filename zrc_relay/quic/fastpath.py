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

aioquic's private attributes are touched in this module and in ``connection.py`` only.
"""

from __future__ import annotations

from itertools import islice
from typing import Any, Final, cast

from aioquic.quic.congestion.base import K_GRANULARITY
from aioquic.quic.connection import END_STATES
from aioquic.quic.packet import QuicPacketType
from aioquic.quic.packet_builder import QuicDeliveryState
from aioquic.quic.recovery import MAX_ACK_RANGES
from aioquic.tls import CipherSuite, Epoch
from cryptography.exceptions import InvalidTag

from zrc_relay.core.varint import encode_varint
from zrc_relay.quic.connection import Connection

_DCID_END: Final = 9
"""First byte and our 8-byte connection id."""
_SAMPLE_OFFSET: Final = _DCID_END + 4
_SAMPLE_END: Final = _SAMPLE_OFFSET + 16
_MIN_PACKET: Final = _SAMPLE_END
_MAX_ACK_BLOCKS: Final = 32
_TAG: Final = 16
_ACK_EVERY: Final = 2
"""Ack-eliciting packets after which an acknowledgement is sent at once (RFC 9000 §13.2.2)."""
_AES: Final = (CipherSuite.AES_128_GCM_SHA256, CipherSuite.AES_256_GCM_SHA384)


class SentPacket:
    """A packet that went out on the short way, with the attributes that loss recovery looks at.

    The same as aioquic's ``QuicSentPacket`` where it matters, at a quarter of the cost: what never differs is a class attribute.
    """

    __slots__ = ("delivery_handlers", "in_flight", "is_ack_eliciting", "packet_number", "sent_bytes", "sent_time")

    epoch = Epoch.ONE_RTT
    is_crypto_packet = False
    packet_type = QuicPacketType.ONE_RTT

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
        self._unacknowledged = 0

    @staticmethod
    def usable(quic: Connection) -> bool:
        """Whether ``quic`` is far enough, and its cipher one that masks can be made for in batches."""
        if not quic._handshake_confirmed or quic._state in END_STATES or quic._quic_logger is not None:
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
        if quic._state in END_STATES or quic._close_pending or network_path.addr != path or not network_path.is_validated:
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
        window = space.received_packets
        if space.ack_at is None:
            self._unacknowledged = 0  # acknowledged on the general way since
        payloads: list[bytes] = []
        handled = 0
        heard = False
        offset = 0
        for packet in islice(packets, len(samples)):
            first = packet[0] ^ (masks[offset] & 0x1F)
            if first & 0x1C != phase:  # reserved bits set, or another key phase
                break
            size = (first & 3) + 1
            end = _DCID_END + size
            protected = int.from_bytes(packet[_DCID_END:end], "big")
            truncated = protected ^ (int.from_bytes(masks[offset + 1 : offset + 1 + size], "big"))
            offset += 16
            # RFC 9000 appendix A.3
            expected = space.expected_packet_number
            span = 1 << (8 * size)
            number = (expected & ~(span - 1)) | truncated
            if number <= expected - (span >> 1):
                number += span
            elif number > expected + (span >> 1) and number >= span:
                number -= span
            header = bytes((first,)) + own_id + truncated.to_bytes(size, "big")
            try:
                plain = decrypt((iv ^ number).to_bytes(12, "big"), packet[end:], header)
            except InvalidTag:
                handled += 1  # not from our peer, or damaged: dropped
                continue
            if number in window:
                handled += 1
                continue
            before = len(payloads)
            found = _parse(plain, payloads)
            if found is None:
                break  # the general machinery opens it once more and does it, or says what is wrong with it
            eliciting, acked = found
            if acked is not None and acked[1][0][1] <= quic._path_since:
                del payloads[before:]
                break  # about packets that took another path
            handled += 1
            heard = True
            if number > space.expected_packet_number:
                space.expected_packet_number = number + 1
            if number > quic._spin_highest_pn:
                quic._spin_bit = bool(first & 0x20)
                quic._spin_highest_pn = number
            if acked is not None:
                self._acknowledged(*acked, now)
            if number > space.largest_received_packet:
                space.largest_received_packet = number
                space.largest_received_time = now
            _add_received(space, number)
            window.add(number)
            if eliciting:
                self._unacknowledged += 1
                if space.ack_at is None:
                    space.ack_at = now + quic._ack_delay
        if heard:
            quic._close_at = now + quic._idle_timeout()
            if self._unacknowledged >= _ACK_EVERY:
                space.ack_at = now - K_GRANULARITY  # overdue: aioquic lets pacing hold back one that is due right now
        return payloads, packets[handled:]

    def _acknowledged(self, delay: int, ranges: list[tuple[int, int]], now: float) -> None:
        """Process an ACK frame (RFC 9002 §A.7), as ``QuicPacketRecovery.on_ack_received`` does."""
        quic, space = self._quic, self._space
        loss = quic._loss
        congestion = loss._cc
        loss.peer_completed_address_validation = True
        largest = ranges[0][1] - 1
        space.largest_acked_packet = max(space.largest_acked_packet, largest)
        sent = space.sent_packets
        newest = None
        eliciting = False
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
                    packet = sent.pop(number)
                    if packet.is_ack_eliciting:
                        eliciting = True
                        space.ack_eliciting_in_flight -= 1
                    if packet.in_flight:
                        congestion.on_packet_acked(packet=packet, now=now)
                    newest = packet
                    for handler, arguments in packet.delivery_handlers:
                        handler(QuicDeliveryState.ACKED, *arguments)
                        quic.attention = True
        if newest is None:
            return
        if newest.packet_number == largest and eliciting:
            latest = now - cast(float, newest.sent_time)
            ack_delay = min((delay << quic._remote_ack_delay_exponent) / 1_000_000, loss.max_ack_delay)
            loss._rtt_latest = max(latest, 0.001)
            loss._rtt_min = min(loss._rtt_min, loss._rtt_latest)
            if loss._rtt_latest > loss._rtt_min + ack_delay:
                loss._rtt_latest -= ack_delay
            if not loss._rtt_initialized:
                loss._rtt_first_sample_time = now
                loss._rtt_initialized = True
                loss._rtt_variance = latest / 2
                loss._rtt_smoothed = latest
            else:
                loss._rtt_variance = 3 / 4 * loss._rtt_variance + 1 / 4 * abs(loss._rtt_min - loss._rtt_latest)
                loss._rtt_smoothed = 7 / 8 * loss._rtt_smoothed + 1 / 8 * loss._rtt_latest
            congestion.on_rtt_measurement(now=now, rtt=latest)
            loss._pacer.update_rate(congestion_window=congestion.congestion_window, smoothed_rtt=loss._rtt_smoothed)
        if sent and next(iter(sent)) <= space.largest_acked_packet:
            loss._detect_loss(now=now, space=space)
            quic.attention = True
        else:
            space.loss_time = None
        loss._pto_count = 0

    # -- out

    def seal(self, now: float) -> list[bytes]:
        """Packets with the payloads that may leave now and the acknowledgement that is due.

        Only while nothing else is to be sent (``Connection.attention``); congestion window and pacer hold payloads back as ever.
        """
        quic, space = self._quic, self._space
        egress = quic.egress
        ack_due = space.ack_at is not None and space.ack_at <= now
        quic._pacing_at = None
        if not ack_due and not egress:
            return []
        loss = quic._loss
        congestion, pacer = loss._cc, loss._pacer
        room = congestion.congestion_window - congestion.bytes_in_flight
        send: Any = self._crypto.send
        destination = quic._peer_cid.cid
        overhead = 3 + len(destination) + _TAG
        first = 0x41 | (0x20 if quic._spin_bit else 0) | (0x04 if send.key_phase else 0)
        encrypt = send.aead._aead.encrypt
        iv = send.aead._iv
        number = quic._packet_number
        sent: dict[int, Any] = space.sent_packets  # ours have the attributes that are looked at
        headers: list[bytes] = []
        bodies: list[bytes] = []
        flight = 0
        eliciting = 0
        while egress or ack_due:
            frames: list[bytes] = []
            handlers: Any = ()
            left = quic._max_datagram_size - overhead
            if ack_due:
                ack_due = False
                frames.append(self._ack_frame(now))
                left -= len(frames[0])
                handlers = ((quic._on_ack_delivery, (space, space.largest_received_packet)),)
                space.ack_at = None
                self._unacknowledged = 0
                if len(space.ack_queue) > 1 and number % 8 == 0:
                    frames.append(b"\x01")  # so that the peer acknowledges an acknowledgement, and old ranges can go
                    left -= 1
            elif pacer.packet_time is not None:
                pacer.update_bucket(now=now)
                if pacer.bucket_time <= 0:
                    quic._pacing_at = now + pacer.packet_time
                    break
            left = min(left, room - flight - overhead)
            in_flight = len(frames) > 1
            while egress:
                size = len(egress[0])
                needed = size + (2 if size < 0x40 else 3)
                if needed > left:
                    break
                frames.append(bytes((0x31, size)) if size < 0x40 else b"\x31" + (size | 0x4000).to_bytes(2, "big"))
                frames.append(egress.popleft())
                left -= needed
                in_flight = True
            if not frames:
                break  # the congestion window is full
            header = bytes((first,)) + destination + (number & 0xFFFF).to_bytes(2, "big")
            body = encrypt((iv ^ number).to_bytes(12, "big"), b"".join(frames), header)
            size = len(header) + len(body)
            sent[number] = SentPacket(number, now, size, handlers, eliciting=in_flight)
            if in_flight:
                flight += size
                eliciting += 1
            pacer.update_after_send(now=now)
            headers.append(header)
            bodies.append(body)
            number += 1
        if not headers:
            return []
        quic._packet_number = number
        if number - quic._keys_since >= quic.key_update_packets or self._crypto.holds_previous:
            quic.attention = True
        if eliciting:
            space.ack_eliciting_in_flight += eliciting
            congestion.bytes_in_flight += flight
            loss._time_of_last_sent_ack_eliciting_packet = now
        masks = send.hp._encryptor.update(b"".join([body[2:18] for body in bodies]))
        packets = []
        offset = 0
        for header, body in zip(headers, bodies, strict=True):
            protected = int.from_bytes(header[-2:], "big") ^ int.from_bytes(masks[offset + 1 : offset + 3], "big")
            packets.append(
                b"".join((bytes((header[0] ^ (masks[offset] & 0x1F),)), destination, protected.to_bytes(2, "big"), body))
            )
            offset += 16
        return packets

    def _ack_frame(self, now: float) -> bytes:
        """An ACK frame for what was received (RFC 9000 §19.3), newest ranges first."""
        space = self._space
        ranges = list(space.ack_queue)
        last = ranges[-1]
        delay = int((now - cast(float, space.largest_received_time)) * 1_000_000) >> self._quic._local_ack_delay_exponent
        parts = [b"\x02", encode_varint(last.stop - 1), encode_varint(max(0, delay))]
        older = ranges[-2 : -2 - _MAX_ACK_BLOCKS : -1]
        parts.append(encode_varint(len(older)))
        parts.append(encode_varint(last.stop - 1 - last.start))
        start = last.start
        for block in older:
            parts.append(encode_varint(start - block.stop - 1))
            parts.append(encode_varint(block.stop - block.start - 1))
            start = block.start
        return b"".join(parts)


def _parse(plain: bytes, payloads: list[bytes]) -> tuple[bool, tuple[int, list[tuple[int, int]]] | None] | None:
    """Take the frames of a packet apart; nothing is done and nothing kept if there is one that is not known here.

    Appends the payloads of DATAGRAM frames, and returns whether the packet asks for an acknowledgement, and the delay and ranges
    of its ACK frame if it has one. Types: 0x00 PADDING, 0x01 PING, 0x02 ACK (RFC 9000 §19), 0x30 and 0x31 DATAGRAM (RFC 9221 §4).
    """
    before = len(payloads)
    acked: tuple[int, list[tuple[int, int]]] | None = None
    eliciting = False
    position, limit = 0, len(plain)
    while position < limit:
        kind = plain[position]
        position += 1
        if kind == 0x30:
            payloads.append(plain[position:])
            return True, acked
        if kind == 0x31:
            length, position = _varint(plain, position)
            if position + length > limit:
                break
            payloads.append(plain[position : position + length])
            position += length
            eliciting = True
        elif kind == 0x01:
            eliciting = True
        elif kind == 0x02 and acked is None:
            position, acked = _parse_ack(plain, position)
        elif kind:
            break
    if position == limit and limit:
        return eliciting, acked
    del payloads[before:]
    return None


def _add_received(space: Any, number: int) -> None:
    """``ack_queue.add``, at once for the packet that comes next."""
    ranges = space.ack_queue._RangeSet__ranges
    if ranges and ranges[-1].stop == number:
        ranges[-1] = range(ranges[-1].start, number + 1)
        return
    space.ack_queue.add(number)
    if len(ranges) > MAX_ACK_RANGES:
        space.ack_queue.shift()


def _varint(data: bytes, position: int) -> tuple[int, int]:
    """A variable-length integer and what is behind it; behind the end if it is cut off."""
    end = len(data)
    if position >= end:
        return 0, end + 1
    first = data[position]
    if first < 0x40:
        return first, position + 1
    size = 1 << (first >> 6)
    if position + size > end:
        return 0, end + 1
    return int.from_bytes(data[position : position + size], "big") & ((1 << (8 * size - 2)) - 1), position + size


def _parse_ack(data: bytes, position: int) -> tuple[int, tuple[int, list[tuple[int, int]]] | None]:
    """An ACK frame behind its type: where it ends, then the encoded delay and the ranges, newest first.

    One that is cut off, or acknowledges negative packet numbers, ends behind the end of the data.
    """
    largest, position = _varint(data, position)
    delay, position = _varint(data, position)
    blocks, position = _varint(data, position)
    length, position = _varint(data, position)
    start = largest - length
    ranges = [(start, largest + 1)]
    while blocks and position <= len(data):
        gap, position = _varint(data, position)
        length, position = _varint(data, position)
        stop = start - gap - 1
        start = stop - length - 1
        ranges.append((start, stop))
        blocks -= 1
    return (position, (delay, ranges)) if start >= 0 else (len(data) + 1, None)
