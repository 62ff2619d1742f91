package main

// Frames (RFC 9000 §19): what a receiver must understand of them in order to acknowledge like any client, and no more.

import (
	"encoding/binary"
	"errors"
	"fmt"
)

const (
	framePadding         = 0x00
	framePing            = 0x01
	frameAck             = 0x02
	frameAckECN          = 0x03
	frameStream          = 0x08 // to 0x0f
	frameNewConnectionID = 0x18
	framePathChallenge   = 0x1a
	framePathResponse    = 0x1b
	frameConnectionClose = 0x1c
	frameApplicationEnd  = 0x1d
	frameDatagram        = 0x30
	frameDatagramLength  = 0x31
)

// fixedFields says how many varints the frames have that hold nothing else.
var fixedFields = map[byte]int{
	0x04: 3, // RESET_STREAM
	0x05: 2, // STOP_SENDING
	0x10: 1, // MAX_DATA
	0x11: 2, // MAX_STREAM_DATA
	0x12: 1, // MAX_STREAMS
	0x13: 1,
	0x14: 1, // DATA_BLOCKED
	0x15: 2, // STREAM_DATA_BLOCKED
	0x16: 1, // STREAMS_BLOCKED
	0x17: 1,
	0x19: 1, // RETIRE_CONNECTION_ID
	0x1e: 0, // HANDSHAKE_DONE
}

var errFrame = errors.New("malformed frame")

// varint takes an integer (RFC 9000 §16) off the front; short input gives ok false.
func varint(b []byte) (value uint64, rest []byte, ok bool) {
	if len(b) == 0 {
		return 0, nil, false
	}
	size := 1 << (b[0] >> 6)
	if len(b) < size {
		return 0, nil, false
	}
	value = uint64(b[0] & 0x3f)
	for _, next := range b[1:size] {
		value = value<<8 | uint64(next)
	}
	return value, b[size:], true
}

func appendVarint(to []byte, value uint64) []byte {
	switch {
	case value < 1<<6:
		return append(to, byte(value))
	case value < 1<<14:
		return binary.BigEndian.AppendUint16(to, uint16(value)|1<<14)
	case value < 1<<30:
		return binary.BigEndian.AppendUint32(to, uint32(value)|2<<30)
	}
	return binary.BigEndian.AppendUint64(to, value|3<<62)
}

// content is what of one packet's frames matters here.
type content struct {
	eliciting bool // asks for an acknowledgement
	datagrams [][]byte
	largest   uint64 // acknowledged by the peer
	hasAck    bool
	challenge []byte
	retire    uint64 // retire_prior_to of NEW_CONNECTION_ID
	closed    string // why the peer closed the connection
}

// parse reads a packet's frames into c, which it clears first; the slices point into plain.
func (c *content) parse(plain []byte) error {
	*c = content{datagrams: c.datagrams[:0]}
	for len(plain) > 0 {
		kind := plain[0]
		plain = plain[1:]
		c.eliciting = c.eliciting ||
			kind != framePadding && kind != frameAck && kind != frameAckECN && kind != frameConnectionClose && kind != frameApplicationEnd
		var err error
		if plain, err = c.frame(kind, plain); err != nil {
			return err
		}
	}
	return nil
}

// frame reads one frame, whose type is kind, and returns what follows it.
func (c *content) frame(kind byte, b []byte) ([]byte, error) {
	switch {
	case kind == framePadding, kind == framePing:
		return b, nil
	case kind == frameDatagram:
		c.datagrams = append(c.datagrams, b)
		return nil, nil
	case kind == frameDatagramLength:
		payload, rest, ok := counted(b)
		c.datagrams = append(c.datagrams, payload)
		return rest, short(ok)
	case kind == frameAck, kind == frameAckECN:
		return c.ack(kind, b)
	case kind >= frameStream && kind < 0x10:
		return stream(kind, b)
	case kind == 0x06: // CRYPTO
		_, rest, ok := varint(b)
		if ok {
			_, rest, ok = counted(rest)
		}
		return rest, short(ok)
	case kind == 0x07: // NEW_TOKEN
		_, rest, ok := counted(b)
		return rest, short(ok)
	case kind == frameNewConnectionID:
		return c.newConnectionID(b)
	case kind == framePathChallenge, kind == framePathResponse:
		if len(b) < 8 {
			return nil, errFrame
		}
		if kind == framePathChallenge {
			c.challenge = b[:8]
		}
		return b[8:], nil
	case kind == frameConnectionClose, kind == frameApplicationEnd:
		return c.connectionClose(kind, b)
	}
	fields, known := fixedFields[kind]
	if !known {
		return nil, fmt.Errorf("%w: type 0x%x", errFrame, kind)
	}
	return skip(b, fields)
}

func short(ok bool) error {
	if !ok {
		return errFrame
	}
	return nil
}

