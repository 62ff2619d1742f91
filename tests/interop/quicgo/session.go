package main

// One connection to a relay: dial, HELLO, ALLOCATE, and the control stream for the rest of its life.
//
// The control stream has one reader, started with the stream, which prints every capsule the moment
// it is read and then hands it to whoever waits for that type (expect). It is also the only place
// where the end of the connection is noticed: `done` closes after the "closed" line was printed.
//
// quic-go throws unread stream bytes away when CONNECTION_CLOSE arrives, and RELEASED or NOTICE
// TERMINATED come directly before it. closeGate therefore holds quic-go's packet loop, for a moment,
// at a packet with CONNECTION_CLOSE until what came before it on the control stream was read.

import (
	"bufio"
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"regexp"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/lucas-clemente/quic-go"
	"github.com/lucas-clemente/quic-go/logging"
)

const (
	helloStreamID   = 3
	controlStreamID = 0
	keepAlive       = 10 * time.Second
	helloPatience   = 15 * time.Second       // past the relay's own ALLOCATE_TIMEOUT, which tells more
	finPatience     = 2 * time.Second        // for HELLO's FIN, which normally comes with HELLO
	closePatience   = 100 * time.Millisecond // for the control reader, when the relay closes
)

// identity is who the client is and what it shows; the same for every connection of a run.
type identity struct {
	role        uint8
	key         ed25519.PrivateKey // nil: no proof
	token       token              // as minted
	sentToken   token              // as sent, perhaps with a bit flipped
	flipProof   int                // bit of the proof to flip, -1 for none
	fingerprint [32]byte           // of the relay's certificate, DER
	channel     bool               // a channel shares the socket
}

// session is one connection.
type session struct {
	id      *identity
	conn    quic.Connection
	local   *net.UDPAddr
	socket  *shared
	hello   hello
	control quic.Stream
	inbox   map[uint64]chan message
	present chan struct{} // holds one item once the counterpart is known to be there
	gate    *closeGate
	done    chan struct{}
	end     ending // valid once done is closed
	blamed  int32  // atomic: 1 once the relay broke the protocol
}

// ending is how a connection ended.
type ending struct {
	by     string // relay, client, timeout, transport, reset
	code   uint64 // application close code, with by relay or client
	reason string
}

func (e ending) noError() bool { return e.by == "relay" && e.code == closeNoError }

var errEnded = errors.New("connection ended")

// violation is something the relay did that PROTOCOL.md does not allow.
type violation struct {
	what string
	code quic.ApplicationErrorCode // what the connection is closed with
}

// broke makes a violation that is a PROTOCOL_ERROR.
func broke(format string, args ...any) violation {
	return violation{what: fmt.Sprintf(format, args...), code: closeProtocolError}
}

func (v violation) Error() string { return "relay violates the protocol: " + v.what }

// dial connects and completes the handshake; the certificate is checked by its fingerprint only.
func dial(ctx context.Context, address string, id *identity) (*session, error) {
	remote, err := net.ResolveUDPAddr("udp", address)
	if err != nil {
		return nil, err
	}
	socket, local, err := openSocket(remote)
	if err != nil {
		return nil, err
	}
	gate := &closeGate{}
	tlsConfig := &tls.Config{
		NextProtos:         []string{alpn},
		MinVersion:         tls.VersionTLS13,
		InsecureSkipVerify: true, // the fingerprint below replaces chain and name
		VerifyPeerCertificate: func(raw [][]byte, _ [][]*x509.Certificate) error {
			if len(raw) == 0 || sha256.Sum256(raw[0]) != id.fingerprint {
				return errors.New("certificate is not the pinned one")
			}
			return nil
		},
	}
	config := &quic.Config{
		// Version2 of this quic-go is a draft's number, not that of RFC 9369.
		Versions:        []quic.VersionNumber{quic.Version1},
		EnableDatagrams: true,
		KeepAlivePeriod: keepAlive,
		Tracer:          gateTracer{gate: gate},
	}
	wire := &shared{PacketConn: socket, remote: remote}
	var packets net.PacketConn = socket
	if id.channel {
		packets = wire
	}
	conn, err := quic.DialContext(ctx, packets, remote, address, tlsConfig, config)
	if err != nil {
		socket.Close()
		return nil, err
	}
	go func() { <-conn.Context().Done(); socket.Close() }()
	if !conn.ConnectionState().SupportsDatagrams {
		conn.CloseWithError(closeProtocolError, "DATAGRAM is required")
		return nil, broke("DATAGRAM is not offered")
	}
	return &session{
		id: id, conn: conn, local: local, socket: wire, inbox: newInbox(), present: make(chan struct{}, 1),
		gate: gate, done: make(chan struct{}),
	}, nil
}

// openSocket binds a UDP socket of the remote's family and finds the address packets leave from.
func openSocket(remote *net.UDPAddr) (*net.UDPConn, *net.UDPAddr, error) {
	probe, err := net.DialUDP("udp", nil, remote) // connects, sends nothing
	if err != nil {
		return nil, nil, err
	}
	local := probe.LocalAddr().(*net.UDPAddr)
	probe.Close()
	socket, err := net.ListenUDP("udp", &net.UDPAddr{IP: local.IP, Zone: local.Zone})
	if err != nil {
		return nil, nil, err
	}
	return socket, socket.LocalAddr().(*net.UDPAddr), nil
}

