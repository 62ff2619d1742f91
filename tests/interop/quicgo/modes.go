package main

// What a client does once it has a session. Every mode prints its own "result" line where it has
// one, and returns whether it saw what it came for.

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"sort"
	"sync"
	"sync/atomic"
	"time"
)

const (
	echoQueue   = 8192             // payloads received and not yet sent back; more are dropped, counted
	answerWait  = 10 * time.Second // for the answer to a capsule
	lastReplies = 2 * time.Second  // for echoes after the last datagram was sent
)

// runEcho sends every payload back until the connection ends.
func runEcho(ctx context.Context, s *session, o *options) bool {
	var received, dropped, echoed, octets uint64
	queue := make(chan []byte, echoQueue)
	c := startCarriers(s, o.maxDatagram, func(payload []byte) {
		atomic.AddUint64(&received, 1)
		atomic.AddUint64(&octets, uint64(len(payload)))
		select {
		case queue <- payload:
		default:
			atomic.AddUint64(&dropped, 1)
		}
	})
	go func() {
		for {
			select {
			case payload := <-queue:
				if c.sendPayload(payload) == nil {
					atomic.AddUint64(&echoed, 1)
				}
			case <-s.done:
				return
			}
		}
	}()
	if o.channel {
		if err := openChannel(ctx, s); err != nil {
			emit(newEvent("result", "mode", "echo", "ok", false, "why", err.Error()))
			return false
		}
	}
	ok := untilClosed(ctx, s)
	channelEchoed, strays := s.socket.counts()
	emit(newEvent("result", "mode", "echo", "channel_echoed", channelEchoed, "channel_strays", strays, "received", atomic.LoadUint64(&received),
		"echoed", atomic.LoadUint64(&echoed), "dropped", atomic.LoadUint64(&dropped),
		"bytes", atomic.LoadUint64(&octets), "ok", ok))
	return ok
}

// runSink counts payloads until the connection ends.
func runSink(ctx context.Context, s *session, o *options) bool {
	var received, octets uint64
	startCarriers(s, o.maxDatagram, func(payload []byte) {
		atomic.AddUint64(&received, 1)
		atomic.AddUint64(&octets, uint64(len(payload)))
	})
	ok := untilClosed(ctx, s)
	emit(newEvent("result", "mode", "sink", "received", atomic.LoadUint64(&received),
		"bytes", atomic.LoadUint64(&octets), "ok", ok))
	return ok
}

// untilClosed waits for the relay to close, or for a signal or -deadline, on which it closes itself.
// A signal is a good end, -deadline and any code but NO_ERROR are not.
func untilClosed(ctx context.Context, s *session) bool {
	select {
	case <-s.done:
		return s.end.noError()
	case <-ctx.Done():
		s.leave()
		<-s.done
		return !errors.Is(ctx.Err(), context.DeadlineExceeded)
	}
}

// pinger knows what is under way. Payloads are compared whole, through their SHA-256, so that size 0
// works as well: equal payloads are answered oldest first.
type pinger struct {
	lock     sync.Mutex
	pending  map[[32]byte][]time.Time
	seen     map[[32]byte]bool
	rtts     []time.Duration
	wrong    int // came back, and was never sent
	repeated int // came back more often than it was sent
	want     int
	complete chan struct{}
}

func (p *pinger) receive(payload []byte) {
	now := time.Now()
	sum := sha256.Sum256(payload)
	p.lock.Lock()
	defer p.lock.Unlock()
	waiting := p.pending[sum]
	switch {
	case len(waiting) > 0:
		p.rtts = append(p.rtts, now.Sub(waiting[0]))
		p.pending[sum] = waiting[1:]
		p.seen[sum] = true
		if len(p.rtts) == p.want {
			close(p.complete)
		}
	case p.seen[sum]:
		p.repeated++
	default:
		p.wrong++
	}
}

// sent notes a payload before it leaves.
func (p *pinger) sent(payload []byte) {
	sum := sha256.Sum256(payload)
	p.lock.Lock()
	p.pending[sum] = append(p.pending[sum], time.Now())
	p.lock.Unlock()
}

