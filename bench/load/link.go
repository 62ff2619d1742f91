package main

// The fast engine: the 1-RTT packets of a connection whose handshake quic-go made.
//
// quic-go connects, reads HELLO and gets ALLOCATED. Then the link takes the socket and the keys (crypto/tls writes its secrets to a
// key log for whoever wants to look inside), and quic-go is left talking to nobody. From then on the link seals trains of DATAGRAM
// packets and sends each with one call, and opens, checks and acknowledges what comes (receiver.go receives for all links): an ACK
// when two packets that ask for one have come in, after the train that brought the second, or when one has waited for maxAckDelay,
// as RFC 9000 §13.2 wants and common clients do. Each link has a socket, and so an address, of its own, as clients have. There is
// no congestion control: who sends decides how fast. Everything else that a relay may send is read and acknowledged; what asks for
// an answer (PATH_CHALLENGE, a key update) gets it.

import (
	"crypto/rand"
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

const (
	idLength     = 8 // of our connection ids
	ackEvery     = 2
	maxAckDelay  = 20 * time.Millisecond
	tagLength    = 16
	channelByte  = 0x05
	channelStart = 8       // 0x05 and the channel's id
	farAhead     = 1 << 13 // packet numbers not acknowledged, beyond which two bytes might be misread
)

// link is one connection in our own hands.
type link struct {
	socket  socket
	channel [7]byte // id, when channel data is sent

	lock     sync.Mutex // of all that follows
	remoteID []byte
	number   uint64 // of our next packet
	acked    uint64
	seal     *keys
	open     *keys
	phase    byte
	came     received
	pending  int       // packets that wait to be acknowledged
	since    time.Time // when the first of them came
	noted    time.Time // the last such moment that the receiver knows
	newest   time.Time // when the largest came
	scratch  train
	out      workspace
	deliver  func(payload []byte, now time.Time)

	in       workspace // of the one thread that receives
	messages uint64    // receive calls that brought something; atomic
	packets  uint64    // that they brought; atomic
	faults   uint64    // packets that could not be read; atomic
	closed   atomic.Value
}

// workspace is what the ciphers read and write beside the packet; on the stack it would move to the heap for every packet.
type workspace struct {
	mask  [16]byte
	nonce [12]byte
}

func newLink(socket socket, remoteID []byte, seal, open *keys, number uint64) *link {
	return &link{
		socket: socket, remoteID: remoteID, seal: seal, open: open, number: number, deliver: func([]byte, time.Time) {},
	}
}

// directLinks gives two links that are connected to each other, with no relay between: the yardstick for latency.
func directLinks() (*link, *link, error) {
	var connections [2]*net.UDPConn
	probe, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		return nil, nil, err
	}
	first := probe.LocalAddr().(*net.UDPAddr)
	probe.Close()
	second, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		return nil, nil, err
	}
	other := second.LocalAddr().(*net.UDPAddr)
	second.Close()
	if connections[0], err = net.DialUDP("udp4", first, other); err != nil {
		return nil, nil, err
	}
	if connections[1], err = net.DialUDP("udp4", other, first); err != nil {
		return nil, nil, err
	}
	var sockets [2]socket
	var directions [2]*keys
	for i := range directions {
		secret := make([]byte, 32)
		if _, err = rand.Read(secret); err != nil {
			return nil, nil, err
		}
		if directions[i], err = newKeys(tls.TLS_AES_128_GCM_SHA256, secret); err != nil {
			return nil, nil, err
		}
		if sockets[i], err = detach(connections[i]); err != nil {
			return nil, nil, err
		}
	}
	id := make([]byte, idLength)
	a := newLink(sockets[0], id, directions[0], directions[1], 0)
	b := newLink(sockets[1], id, directions[1], directions[0], 0)
	return a, b, nil
}

// -- sending

// numberLength is how many bytes of the next packet's number are sent; call with the lock held.
func (l *link) numberLength() int {
	if l.number-l.acked > farAhead {
		return 4
	}
	return 2
}

