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
* **At hand.** Batches of one packet are the most frequent ones, and with thousands of connections every object that a packet
  leads to is one that the processor has forgotten. So what each packet changes is in few plain objects (``onertt.py``), and what
  only the general way changes is kept here, for as long as that had no turn (``_look``).

**When to acknowledge** is ours to choose (RFC 9000 §13.2.2): at once after ``ACK_EVERY`` packets that ask for it, or when one is
missing; after a quarter of the RTT for fewer (``MIN_ACK_DELAY`` to ``MAX_ACK_DELAY``); a single one waits for company. At the
begin of a connection, while the peer's window is small, every second packet is acknowledged. An acknowledgement that is owed
rides along with the next datagram that it fits beside.

aioquic's private attributes are touched in this module, in ``connection.py``, and below that in ``paths.py``, ``recovery.py`` and
``keyphase.py`` only.
"""

from __future__ import annotations

from math import inf
from typing import Any, Final

from aioquic.quic.connection import QuicConnectionState
from aioquic.quic.packet_builder import QuicDeliveryState
from aioquic.quic.recovery import MAX_ACK_RANGES
from aioquic.tls import CipherSuite, Epoch
from cryptography.exceptions import InvalidTag

from zrc_relay.quic.connection import ACKS_PER_PING, Connection
from zrc_relay.quic.egress import EgressQueue
from zrc_relay.quic.frames import ack_frame, parse
from zrc_relay.quic.onertt import GRANULARITY, MAX_SENT_ACKS, PacketSpace, SentPacket
from zrc_relay.quic.recent import ReceivedRanges, RecentPackets

ACK_EVERY: Final = 10
"""Ack-eliciting packets after which an acknowledgement leaves at once."""
ACK_EVERY_AT_FIRST: Final = 2
"""The same for the first ``FIRST_PACKETS``."""
FIRST_PACKETS: Final = 100
MIN_ACK_DELAY: Final = GRANULARITY
"""Seconds: no timer is finer."""
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
_FIRST: Final = 0x41
"""First byte of a short header with a packet number of two bytes (RFC 9000 §17.3.1)."""
_BYTES: Final = tuple(bytes((value,)) for value in range(256))
"""Cheaper than making them."""


class _Keys:
    """What opens or seals packets, kept at hand for as long as ``aead`` is in use; ``cipher`` is its bound method for that."""

    __slots__ = ("aead", "cipher", "iv", "masks", "phase")

    def __init__(self, context: Any, method: str) -> None:
        self.aead = context.aead
        self.cipher = getattr(context.aead._aead, method)
        self.iv: int = context.aead._iv
        self.masks = context.hp._encryptor.update
        self.phase = 0x04 if context.key_phase else 0


class FastPath:
    """The short way of one connection; ``usable`` says whether it may be taken at all."""

    def __init__(self, quic: Connection) -> None:
        self._quic: Any = quic
        self._state = quic.one_rtt
        self._path = quic._recovery.path
        space: Any = quic._spaces[Epoch.ONE_RTT]
        self._space: PacketSpace = space
        self._recent: RecentPackets = self._space.received_packets
        self._ranges: ReceivedRanges = self._space.ack_queue
        self._egress = quic.egress
        self._keys: Any = quic._keys
        self._opener = _Keys(self._keys.recv, "decrypt")
        self._sealer = _Keys(self._keys.send, "encrypt")
        self._on_ack_delivery = quic._on_ack_delivery
        self._ack_delays: tuple[int, int] = (quic._remote_ack_delay_exponent, quic._local_ack_delay_exponent)
        self._look()
        self._idle_timeout = min(quic._configuration.idle_timeout, quic._remote_max_idle_timeout or inf)
        self._owed = 0
        """Ack-eliciting packets that were received and not acknowledged, as far as they came this way."""
        self._owed_since = 0.0
        self.heard = False
        """Whether the last batch brought anything authentic,"""
        self.is_sooner = False
        """and a shorter probe timeout for what is still on its way,"""
        self.is_at_rest = False
        """or the end of what was, a while after it was sent: with nothing on its way there is no probe timeout."""
        self._pto = self._path.probe_timeout()
        """The PTO in seconds without backoff, as of the last packet."""

    def _look(self) -> None:
        """Note what only the general way changes."""
        quic, keys = self._quic, self._keys
        path = quic._network_paths[0]
        self._revision = self._state.revision
        self.address: Any = path.addr
        """Where packets go now."""
        self._is_open = path.is_validated and quic._state is _CONNECTED and not quic._close_pending
        self._own_id: bytes = quic.host_cid
        self._peer_id: bytes = quic._peer_cid.cid
        self._path_since: int = quic._path_since
        self._datagram_size: int = quic._max_datagram_size
        self._update_keys_at: int = quic._keys_since + quic.key_update_packets
        self._holds_previous: bool = keys.holds_previous
        self._is_settled = False
        if self._opener.aead is not keys.recv.aead:
            self._opener = _Keys(keys.recv, "decrypt")
        if self._sealer.aead is not keys.send.aead:
            self._sealer = _Keys(keys.send, "encrypt")

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
        self.heard = self.is_sooner = self.is_at_rest = False
        state = self._state
        if state.attention or state.revision != self._revision:
            self._look()
        if not self._is_open or (path is not self.address and path != self.address):
            return [], packets
        own_id = self._own_id
        samples: list[bytes] = []
        for packet in packets:
            if len(packet) < _MIN_PACKET or packet[1:_DCID_END] != own_id:
                break
            samples.append(packet[_SAMPLE_OFFSET:_SAMPLE_END])
        known = len(samples)
        if not known:
            return [], packets
        opener = self._opener
        masks: bytes = opener.masks(samples[0] if known == 1 else b"".join(samples))
        decrypt, iv, phase = opener.cipher, opener.iv, opener.phase
        space, recent = self._space, self._recent
        expected = space.expected_packet_number
        ranges = self._ranges
        payloads: list[bytes] = []
        handled = 0
        heard = has_gap = False
        eliciting_packets = 0
        offset = 0
        for packet in packets:
            if handled == known:
                break
            first = packet[0] ^ (masks[offset] & 0x1F)
            if first & 0x1C != phase:  # reserved bits set, or another key phase
                break
            size = (first & 3) + 1
            end = _DCID_END + size
            if size == 2:  # as nearly everyone has it
                truncated = (packet[9] ^ masks[offset + 1]) << 8 | packet[10] ^ masks[offset + 2]
            else:
                truncated = int.from_bytes(packet[_DCID_END:end], "big")
                truncated ^= int.from_bytes(masks[offset + 1 : offset + 1 + size], "big")
            offset += 16
            # RFC 9000 appendix A.3
            span = 1 << (8 * size)
            number = (expected & -span) | truncated
            if number <= expected - (span >> 1):
                number += span
            elif number > expected + (span >> 1) and number >= span:
                number -= span
            header = _BYTES[first] + own_id + truncated.to_bytes(size, "big")
            try:
                plain: bytes = decrypt((iv ^ number).to_bytes(12, "big"), packet[end:], header)
            except InvalidTag:
                handled += 1  # not from our peer, or damaged: dropped
                continue
            if number <= recent.highest and number in recent:
                handled += 1  # a duplicate, or as good as one
                continue
            before = len(payloads)
            # One DATAGRAM of 64 bytes or more and nothing else: most packets are that.
            if len(plain) > 2 and plain[0] == _DATAGRAM and len(plain) == 3 + (plain[1] << 8 | plain[2]) - 0x4000:
                payloads.append(plain[3:])
                eliciting = True
            else:
                found = parse(plain, payloads)
                if found is None:
                    break  # the general machinery opens it once more and does it, or says what is wrong with it
                eliciting, acked = found
                if acked is not None:
                    delay, acked_ranges = acked
                    newest = acked_ranges[0][1]
                    if newest <= self._path_since or newest > state.packet_number or len(acked_ranges) > MAX_ACK_RANGES:
                        del payloads[before:]
                        break  # about packets that took another path or were never sent, or more ranges than anybody needs
                    self._acknowledged(delay, acked_ranges, now)
            handled += 1
            heard = True
            if number > expected:
                expected = number + 1
            if number > state.spin_highest:
                state.spin_bit = first & 0x20 != 0
                state.spin_highest = number
            recent.add(number)
            if ranges.start < ranges.stop != number:
                has_gap = True
            ranges.add(number)
            if len(ranges) > MAX_ACK_RANGES:
                ranges.shift()
            if eliciting:
                eliciting_packets += 1
        if heard:
            self.heard = True
            if recent.highest > space.largest_received_packet:
                space.largest_received_packet = recent.highest
                space.heard_at = now
            space.expected_packet_number = expected
            if not self._is_settled:
                self._is_settled = self._keys.is_settled = True  # the peer was heard with the keys in use (RFC 9001 §6.5)
            pto = self._path.probe_timeout()
            if space.ack_eliciting_in_flight:
                self.is_sooner = pto < self._pto
            else:
                self.is_at_rest = now - self._path.last_eliciting_at >= ACK_TICK
            self._pto = pto
            idle = self._idle_timeout
            state.close_at = now + (idle if idle > 3 * pto else 3 * pto)  # RFC 9000 §10.1
            if eliciting_packets:
                self._owe(eliciting_packets, now, has_gap)
        return payloads, packets[handled:] if handled < len(packets) else []

    def _owe(self, packets: int, now: float, at_once: bool) -> None:  # noqa: FBT001 - twice for each packet that is alone
        """Set when ``packets`` more that ask for an acknowledgement get it."""
        space = self._space
        if space.acks_at == inf or not self._owed:
            self._owed = 0  # acknowledged since, perhaps on the general way
            self._owed_since = now
        owed = self._owed = self._owed + packets
        if at_once or owed >= ACK_EVERY or (owed >= ACK_EVERY_AT_FIRST and space.largest_received_packet < FIRST_PACKETS):
            space.acks_at = now - GRANULARITY  # overdue: aioquic lets pacing hold back one that is due right now
            return
        if owed == 1:
            at = ((now + MAX_ACK_DELAY) // ACK_TICK) * ACK_TICK
        else:
            delay = self._path.rtt_smoothed / 4
            if delay < MIN_ACK_DELAY:
                delay = MIN_ACK_DELAY
            elif delay > MAX_ACK_DELAY:
                delay = MAX_ACK_DELAY
            at = self._owed_since + delay
        if at <= now:
            space.acks_at = now - GRANULARITY
        elif at < space.acks_at:
            space.acks_at = at

    def _acknowledged(self, delay: int, ranges: list[tuple[int, int]], now: float) -> None:
        """Process an ACK frame (RFC 9002 §A.7), as ``QuicPacketRecovery.on_ack_received`` does."""
        space, path = self._space, self._path
        congestion = path.congestion
        largest = ranges[0][1] - 1
        space.largest_acked_packet = max(space.largest_acked_packet, largest)
        sent = space.sent_packets
        newest = -1
        newest_at = 0.0
        eliciting = 0
        if sent:
            oldest = _first(sent)
            for start, stop in reversed(ranges):
                if stop <= oldest:
                    continue
                first = max(start, oldest)
                if stop - first > 2 * len(sent):
                    numbers = [number for number in sent if first <= number < stop]
                else:
                    numbers = [number for number in range(first, stop) if number in sent]
                for number in numbers:
                    packet = sent[number]
                    del sent[number]
                    newest = number
                    newest_at = packet.sent_time
                    if packet.is_ack_eliciting:
                        eliciting += 1
                    if packet.in_flight:
                        congestion.acked(number, packet.sent_bytes, newest_at)
                    for handler, arguments in packet.delivery_handlers:
                        handler(QuicDeliveryState.ACKED, *arguments)
                        if handler is not self._on_ack_delivery:
                            self._state.attention = True
        if newest < 0:
            return
        space.ack_eliciting_in_flight -= eliciting
        if newest == largest and eliciting:
            latest = now - newest_at
            ack_delay = (delay << self._ack_delays[0]) / 1_000_000
            ack_delay = min(ack_delay, path.max_ack_delay)
            rtt = max(0.001, latest)
            lowest_rtt = path.rtt_min
            if rtt < lowest_rtt:
                lowest_rtt = path.rtt_min = rtt
            if rtt > lowest_rtt + ack_delay:
                rtt -= ack_delay
            path.rtt_latest = rtt
            if not path.rtt_initialized:
                path.rtt_first_sample_at = now
                path.rtt_initialized = True
                path.rtt_variance = latest / 2
                path.rtt_smoothed = latest
            else:
                path.rtt_variance = 3 / 4 * path.rtt_variance + 1 / 4 * abs(lowest_rtt - rtt)
                path.rtt_smoothed = 7 / 8 * path.rtt_smoothed + 1 / 8 * rtt
            congestion.on_rtt_measurement(now=now, rtt=latest)
            path.pacer.update_rate(congestion.congestion_window, path.rtt_smoothed)
        if sent and _first(sent) <= space.largest_acked_packet:
            self._quic._loss._detect_loss(now=now, space=space)
            self._state.attention = True
        else:
            space.loses_at = inf
        if path.pto_count:
            path.pto_count = 0
            self._state.attention = True  # the next probe is due earlier than it was

    # -- out

    def seal(self, now: float) -> list[bytes]:
        """Packets with the payloads that may leave now and the acknowledgement that is due.

        Only while nothing else is to be sent (``OneRtt.attention``); congestion window and pacer hold payloads back as ever.
        """
        state, space, egress = self._state, self._space, self._egress
        queue = egress.payloads
        is_ack_owed = space.acks_at < inf
        ack_due = space.acks_at <= now
        state.pacing_at = inf
        if queue:
            egress.expire(now)
        elif not ack_due:
            return []
        if state.revision != self._revision:
            self._look()
        path = self._path
        congestion, pacer = path.congestion, path.pacer
        room = congestion.congestion_window - congestion.bytes_in_flight
        step = pacer.packet_time
        credit = 0.0
        if step:
            pacer.update_bucket(now)
            credit = pacer.bucket_time
        sealer = self._sealer
        encrypt, iv = sealer.cipher, sealer.iv
        destination = self._peer_id
        overhead = 3 + len(destination) + _TAG
        capacity = self._datagram_size - overhead
        first = _FIRST | sealer.phase | (0x20 if state.spin_bit else 0)
        prefix = _BYTES[first] + destination
        number = state.packet_number
        sent = space.sent_packets
        bodies: list[bytes] = []
        samples: list[bytes] = []
        flight = eliciting = taken = cost = 0
        while queue or ack_due:
            frames: list[bytes] = []
            handlers: Any = ()
            left, window = capacity, room - flight - overhead
            if ack_due or (is_ack_owed and not bodies and len(queue[0]) + _ACK_ROOM <= min(capacity, room - overhead)):
                ack_due = False
                frame = self._ack_frame(now)
                frames.append(frame)
                left -= len(frame)
                window -= len(frame)
                handlers = ((self._on_ack_delivery, (space, space.largest_received_packet)),)
                is_ack_owed = False
                space.acks_at = inf
                self._owed = 0
                state.acks_sent += 1
                wants_answer = (number % 8 == 0 and len(self._ranges) > 1) or state.acks_sent % ACKS_PER_PING == 0
                if wants_answer and window > 0:
                    frames.append(b"\x01")  # so that the peer acknowledges an acknowledgement, and what is old can go
                    left -= 1
                    window -= 1
            elif step and credit <= 0:
                state.pacing_at = now + step
                break
            if window < left:
                left = window
            in_flight = len(frames) > 1
            while queue:
                payload = queue[0]
                size = len(payload)
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
                frames.append(payload)
                queue.popleft()
                taken += 1
                in_flight = True
            if not frames:
                break  # the congestion window is full
            body: bytes = encrypt(
                (iv ^ number).to_bytes(12, "big"), b"".join(frames), prefix + (number & 0xFFFF).to_bytes(2, "big")
            )
            size = overhead - _TAG + len(body)
            if in_flight or len(sent) < MAX_SENT_ACKS:
                sent[number] = SentPacket(number, now, size, handlers, in_flight)
            if in_flight:
                flight += size
                eliciting += 1
            if step:
                credit = credit - step if credit >= step else 0.0
            bodies.append(body)
            samples.append(body[2:18])
            number += 1
        if taken:
            egress.took(taken, cost)
        if not bodies:
            return []
        if step:
            pacer.bucket_time = credit
        if eliciting:
            space.ack_eliciting_in_flight += eliciting
            congestion.bytes_in_flight += flight
            path.last_eliciting_at = now
        masks: bytes = sealer.masks(samples[0] if len(samples) == 1 else b"".join(samples))
        packets: list[bytes] = []
        offset = 0
        number = state.packet_number
        for body in bodies:
            protected = (number & 0xFFFF) ^ (masks[offset + 1] << 8 | masks[offset + 2])
            packets.append(
                b"".join((_BYTES[first ^ (masks[offset] & 0x1F)], destination, protected.to_bytes(2, "big"), body))
            )
            offset += 16
            number += 1
        state.packet_number = number
        if number >= self._update_keys_at or self._holds_previous:
            state.attention = True
        return packets

    # -- time

    @property
    def ack_at(self) -> float:
        """When the acknowledgement that is owed leaves at the latest; infinity when none is."""
        return self._space.acks_at

    def has_sooner_deadline(self, than: float, now: float) -> bool:
        """Whether there is a ``deadline`` before ``than`` since something may have been sealed at ``now``."""
        return self._state.pacing_at < than or (than > now + self._pto and self._space.ack_eliciting_in_flight > 0)

    def recovery_deadline(self, idle_margin: float) -> float:
        """When the loss detection timer expires, or ``idle_margin`` seconds before the idle timer does."""
        return min(self._state.close_at - idle_margin, self._path.loss_detection_at(self._space))

    def deadline(self, idle_margin: float) -> float:
        """The same, or before that when a packet that the pacer holds back is due; acknowledgements are apart (``ack_at``)."""
        return min(self.recovery_deadline(idle_margin), self._state.pacing_at, self._state.search_at)

    def _ack_frame(self, now: float) -> bytes:
        """An ACK frame for what was received (RFC 9000 §19.3)."""
        delay = int((now - self._space.heard_at) * 1_000_000) >> self._ack_delays[1]
        return ack_frame(self._ranges, max(0, delay))


def _first(sent: dict[int, SentPacket]) -> int:
    """The number of the oldest packet on its way; there must be one."""
    for number in sent:
        return number
    raise LookupError
