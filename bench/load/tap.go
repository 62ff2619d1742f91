package main

// tap stands between quic-go and its socket, until the connection is taken over.

import (
	"context"
	"errors"
	"net"
	"sync"
	"syscall"
	"time"
)

const takeOverPatience = 2 * time.Second

type tap struct {
	socket *net.UDPConn // connected
	remote net.Addr
	lock   sync.Mutex
	taken  bool
	idle   chan struct{} // closed when quic-go reads no more
	idSize int           // of the relay's connection ids
	last   []byte        // short-header packet that was sent
}

// ReadFrom gives quic-go what comes, and once the connection is taken over, nothing ever again.
func (t *tap) ReadFrom(b []byte) (int, net.Addr, error) {
	for {
		n, err := t.socket.Read(b)
		t.lock.Lock()
		taken := t.taken
		t.lock.Unlock()
		switch {
		case taken:
			close(t.idle) // quic-go does not try again after such an error
			return 0, nil, net.ErrClosed
		case errors.Is(err, net.ErrClosed):
			return 0, nil, err
		case err != nil || n == 0:
			continue // an ICMP error for something sent earlier
		}
		t.look(b[:n])
		return n, t.remote, nil
	}
}

// look learns the length of the relay's connection ids from its long headers (RFC 8999 §5.1).
func (t *tap) look(packet []byte) {
	if packet[0]&0x80 == 0 || len(packet) < 7 {
		return
	}
	at := 6 + int(packet[5])
	if at < len(packet) {
		t.lock.Lock()
		t.idSize = int(packet[at])
		t.lock.Unlock()
	}
}

// WriteTo sends a packet of quic-go's, or once the connection is taken over, swallows it.
func (t *tap) WriteTo(b []byte, _ net.Addr) (int, error) {
	t.lock.Lock()
	defer t.lock.Unlock()
	if t.taken {
		return len(b), nil
	}
	if b[0]&0x80 == 0 {
		t.last = append(t.last[:0], b...)
	}
	return t.socket.Write(b)
}

// take stops quic-go and gives its last packet and the length of the relay's connection ids.
func (t *tap) take(ctx context.Context) (last []byte, idSize int, err error) {
	ctx, cancel := context.WithTimeout(ctx, takeOverPatience)
	defer cancel()
	for {
		t.lock.Lock()
		if t.last != nil {
			t.taken = true
			t.lock.Unlock()
			return t.last, t.idSize, t.interrupt(ctx)
		}
		t.lock.Unlock()
		select {
		case <-ctx.Done():
			return nil, 0, errors.New("quic-go has sent no packet with 1-RTT keys")
		case <-time.After(time.Millisecond):
		}
	}
}

// interrupt ends quic-go's read that is under way.
func (t *tap) interrupt(ctx context.Context) error {
	t.socket.SetReadDeadline(time.Now())
	select {
	case <-t.idle:
		return t.socket.SetReadDeadline(time.Time{})
	case <-ctx.Done():
		return errors.New("quic-go does not let go of the socket")
	}
}

// SyscallConn lets quic-go set the socket's options.
func (t *tap) SyscallConn() (syscall.RawConn, error) { return t.socket.SyscallConn() }

// Close does nothing: the socket belongs to whoever takes over.
func (t *tap) Close() error                     { return nil }
func (t *tap) LocalAddr() net.Addr              { return t.socket.LocalAddr() }
func (t *tap) SetDeadline(time.Time) error      { return nil }
func (t *tap) SetReadDeadline(time.Time) error  { return nil }
func (t *tap) SetWriteDeadline(time.Time) error { return nil }
func (t *tap) SetReadBuffer(bytes int) error    { return t.socket.SetReadBuffer(bytes) }

// takeOver makes a link of a connection.
func (c *client) takeOver(ctx context.Context) (*link, error) {
	last, idSize, err := c.tap.take(ctx)
	if err != nil {
		return nil, err
	}
	suite := c.conn.ConnectionState().TLS.CipherSuite
	c.log.lock.Lock()
	defer c.log.lock.Unlock()
	seal, err := newKeys(suite, c.log.client)
	if err != nil {
		return nil, err
	}
	open, err := newKeys(suite, c.log.server)
	if err != nil {
		return nil, err
	}
	at := 1 + idSize
	if len(last) < at+20 {
		return nil, errFrame
	}
	// So early in a connection the bytes that are sent of a packet number are all of it.
	var mask [16]byte
	seal.header.Encrypt(mask[:], last[at+4:at+20])
	number := uint64(0)
	for i := 0; i < int((last[0]^mask[0])&3)+1; i++ {
		number = number<<8 | uint64(last[at+i]^mask[1+i])
	}
	socket, err := detach(c.socket)
	if err != nil {
		return nil, err
	}
	l := newLink(socket, append([]byte{}, last[1:at]...), seal, open, number+1)
	copy(l.channel[:], c.channel)
	return l, nil
}