// addPacket appends a packet to t, with room for content bytes that fill writes. Call with the lock held.
func (l *link) addPacket(t *train, numberLength, content int, fill func(plain []byte)) {
	start := len(t.data)
	body := start + 1 + len(l.remoteID) + numberLength
	end := body + content + tagLength
	for cap(t.data) < end {
		t.data = append(t.data[:cap(t.data)], 0)
	}
	t.data = t.data[:end]
	packet := t.data[start:]
	packet[0] = 0x40 | l.phase<<2 | byte(numberLength-1)
	copy(packet[1:], l.remoteID)
	at := 1 + len(l.remoteID)
	if numberLength == 2 {
		binary.BigEndian.PutUint16(packet[at:], uint16(l.number))
	} else {
		binary.BigEndian.PutUint32(packet[at:], uint32(l.number))
	}
	header, plain := packet[:at+numberLength], packet[at+numberLength:len(packet)-tagLength]
	fill(plain)
	l.out.nonce = l.seal.nonce(l.number)
	l.seal.aead.Seal(plain[:0], l.out.nonce[:], plain, header)
	l.seal.header.Encrypt(l.out.mask[:], packet[at+4:at+20])
	packet[0] ^= l.out.mask[0] & 0x1f
	for i := 0; i < numberLength; i++ {
		packet[at+i] ^= l.out.mask[1+i]
	}
	l.number++
}

// sealTrain fills t with count DATAGRAM packets, whose payloads of size bytes fill makes.
func (l *link) sealTrain(t *train, count, size int, fill func(payload []byte)) {
	l.lock.Lock()
	defer l.lock.Unlock()
	numberLength := l.numberLength()
	t.reset(1 + len(l.remoteID) + numberLength + 3 + size + tagLength)
	for ; count > 0; count-- {
		l.addPacket(t, numberLength, 3+size, func(plain []byte) {
			plain[0] = frameDatagramLength
			binary.BigEndian.PutUint16(plain[1:], uint16(size)|1<<14)
			fill(plain[3:])
		})
	}
}

// channelTrain fills t with count packets of channel data (PROTOCOL §7).
func (l *link) channelTrain(t *train, count, size int, fill func(payload []byte)) {
	t.reset(channelStart + size)
	for ; count > 0; count-- {
		start := len(t.data)
		for cap(t.data) < start+t.size {
			t.data = append(t.data[:cap(t.data)], 0)
		}
		t.data = t.data[:start+t.size]
		t.data[start] = channelByte
		copy(t.data[start+1:], l.channel[:])
		fill(t.data[start+channelStart:])
	}
}

// sendFrames sends a packet with these frames. Call with the lock held.
func (l *link) sendFrames(frames []byte) {
	for len(frames) < 4 { // enough for a sample to protect the header with
		frames = append(frames, framePadding)
	}
	numberLength := l.numberLength()
	l.scratch.reset(1 + len(l.remoteID) + numberLength + len(frames) + tagLength)
	l.addPacket(&l.scratch, numberLength, len(frames), func(plain []byte) { copy(plain, frames) })
	l.socket.send(&l.scratch)
}

// acknowledge sends an ACK for all that came. Call with the lock held.
func (l *link) acknowledge(now time.Time) {
	l.pending = 0
	delay := now.Sub(l.newest).Microseconds()
	if delay < 0 {
		delay = 0
	}
	var space [256]byte
	l.sendFrames(l.came.appendAck(space[:0], uint64(delay)))
}

// acknowledgeLate sends what has waited for maxAckDelay, if it still waits.
func (l *link) acknowledgeLate(since, now time.Time) {
	l.lock.Lock()
	defer l.lock.Unlock()
	if l.pending > 0 && l.since.Equal(since) {
		l.acknowledge(now)
	}
}

// waits tells, once each time, that a packet has begun to wait for its acknowledgement, and when.
func (l *link) waits() (since time.Time, begins bool) {
	l.lock.Lock()
	defer l.lock.Unlock()
	begins = l.pending > 0 && !l.since.Equal(l.noted)
	l.noted = l.since
	return l.since, begins
}

// leave closes the connection with NO_ERROR. The socket goes with the process: somebody may still be reading it.
func (l *link) leave() {
	l.closed.CompareAndSwap(nil, "left")
	l.lock.Lock()
	l.sendFrames([]byte{frameApplicationEnd, 0, 0})
	l.lock.Unlock()
}

// -- receiving

// hear hands every payload that arrives to deliver, from now on.
func (l *link) hear(deliver func(payload []byte, now time.Time)) {
	l.lock.Lock()
	l.deliver = deliver
	l.lock.Unlock()
}

