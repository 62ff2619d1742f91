package main

// The offline check against docs/vectors.json, whose first member says how it is written: bytes are
// hex, 64-bit integers decimal strings. A client checks a client's half: what it sends it must build
// byte for byte, what it receives it must read field for field, tolerate or refuse. Vectors for the
// relay's half (readers "relay", and the verdicts of "requests") are counted as skipped; the
// ALLOCATEs of "requests" are built all the same.

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"reflect"
	"strconv"

	"github.com/lucas-clemente/quic-go/quicvarint"
)

// octets is a byte string written in hex.
type octets []byte

func (o *octets) UnmarshalText(text []byte) (err error) {
	*o, err = hex.DecodeString(string(text))
	return err
}

// fields is a capsule's fields, or an address's; a missing one reads as nothing.
type fields map[string]any

func (f fields) octets(name string) []byte {
	text, _ := f[name].(string)
	raw, err := hex.DecodeString(text)
	if err != nil || len(raw) == 0 {
		return nil
	}
	return raw
}

func (f fields) number(name string) uint64 {
	switch v := f[name].(type) {
	case string:
		n, _ := strconv.ParseUint(v, 10, 64)
		return n
	case float64:
		return uint64(v)
	}
	return 0
}

type vectorCase struct {
	Name    string
	Reader  string
	Capsule *string
	Fields  fields
	Bytes   octets
	Error   string
}

type vectorFile struct {
	ProtocolVersion int `json:"protocol_version"`
	Keys            []struct {
		Name      string
		Seed      octets
		PublicKey octets `json:"public_key"`
		ID        octets
	}
	RoutingBytes []struct {
		AllocationID octets `json:"allocation_id"`
		RoutingByte  uint8  `json:"routing_byte"`
	} `json:"routing_bytes"`
	Varints []struct {
		Value    string
		Bytes    octets
		Shortest bool
	}
	Addresses []struct {
		Name   string
		Host   *string
		Fields fields
		Bytes  octets
	}
	Tokens []struct {
		Name     string
		Fields   fields
		SignedBy string `json:"signed_by"`
		Bytes    octets
		Text     string
	}
	Proofs []struct {
		Name        string
		Role        uint8
		SignedBy    string `json:"signed_by"`
		RelayID     octets `json:"relay_id"`
		Certificate octets
		Token       octets
		Challenge   octets
		Proof       octets
	}
	Capsules struct {
		ClientToRelay []vectorCase `json:"client_to_relay"`
		RelayToClient []vectorCase `json:"relay_to_client"`
	}
	Tolerated []vectorCase
	Malformed []vectorCase
	Requests  struct{ Cases []vectorCase }
}

// tally counts vectors and prints those that failed.
type tally struct {
	checked, failed, skipped int
	perSection               map[string]int
}

func (t *tally) check(section, name string, err error) {
	t.checked++
	t.perSection[section]++
	if err != nil {
		t.failed++
		emit(newEvent("vector_failed", "section", section, "name", name, "why", err.Error()))
	}
}

// runVectors checks a file; a section without one vector this client could check is a failure too.
func runVectors(path string) (int, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return exitUsage, err
	}
	var v vectorFile
	if err := json.Unmarshal(text, &v); err != nil {
		return exitUsage, fmt.Errorf("%s: %w", path, err)
	}
	if v.ProtocolVersion != protocolVersion {
		return exitUsage, fmt.Errorf("%s is for protocol version %d", path, v.ProtocolVersion)
	}
	t := &tally{perSection: map[string]int{}}
	keys := v.checkKeys(t)
	v.checkPrimitives(t)
	v.checkSignatures(t, keys)
	v.checkCapsules(t)
	for _, section := range []string{"keys", "routing_bytes", "varints", "addresses", "tokens", "proofs",
		"client_to_relay", "relay_to_client", "tolerated", "malformed", "requests"} {
		if t.perSection[section] == 0 {
			t.check(section, "", errors.New("the section has no vector for a client"))
		}
	}
	emit(newEvent("result", "mode", "vectors", "checked", t.checked, "failed", t.failed,
		"skipped", t.skipped, "ok", t.failed == 0))
	if t.failed > 0 {
		return exitFailed, nil
	}
	return exitOK, nil
}

