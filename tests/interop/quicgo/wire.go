package main

// The bytes of PROTOCOL §2-§5: varints, capsules, addresses, tokens, proofs. Nothing in this file
// touches a socket. A reader walks over one capsule's value and remembers its first failure, so a
// decoder is a plain list of fields in the order of the protocol page; what is left over after the
// last field is ignored, as the page demands.

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"unicode/utf8"

	"github.com/lucas-clemente/quic-go/quicvarint"
)

const (
	alpn            = "zrc-relay"
	protocolVersion = 1
	tokenLength     = 180
	signedLength    = 116 // what of a token is hashed and signed
	maxCapsule      = 4096
	maxOversize     = 65535
	proofLabel      = "zrc-relay/1 possession"
	featureProof    = 1 // ALLOCATE feature bit 0: public_key and proof follow
)

// Capsule types (§4, §5).
const (
	typeAllocate     = 0x01
	typeRefresh      = 0x02
	typeRelease      = 0x03
	typeOpenChannel  = 0x04
	typeListRelays   = 0x05
	typeCloseChannel = 0x06
	typeHello        = 0x10
	typeAllocated    = 0x11
	typeRefreshed    = 0x12
	typeReleased     = 0x13
	typeRedirect     = 0x14
	typeNotice       = 0x15
	typeChannel      = 0x16
	typeRelays       = 0x17
	typeError        = 0x1f
)

// Stream types and the code for refusing one (§6).
const (
	streamOversize    = 0x01
	streamUnknownType = 0x7a726300
)

// Close codes this client itself uses (§5).
const (
	closeNoError         = 0x00
	closeProtocolError   = 0x01
	closeControlTooLarge = 0x02
	closeVersion         = 0x04
)

var codeNames = map[uint64]string{
	0x00: "NO_ERROR", 0x01: "PROTOCOL_ERROR", 0x02: "CONTROL_TOO_LARGE", 0x03: "ALLOCATE_TIMEOUT",
	0x04: "VERSION", 0x10: "TOKEN_MALFORMED", 0x11: "TOKEN_BAD_SIGNATURE", 0x12: "TOKEN_EXPIRED",
	0x13: "TOKEN_WRONG_RELAY", 0x14: "TOKEN_WRONG_ALLOCATION", 0x15: "TOKEN_WRONG_PEER",
	0x16: "DEVICE_UNKNOWN", 0x17: "PROOF_REQUIRED", 0x18: "PROOF_INVALID", 0x19: "TOKEN_TOO_LONG",
	0x20: "CAPACITY", 0x21: "RATE_LIMITED", 0x22: "BLOCKED", 0x23: "TOO_MANY_CONNECTIONS",
	0x24: "DRAINING", 0x30: "TERMINATED", 0x31: "QUOTA_EXCEEDED", 0x32: "EXPIRED", 0x33: "IDLE",
	0x3f: "INTERNAL",
}

// codeName names a close or ERROR code; a code this page of the protocol does not know is "".
func codeName(code uint64) string { return codeNames[code] }

// appendCapsule appends one capsule: type varint, length varint, value.
func appendCapsule(to []byte, kind uint64, value []byte) []byte {
	b := bytes.NewBuffer(to)
	quicvarint.Write(b, kind)
	quicvarint.Write(b, uint64(len(value)))
	b.Write(value)
	return b.Bytes()
}

// byteStream is what capsules and records are read from.
type byteStream interface {
	io.Reader
	io.ByteReader
}

// readCapsule reads one capsule. io.EOF means the stream ended between capsules,
// io.ErrUnexpectedEOF inside one; errTooLarge is wrapped for a value above 4096 bytes, on its length.
func readCapsule(from byteStream) (kind uint64, value []byte, err error) {
	kind, err = readVarint(from, io.EOF)
	if err != nil {
		return 0, nil, err
	}
	length, err := readVarint(from, io.ErrUnexpectedEOF)
	if err != nil {
		return 0, nil, err
	}
	if length > maxCapsule {
		return 0, nil, fmt.Errorf("%w: capsule 0x%x has %d bytes", errTooLarge, kind, length)
	}
	value = make([]byte, length)
	if _, err = io.ReadFull(from, value); err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return kind, value, err
}

// readVarint reads an RFC 9000 §16 integer; atStart is what an end of stream before its first byte
// is reported as (inside one it is always io.ErrUnexpectedEOF).
func readVarint(from io.ByteReader, atStart error) (uint64, error) {
	first, err := from.ReadByte()
	if err == io.EOF {
		return 0, atStart
	}
	if err != nil {
		return 0, err
	}
	value := uint64(first & 0x3f)
	for more := 1<<(first>>6) - 1; more > 0; more-- {
		next, err := from.ReadByte()
		if err == io.EOF {
			return 0, io.ErrUnexpectedEOF
		}
		if err != nil {
			return 0, err
		}
		value = value<<8 | uint64(next)
	}
	return value, nil
}

var (
	errMalformed = errors.New("malformed")
	errTooLarge  = errors.New("too large")
)

// reader takes fields off the front of a value; after a failure it yields zeros and keeps err.
type reader struct {
	left []byte
	err  error
}

func (r *reader) take(n int) []byte {
	if r.err == nil && len(r.left) < n {
		r.err = fmt.Errorf("%w: %d bytes where %d were expected", errMalformed, len(r.left), n)
	}
	if r.err != nil {
		return make([]byte, n)
	}
	out := r.left[:n]
	r.left = r.left[n:]
	return out
}

