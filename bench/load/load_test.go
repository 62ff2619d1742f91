package main

// What has to be right for a measurement to mean anything. Run by tests/test_bench_load.py.

import (
	"bytes"
	"reflect"
	"testing"
	"time"
)

func TestWhatCameIsAcknowledgedOnceAndWhole(t *testing.T) {
	r := &received{}
	for _, number := range []uint64{0, 1, 2, 5, 7, 6, 3, 20} {
		if !r.add(number) {
			t.Errorf("%d came for the first time", number)
		}
	}
	for _, number := range []uint64{0, 2, 3, 6, 20} {
		if r.add(number) {
			t.Errorf("%d came twice", number)
		}
	}
	want := []numbers{{20, 20}, {5, 7}, {0, 3}}
	if !reflect.DeepEqual(r.ranges, want) {
		t.Errorf("ranges %v, not %v", r.ranges, want)
	}
	r.add(4)
	if want = []numbers{{20, 20}, {0, 7}}; !reflect.DeepEqual(r.ranges, want) {
		t.Errorf("ranges %v, not %v", r.ranges, want)
	}
	// Largest 20, delay 800 >> 3, one more range, none before 20; a gap of 20 - 7 - 2, and 7 before 7 (RFC 9000 §19.3.1).
	if got, want := r.appendAck(nil, 800), []byte{frameAck, 20, 0x40, 100, 1, 0, 11, 7}; !bytes.Equal(got, want) {
		t.Errorf("ACK %x, not %x", got, want)
	}
	found := &content{}
	if err := found.parse(r.appendAck(nil, 800)); err != nil || !found.hasAck || found.largest != 20 || found.eliciting {
		t.Errorf("read as %+v, %v", found, err)
	}
}

func TestRangesAreBounded(t *testing.T) {
	r := &received{}
	for number := uint64(0); number < 1000; number += 2 {
		r.add(number)
	}
	if len(r.ranges) != maxRanges || r.largest() != 998 {
		t.Errorf("%d ranges, largest %d", len(r.ranges), r.largest())
	}
	if r.add(1) {
		t.Error("what is too old to tell counts as new")
	}
}

func TestPacketNumbersAreCompleted(t *testing.T) {
	for _, c := range []struct {
		truncated uint64
		length    int
		expected  uint64
		want      uint64
	}{
		{0x9b32, 2, 0xa82f30eb, 0xa82f9b32}, // RFC 9000 §A.3
		{5, 1, 0, 5}, {200, 1, 10, 200}, {2, 1, 254, 258}, {254, 1, 257, 254}, {0, 2, 0xffff, 0x10000},
	} {
		if got := expand(c.truncated, c.length, c.expected); got != c.want {
			t.Errorf("%x after %x is %x, not %x", c.truncated, c.expected, got, c.want)
		}
	}
}

func TestFrames(t *testing.T) {
	frames := []byte{framePing, framePadding, 0x1e, 0x10, 0x44, 0, // MAX_DATA 1024
		0x0a, 3, 2, 'h', 'i', // STREAM with a length
		frameNewConnectionID, 1, 0, 4, 1, 2, 3, 4}
	frames = append(frames, make([]byte, 16)...)
	frames = append(frames, framePathChallenge, 1, 2, 3, 4, 5, 6, 7, 8, frameDatagramLength, 3, 'a', 'b', 'c', frameDatagram, 'd')
	found := &content{}
	if err := found.parse(frames); err != nil {
		t.Fatal(err)
	}
	if !found.eliciting || len(found.datagrams) != 2 || string(found.datagrams[0]) != "abc" || string(found.datagrams[1]) != "d" ||
		found.challenge[7] != 8 || found.retire != 0 {
		t.Errorf("read as %+v", found)
	}
	for end := 1; end < len(frames)-1; end++ {
		found.parse(frames[:end]) // may fail, must not panic
	}
	if err := found.parse([]byte{frameApplicationEnd, 0x32, 3, 'b', 'y', 'e'}); err != nil || found.closed != "closed with 0x32: bye" {
		t.Errorf("%q, %v", found.closed, err)
	}
	if found.parse([]byte{0x3f}) == nil {
		t.Error("an unknown frame passes")
	}
}

