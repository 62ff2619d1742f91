package main

// Datagrams: as many as go through, or so many a second.

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/lucas-clemente/quic-go"
	"golang.org/x/sys/unix"
)

const (
	drain       = 300 * time.Millisecond // for what is under way at the end
	stall       = 20 * time.Millisecond  // without an arrival: what is missing is taken for lost
	furthest    = 100 * time.Millisecond // behind its schedule a pacer gives up what it has not sent
	ticketQueue = 64
)

// end is one end of a pair, with the packets that it has made and not yet sent.
type end interface {
	// prepare makes the next count packets of a flow ready.
	prepare(f *flow, count int)
	// flush sends them; it may block.
	flush() error
	// listen hands every payload that arrives to a flow, from now on.
	listen(f *flow)
	// over says why the connection ended, "" while it has not.
	over() string
	leave()
}

// quicGoEnd is a connection of quic-go, which sends packets singly.
type quicGoEnd struct {
	*client
	ready [][]byte
}

func (e *quicGoEnd) prepare(f *flow, count int) {
	for ; count > 0; count-- {
		payload := make([]byte, len(f.template))
		f.fill(payload)
		e.ready = append(e.ready, payload)
	}
}

func (e *quicGoEnd) flush() (err error) {
	for _, payload := range e.ready {
		if err == nil {
			err = e.conn.SendMessage(payload)
		}
	}
	e.ready = e.ready[:0]
	return err
}

func (e *quicGoEnd) listen(f *flow) {
	go func() {
		for {
			payload, err := e.conn.ReceiveMessage()
			if err != nil {
				return
			}
			f.take(payload, time.Now())
		}
	}()
}

func (e *quicGoEnd) over() string {
	if e.conn.Context().Err() == nil {
		return ""
	}
	return endOf(e.conn)
}

func (e *quicGoEnd) leave() { e.close() }

// endOf asks a connection that has ended for the reason.
func endOf(conn quic.Connection) string {
	_, err := conn.AcceptUniStream(context.Background())
	return fmt.Sprint(err)
}

// fastEnd is a connection in our own hands.
type fastEnd struct {
	*link
	isChannel bool
	ready     train
}

func (e *fastEnd) prepare(f *flow, count int) {
	if e.isChannel {
		e.channelTrain(&e.ready, count, len(f.template), f.fill)
	} else {
		e.sealTrain(&e.ready, count, len(f.template), f.fill)
	}
}

func (e *fastEnd) flush() error { return e.socket.send(&e.ready) }

func (e *fastEnd) listen(f *flow) { e.hear(f.take) }

// road is a flow with the end that sends it.
type road struct {
	flow    *flow
	from    end
	tickets chan struct{}
}

// saturate sends trains for as long as no more than window payloads are under way; without a window the connection decides.
func (r *road) saturate(stop *int32, count, window int) {
	forgiven := uint64(0)
	timer := time.NewTimer(stall)
	defer timer.Stop()
	for atomic.LoadInt32(stop) == 0 && r.from.over() == "" {
		r.from.prepare(r.flow, count)
		for window > 0 {
			sent, arrived := atomic.LoadUint64(&r.flow.sent), atomic.LoadUint64(&r.flow.arrived)
			if int64(sent-arrived)-int64(forgiven) <= int64(window) {
				break
			}
			if !timer.Stop() {
				select {
				case <-timer.C:
				default:
				}
			}
			timer.Reset(stall)
			select {
			case <-r.flow.credit:
			case <-timer.C:
				forgiven = sent - arrived - uint64(count)
			}
		}
		r.from.flush()
	}
}

// follow sends a train for each ticket.
func (r *road) follow(count int) {
	for range r.tickets {
		r.from.prepare(r.flow, count)
		r.from.flush()
	}
}

