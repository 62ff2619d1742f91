package main

// Connections to a relay: to ours by PROTOCOL §2-5, and to those that pair connections two by two as they come.

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/lucas-clemente/quic-go"
)

const (
	dialPatience  = 30 * time.Second
	tokenLifetime = 3600
	dialAtOnce    = 8
	maxRedirects  = 3
	probeInterval = 20 * time.Millisecond
	// quic-go fails the whole connection when a frame exceeds its packet: 1252 bytes over IPv4.
	longestPayload = 1200
)

// target is the relay that is measured.
type target struct {
	address   string
	plain     bool // pairs connections as they come, knows nothing of allocations
	relayID   []byte
	deviceKey ed25519.PrivateKey
	peerKey   ed25519.PrivateKey
	print     [32]byte // of its certificate
	fast      bool     // connections are to be taken over
	channels  bool     // and are to open a channel
}

var errNoChannels = errors.New("the relay offers no channels")

// client is one established connection of quic-go.
type client struct {
	conn    quic.Connection
	socket  *net.UDPConn
	tap     *tap
	log     *keyLog
	channel []byte
	notices noticeCounts
}

// noticeCounts counts what the relay said about datagrams that it dropped.
type noticeCounts struct {
	lock  sync.Mutex
	found map[string]uint64
}

func (n *noticeCounts) add(name string, count uint64) {
	n.lock.Lock()
	defer n.lock.Unlock()
	if n.found == nil {
		n.found = map[string]uint64{}
	}
	n.found[name] += count
}

// dial completes a handshake with the relay, or with the worker of it that is at another address.
func (t *target) dial(ctx context.Context, address string) (*client, error) {
	remote, err := net.ResolveUDPAddr("udp4", address)
	if err != nil {
		return nil, err
	}
	c := &client{}
	settings := &tls.Config{
		NextProtos:             []string{alpn},
		MinVersion:             tls.VersionTLS13,
		InsecureSkipVerify:     true, // the certificate's fingerprint is compared below
		SessionTicketsDisabled: true,
	}
	config := &quic.Config{
		Versions:           []quic.VersionNumber{quic.Version1},
		EnableDatagrams:    true,
		KeepAlivePeriod:    10 * time.Second,
		ConnectionIDLength: idLength,
	}
	var packets net.PacketConn
	if t.fast {
		if c.socket, err = net.DialUDP("udp4", nil, remote); err != nil {
			return nil, err
		}
		c.tap, c.log = &tap{socket: c.socket, remote: remote, idle: make(chan struct{})}, &keyLog{}
		settings.KeyLogWriter = c.log
		config.MaxIdleTimeout = time.Hour // quic-go will hear nothing once the connection is taken over, and must not mind
		packets = c.tap
	} else {
		if c.socket, err = net.ListenUDP("udp4", &net.UDPAddr{IP: localIP(remote)}); err != nil {
			return nil, err
		}
		packets = c.socket
	}
	c.conn, err = quic.DialContext(ctx, packets, remote, "localhost", settings, config)
	if err != nil {
		c.socket.Close()
		return nil, err
	}
	certificates := c.conn.ConnectionState().TLS.PeerCertificates
	if len(certificates) == 0 || sha256.Sum256(certificates[0].Raw) != t.print {
		c.close()
		return nil, errors.New("the certificate is not the one that was given")
	}
	return c, nil
}

// localIP is the address from which packets to remote leave.
func localIP(remote *net.UDPAddr) net.IP {
	probe, err := net.DialUDP("udp4", nil, remote)
	if err != nil {
		return nil
	}
	defer probe.Close()
	return probe.LocalAddr().(*net.UDPAddr).IP
}

// allocate reads HELLO, sends ALLOCATE with proof and reads ALLOCATED. With channels it also opens the channel.
func (c *client) allocate(ctx context.Context, t *target, allocation token, role uint8) error {
	in, err := c.conn.AcceptUniStream(ctx)
	if err != nil {
		return fmt.Errorf("no HELLO: %w", err)
	}
	kind, value, err := readCapsule(bufio.NewReader(in))
	if err != nil || kind != typeHello {
		return fmt.Errorf("capsule 0x%x in place of HELLO: %w", kind, err)
	}
	h, err := decodeHello(value)
	if err != nil {
		return err
	}
	if t.channels && h.features&2 == 0 {
		return errNoChannels
	}
	control, err := c.conn.OpenStreamSync(ctx)
	if err != nil {
		return err
	}
	key := t.deviceKey
	if role == 1 {
		key = t.peerKey
	}
	local := c.socket.LocalAddr().(*net.UDPAddr)
	request := allocate{
		version: protocolVersion, role: role, features: featureProof,
		allocationID: allocation.allocationID(), peerID: allocation.peerID(), token: allocation,
		clientIP: local.IP, clientPort: uint16(local.Port),
		publicKey: key.Public().(ed25519.PublicKey), proof: possession(key, h, t.print, allocation, role),
	}
	capsules := appendCapsule(nil, typeAllocate, request.value())
	if t.channels {
		capsules = appendCapsule(capsules, typeOpenChannel, nil)
	}
	if _, err = control.Write(capsules); err != nil {
		return err
	}
	answers := bufio.NewReader(control)
	for allocated := false; !allocated || t.channels && c.channel == nil; {
		kind, value, err := readCapsule(answers)
		if err != nil {
			return fmt.Errorf("no ALLOCATED: %w", err)
		}
		switch kind {
		case typeAllocated:
			allocated = true
		case typeChannel:
			c.channel = value
		case typeRedirect:
			return redirection(value)
		case typeError:
			return fmt.Errorf("the relay answers with ERROR %x", value)
		}
	}
	go c.listen(answers)
	return nil
}