func TestOnlyWhatIsRightAndNewCounts(t *testing.T) {
	f, other := newFlow(1, 100), newFlow(2, 100)
	payload := make([]byte, 100)
	f.fill(payload)
	for at := range payload {
		if at >= 12 && at < payloadHead {
			continue // the time, which nothing else is known about
		}
		changed := append([]byte{}, payload...)
		changed[at] ^= 1
		f.take(changed, time.Now())
	}
	f.take(payload[:99], time.Now())
	other.fill(make([]byte, 100))
	other.take(payload, time.Now())
	if f.arrived != 0 || f.wrong != 93 || other.wrong != 1 {
		t.Errorf("%d arrived, %d and %d wrong", f.arrived, f.wrong, other.wrong)
	}
	f.take(payload, time.Now())
	f.take(payload, time.Now())
	if f.arrived != 1 || f.twice != 1 {
		t.Errorf("%d arrived, %d twice", f.arrived, f.twice)
	}
}

func TestLossIsCountedByNumber(t *testing.T) {
	f := newFlow(1, payloadHead)
	for number := 0; number < 1000; number++ {
		payload := make([]byte, payloadHead)
		f.fill(payload)
		if number%10 != 0 {
			f.take(payload, time.Now())
		}
	}
	for _, c := range [][3]uint64{{0, 1000, 900}, {0, 1, 0}, {1, 10, 9}, {63, 65, 2}, {5, 205, 180}, {900, 2000, 90}} {
		if got := f.arrivedOf(c[0], c[1]); got != c[2] {
			t.Errorf("%d of %d to %d arrived, not %d", got, c[0], c[1], c[2])
		}
	}
}

func TestPercentilesAreCloseEnough(t *testing.T) {
	d := &delays{}
	for microseconds := 1; microseconds <= 10000; microseconds++ {
		d.add(time.Duration(microseconds) * time.Microsecond)
	}
	for _, c := range [][2]float64{{0.5, 5000}, {0.99, 9900}, {0.001, 11}} {
		if got := d.percentile(c[0]); got < 0.96*c[1] || got > 1.04*c[1] {
			t.Errorf("percentile %g is %g, not %g", c[0], got, c[1])
		}
	}
}

func TestPacketsPassBetweenLinksAlsoWhenKeysChange(t *testing.T) {
	a, b, err := directLinks()
	if err != nil {
		t.Fatal(err)
	}
	defer a.socket.Close()
	defer b.socket.Close()
	var got [][]byte
	b.deliver = func(payload []byte, _ time.Time) { got = append(got, append([]byte{}, payload...)) }
	found := &content{}
	pass := func(text string) {
		made := &train{}
		a.sealTrain(made, 2, len(text), func(payload []byte) { copy(payload, text) })
		if len(made.data) != 2*made.size {
			t.Fatalf("a train of %d bytes for packets of %d", len(made.data), made.size)
		}
		for at := 0; at < len(made.data); at += made.size {
			copied := append([]byte{}, made.data[at:at+made.size]...)
			b.packet(made.data[at:at+made.size], found, time.Now())
			b.packet(copied, found, time.Now()) // a second time it counts for nothing
		}
	}
	pass("before")
	if a.seal, err = a.seal.updated(); err != nil {
		t.Fatal(err)
	}
	a.phase ^= 1
	pass("after")
	want := [][]byte{[]byte("before"), []byte("before"), []byte("after"), []byte("after")}
	if !reflect.DeepEqual(got, want) || b.faults != 0 || b.phase != 1 {
		t.Errorf("%q arrived, %d faults, phase %d", got, b.faults, b.phase)
	}
	if b.pending != 4 || len(b.came.ranges) != 1 || b.came.largest() != 3 {
		t.Errorf("%d pending, ranges %v", b.pending, b.came.ranges)
	}
	broken := &train{}
	a.sealTrain(broken, 1, 5, func(payload []byte) { copy(payload, "hello") })
	broken.data[20] ^= 1
	if b.packet(broken.data, found, time.Now()); b.faults != 1 || len(got) != 4 {
		t.Error("a changed packet passes")
	}
}

func TestRedirectionLeadsToTheFirstAddress(t *testing.T) {
	value := []byte{3, 7, 2, 0, 4, 192, 0, 2, 1, 0x11, 0x52}
	if found, is := redirection(value).(redirected); !is || found.address != "192.0.2.1:4434" {
		t.Errorf("%v", redirection(value))
	}
	for _, wrong := range [][]byte{{3, 7, 1, 0}, {3, 7, 0}, value[:8]} {
		if _, is := redirection(wrong).(redirected); is || redirection(wrong) == nil {
			t.Errorf("%x leads to %v", wrong, redirection(wrong))
		}
	}
}

func TestProcessesAreReadFromAFlag(t *testing.T) {
	var p processes
	if err := p.Set("12,34"); err != nil || len(p) != 2 || p[0] != 12 || p[1] != 34 {
		t.Errorf("%v, %v", p, err)
	}
	if p.Set("12,") == nil || p.Set("all") == nil {
		t.Error("what is no process id is accepted")
	}
}