func newInbox() map[uint64]chan message {
	inbox := map[uint64]chan message{}
	for _, kind := range []uint64{typeAllocated, typeRefreshed, typeReleased, typeRedirect, typeRelays, typeChannel, typeError} {
		inbox[kind] = make(chan message, 16)
	}
	return inbox
}

// readHello reads stream 3: HELLO, then FIN.
func (s *session) readHello(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, helloPatience)
	defer cancel()
	stream, err := s.conn.AcceptUniStream(ctx)
	if err != nil {
		return fmt.Errorf("no HELLO: %w", err)
	}
	stream.SetReadDeadline(time.Now().Add(helloPatience))
	if stream.StreamID() != helloStreamID {
		return broke("first unidirectional stream has id %d", stream.StreamID())
	}
	in := bufio.NewReader(stream)
	kind, value, err := readCapsule(in)
	if err != nil {
		return asViolation(err, "HELLO")
	}
	if kind != typeHello {
		return broke("first capsule has type 0x%x, not HELLO", kind)
	}
	if s.hello, err = decodeHello(value); err != nil {
		return asViolation(err, "HELLO")
	}
	emit(s.hello.line())
	if s.hello.version != protocolVersion {
		return violation{fmt.Sprintf("HELLO version %d", s.hello.version), closeVersion}
	}
	stream.SetReadDeadline(time.Now().Add(finPatience))
	if _, err := in.ReadByte(); err != io.EOF {
		return broke("no FIN after HELLO (%v)", err)
	}
	return nil
}

// openControl opens stream 0 and starts its reader. The relay sees it with the first capsule sent.
func (s *session) openControl(ctx context.Context) error {
	stream, err := s.conn.OpenStreamSync(ctx)
	if err != nil {
		return err
	}
	if stream.StreamID() != controlStreamID {
		return fmt.Errorf("control stream got id %d", stream.StreamID())
	}
	s.control = stream
	go s.readControl()
	return nil
}

// send writes one capsule to the control stream.
func (s *session) send(kind uint64, value []byte) error {
	_, err := s.control.Write(appendCapsule(nil, kind, value))
	return err
}

// allocate sends ALLOCATE, with a proof unless there is no key.
func (s *session) allocate() error {
	request := allocate{
		version: protocolVersion, role: s.id.role, token: s.id.sentToken,
		allocationID: s.id.token.allocationID(), peerID: s.id.token.peerID(),
		clientIP: s.local.IP, clientPort: uint16(s.local.Port),
	}
	if s.id.key != nil {
		request.features = featureProof
		request.publicKey = s.id.key.Public().(ed25519.PublicKey)
		request.proof = possession(s.id.key, s.hello, s.id.fingerprint, s.id.sentToken, s.id.role)
		if s.id.flipProof >= 0 {
			flipBit(request.proof, s.id.flipProof)
		}
	}
	return s.send(typeAllocate, request.value())
}

// expect waits for the first capsule of one of these types, or for the end of the connection.
func (s *session) expect(ctx context.Context, first, second uint64) (message, error) {
	select {
	case m := <-s.inbox[first]:
		return m, nil
	case m := <-s.inbox[second]:
		return m, nil
	case <-ctx.Done():
		return message{}, ctx.Err()
	case <-s.done:
	}
	for _, kind := range []uint64{first, second} { // it may have come just before the end
		select {
		case m := <-s.inbox[kind]:
			return m, nil
		default:
		}
	}
	return message{}, errEnded
}

// readControl prints and hands on what the relay says, until the connection ends.
func (s *session) readControl() {
	in := bufio.NewReader(s.gate.count(s.control))
	released := false
	var err error
	for err == nil {
		var kind uint64
		var value []byte
		if kind, value, err = readCapsule(in); err == nil {
			err = s.accept(kind, value)
			released = released || kind == typeReleased
		}
	}
	var closed *quic.StreamError
	if err == io.EOF && !released || errors.As(err, &closed) {
		err = broke("control stream ended before RELEASED (%v)", err)
	} else {
		err = asViolation(err, "control stream")
	}
	if v, bad := err.(violation); bad {
		s.blame(v)
	}
	s.finish()
}

// accept decodes, prints and hands on one capsule.
func (s *session) accept(kind uint64, value []byte) error {
	m, err := decode(kind, value)
	if err != nil {
		return fmt.Errorf("capsule 0x%x: %w", kind, err)
	}
	emit(m.line)
	if m.allocation != "" && m.allocation != hexText(s.id.token.allocationID()) {
		return broke("ALLOCATED names another allocation")
	}
	if m.peerLeft {
		select {
		case <-s.present:
		default:
		}
	}
	if m.peerPresent {
		select {
		case s.present <- struct{}{}:
		default:
		}
	}
	if waiting, known := s.inbox[kind]; known {
		select {
		case waiting <- m:
		default: // nobody in this program waits for that many
		}
	}
	return nil
}

