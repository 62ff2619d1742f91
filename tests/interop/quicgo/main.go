// Command quicgo is a client for zrc-relay written from PROTOCOL.md alone, with quic-go as its QUIC.
// It exists to be run against the relay: where the two disagree, one of them has misread the page.
//
// The files: wire.go bytes, decode.go the relay's capsules, session.go one connection, data.go
// datagrams, modes.go what is done with a session, vectors.go the test vectors, event.go the printed
// lines, channel.go channels, main.go (this file) flags, redirects and exit status.
package main

import (
	"context"
	"crypto/ed25519"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/lucas-clemente/quic-go"
)

// Exit statuses.
const (
	exitOK        = 0
	exitFailed    = 1 // the mode did not see what it came for
	exitUsage     = 2
	exitViolation = 3 // no connection, wrong certificate, or the relay broke the protocol
)

const maxRedirects = 3

type options struct {
	mode, addr                string
	role, token, keyFile      string
	fingerprint, secondToken  string
	relayID, allocationID     string
	peerID, vectors           string
	expires, bandwidth, quota uint64
	count, size, maxDatagram  int
	rate                      float64
	wait, deadline            time.Duration
	follow, noProof, channel  bool
	flipToken, flipToken2     int
	flipProof                 int
	token2                    token
}

func parseFlags() *options {
	o := &options{}
	flag.StringVar(&o.mode, "mode", "", "echo, ping, sink, list, refresh, mint or vectors")
	flag.StringVar(&o.addr, "addr", "", "relay's `host:port`")
	flag.StringVar(&o.role, "role", "device", "device or peer")
	flag.StringVar(&o.token, "token", "", "RelayTokenV1, base64url without padding")
	flag.StringVar(&o.secondToken, "token2", "", "refresh: the `token` to refresh with")
	flag.StringVar(&o.keyFile, "key", "", "`file` with 64 hex digits: the Ed25519 seed of this role")
	flag.StringVar(&o.fingerprint, "cert-sha256", "", "64 hex digits: SHA-256 of the relay's certificate, DER")
	flag.IntVar(&o.count, "count", 100, "ping: how many datagrams")
	flag.IntVar(&o.size, "size", 64, "ping: payload bytes, 0 to 65535")
	flag.Float64Var(&o.rate, "rate", 100, "ping: datagrams per second, 0 for as fast as possible")
	flag.IntVar(&o.maxDatagram, "max-datagram", maxDatagram, "longer payloads go by an oversize stream; -1 sends all that way")
	flag.DurationVar(&o.wait, "wait", 30*time.Second, "ping: how long to wait for the counterpart")
	flag.DurationVar(&o.deadline, "deadline", 0, "give up after this long, 0 for never")
	flag.BoolVar(&o.follow, "follow", true, "follow REDIRECT, at most three in a row")
	flag.IntVar(&o.flipToken, "flip-token-bit", -1, "invert bit `N` (0 to 1439) of the token in ALLOCATE")
	flag.IntVar(&o.flipToken2, "flip-token2-bit", -1, "refresh: invert bit `N` (0 to 1439) of the token in REFRESH")
	flag.IntVar(&o.flipProof, "flip-proof-bit", -1, "invert bit `N` (0 to 511) of the proof")
	flag.BoolVar(&o.noProof, "no-proof", false, "send ALLOCATE without public key and proof")
	flag.BoolVar(&o.channel, "channel", false, "echo: open a channel, and send back what comes by it as well")
	flag.StringVar(&o.relayID, "relay-id", "", "mint: 32 hex digits")
	flag.StringVar(&o.allocationID, "allocation-id", "", "mint: 32 hex digits")
	flag.StringVar(&o.peerID, "peer-id", "", "mint: 64 hex digits")
	flag.Uint64Var(&o.expires, "expires", 0, "mint: Unix `seconds`")
	flag.Uint64Var(&o.bandwidth, "bandwidth", 0, "mint: bytes per second, 0 for the tier's")
	flag.Uint64Var(&o.quota, "quota", 0, "mint: bytes, 0 for the tier's")
	flag.StringVar(&o.vectors, "vectors", "", "vectors: the `file`, docs/vectors.json")
	flag.Parse()
	return o
}