// redirected says where a client has to go on.
type redirected struct{ address string }

func (r redirected) Error() string { return "the relay sends us to " + r.address }

// redirection is what a REDIRECT says.
func redirection(value []byte) error {
	m, err := decode(typeRedirect, value)
	if err != nil {
		return err
	}
	for _, next := range m.addresses {
		if next.family != 0 {
			return redirected{next.String()}
		}
	}
	return errors.New("the relay sends us nowhere")
}

// allocated dials and allocates, wherever the relay sends us.
func (t *target) allocated(ctx context.Context, allocation token, role uint8) (*client, error) {
	address := t.address
	for hop := 0; ; hop++ {
		c, err := t.dial(ctx, address)
		if err != nil {
			return nil, err
		}
		if err = c.allocate(ctx, t, allocation, role); err == nil {
			return c, nil
		}
		c.close()
		var elsewhere redirected
		if !errors.As(err, &elsewhere) || hop == maxRedirects {
			return nil, err
		}
		address = elsewhere.address
	}
}

// listen reads the relay's notices until the connection ends.
func (c *client) listen(answers *bufio.Reader) {
	for {
		kind, value, err := readCapsule(answers)
		if err != nil {
			return
		}
		if kind != typeNotice {
			continue
		}
		r := &reader{left: value}
		switch r.u8() {
		case 2:
			r.u64()
			c.notices.add("rate limited", r.u64())
		case 7:
			cause := r.u8()
			c.notices.add(fmt.Sprintf("dropped, cause %d", cause), r.u64())
		}
	}
}

func (c *client) close() {
	c.conn.CloseWithError(closeNoError, "")
	c.socket.Close()
}

// mintToken is a token for a new allocation.
func (t *target) mintToken() (token, error) {
	allocation := make([]byte, 16)
	if _, err := rand.Read(allocation); err != nil {
		return nil, err
	}
	peer := sha256.Sum256(t.peerKey.Public().(ed25519.PublicKey))
	expires := uint64(time.Now().Unix()) + tokenLifetime
	return mint(t.deviceKey, t.relayID, allocation, peer[:], expires, 0, 0), nil
}

// pair connects device and peer of one allocation.
func (t *target) pair(ctx context.Context) (pair [2]*client, err error) {
	ctx, cancel := context.WithTimeout(ctx, dialPatience)
	defer cancel()
	var allocation token
	if !t.plain {
		if allocation, err = t.mintToken(); err != nil {
			return pair, err
		}
	}
	for role := range pair {
		if t.plain {
			pair[role], err = t.dial(ctx, t.address)
		} else {
			pair[role], err = t.allocated(ctx, allocation, uint8(role))
		}
		if err != nil {
			for _, made := range pair[:role] {
				made.close()
			}
			return pair, err
		}
	}
	if t.plain {
		err = join(ctx, pair[0], pair[1])
	}
	return pair, err
}

// join waits until a plain relay passes datagrams from one to the other. It pairs connections as they come, so the next ones must
// not come before it has paired these.
func join(ctx context.Context, from, to *client) error {
	came := make(chan error, 1)
	go func() {
		payload, err := to.conn.ReceiveMessage()
		if err == nil && !bytes.Equal(payload, probe) {
			err = fmt.Errorf("%x in place of a probe", payload)
		}
		came <- err
	}()
	for {
		if err := from.conn.SendMessage(probe); err != nil {
			return err
		}
		select {
		case err := <-came:
			return err
		case <-time.After(probeInterval):
		case <-ctx.Done():
			return errors.New("the relay does not join the two")
		}
	}
}

// pairs connects many and hands each to made, from several goroutines. A plain relay pairs by order of arrival, so there they come
// one after the other.
func (t *target) pairs(ctx context.Context, count int, made func(number int, pair [2]*client) error) error {
	workers := dialAtOnce
	if t.plain {
		workers = 1
	}
	failed := make(chan error, workers)
	next := make(chan int)
	var all sync.WaitGroup
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	for ; workers > 0; workers-- {
		all.Add(1)
		go func() {
			defer all.Done()
			for number := range next {
				pair, err := t.pair(ctx)
				if err == nil {
					err = made(number, pair)
				}
				if err != nil {
					failed <- fmt.Errorf("pair %d: %w", number, err)
					cancel()
					return
				}
			}
		}()
	}
	for number := 0; number < count && ctx.Err() == nil; number++ {
		select {
		case next <- number:
		case <-ctx.Done():
		}
	}
	close(next)
	all.Wait()
	select {
	case err := <-failed:
		return err
	default:
		return nil
	}
}