// counted takes `length varint · bytes`.
func counted(b []byte) (value, rest []byte, ok bool) {
	length, rest, ok := varint(b)
	if !ok || uint64(len(rest)) < length {
		return nil, nil, false
	}
	return rest[:length], rest[length:], true
}

func skip(b []byte, fields int) ([]byte, error) {
	ok := true
	for ; fields > 0 && ok; fields-- {
		_, b, ok = varint(b)
	}
	return b, short(ok)
}

func (c *content) ack(kind byte, b []byte) ([]byte, error) {
	largest, b, ok := varint(b)
	if !ok {
		return nil, errFrame
	}
	c.largest, c.hasAck = largest, true
	if b, ok = skipVarint(b); !ok { // delay
		return nil, errFrame
	}
	count, b, ok := varint(b)
	if !ok || count > uint64(len(b)) {
		return nil, errFrame
	}
	fields := 1 + 2*int(count)
	if kind == frameAckECN {
		fields += 3
	}
	return skip(b, fields)
}

func skipVarint(b []byte) ([]byte, bool) {
	_, rest, ok := varint(b)
	return rest, ok
}

func stream(kind byte, b []byte) ([]byte, error) {
	fields := 1 // id
	if kind&4 != 0 {
		fields++ // offset
	}
	b, err := skip(b, fields)
	if err != nil || kind&2 == 0 { // without a length it goes to the end
		return nil, err
	}
	_, rest, ok := counted(b)
	return rest, short(ok)
}

func (c *content) newConnectionID(b []byte) ([]byte, error) {
	b, ok := skipVarint(b) // sequence number
	if !ok {
		return nil, errFrame
	}
	if c.retire, b, ok = varint(b); !ok || len(b) == 0 || len(b) < 1+int(b[0])+16 {
		return nil, errFrame
	}
	return b[1+int(b[0])+16:], nil
}

func (c *content) connectionClose(kind byte, b []byte) ([]byte, error) {
	code, b, ok := varint(b)
	if ok && kind == frameConnectionClose {
		b, ok = skipVarint(b) // the frame type that caused it
	}
	if !ok {
		return nil, errFrame
	}
	reason, rest, ok := counted(b)
	c.closed = fmt.Sprintf("closed with 0x%x: %s", code, reason)
	return rest, short(ok)
}

// maxRanges is how many ranges an acknowledgement names at most; older ones were acknowledged long ago.
const maxRanges = 32

// received is the set of packet numbers that came, newest first.
type received struct {
	ranges []numbers
}

type numbers struct{ low, high uint64 }

// add notes a packet number; false if it was there already, or is too old to tell.
func (r *received) add(number uint64) bool {
	if len(r.ranges) > 0 && number == r.ranges[0].high+1 {
		r.ranges[0].high = number
		return true
	}
	for i := range r.ranges {
		current := &r.ranges[i]
		switch {
		case number > current.high+1:
			r.insert(i, number)
			return true
		case number == current.high+1:
			current.high = number
			r.merge(i)
			return true
		case number >= current.low:
			return false
		case number == current.low-1:
			current.low = number
			r.merge(i + 1)
			return true
		}
	}
	if len(r.ranges) == maxRanges {
		return false
	}
	r.ranges = append(r.ranges, numbers{number, number})
	return true
}

func (r *received) insert(at int, number uint64) {
	r.ranges = append(r.ranges, numbers{})
	copy(r.ranges[at+1:], r.ranges[at:])
	r.ranges[at] = numbers{number, number}
	if len(r.ranges) > maxRanges {
		r.ranges = r.ranges[:maxRanges]
	}
}

// merge joins range i with the newer one before it, if they touch.
func (r *received) merge(i int) {
	if i > 0 && i < len(r.ranges) && r.ranges[i].high+1 == r.ranges[i-1].low {
		r.ranges[i-1].low = r.ranges[i].low
		r.ranges = append(r.ranges[:i], r.ranges[i+1:]...)
	}
}

// largest is the highest number that came, and 0 before any.
func (r *received) largest() uint64 {
	if len(r.ranges) == 0 {
		return 0
	}
	return r.ranges[0].high
}

// ackDelayExponent is the default (RFC 9000 §18.2), which quic-go keeps.
const ackDelayExponent = 3

// appendAck appends an ACK frame for all that came; delay is how long the largest has waited, in microseconds.
func (r *received) appendAck(to []byte, delay uint64) []byte {
	to = append(to, frameAck)
	to = appendVarint(to, r.ranges[0].high)
	to = appendVarint(to, delay>>ackDelayExponent)
	to = appendVarint(to, uint64(len(r.ranges)-1))
	to = appendVarint(to, r.ranges[0].high-r.ranges[0].low)
	for i := 1; i < len(r.ranges); i++ {
		to = appendVarint(to, r.ranges[i-1].low-r.ranges[i].high-2)
		to = appendVarint(to, r.ranges[i].high-r.ranges[i].low)
	}
	return to
}
