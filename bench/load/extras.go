package main

// Handshakes, and bytes on streams.

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lucas-clemente/quic-go"
)

const (
	warmUpHandshakes = 20
	lingering        = 256                    // sockets that stay open after their connections, see connectAgain
	notice           = 20 * time.Millisecond  // in which quic-go notices that a socket is closed
	settle           = 300 * time.Millisecond // for what a relay does about a connection that is closed
	streamChunk      = 64 * 1024
	streamData       = 0x00 // the type that a stream begins with (PROTOCOL §6)
)

// handshakeResult is what is printed about handshakes.
type handshakeResult struct {
	Handshakes int     `json:"handshakes"`
	Seconds    float64 `json:"seconds"`
	RelayCPU   float64 `json:"relay_cpu"`
	LoadCPU    float64 `json:"load_cpu"`
}

// handshakes connects again and again, as a device that allocates if the relay knows allocations, and closes each connection.
func handshakes(ctx context.Context, t *target, p *plan, count int) (*handshakeResult, error) {
	if err := t.connectAgain(ctx, warmUpHandshakes); err != nil {
		return nil, err
	}
	time.Sleep(settle)
	before, err := usageOf(p.pids)
	if err != nil {
		return nil, err
	}
	began, own := time.Now(), ownCPU()
	if err := t.connectAgain(ctx, count); err != nil {
		return nil, err
	}
	found := &handshakeResult{Handshakes: count, Seconds: time.Since(began).Seconds(), LoadCPU: ownCPU() - own}
	time.Sleep(settle)
	after, err := usageOf(p.pids)
	found.RelayCPU = after.cpu - before.cpu
	return found, err
}

// connectAgain makes connections one after another, and closes each. Sockets are closed many at a time, with a pause behind it:
// quic-go knows them by their address until it has noticed, and takes a new one for the last where the kernel gives it the same
// port at once.
func (t *target) connectAgain(ctx context.Context, count int) error {
	var open []*client
	closeAll := func() {
		for _, c := range open {
			c.socket.Close()
		}
		open = nil
	}
	defer closeAll()
	for ; count > 0; count-- {
		one, cancel := context.WithTimeout(ctx, dialPatience)
		c, err := t.again(one)
		cancel()
		if err != nil {
			return err
		}
		c.conn.CloseWithError(closeNoError, "")
		if open = append(open, c); len(open) == lingering {
			closeAll()
			time.Sleep(notice)
		}
	}
	return nil
}

// again is one connection; to our relay, with an allocation of its own.
func (t *target) again(ctx context.Context) (*client, error) {
	if t.plain {
		return t.dial(ctx, t.address)
	}
	allocation, err := t.mintToken()
	if err != nil {
		return nil, err
	}
	return t.allocated(ctx, allocation, 0)
}

// streamResult is what is printed about streams.
type streamResult struct {
	Seconds  float64 `json:"seconds"`
	Bytes    uint64  `json:"bytes"`
	Wrong    uint64  `json:"wrong"`
	RelayCPU float64 `json:"relay_cpu"`
	LoadCPU  float64 `json:"load_cpu"`
}

// streams writes to one stream of each pair for as long as the measurement lasts, and reads and checks it at the other end.
func streams(ctx context.Context, t *target, p *plan, count int) (*streamResult, error) {
	clients := make([][2]*client, count)
	if err := t.pairs(ctx, count, func(number int, pair [2]*client) error {
		clients[number] = pair
		return nil
	}); err != nil {
		return nil, err
	}
	var arrived, wrong uint64
	var stop int32
	var all sync.WaitGroup
	failed := make(chan error, 2*count)
	for number, pair := range clients {
		pattern := make([]byte, streamChunk)
		rand.New(rand.NewSource(int64(number) + 1)).Read(pattern)
		device, peer := pair[0], pair[1]
		all.Add(2)
		go func() {
			defer all.Done()
			failed <- writeStream(ctx, device.conn, pattern, &stop)
		}()
		go func() {
			defer all.Done()
			failed <- readStream(ctx, peer.conn, pattern, &arrived, &wrong)
		}()
	}
	time.Sleep(p.warmUp)
	before, err := usageOf(p.pids)
	if err != nil {
		return nil, err
	}
	began, own, first := time.Now(), ownCPU(), atomic.LoadUint64(&arrived)
	time.Sleep(p.seconds)
	found := &streamResult{Seconds: time.Since(began).Seconds(), LoadCPU: ownCPU() - own, Bytes: atomic.LoadUint64(&arrived) - first}
	after, err := usageOf(p.pids)
	found.RelayCPU = after.cpu - before.cpu
	atomic.StoreInt32(&stop, 1)
	time.Sleep(drain)
	for _, pair := range clients {
		pair[0].close()
		pair[1].close()
	}
	all.Wait()
	found.Wrong = atomic.LoadUint64(&wrong)
	if found.Bytes == 0 {
		return nil, fmt.Errorf("nothing came: %w", <-failed)
	}
	return found, err
}

func writeStream(ctx context.Context, conn quic.Connection, pattern []byte, stop *int32) error {
	stream, err := conn.OpenUniStreamSync(ctx)
	if err != nil {
		return err
	}
	if _, err = stream.Write([]byte{streamData}); err != nil {
		return err
	}
	for atomic.LoadInt32(stop) == 0 {
		if _, err = stream.Write(pattern); err != nil {
			return err
		}
	}
	return stream.Close()
}

func readStream(ctx context.Context, conn quic.Connection, pattern []byte, arrived, wrong *uint64) error {
	stream, err := conn.AcceptUniStream(ctx)
	if err != nil {
		return err
	}
	kind := make([]byte, 1)
	if _, err = io.ReadFull(stream, kind); err != nil || kind[0] != streamData {
		return fmt.Errorf("stream of type %x: %w", kind, err)
	}
	buffer := make([]byte, streamChunk)
	for at := 0; ; {
		n, err := stream.Read(buffer[:len(pattern)-at])
		if !bytes.Equal(buffer[:n], pattern[at:at+n]) {
			atomic.AddUint64(wrong, uint64(n))
		} else {
			atomic.AddUint64(arrived, uint64(n))
		}
		at = (at + n) % len(pattern)
		if err != nil {
			return err
		}
	}
}
