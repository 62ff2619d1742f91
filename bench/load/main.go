// Command load puts a load on a relay and measures what it costs: it connects pairs of clients, sends from one end to the other,
// checks every payload that arrives, and looks at the relay's process through /proc at the beginning and at the end of the
// measurement. It prints one JSON object.
//
// Two engines send datagrams. "quic-go" is an ordinary client that sends packets singly. "fast" takes connections over from quic-go
// after the handshake (link.go) and is several times as cheap as any relay.
//
// Files: main.go flags; connect.go handshakes and ALLOCATE; tap.go and link.go the fast engine, keys.go, frames.go, receiver.go and gso.go
// below it; traffic.go datagrams, payload.go what they hold; extras.go handshakes and streams; process.go the relay's process. The
// bytes of the protocol are those of tests/interop/quicgo: the build (bench/build.py) adds its wire.go, decode.go and event.go.
package main

import (
	"context"
	"crypto/ed25519"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"runtime"
	"strings"
	"time"
)

// Exit statuses.
const (
	exitFailed      = 1
	exitUsage       = 2
	exitUnsupported = 3 // the relay does not offer what was to be measured
)

func main() {
	status, err := start()
	if err != nil {
		fmt.Fprintln(os.Stderr, "load:", err)
	}
	os.Exit(status)
}

func start() (int, error) {
	t := &target{}
	p := &plan{}
	mode := flag.String("mode", "datagrams", "datagrams, channels, streams or handshakes")
	engine := flag.String("engine", "quic-go", "of datagrams: quic-go or fast")
	direct := flag.Bool("direct", false, "no relay: the ends of a pair talk to each other (engine fast)")
	count := flag.Int("pairs", 4, "pairs; handshakes: how many")
	print := flag.String("cert-sha256", "", "64 hex digits: SHA-256 of the relay's certificate, DER")
	relayID := flag.String("relay-id", "", "32 hex digits")
	deviceKey := flag.String("device-key", "", "`file` with the device's key")
	peerKey := flag.String("peer-key", "", "`file` with the peer's key")
	flag.StringVar(&t.address, "addr", "", "relay's `host:port`")
	flag.BoolVar(&t.plain, "plain", false, "the relay pairs connections as they come and knows no allocations")
	flag.IntVar(&p.size, "size", 1100, "payload bytes")
	flag.IntVar(&p.train, "train", 1, "packets sent at once (engine fast: with one call)")
	flag.IntVar(&p.window, "window", 128, "engine fast, without -rate: payloads of a flow that may be under way")
	flag.BoolVar(&p.both, "both", false, "both directions")
	flag.Float64Var(&p.rate, "rate", 0, "payloads a second over all pairs, 0 for as many as go through")
	flag.DurationVar(&p.settle, "settle", 0, "after all are connected, before anything is sent")
	flag.BoolVar(&p.hold, "hold", false, "then say that all is ready, and wait for SIGUSR1: several of this program can begin together")
	flag.DurationVar(&p.warmUp, "warm-up", time.Second, "before the measurement")
	flag.DurationVar(&p.seconds, "seconds", 5*time.Second, "of the measurement")
	flag.Var(&p.pids, "relay-pid", "process `id` of the relay, to measure what it uses; several with commas between them")
	flag.Parse()
	if err := check(t, p, *mode, *engine, *count, *direct); err != nil {
		return exitUsage, err
	}
	if !*direct {
		if err := t.identify(*print, *relayID, *deviceKey, *peerKey); err != nil {
			return exitUsage, err
		}
	}
	t.fast = *engine == "fast" || *mode == "channels"
	t.channels = *mode == "channels"
	raw := 1 // threads that wait in calls of which Go does not know that they wait: the one that paces,
	if t.fast {
		raw++ // and the one that receives
	}
	runtime.GOMAXPROCS(runtime.GOMAXPROCS(0) + raw)
	found, err := measure(t, p, *mode, *count, *direct)
	switch {
	case errors.Is(err, errNoChannels):
		return exitUnsupported, err
	case err != nil:
		return exitFailed, err
	}
	return 0, json.NewEncoder(os.Stdout).Encode(found)
}

