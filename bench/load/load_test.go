package main

// What has to be right for a measurement to mean anything. Run by tests/test_bench_load.py.

import (
	"bytes"
	"reflect"
	"testing"
	"time"

	"golang.org/x/sys/unix"
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

func TestADirectionInWhichNothingArrivesIsTold(t *testing.T) {
	heard, silent, idle := newFlow(1, 100), newFlow(2, 100), newFlow(3, 100)
	for _, f := range []*flow{heard, silent} {
		for number := 0; number < 3; number++ {
			payload := make([]byte, 100)
			f.fill(payload)
			if f == heard && number == 1 {
				f.take(payload, time.Now())
			}
		}
	}
	found := &result{}
	found.fill([]*road{{flow: heard}, {flow: silent}, {flow: idle}}, nil,
		&snapshot{sent: []uint64{0, 0, 0}, arrived: []uint64{0, 0, 0}}, &snapshot{sent: []uint64{3, 3, 0}, arrived: []uint64{1, 0, 0}})
	if found.Sent != 6 || found.Lost != 5 || found.Silent != 1 {
		t.Errorf("%d sent, %d lost, %d silent", found.Sent, found.Lost, found.Silent)
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
	defer unix.Close(int(a.socket))
	defer unix.Close(int(b.socket))
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

func TestOneReceiverServesManyLinksAndAcknowledgesInTime(t *testing.T) {
	r, err := startReceiver()
	if err != nil {
		t.Fatal(err)
	}
	type arrival struct {
		pair int
		text string
	}
	came := make(chan arrival, 16)
	var senders []*link
	for number := 0; number < 3; number++ {
		number := number
		a, b, err := directLinks()
		if err != nil {
			t.Fatal(err)
		}
		b.hear(func(payload []byte, _ time.Time) { came <- arrival{number, string(payload)} })
		for _, l := range []*link{a, b} {
			if err = r.add(l); err != nil {
				t.Fatal(err)
			}
		}
		senders = append(senders, a)
	}
	send := func(pair, count int) {
		made := &train{}
		senders[pair].sealTrain(made, count, 5, func(payload []byte) { copy(payload, "hello") })
		if err := senders[pair].socket.send(made); err != nil {
			t.Fatal(err)
		}
		for ; count > 0; count-- {
			if got := <-came; got != (arrival{pair, "hello"}) {
				t.Errorf("%v", got)
			}
		}
	}
	acknowledged := func(pair int, number uint64) time.Duration {
		for began := time.Now(); ; time.Sleep(100 * time.Microsecond) {
			l := senders[pair]
			l.lock.Lock()
			acked := l.acked
			l.lock.Unlock()
			if took := time.Since(began); acked >= number || took > time.Minute {
				return took
			}
		}
	}
	for pair := range senders {
		send(pair, 2)
		if took := acknowledged(pair, 1); took > time.Minute {
			t.Errorf("pair %d is not acknowledged", pair)
		}
	}
	began := time.Now()
	send(1, 1)
	acknowledged(1, 2)
	if took := time.Since(began); took < maxAckDelay || took > time.Minute {
		t.Errorf("one packet is acknowledged after %v", took)
	}
}

func TestASecondPacketIsAcknowledgedAtOnceAndOneOnlyLate(t *testing.T) {
	a, b, err := directLinks()
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(int(a.socket))
	defer unix.Close(int(b.socket))
	now, found := time.Now(), &content{}
	arrive := func(count int) {
		made := &train{}
		a.sealTrain(made, count, 5, func(payload []byte) { copy(payload, "hello") })
		b.arrived(made.data, made.size, found, now)
		now = now.Add(time.Millisecond)
	}
	arrive(2)
	if _, waits := b.waits(); waits || b.pending != 0 || b.number != 1 {
		t.Errorf("after two, %d pending and %d packets sent", b.pending, b.number)
	}
	arrive(1)
	first, waits := b.waits()
	if _, again := b.waits(); !waits || again || b.number != 1 {
		t.Errorf("after one, %v and %v, %d packets sent", waits, again, b.number)
	}
	arrive(1)
	if b.acknowledgeLate(first, now); b.pending != 0 || b.number != 2 {
		t.Errorf("after the second, %d pending and %d packets sent", b.pending, b.number)
	}
	arrive(1)
	if b.acknowledgeLate(first, now); b.pending != 1 || b.number != 2 {
		t.Error("what was due for an earlier packet is sent for a later one")
	}
	later, _ := b.waits()
	if b.acknowledgeLate(later, now); b.pending != 0 || b.number != 3 {
		t.Errorf("when it is due, %d pending and %d packets sent", b.pending, b.number)
	}
}

func TestAcknowledgementsWaitInTheOrderInWhichTheyBegan(t *testing.T) {
	w := &lateAcks{}
	now := time.Now()
	if w.patience(now) != -1 {
		t.Error("something is due, and nothing waits")
	}
	for number := 0; number < 100; number++ {
		w.add(&link{}, now.Add(time.Duration(number)*time.Millisecond))
		w.send(now.Add(time.Duration(number) * time.Millisecond))
	}
	// Those that began from 80 ms on still wait at 99 ms, the last to be sent was that of 79 ms.
	if left := len(w.queue) - w.first; left != 20 || len(w.queue) > 50 {
		t.Errorf("%d wait, in %d places", left, len(w.queue))
	}
	if got := w.patience(now.Add(99*time.Millisecond + time.Microsecond)); got != 1 {
		t.Errorf("%d ms until the next", got)
	}
	if got := w.patience(now.Add(time.Second)); got != 0 {
		t.Errorf("%d ms until one that is late", got)
	}
}