// blame reports a violation and closes, as a client that holds the relay to its page does.
func (s *session) blame(v violation) {
	atomic.StoreInt32(&s.blamed, 1)
	emit(newEvent("violation", "message", v.what))
	s.conn.CloseWithError(v.code, v.what)
}

func (s *session) broken() bool { return atomic.LoadInt32(&s.blamed) != 0 }

// giveUp ends a session that cannot do what it was opened for, and says with which exit status.
func (s *session) giveUp(why error) (int, error) {
	s.leave()
	<-s.done
	if s.broken() {
		return exitViolation, why
	}
	return exitFailed, why
}

// leave closes the connection without an error.
func (s *session) leave() { s.conn.CloseWithError(closeNoError, "") }

// finish waits for the connection's end, prints it and wakes whoever waits for it.
func (s *session) finish() {
	<-s.conn.Context().Done()
	_, err := s.conn.AcceptStream(context.Background()) // the way to learn why
	for err == nil {
		_, err = s.conn.AcceptStream(context.Background())
	}
	s.end = printEnding(err, s.gate.unread())
	close(s.done)
}

var retryAfter = regexp.MustCompile(`^retry_after=([0-9]+);`)

// printEnding classifies a connection's error and prints the "closed" line.
func printEnding(err error, unread int64) ending {
	var application *quic.ApplicationError
	var transport *quic.TransportError
	var idle *quic.IdleTimeoutError
	var handshake *quic.HandshakeTimeoutError
	var reset *quic.StatelessResetError
	end := ending{by: "transport", reason: err.Error()}
	line := newEvent("closed")
	switch {
	case errors.As(err, &application):
		end = ending{by: "client", code: uint64(application.ErrorCode), reason: application.ErrorMessage}
		if application.Remote {
			end.by = "relay"
		}
		line.add("by", end.by, "code", end.code, "name", codeName(end.code), "reason", end.reason)
		if found := retryAfter.FindStringSubmatch(end.reason); found != nil {
			if seconds, err := strconv.ParseUint(found[1], 10, 63); err == nil {
				line.add("retry_after", seconds)
			}
		}
	case errors.As(err, &transport):
		line.add("by", end.by, "transport_code", uint64(transport.ErrorCode), "remote", transport.Remote, "reason", end.reason)
	case errors.As(err, &idle), errors.As(err, &handshake), errors.Is(err, context.DeadlineExceeded):
		end.by = "timeout"
		line.add("by", end.by, "reason", end.reason)
	case errors.As(err, &reset):
		end.by = "reset"
		line.add("by", end.by, "reason", end.reason)
	default:
		line.add("by", end.by, "reason", end.reason)
	}
	if unread > 0 {
		line.add("control_bytes_unread", unread)
	}
	emit(line)
	return end
}

// asViolation turns errors that only a misbehaving relay causes into a violation.
func asViolation(err error, where string) error {
	switch {
	case errors.Is(err, errTooLarge):
		return violation{where + ": " + err.Error(), closeControlTooLarge}
	case errors.Is(err, errMalformed), errors.Is(err, io.ErrUnexpectedEOF):
		return broke("%s: %v", where, err)
	}
	return err
}

// closeGate compares what arrived on the control stream with what was read from it.
type closeGate struct {
	logging.NullConnectionTracer
	arrived int64 // end of the control stream as far as received; packet loop and unread() only
	read    int64 // bytes taken by the reader; atomic
}

type gateTracer struct {
	logging.NullTracer
	gate *closeGate
}

// TracerForConnection gives quic-go the gate of the one connection this tracer is made for.
func (t gateTracer) TracerForConnection(context.Context, logging.Perspective, logging.ConnectionID) logging.ConnectionTracer {
	return t.gate
}

// ReceivedPacket is called by quic-go before it acts on the frames of a packet.
func (g *closeGate) ReceivedPacket(_ *logging.ExtendedHeader, _ logging.ByteCount, frames []logging.Frame) {
	for _, frame := range frames {
		switch f := frame.(type) {
		case *logging.StreamFrame:
			end := int64(f.Offset + f.Length)
			if f.StreamID == controlStreamID && end > atomic.LoadInt64(&g.arrived) {
				atomic.StoreInt64(&g.arrived, end)
			}
		case *logging.ConnectionCloseFrame:
			for waited := time.Duration(0); g.unread() > 0 && waited < closePatience; waited += time.Millisecond {
				time.Sleep(time.Millisecond)
			}
		}
	}
}

func (g *closeGate) unread() int64 { return atomic.LoadInt64(&g.arrived) - atomic.LoadInt64(&g.read) }

// count returns a reader that tells the gate what was read.
func (g *closeGate) count(from io.Reader) io.Reader { return countingReader{from, g} }

type countingReader struct {
	from io.Reader
	gate *closeGate
}

func (c countingReader) Read(p []byte) (int, error) {
	n, err := c.from.Read(p)
	atomic.AddInt64(&c.gate.read, int64(n))
	return n, err
}