// pace spreads rate payloads a second evenly over time and over the roads; returns how many it could not send in time.
func pace(roads []*road, rate float64, count int, stop *int32) (skipped uint64) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	unix.Prctl(unix.PR_SET_TIMERSLACK, 1, 0, 0, 0)
	interval := time.Duration(float64(time.Second) * float64(count) / rate)
	due := time.Now()
	for turn := 0; atomic.LoadInt32(stop) == 0; turn++ {
		due = due.Add(interval)
		if late := time.Since(due); late > furthest {
			skipped += uint64(late/interval) * uint64(count)
			due = time.Now()
		}
		sleepUntil(due)
		r := roads[turn%len(roads)]
		if r.tickets == nil {
			r.from.prepare(r.flow, count)
			r.from.flush()
			continue
		}
		select {
		case r.tickets <- struct{}{}:
		default:
			skipped += uint64(count)
		}
	}
	return skipped
}

// sleepUntil is no time.Sleep: Go's timers wake up a millisecond late, and then twenty packets would leave at once. And it is raw:
// Go would give the thread's place to another one for each pause, and take it back.
func sleepUntil(due time.Time) {
	for wait := time.Until(due); wait > 0; wait = time.Until(due) { // a signal may end it early
		pause := unix.NsecToTimespec(wait.Nanoseconds())
		unix.RawSyscall(unix.SYS_NANOSLEEP, uintptr(unsafe.Pointer(&pause)), 0, 0)
	}
}

// plan is what to do with the pairs.
type plan struct {
	size, train, window int
	both                bool
	rate                float64 // payloads a second over all pairs; 0 for as many as go through
	settle, warmUp      time.Duration
	hold                bool // wait for others before anything is sent
	seconds             time.Duration
	pids                processes
}

// result is what is printed at the end. Times are in seconds unless the name says otherwise.
type result struct {
	Seconds     float64           `json:"seconds"`
	Sent        uint64            `json:"sent"`
	Delivered   uint64            `json:"delivered"`
	Lost        uint64            `json:"lost"`
	Wrong       uint64            `json:"wrong"`
	Twice       uint64            `json:"twice"`
	Skipped     uint64            `json:"skipped"`
	Silent      int               `json:"silent"` // directions of pairs in which something was sent and nothing arrived
	OpenSeconds float64           `json:"open_seconds"`
	OpenCPU     float64           `json:"open_cpu"` // of the relay
	RelayCPU    float64           `json:"relay_cpu"`
	RelayWakes  uint64            `json:"relay_wakeups"`
	MemoryIdle  uint64            `json:"memory_before"`
	MemoryAfter uint64            `json:"memory_after"`
	LoadCPU     float64           `json:"load_cpu"`
	Train       float64           `json:"received_train"`
	P50         float64           `json:"latency_p50_us"`
	P90         float64           `json:"latency_p90_us"`
	P99         float64           `json:"latency_p99_us"`
	Faults      uint64            `json:"faults"`
	Ended       []string          `json:"ended"`
	Notices     map[string]uint64 `json:"notices"`
}

type snapshot struct {
	at                time.Time
	sent, arrived     []uint64
	messages, packets uint64
	used              usage
	own               float64
}

func look(roads []*road, ends []end, pids processes) (snapshot, error) {
	s := snapshot{at: time.Now(), own: ownCPU()}
	var err error
	s.used, err = usageOf(pids)
	for _, r := range roads {
		s.sent = append(s.sent, atomic.LoadUint64(&r.flow.sent))
		s.arrived = append(s.arrived, atomic.LoadUint64(&r.flow.arrived))
	}
	for _, e := range ends {
		if fast, is := e.(*fastEnd); is {
			s.messages += atomic.LoadUint64(&fast.messages)
			s.packets += atomic.LoadUint64(&fast.packets)
		}
	}
	return s, err
}

// makeRoads puts a flow on each pair, or one in each direction. The other directions are listened to as well: whatever arrives there
// is wrong.
func makeRoads(pairs [][2]end, p *plan) (roads []*road, flows []*flow) {
	for number, pair := range pairs {
		directions := 1
		if p.both {
			directions = 2
		}
		ways := [2]*flow{newFlow(uint32(2*number), p.size), newFlow(uint32(2*number+1), p.size)}
		flows = append(flows, ways[:]...)
		for i := range pair {
			pair[1-i].listen(ways[i])
		}
		for i := 0; i < directions; i++ {
			r := &road{flow: ways[i], from: pair[i]}
			if _, blocks := pair[i].(*quicGoEnd); blocks && p.rate > 0 {
				r.tickets = make(chan struct{}, ticketQueue)
			}
			roads = append(roads, r)
		}
	}
	return roads, flows
}