func (v *vectorFile) checkKeys(t *tally) map[string]ed25519.PrivateKey {
	keys := map[string]ed25519.PrivateKey{}
	for _, k := range v.Keys {
		if len(k.Seed) != ed25519.SeedSize {
			t.check("keys", k.Name, errors.New("seed is not 32 bytes"))
			continue
		}
		key := ed25519.NewKeyFromSeed(k.Seed)
		keys[k.Name] = key
		public := key.Public().(ed25519.PublicKey)
		id := sha256.Sum256(public)
		t.check("keys", k.Name, firstError(same(public, k.PublicKey), same(id[:], k.ID)))
	}
	return keys
}

func (v *vectorFile) checkPrimitives(t *tally) {
	for _, r := range v.RoutingBytes {
		sum := sha256.Sum256(r.AllocationID)
		t.check("routing_bytes", hexText(r.AllocationID), same(sum[:1], []byte{r.RoutingByte}))
	}
	for _, n := range v.Varints {
		in := bytes.NewReader(n.Bytes)
		got, err := readVarint(in, io.EOF)
		if err == nil && (strconv.FormatUint(got, 10) != n.Value || in.Len() > 0) {
			err = fmt.Errorf("read as %d with %d bytes left", got, in.Len())
		}
		if n.Shortest && err == nil {
			var out bytes.Buffer
			quicvarint.Write(&out, got)
			err = same(out.Bytes(), n.Bytes)
		}
		t.check("varints", hexText(n.Bytes), err)
	}
	for _, a := range v.Addresses {
		var ip net.IP
		if a.Host != nil {
			ip = net.ParseIP(*a.Host)
		}
		r := &reader{left: a.Bytes}
		read := shape(r.address())
		err := firstError(r.err, same(appendAddress(nil, ip, uint16(a.Fields.number("port"))), a.Bytes))
		if err == nil && !reflect.DeepEqual(read, map[string]any(a.Fields)) {
			err = fmt.Errorf("read as %v", read)
		}
		t.check("addresses", a.Name, err)
	}
}

func (v *vectorFile) checkSignatures(t *tally, keys map[string]ed25519.PrivateKey) {
	for _, k := range v.Tokens {
		key, known := keys[k.SignedBy]
		if !known {
			t.check("tokens", k.Name, fmt.Errorf("no key %q", k.SignedBy))
			continue
		}
		f := k.Fields
		minted := mint(key, f.octets("relay_id"), f.octets("allocation_id"), f.octets("peer_id"),
			f.number("expires_at"), uint32(f.number("bandwidth_limit")), f.number("quota_bytes"))
		parsed, err := parseToken(k.Text)
		t.check("tokens", k.Name, firstError(err, same(minted, k.Bytes), same([]byte(minted.text()), []byte(k.Text)), same(parsed, k.Bytes)))
	}
	for _, p := range v.Proofs {
		key, known := keys[p.SignedBy]
		if !known {
			t.check("proofs", p.Name, fmt.Errorf("no key %q", p.SignedBy))
			continue
		}
		h := hello{relayID: p.RelayID, challenge: p.Challenge}
		t.check("proofs", p.Name, same(possession(key, h, sha256.Sum256(p.Certificate), token(p.Token), p.Role), p.Proof))
	}
}

func (v *vectorFile) checkCapsules(t *tally) {
	for _, c := range v.Capsules.ClientToRelay {
		t.check("client_to_relay", c.Name, builds(c, c.capsule()))
	}
	for _, c := range v.Requests.Cases {
		t.check("requests", c.Name, builds(c, "ALLOCATE"))
	}
	for _, c := range v.Capsules.RelayToClient {
		t.check("relay_to_client", c.Name, c.reads())
	}
	for _, c := range v.Tolerated {
		if c.Reader != "client" {
			t.skipped++
			continue
		}
		t.check("tolerated", c.Name, c.reads())
	}
	for _, c := range v.Malformed {
		if c.Reader != "client" {
			t.skipped++
			continue
		}
		_, err := readOne(c.Bytes)
		broken, is := asViolation(err, c.Name).(violation)
		if is && codeName(uint64(broken.code)) == c.Error {
			err = nil
		} else {
			err = fmt.Errorf("wanted %s, got %v", c.Error, err)
		}
		t.check("malformed", c.Name, err)
	}
}

func (c vectorCase) capsule() string {
	if c.Capsule == nil {
		return ""
	}
	return *c.Capsule
}