func main() {
	o := parseFlags()
	status, err := run(o)
	if err != nil {
		fmt.Fprintln(os.Stderr, "quicgo:", err)
	}
	os.Exit(status)
}

func run(o *options) (int, error) {
	if flag.NArg() > 0 {
		return exitUsage, fmt.Errorf("unexpected argument %q", flag.Arg(0))
	}
	switch o.mode {
	case "mint":
		return runMint(o)
	case "vectors":
		return runVectors(o.vectors)
	case "echo", "ping", "sink", "list", "refresh":
	default:
		return exitUsage, fmt.Errorf("-mode is %q, not echo, ping, sink, list, refresh, mint or vectors", o.mode)
	}
	id, err := o.identity()
	if err != nil {
		return exitUsage, err
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if o.deadline > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, o.deadline)
		defer cancel()
	}
	return o.connectAndRun(ctx, id)
}

// identity checks the flags that every online mode needs.
func (o *options) identity() (*identity, error) {
	id := &identity{flipProof: o.flipProof, channel: o.channel}
	print, err := parseHex("-cert-sha256", o.fingerprint, 32)
	if err != nil {
		return nil, err
	}
	copy(id.fingerprint[:], print)
	switch {
	case o.role == "peer":
		id.role = 1
	case o.role != "device":
		return nil, fmt.Errorf("-role is %q, not device or peer", o.role)
	case o.addr == "":
		return nil, errors.New("-addr is missing")
	}
	if o.size < 0 || o.size > maxOversize || o.count < 1 || o.rate < 0 || o.maxDatagram < -1 || o.maxDatagram > maxDatagram {
		return nil, fmt.Errorf("-size is 0 to %d, -count at least 1, -rate not negative, -max-datagram -1 to %d", maxOversize, maxDatagram)
	}
	if o.flipProof >= 8*ed25519.SignatureSize || o.flipProof >= 0 && o.noProof {
		return nil, fmt.Errorf("-flip-proof-bit %d: there is no such bit", o.flipProof)
	}
	if o.mode == "list" && o.token == "" {
		return id, nil
	}
	if id.token, err = parseToken(o.token); err != nil {
		return nil, fmt.Errorf("-token: %w", err)
	}
	if id.sentToken, err = flipped(id.token, o.flipToken); err != nil {
		return nil, fmt.Errorf("-flip-token-bit: %w", err)
	}
	if o.mode == "refresh" {
		if o.token2, err = parseToken(o.secondToken); err != nil {
			return nil, fmt.Errorf("-token2: %w", err)
		}
		if o.token2, err = flipped(o.token2, o.flipToken2); err != nil {
			return nil, fmt.Errorf("-flip-token2-bit: %w", err)
		}
	}
	if !o.noProof {
		if id.key, err = readKey(o.keyFile); err != nil {
			return nil, fmt.Errorf("-key: %w", err)
		}
	}
	return id, nil
}

// flipped returns a copy of t with one bit inverted, or as it is for bit -1.
func flipped(t token, bit int) (token, error) {
	if bit >= 8*tokenLength || bit < -1 {
		return nil, fmt.Errorf("%d is no bit of a token", bit)
	}
	out := append(token{}, t...)
	if bit >= 0 {
		flipBit(out, bit)
	}
	return out, nil
}

func parseHex(what, text string, length int) ([]byte, error) {
	raw, err := hex.DecodeString(text)
	if err != nil || len(raw) != length {
		return nil, fmt.Errorf("%s is not %d hex digits", what, 2*length)
	}
	return raw, nil
}

