package main

// Channels (§7): plain UDP packets from the socket of the QUIC connection. With -channel an echo opens
// one and sends back what comes by it, header and all.

import (
	"bytes"
	"context"
	"errors"
	"net"
	"sync"
)

const (
	channelByte  = 0x05
	channelStart = 8 // 0x05 and the channel's id
)

// shared is a socket that QUIC and a channel share: the first byte decides (§1). It hides what else a
// UDP socket can do, because quic-go would read past it.
type shared struct {
	net.PacketConn
	remote *net.UDPAddr

	lock   sync.Mutex
	id     []byte // nil while no channel is open
	echoed uint64
	strays uint64
}

// ReadFrom gives quic-go what is not a channel's.
func (c *shared) ReadFrom(p []byte) (int, net.Addr, error) {
	for {
		n, from, err := c.PacketConn.ReadFrom(p)
		if err != nil || n == 0 || p[0] != channelByte {
			return n, from, err
		}
		c.echo(p[:n], from)
	}
}

func (c *shared) echo(packet []byte, from net.Addr) {
	c.lock.Lock()
	defer c.lock.Unlock()
	source, isUDP := from.(*net.UDPAddr)
	isRelay := isUDP && source.Port == c.remote.Port && source.IP.Equal(c.remote.IP)
	if c.id == nil || !isRelay || len(packet) < channelStart || !bytes.Equal(packet[1:channelStart], c.id) {
		c.strays++
		return
	}
	c.echoed++
	c.PacketConn.WriteTo(packet, c.remote)
}

// counts are how many packets were sent back, and how many were not the channel's.
func (c *shared) counts() (echoed, strays uint64) {
	c.lock.Lock()
	defer c.lock.Unlock()
	return c.echoed, c.strays
}

// openChannel asks for the channel's id, and lets its packets in.
func openChannel(ctx context.Context, s *session) error {
	if s.hello.features&2 == 0 {
		return errors.New("the relay offers no channels")
	}
	if err := s.send(typeOpenChannel, nil); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, answerWait)
	defer cancel()
	answer, err := s.expect(ctx, typeChannel, typeError)
	if err != nil {
		return err
	}
	if answer.kind != typeChannel {
		return errors.New("the relay opens no channel")
	}
	s.socket.lock.Lock()
	s.socket.id = answer.channel
	s.socket.lock.Unlock()
	return nil
}