func check(t *target, p *plan, mode, engine string, count int, direct bool) error {
	isDatagrams := mode == "datagrams" || mode == "channels"
	switch {
	case flag.NArg() > 0:
		return fmt.Errorf("unexpected argument %q", flag.Arg(0))
	case !isDatagrams && mode != "streams" && mode != "handshakes":
		return fmt.Errorf("-mode is %q, not datagrams, channels, streams or handshakes", mode)
	case engine != "quic-go" && engine != "fast":
		return fmt.Errorf("-engine is %q, not quic-go or fast", engine)
	case direct && (engine != "fast" || !isDatagrams):
		return errors.New("-direct is for datagrams and channels, with -engine fast")
	case !direct && t.address == "":
		return errors.New("-addr is missing")
	case t.plain && mode == "channels":
		return errors.New("a plain relay has no channels")
	case count < 1 || p.size < payloadHead || p.size > longestPayload || p.train < 1 || p.train > maxTrain || p.window < p.train || p.rate < 0:
		return fmt.Errorf("-pairs at least 1, -size %d to %d, -train 1 to %d, -window at least that, -rate not negative",
			payloadHead, longestPayload, maxTrain)
	}
	return nil
}

// identify reads what the relay must be told and recognised by.
func (t *target) identify(print, relayID, deviceKey, peerKey string) error {
	raw, err := unhex("-cert-sha256", print, len(t.print))
	if err != nil {
		return err
	}
	copy(t.print[:], raw)
	if t.plain {
		return nil
	}
	if t.relayID, err = unhex("-relay-id", relayID, 16); err != nil {
		return err
	}
	if t.deviceKey, err = readKey(deviceKey); err != nil {
		return err
	}
	t.peerKey, err = readKey(peerKey)
	return err
}

func unhex(what, text string, length int) ([]byte, error) {
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
	seed, err := unhex(file, strings.TrimSpace(string(text)), ed25519.SeedSize)
	if err != nil {
		return nil, err
	}
	return ed25519.NewKeyFromSeed(seed), nil
}

func measure(t *target, p *plan, mode string, count int, direct bool) (any, error) {
	ctx := context.Background()
	switch mode {
	case "handshakes":
		return handshakes(ctx, t, p, count)
	case "streams":
		return streams(ctx, t, p, count)
	}
	before, err := usageOf(p.pids)
	if err != nil {
		return nil, err
	}
	began := time.Now()
	pairs, err := connect(ctx, t, count, direct)
	if err != nil {
		return nil, err
	}
	took := time.Since(began).Seconds()
	opened, err := usageOf(p.pids)
	if err != nil {
		return nil, err
	}
	found, err := run(pairs, p)
	if err == nil {
		found.MemoryIdle, found.OpenCPU, found.OpenSeconds = before.memory, opened.cpu-before.cpu, took
	}
	return found, err
}

// connect makes the pairs, and takes them over if that is wanted.
func connect(ctx context.Context, t *target, count int, direct bool) ([][2]end, error) {
	var r *receiver
	var err error
	if t.fast {
		if err = allowSockets(2 * count); err != nil {
			return nil, err
		}
		if r, err = startReceiver(); err != nil {
			return nil, err
		}
	}
	pairs := make([][2]end, count)
	if direct {
		for number := range pairs {
			device, peer, err := directLinks()
			if err != nil {
				return nil, err
			}
			if pairs[number], err = fastEnds(t, r, [2]*link{device, peer}); err != nil {
				return nil, err
			}
		}
		return pairs, nil
	}
	return pairs, t.pairs(ctx, count, func(number int, pair [2]*client) (err error) {
		if !t.fast {
			pairs[number] = [2]end{&quicGoEnd{client: pair[0]}, &quicGoEnd{client: pair[1]}}
			return nil
		}
		var links [2]*link
		for i, c := range pair {
			if links[i], err = c.takeOver(ctx); err != nil {
				return err
			}
		}
		pairs[number], err = fastEnds(t, r, links)
		return err
	})
}

// fastEnds has the links of a pair read.
func fastEnds(t *target, r *receiver, links [2]*link) (ends [2]end, err error) {
	for i, l := range links {
		ends[i] = &fastEnd{link: l, isChannel: t.channels}
		if err = r.add(l); err != nil {
			break
		}
	}
	return ends, err
}