func (r *reader) fail(format string, args ...any) {
	if r.err == nil {
		r.err = fmt.Errorf("%w: %s", errMalformed, fmt.Sprintf(format, args...))
	}
}

func (r *reader) u8() uint8        { return r.take(1)[0] }
func (r *reader) u16() uint16      { return binary.BigEndian.Uint16(r.take(2)) }
func (r *reader) u32() uint32      { return binary.BigEndian.Uint32(r.take(4)) }
func (r *reader) u64() uint64      { return binary.BigEndian.Uint64(r.take(8)) }
func (r *reader) hex(n int) string { return hex.EncodeToString(r.take(n)) }

func (r *reader) text(n int) string {
	out := r.take(n)
	if !utf8.Valid(out) {
		r.fail("text is not UTF-8")
	}
	return string(out)
}

// address is an address as capsules carry it; family 0 has neither ip nor port.
type address struct {
	family uint8
	ip     net.IP
	port   uint16
}

func (a address) String() string {
	if a.family == 0 {
		return ""
	}
	return net.JoinHostPort(a.ip.String(), fmt.Sprint(a.port))
}

// MarshalText makes printed addresses "ip:port", and "" for family 0.
func (a address) MarshalText() ([]byte, error) { return []byte(a.String()), nil }

// address reads `family · ip · port`.
func (r *reader) address() address {
	a := address{family: r.u8()}
	switch a.family {
	case 0:
		return address{}
	case 4:
		a.ip = net.IP(r.take(4))
	case 6:
		a.ip = net.IP(r.take(16))
		if r.err == nil && a.ip.To4() != nil {
			r.fail("IPv4-mapped address written as family 6")
		}
	default:
		r.fail("address family %d", a.family)
	}
	a.port = r.u16()
	return a
}

// addresses reads `count u8 (<= most) · address × count`.
func (r *reader) addresses(most uint8) []address {
	count := r.u8()
	if count > most {
		r.fail("%d addresses, at most %d are allowed", count, most)
	}
	out := []address{}
	for i := uint8(0); i < count && r.err == nil; i++ {
		out = append(out, r.address())
	}
	return out
}

// appendAddress appends an address; nil is family 0, an IPv4-mapped one is family 4.
func appendAddress(to []byte, ip net.IP, port uint16) []byte {
	if ip == nil {
		return append(to, 0)
	}
	if v4 := ip.To4(); v4 != nil {
		to = append(append(to, 4), v4...)
	} else {
		to = append(append(to, 6), ip.To16()...)
	}
	return binary.BigEndian.AppendUint16(to, port)
}

// token is a RelayTokenV1 in its 180 bytes (§3).
type token []byte

func parseToken(text string) (token, error) {
	raw, err := base64.RawURLEncoding.DecodeString(text)
	if err != nil {
		return nil, fmt.Errorf("token is not base64url without padding: %w", err)
	}
	if len(raw) != tokenLength {
		return nil, fmt.Errorf("token has %d bytes, not %d", len(raw), tokenLength)
	}
	return raw, nil
}

func (t token) allocationID() []byte { return t[16:32] }
func (t token) peerID() []byte       { return t[64:96] }
func (t token) text() string         { return base64.RawURLEncoding.EncodeToString(t) }

// mint signs a token. Its three integers are the protocol's only little-endian ones.
func mint(key ed25519.PrivateKey, relayID, allocationID, peerID []byte,
	expires uint64, bandwidth uint32, quota uint64) token {
	device := sha256.Sum256(key.Public().(ed25519.PublicKey))
	t := make([]byte, 0, tokenLength)
	t = append(t, relayID...)
	t = append(t, allocationID...)
	t = append(t, device[:]...)
	t = append(t, peerID...)
	t = binary.LittleEndian.AppendUint64(t, expires)
	t = binary.LittleEndian.AppendUint32(t, bandwidth)
	t = binary.LittleEndian.AppendUint64(t, quota)
	digest := sha256.Sum256(t[:signedLength])
	return append(t, ed25519.Sign(key, digest[:])...)
}

// possession computes the proof of §4, bound to this connection's challenge, relay and certificate.
func possession(key ed25519.PrivateKey, h hello, certificate [32]byte, t token, role uint8) []byte {
	tokenHash := sha256.Sum256(t)
	m := sha256.New()
	m.Write([]byte(proofLabel))
	m.Write(h.relayID)
	m.Write(certificate[:])
	m.Write(tokenHash[:])
	m.Write(h.challenge)
	m.Write([]byte{role})
	return ed25519.Sign(key, m.Sum(nil))
}

// flipBit inverts bit n of b: bit n%8, counted from the least significant, of byte n/8.
func flipBit(b []byte, n int) { b[n/8] ^= 1 << (n % 8) }

// allocate is the value of ALLOCATE, field by field; publicKey and proof are nil without feature bit 0.
type allocate struct {
	version      uint8
	role         uint8
	features     uint32
	allocationID []byte
	peerID       []byte
	token        token
	clientIP     net.IP // nil for family 0
	clientPort   uint16
	publicKey    []byte
	proof        []byte
}

func (a allocate) value() []byte {
	v := binary.BigEndian.AppendUint32([]byte{a.version, a.role}, a.features)
	v = append(v, a.allocationID...)
	v = append(v, a.peerID...)
	v = append(v, a.token...)
	v = appendAddress(v, a.clientIP, a.clientPort)
	v = append(v, a.publicKey...)
	return append(v, a.proof...)
}