// run sends over all pairs and measures.
func run(pairs [][2]end, p *plan) (*result, error) {
	roads, flows := makeRoads(pairs, p)
	ends := []end{}
	for _, pair := range pairs {
		ends = append(ends, pair[0], pair[1])
	}
	time.Sleep(p.settle)
	if p.hold {
		waitForOthers()
	}
	var stop int32
	var senders sync.WaitGroup
	begin := func(send func()) {
		senders.Add(1)
		go func() {
			defer senders.Done()
			send()
		}()
	}
	found := &result{}
	for _, r := range roads {
		r := r
		switch {
		case p.rate == 0:
			begin(func() { r.saturate(&stop, p.train, p.window) })
		case r.tickets != nil:
			begin(func() { r.follow(p.train) })
		}
	}
	if p.rate > 0 {
		begin(func() {
			found.Skipped = pace(roads, p.rate, p.train, &stop)
			for _, r := range roads {
				if r.tickets != nil {
					close(r.tickets)
				}
			}
		})
	}
	time.Sleep(p.warmUp)
	setCounting(roads, true)
	before, err := look(roads, ends, p.pids)
	if err != nil {
		return nil, err
	}
	time.Sleep(p.seconds)
	after, err := look(roads, ends, p.pids)
	setCounting(roads, false)
	atomic.StoreInt32(&stop, 1)
	if err != nil {
		return nil, err
	}
	time.Sleep(drain)
	found.Ended = reasons(ends)
	for _, e := range ends {
		e.leave() // also wakes whoever still waits to send
	}
	senders.Wait()
	found.fill(roads, ends, &before, &after)
	for _, f := range flows {
		found.Wrong += atomic.LoadUint64(&f.wrong)
	}
	return found, nil
}

// waitForOthers says on standard output that all is ready, and goes on at SIGUSR1.
func waitForOthers() {
	begin := make(chan os.Signal, 1)
	signal.Notify(begin, unix.SIGUSR1)
	fmt.Println(`{"ready": true}`)
	<-begin
	signal.Stop(begin)
}

func setCounting(roads []*road, on bool) {
	for _, r := range roads {
		r.flow.lock.Lock()
		r.flow.counting = on
		r.flow.lock.Unlock()
	}
}

// reasons tells why connections ended before their time, each reason once.
func reasons(ends []end) []string {
	found := []string{}
	told := map[string]bool{}
	for _, e := range ends {
		if why := e.over(); why != "" && !told[why] {
			told[why] = true
			found = append(found, why)
		}
	}
	return found
}

func (found *result) fill(roads []*road, ends []end, before, after *snapshot) {
	found.Seconds = after.at.Sub(before.at).Seconds()
	found.RelayCPU = after.used.cpu - before.used.cpu
	found.RelayWakes = after.used.wakeups - before.used.wakeups
	found.MemoryAfter = after.used.memory
	found.LoadCPU = after.own - before.own
	all := &delays{}
	for i, r := range roads {
		sent := after.sent[i] - before.sent[i]
		found.Sent += sent
		found.Delivered += after.arrived[i] - before.arrived[i]
		arrived := r.flow.arrivedOf(before.sent[i], after.sent[i])
		found.Lost += sent - arrived
		if sent > 0 && arrived == 0 {
			found.Silent++
		}
		found.Twice += r.flow.twice
		all.merge(&r.flow.delays)
	}
	found.P50, found.P90, found.P99 = all.percentile(0.5), all.percentile(0.9), all.percentile(0.99)
	if messages := after.messages - before.messages; messages > 0 {
		found.Train = float64(after.packets-before.packets) / float64(messages)
	}
	found.Notices = map[string]uint64{}
	for _, e := range ends {
		switch known := e.(type) {
		case *fastEnd:
			found.Faults += atomic.LoadUint64(&known.faults)
		case *quicGoEnd:
			known.notices.lock.Lock()
			for name, count := range known.notices.found {
				found.Notices[name] += count
			}
			known.notices.lock.Unlock()
		}
	}
}
