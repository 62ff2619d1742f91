package main

// What is sent, and the judgement on what arrives: a payload says which flow it belongs to, its number in it and when it was sent,
// and is filled with bytes of its flow's own. Only what is right in all of that, and new, counts as delivered.

import (
	"bytes"
	"encoding/binary"
	"math/bits"
	"math/rand"
	"sync"
	"sync/atomic"
	"time"
)

const payloadHead = 4 + 8 + 8 // flow, number, time

// probe is sent until it arrives, to see that two connections are a pair. It is shorter than any payload.
var probe = []byte("probe")

var epoch = time.Now()

// flow is one direction of one pair.
type flow struct {
	id       uint32
	template []byte
	sent     uint64 // atomic, like the next two
	arrived  uint64
	wrong    uint64

	lock     sync.Mutex
	seen     []uint64 // a bit for each number
	twice    uint64
	delays   delays
	counting bool // delays are noted
	credit   chan struct{}
}

func newFlow(id uint32, size int) *flow {
	f := &flow{id: id, template: make([]byte, size), credit: make(chan struct{}, 1)}
	rand.New(rand.NewSource(int64(id) + 1)).Read(f.template)
	binary.BigEndian.PutUint32(f.template, id)
	return f
}

// fill makes the next payload.
func (f *flow) fill(payload []byte) {
	copy(payload, f.template)
	number := atomic.AddUint64(&f.sent, 1) - 1
	binary.BigEndian.PutUint64(payload[4:], number)
	binary.BigEndian.PutUint64(payload[12:], uint64(time.Since(epoch)))
}

// take judges what arrived at now.
func (f *flow) take(payload []byte, now time.Time) {
	if len(payload) == len(probe) {
		return // a second one, which was on its way when the first came
	}
	size := len(f.template)
	if len(payload) != size || !bytes.Equal(payload[:4], f.template[:4]) || !bytes.Equal(payload[payloadHead:], f.template[payloadHead:]) {
		atomic.AddUint64(&f.wrong, 1)
		return
	}
	number := binary.BigEndian.Uint64(payload[4:])
	if number >= atomic.LoadUint64(&f.sent) {
		atomic.AddUint64(&f.wrong, 1)
		return
	}
	f.lock.Lock()
	defer f.lock.Unlock()
	word, bit := number/64, uint64(1)<<(number%64)
	for uint64(len(f.seen)) <= word {
		f.seen = append(f.seen, 0)
	}
	if f.seen[word]&bit != 0 {
		f.twice++
		return
	}
	f.seen[word] |= bit
	if f.counting {
		f.delays.add(now.Sub(epoch) - time.Duration(binary.BigEndian.Uint64(payload[12:])))
	}
	atomic.AddUint64(&f.arrived, 1)
	select {
	case f.credit <- struct{}{}:
	default:
	}
}

// arrivedOf counts those that arrived among the numbers from first to the one before end.
func (f *flow) arrivedOf(first, end uint64) uint64 {
	f.lock.Lock()
	defer f.lock.Unlock()
	count := uint64(0)
	for number := first; number < end; number++ {
		if number%64 == 0 && number+64 <= end {
			if word := number / 64; word < uint64(len(f.seen)) {
				count += uint64(bits.OnesCount64(f.seen[word]))
			}
			number += 63
			continue
		}
		if word := number / 64; word < uint64(len(f.seen)) && f.seen[word]>>(number%64)&1 != 0 {
			count++
		}
	}
	return count
}

// delays is a histogram: 32 buckets for each power of two, so that a percentile is right to 3 %.
type delays struct {
	buckets [40 * 32]uint32
	count   uint64
}

func (d *delays) add(delay time.Duration) {
	if delay < 0 {
		delay = 0
	}
	d.buckets[bucket(uint64(delay))]++
	d.count++
}

func bucket(n uint64) int {
	if n < 64 {
		return int(n)
	}
	shift := bits.Len64(n) - 6
	index := shift*32 + int(n>>shift)
	if index >= 40*32 {
		index = 40*32 - 1
	}
	return index
}

// middle is the time in the middle of a bucket.
func middle(index int) time.Duration {
	if index < 64 {
		return time.Duration(index)
	}
	shift := index/32 - 1
	return time.Duration(uint64(index-shift*32)<<shift + uint64(1)<<shift/2)
}

func (d *delays) merge(other *delays) {
	for i, n := range other.buckets {
		d.buckets[i] += n
	}
	d.count += other.count
}

// percentile is in microseconds; 0 when there is nothing.
func (d *delays) percentile(fraction float64) float64 {
	rank := uint64(fraction * float64(d.count))
	for i, n := range d.buckets {
		if rank < uint64(n) {
			return float64(middle(i)) / 1e3
		}
		rank -= uint64(n)
	}
	return 0
}