// runPing sends -count payloads to an echoing counterpart and then releases the allocation.
func runPing(ctx context.Context, s *session, o *options) bool {
	p := &pinger{pending: map[[32]byte][]time.Time{}, seen: map[[32]byte]bool{}, want: o.count, complete: make(chan struct{})}
	c := startCarriers(s, o.maxDatagram, p.receive)
	if !peerPresent(ctx, s, o.wait) {
		return pingResult(s, p, 0, false, "no counterpart")
	}
	sent, err := sendPings(ctx, s, c, p, o)
	select {
	case <-p.complete:
	case <-time.After(lastReplies):
	case <-s.done:
	case <-ctx.Done():
	}
	if err != nil {
		return pingResult(s, p, sent, false, err.Error())
	}
	released, err := release(ctx, s)
	if err != nil {
		return pingResult(s, p, sent, released, err.Error())
	}
	return pingResult(s, p, sent, released, "")
}

func peerPresent(ctx context.Context, s *session, wait time.Duration) bool {
	select {
	case <-s.present:
		return true
	case <-time.After(wait):
	case <-s.done:
	case <-ctx.Done():
	}
	return false
}

// sendPings keeps to a schedule counted from the first payload; a rate of 0 is as fast as it goes.
func sendPings(ctx context.Context, s *session, c *carriers, p *pinger, o *options) (int, error) {
	start := time.Now()
	for i := 0; i < o.count; i++ {
		if o.rate > 0 {
			due := start.Add(time.Duration(float64(i) / o.rate * float64(time.Second)))
			select {
			case <-time.After(time.Until(due)):
			case <-s.done:
				return i, errEnded
			case <-ctx.Done():
				return i, ctx.Err()
			}
		}
		payload := make([]byte, o.size)
		if _, err := rand.Read(payload); err != nil {
			return i, err
		}
		sequence := binary.BigEndian.AppendUint64(nil, uint64(i))
		if o.size < len(sequence) {
			sequence = sequence[len(sequence)-o.size:]
		}
		copy(payload, sequence)
		p.sent(payload)
		if err := c.sendPayload(payload); err != nil {
			return i, err
		}
	}
	return o.count, nil
}

// release sends RELEASE and wants RELEASED, then a close with NO_ERROR.
func release(ctx context.Context, s *session) (released bool, err error) {
	if err = s.send(typeRelease, nil); err != nil {
		return false, err
	}
	ctx, cancel := context.WithTimeout(ctx, answerWait)
	defer cancel()
	if _, err = s.expect(ctx, typeReleased, typeReleased); err != nil {
		return false, fmt.Errorf("no RELEASED: %w", err)
	}
	select {
	case <-s.done:
	case <-ctx.Done():
		return true, errors.New("not closed after RELEASED")
	}
	if !s.end.noError() {
		return true, errors.New("not closed with NO_ERROR after RELEASED")
	}
	return true, nil
}

// pingResult prints the result; why is what else went wrong. The session is over when it returns.
func pingResult(s *session, p *pinger, sent int, released bool, why string) bool {
	s.leave()
	<-s.done
	p.lock.Lock()
	defer p.lock.Unlock()
	received := len(p.rtts)
	sort.Slice(p.rtts, func(i, j int) bool { return p.rtts[i] < p.rtts[j] })
	switch {
	case why != "":
	case p.wrong > 0:
		why = "bytes came back that were never sent"
	case received*100 < sent*99:
		why = "less than 99 % came back"
	}
	emit(newEvent("result", "mode", "ping", "sent", sent, "received", received, "lost", sent-received,
		"wrong", p.wrong, "repeated", p.repeated,
		"rtt_p50_ms", percentile(p.rtts, 50), "rtt_p99_ms", percentile(p.rtts, 99),
		"released", released, "ok", why == "", "why", why))
	return why == ""
}

// percentile is the nearest-rank percentile of sorted times in milliseconds, nil when there are none.
func percentile(sorted []time.Duration, percent float64) any {
	if len(sorted) == 0 {
		return nil
	}
	rank := int(math.Ceil(percent / 100 * float64(len(sorted))))
	return float64(sorted[rank-1].Microseconds()) / 1000
}

// runRefresh sends REFRESH with -token2 and prints the answer; REFRESHED is what it wants.
func runRefresh(ctx context.Context, s *session, o *options) bool {
	defer func() { s.leave(); <-s.done }()
	if s.send(typeRefresh, o.token2) != nil {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, answerWait)
	defer cancel()
	answer, err := s.expect(ctx, typeRefreshed, typeError)
	ok := err == nil && answer.kind == typeRefreshed
	emit(newEvent("result", "mode", "refresh", "ok", ok))
	return ok
}

// runList asks for the relays, before any ALLOCATE.
func runList(ctx context.Context, s *session) bool {
	if s.send(typeListRelays, nil) != nil {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, answerWait)
	defer cancel()
	_, err := s.expect(ctx, typeRelays, typeRelays)
	return err == nil
}
