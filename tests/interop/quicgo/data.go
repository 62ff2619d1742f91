package main

// The carriers of datagrams (§6): DATAGRAM frames, and streams of type 0x01 for payloads that do not
// fit one. To the modes they are one thing: every payload that arrives goes to one function, and
// sendPayload picks the carrier by size.
//
// quic-go keeps at most 128 received datagrams and drops the rest, so the receiving function must not
// block. It runs on several goroutines at once, one for DATAGRAM and one for each stream.

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"

	"github.com/lucas-clemente/quic-go"
	"github.com/lucas-clemente/quic-go/quicvarint"
)

// maxDatagram is the largest payload sent as a DATAGRAM. quic-go fails the whole connection when a
// frame exceeds its packet: 1232 bytes over IPv6, of which up to 32 are headers and tag.
const maxDatagram = 1200

// carriers sends and receives the payloads of one session.
type carriers struct {
	session   *session
	threshold int // longest payload for a DATAGRAM
	oversize  quic.SendStream
}

// startCarriers begins to hand every payload that arrives to receive.
func startCarriers(s *session, threshold int, receive func(payload []byte)) *carriers {
	c := &carriers{session: s, threshold: threshold}
	go c.receiveDatagrams(receive)
	go c.acceptUnidirectional(receive)
	go c.refuseBidirectional()
	return c
}

func (c *carriers) receiveDatagrams(receive func([]byte)) {
	for {
		payload, err := c.session.conn.ReceiveMessage()
		if err != nil {
			return
		}
		receive(payload)
	}
}

func (c *carriers) acceptUnidirectional(receive func([]byte)) {
	for {
		stream, err := c.session.conn.AcceptUniStream(context.Background())
		if err != nil {
			return
		}
		go c.readStream(stream, receive)
	}
}

// readStream reads the records of an oversize stream and refuses streams of any other type.
func (c *carriers) readStream(stream quic.ReceiveStream, receive func([]byte)) {
	in := bufio.NewReaderSize(stream, maxOversize)
	kind, err := readVarint(in, io.EOF)
	if err != nil {
		return
	}
	if kind != streamOversize {
		emit(newEvent("stream_refused", "stream_id", int64(stream.StreamID()), "type", kind))
		stream.CancelRead(streamUnknownType)
		return
	}
	for {
		length, err := readVarint(in, io.EOF)
		if err == nil && length > maxOversize {
			err = fmt.Errorf("%w: oversize record of %d bytes", errMalformed, length)
		}
		var payload []byte
		if err == nil {
			payload = make([]byte, length)
			if _, err = io.ReadFull(in, payload); err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
		}
		if err != nil {
			if v, bad := asViolation(err, "oversize stream").(violation); bad {
				c.session.blame(v)
			}
			return
		}
		receive(payload)
	}
}

// refuseBidirectional refuses application streams, which no mode of this client serves.
func (c *carriers) refuseBidirectional() {
	for {
		stream, err := c.session.conn.AcceptStream(context.Background())
		if err != nil {
			return
		}
		emit(newEvent("stream_refused", "stream_id", int64(stream.StreamID())))
		stream.CancelRead(streamUnknownType)
		stream.CancelWrite(streamUnknownType)
	}
}

// sendPayload sends one payload, blocking while congestion or flow control demand it. Only one
// goroutine may send.
func (c *carriers) sendPayload(payload []byte) error {
	if len(payload) <= c.threshold {
		return c.session.conn.SendMessage(payload)
	}
	var record bytes.Buffer
	if c.oversize == nil {
		stream, err := c.session.conn.OpenUniStreamSync(c.session.conn.Context())
		if err != nil {
			return err
		}
		c.oversize = stream
		quicvarint.Write(&record, streamOversize)
	}
	quicvarint.Write(&record, uint64(len(payload)))
	record.Write(payload)
	_, err := c.oversize.Write(record.Bytes())
	return err
}
