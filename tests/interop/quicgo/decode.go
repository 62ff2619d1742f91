package main

// What the relay's capsules say (§5). Each decoder returns the event line that is printed for its
// capsule; the few fields the client itself acts on are kept beside it.

// hello is the part of HELLO that the rest of the connection needs.
type hello struct {
	version   uint8
	relayID   []byte
	challenge []byte
	features  uint32
}

// message is one capsule from the relay, decoded.
type message struct {
	kind        uint64
	line        event
	peerPresent bool      // ALLOCATED with peer_present, or NOTICE PEER_JOINED
	peerLeft    bool      // NOTICE PEER_LEFT
	addresses   []address // REDIRECT
	allocation  string    // ALLOCATED
	channel     []byte    // CHANNEL
}

func decodeHello(value []byte) (hello, error) {
	r := &reader{left: value}
	h := hello{version: r.u8(), relayID: r.take(16), challenge: r.take(32), features: r.u32()}
	return h, r.err
}

func (h hello) line() event {
	return newEvent("hello", "version", h.version, "relay_id", hexText(h.relayID), "challenge", hexText(h.challenge),
		"features", h.features, "devices_must_prove", h.features&1 != 0,
		"channels", h.features&2 != 0, "peers_must_prove", h.features&4 != 0)
}

// decode turns a control stream capsule into a message; an unknown type becomes an "ignored" line.
func decode(kind uint64, value []byte) (message, error) {
	r := &reader{left: value}
	m := message{kind: kind}
	switch kind {
	case typeAllocated:
		m.decodeAllocated(r)
	case typeRefreshed:
		m.line = newEvent("refreshed", "expires_at", r.u64(), "bandwidth_limit", r.u64(),
			"quota_bytes", r.u64(), "bytes_transferred", r.u64())
	case typeReleased:
		m.line = newEvent("released")
	case typeRedirect:
		reason, routing := r.u8(), r.u8()
		m.addresses = r.addresses(16)
		m.line = newEvent("redirect", "reason", reason, "routing_byte", routing, "addresses", m.addresses)
	case typeNotice:
		m.decodeNotice(r)
	case typeChannel:
		m.channel = r.take(7)
		m.line = newEvent("channel", "channel_id", hexText(m.channel))
	case typeRelays:
		m.line = newEvent("relays", "entries", decodeRelays(r))
	case typeError:
		code := r.u16()
		m.line = newEvent("error_capsule", "code", code, "name", codeName(uint64(code)), "message", r.text(int(r.u16())))
	default:
		m.line = newEvent("ignored", "type", kind, "value", hexText(value))
	}
	return m, r.err
}

func (m *message) decodeAllocated(r *reader) {
	m.allocation = r.hex(16)
	m.line = newEvent("allocated", "allocation_id", m.allocation, "relay_addr", r.address(),
		"expires_at", r.u64(), "bandwidth_limit", r.u64(), "quota_bytes", r.u64(),
		"bytes_transferred", r.u64(), "observed_addr", r.address(),
		"keepalive_interval", r.u16(), "idle_timeout", r.u16())
	present := r.u8()
	m.peerPresent = present != 0
	m.line.add("peer_present", present, "peer_max_payload", r.u16())
}

func (m *message) decodeNotice(r *reader) {
	code := r.u8()
	m.line = newEvent("notice", "code", code)
	switch code {
	case 1:
		m.line.add("name", "QUOTA_WARNING", "used", r.u64(), "quota", r.u64())
	case 2:
		m.line.add("name", "RATE_LIMITED", "limit", r.u64(), "dropped", r.u64())
	case 3:
		m.line.add("name", "PEER_JOINED", "max_payload", r.u16())
		m.peerPresent = true
	case 4:
		m.line.add("name", "PEER_LEFT")
		m.peerLeft = true
	case 5:
		m.line.add("name", "DRAINING", "deadline", r.u64(), "addresses", r.addresses(16))
	case 6:
		m.line.add("name", "TERMINATED", "reason", r.u8())
	case 7:
		m.line.add("name", "DROPPED", "cause", r.u8(), "packets", r.u64())
	case 8:
		m.line.add("name", "SUPERSEDED")
	case 9:
		m.line.add("name", "MAX_PAYLOAD", "max_payload", r.u16())
	default:
		m.line.add("name", "", "body", hexText(r.left))
	}
}

// decodeRelays reads RELAYS. An entry's length counts the bytes after it, so that entries can grow.
func decodeRelays(r *reader) []event {
	count := r.u8()
	if count > 32 {
		r.fail("%d relays, at most 32 are allowed", count)
	}
	relays := []event{}
	for i := uint8(0); i < count && r.err == nil; i++ {
		entry := &reader{left: r.take(int(r.u8()))}
		line := event{}
		line.add("instance_id", entry.hex(8), "address", entry.address())
		load, flags, length := entry.u8(), entry.u8(), entry.u8()
		if load > 100 || length > 32 {
			entry.fail("load %d or region length %d out of range", load, length)
		}
		line.add("load", load, "flags", flags, "draining", flags&1 != 0, "region", entry.text(int(length)))
		relays = append(relays, line)
		if r.err == nil {
			r.err = entry.err
		}
	}
	if count == 0 {
		r.fail("RELAYS without the relay itself")
	}
	return relays
}