// builds says whether this client's encoder writes the capsule's bytes from its fields.
func builds(c vectorCase, capsule string) error {
	kinds := map[string]uint64{"ALLOCATE": typeAllocate, "REFRESH": typeRefresh, "RELEASE": typeRelease,
		"OPEN_CHANNEL": typeOpenChannel, "LIST_RELAYS": typeListRelays, "CLOSE_CHANNEL": typeCloseChannel}
	kind, known := kinds[capsule]
	if !known {
		return fmt.Errorf("no capsule %q", capsule)
	}
	f := c.Fields
	var value []byte
	switch kind {
	case typeAllocate:
		client, _ := f["client_addr"].(map[string]any)
		host, _ := client["ip"].(string)
		value = allocate{
			version: uint8(f.number("version")), role: uint8(f.number("role")), features: uint32(f.number("features")),
			allocationID: f.octets("allocation_id"), peerID: f.octets("peer_id"), token: f.octets("token"),
			clientIP: net.ParseIP(host), clientPort: uint16(fields(client).number("port")),
			publicKey: f.octets("public_key"), proof: f.octets("proof"),
		}.value()
	case typeRefresh:
		value = f.octets("token")
	}
	return same(appendCapsule(nil, kind, value), c.Bytes)
}

// reads says whether this client's decoder finds the capsule's fields, or skips what it must skip.
func (c vectorCase) reads() error {
	line, err := readOne(c.Bytes)
	if err != nil {
		return err
	}
	names := map[string]string{"": "ignored", "ERROR": "error_capsule", "HELLO": "hello", "ALLOCATED": "allocated",
		"REFRESHED": "refreshed", "RELEASED": "released", "REDIRECT": "redirect", "NOTICE": "notice",
		"CHANNEL": "channel", "RELAYS": "relays"}
	found := shape(line).(map[string]any)
	if want := names[c.capsule()]; want == "" || found["event"] != want {
		return fmt.Errorf("%q was read as %q", c.capsule(), found["event"])
	}
	return contains(found, map[string]any(c.Fields), "")
}

// readOne decodes one whole capsule as the control stream, or stream 3 for a HELLO, would.
func readOne(raw []byte) (event, error) {
	in := bytes.NewReader(raw)
	kind, value, err := readCapsule(in)
	if err != nil {
		return nil, err
	}
	if in.Len() > 0 {
		return nil, fmt.Errorf("%d bytes left after the capsule", in.Len())
	}
	if kind == typeHello {
		h, err := decodeHello(value)
		return h.line(), err
	}
	m, err := decode(kind, value)
	return m.line, err
}

// shape turns decoded values into what encoding/json makes of a vector's fields.
func shape(value any) any {
	switch v := value.(type) {
	case uint64:
		return strconv.FormatUint(v, 10)
	case uint8:
		return float64(v)
	case uint16:
		return float64(v)
	case uint32:
		return float64(v)
	case address:
		if v.family == 0 {
			return map[string]any{"family": 0.0}
		}
		return map[string]any{"family": float64(v.family), "ip": v.ip.String(), "port": float64(v.port)}
	case []address:
		out := []any{}
		for _, item := range v {
			out = append(out, shape(item))
		}
		return out
	case []event:
		out := []any{}
		for _, item := range v {
			out = append(out, shape(item))
		}
		return out
	case event:
		out := map[string]any{}
		for _, f := range v {
			out[f.name] = shape(f.value)
		}
		return out
	}
	return value
}

// contains says where found differs from want, not minding members only found has.
func contains(found, want any, where string) error {
	switch w := want.(type) {
	case map[string]any:
		f, _ := found.(map[string]any)
		for name, item := range w {
			if err := contains(f[name], item, where+"."+name); err != nil {
				return err
			}
		}
		return nil
	case []any:
		f, is := found.([]any)
		if !is || len(f) != len(w) {
			return fmt.Errorf("%s has %d items, not %d", where, len(f), len(w))
		}
		for i := range w {
			if err := contains(f[i], w[i], fmt.Sprintf("%s[%d]", where, i)); err != nil {
				return err
			}
		}
		return nil
	}
	if found != want {
		return fmt.Errorf("%s is %v, not %v", where, found, want)
	}
	return nil
}

func same(got, want []byte) error {
	if !bytes.Equal(got, want) {
		return fmt.Errorf("got %s, want %s", hexText(got), hexText(want))
	}
	return nil
}

func firstError(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}