// arrived takes a train whose packets are of that size, the last perhaps shorter.
func (l *link) arrived(data []byte, size int, found *content, now time.Time) {
	count := 0
	for ; len(data) > 0; count++ {
		packet := data
		if len(packet) > size {
			packet = packet[:size]
		}
		data = data[len(packet):]
		l.packet(packet, found, now)
	}
	atomic.AddUint64(&l.messages, 1)
	atomic.AddUint64(&l.packets, uint64(count))
	l.lock.Lock()
	if l.pending >= ackEvery {
		l.acknowledge(now)
	}
	l.lock.Unlock()
}

func (l *link) packet(packet []byte, found *content, now time.Time) {
	if packet[0] == channelByte {
		if len(packet) >= channelStart && string(packet[1:channelStart]) == string(l.channel[:]) {
			l.listener()(packet[channelStart:], now)
		}
		return
	}
	if packet[0]&0x80 != 0 {
		return // a late packet of the handshake
	}
	plain, number, err := l.unseal(packet)
	if err == nil {
		err = found.parse(plain)
	}
	if err != nil {
		atomic.AddUint64(&l.faults, 1)
		return
	}
	if !l.note(number, found, now) {
		return
	}
	if len(found.datagrams) == 0 {
		return
	}
	deliver := l.listener()
	for _, payload := range found.datagrams {
		deliver(payload, now)
	}
}

func (l *link) listener() func(payload []byte, now time.Time) {
	l.lock.Lock()
	defer l.lock.Unlock()
	return l.deliver
}

// unseal takes the protection off a packet, in place.
func (l *link) unseal(packet []byte) (plain []byte, number uint64, err error) {
	at := 1 + idLength
	if len(packet) < at+4+tagLength {
		return nil, 0, errFrame
	}
	l.lock.Lock()
	open, phase, largest := l.open, l.phase, l.came.largest()
	l.lock.Unlock()
	mask := &l.in.mask
	open.header.Encrypt(mask[:], packet[at+4:at+20])
	packet[0] ^= mask[0] & 0x1f
	length := int(packet[0]&3) + 1
	var truncated uint64
	for i := 0; i < length; i++ {
		packet[at+i] ^= mask[1+i]
		truncated = truncated<<8 | uint64(packet[at+i])
	}
	number = expand(truncated, length, largest+1)
	keys := open
	if packet[0]>>2&1 != phase {
		if keys, err = open.updated(); err != nil {
			return nil, 0, err
		}
	}
	l.in.nonce = keys.nonce(number)
	body := packet[at+length:]
	if plain, err = keys.aead.Open(body[:0], l.in.nonce[:], body, packet[:at+length]); err == nil && keys != open {
		err = l.update(keys)
	}
	return plain, number, err
}

// expand completes a packet number (RFC 9000 §A.3).
func expand(truncated uint64, length int, expected uint64) uint64 {
	window := uint64(1) << (8 * length)
	number := expected&^(window-1) | truncated
	switch {
	case number+window/2 <= expected:
		return number + window
	case number > expected+window/2 && number >= window:
		return number - window
	}
	return number
}

// update follows a key update of the peer; open are its new keys.
func (l *link) update(open *keys) error {
	l.lock.Lock()
	defer l.lock.Unlock()
	seal, err := l.seal.updated()
	if err != nil {
		return err
	}
	l.open, l.seal, l.phase = open, seal, l.phase^1
	return nil
}

// note does what the packet asks for; false for a packet that came before.
func (l *link) note(number uint64, found *content, now time.Time) bool {
	l.lock.Lock()
	defer l.lock.Unlock()
	if !l.came.add(number) {
		return false
	}
	if number == l.came.largest() {
		l.newest = now
	}
	if found.hasAck && found.largest > l.acked {
		l.acked = found.largest
	}
	if found.eliciting {
		if l.pending == 0 {
			l.since = now
		}
		l.pending++
	}
	if found.challenge != nil {
		answer := append([]byte{framePathResponse}, found.challenge...)
		l.sendFrames(append(answer, make([]byte, 1200-len(answer)-32)...))
	}
	if found.retire > 0 {
		l.closed.CompareAndSwap(nil, fmt.Sprintf("retired our connection ids before %d, which this engine does not follow", found.retire))
	}
	if found.closed != "" {
		l.closed.CompareAndSwap(nil, found.closed)
	}
	return true
}

// over says why the connection ended; "" while it has not.
func (l *link) over() string {
	why, _ := l.closed.Load().(string)
	return why
}