func readKey(file string) (ed25519.PrivateKey, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	seed, err := parseHex(file, strings.TrimSpace(string(text)), ed25519.SeedSize)
	if err != nil {
		return nil, err
	}
	return ed25519.NewKeyFromSeed(seed), nil
}

func runMint(o *options) (int, error) {
	relayID, err := parseHex("-relay-id", o.relayID, 16)
	if err != nil {
		return exitUsage, err
	}
	allocationID, err := parseHex("-allocation-id", o.allocationID, 16)
	if err != nil {
		return exitUsage, err
	}
	peerID, err := parseHex("-peer-id", o.peerID, 32)
	if err != nil {
		return exitUsage, err
	}
	key, err := readKey(o.keyFile)
	if err != nil {
		return exitUsage, fmt.Errorf("-key: %w", err)
	}
	if o.bandwidth > 1<<32-1 {
		return exitUsage, errors.New("-bandwidth does not fit 32 bits")
	}
	fmt.Println(mint(key, relayID, allocationID, peerID, o.expires, uint32(o.bandwidth), o.quota).text())
	return exitOK, nil
}

// connectAndRun connects, follows redirects, and runs the mode on the session it got.
func (o *options) connectAndRun(ctx context.Context, id *identity) (int, error) {
	addresses := []string{o.addr}
	for hop := 0; ; hop++ {
		s, err := firstThatAnswers(ctx, addresses, id)
		var closed *quic.ApplicationError
		if errors.As(err, &closed) && closed.Remote {
			return exitFailed, err // refused with a code, as it can also be after HELLO
		}
		if err != nil {
			return exitViolation, err
		}
		if o.mode == "list" && !runList(ctx, s) {
			return s.giveUp(errors.New("no RELAYS"))
		}
		if o.mode == "list" && id.token == nil {
			s.leave()
			<-s.done
			return exitOK, nil
		}
		if err := s.allocate(); err != nil {
			return s.giveUp(err)
		}
		waiting, cancel := context.WithTimeout(ctx, answerWait)
		answer, err := s.expect(waiting, typeAllocated, typeRedirect)
		cancel()
		if err != nil {
			return s.giveUp(fmt.Errorf("no ALLOCATED: %w", err))
		}
		if answer.kind == typeAllocated {
			return o.runMode(ctx, s), nil
		}
		s.leave()
		<-s.done
		if !o.follow {
			return exitFailed, nil
		}
		if hop == maxRedirects {
			return exitFailed, fmt.Errorf("more than %d redirects in a row", maxRedirects)
		}
		addresses = nil
		for _, next := range answer.addresses {
			if next.family != 0 {
				addresses = append(addresses, next.String())
			}
		}
	}
}

func (o *options) runMode(ctx context.Context, s *session) int {
	ok := true
	switch o.mode {
	case "echo":
		ok = runEcho(ctx, s, o)
	case "ping":
		ok = runPing(ctx, s, o)
	case "sink":
		ok = runSink(ctx, s, o)
	case "refresh":
		ok = runRefresh(ctx, s, o)
	}
	s.leave()
	<-s.done
	if s.broken() {
		return exitViolation
	}
	if !ok {
		return exitFailed
	}
	return exitOK
}

// firstThatAnswers dials the addresses in order and returns a session that has read HELLO.
func firstThatAnswers(ctx context.Context, addresses []string, id *identity) (*session, error) {
	err := errors.New("no address to connect to")
	for _, address := range addresses {
		emit(newEvent("dial", "address", address))
		var s *session
		if s, err = dial(ctx, address, id); err != nil {
			printEnding(err, 0)
			continue
		}
		emit(newEvent("connected", "local", s.local.String()))
		if err = s.openControl(ctx); err != nil {
			s.leave()
			continue
		}
		if err = s.readHello(ctx); err == nil {
			return s, nil
		}
		var v violation
		if errors.As(err, &v) {
			s.blame(v)
			<-s.done
			return nil, err
		}
		s.leave()
		<-s.done
	}
	return nil, err
}
