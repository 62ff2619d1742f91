package main

// One thread receives for all links of the fast engine, however many there are, and sends the acknowledgements that have waited long
// enough. A goroutine for each socket, woken for each packet, would cost more than all the rest of the client.

import (
	"errors"
	"runtime"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	readyAtOnce = 256
	readsAtOnce = 16 // from one socket before the others get their turn
)

// receiver is that thread. It lives as long as the process.
type receiver struct {
	epoll int

	lock  sync.Mutex // of links
	links map[int32]*link

	inbox   *inbox
	found   content
	waiting lateAcks
}

// startReceiver starts one, for now of nothing.
func startReceiver() (*receiver, error) {
	epoll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, err
	}
	r := &receiver{epoll: epoll, links: map[int32]*link{}, inbox: newInbox()}
	go r.run()
	return r, nil
}

// add has a link read from now on.
func (r *receiver) add(l *link) error {
	fd := int32(l.socket)
	r.lock.Lock()
	r.links[fd] = l
	r.lock.Unlock()
	return unix.EpollCtl(r.epoll, unix.EPOLL_CTL_ADD, int(fd), &unix.EpollEvent{Events: unix.EPOLLIN, Fd: fd})
}

func (r *receiver) run() {
	runtime.LockOSThread()
	ready := make([]unix.EpollEvent, readyAtOnce)
	for {
		// Raw: Go would give the thread's place to another one for each wait, and take it back, which costs more than the wait.
		n, _, errno := unix.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(r.epoll), uintptr(unsafe.Pointer(&ready[0])),
			uintptr(len(ready)), uintptr(r.waiting.patience(time.Now())), 0, 0)
		if errno != 0 {
			n = 0 // a signal
		}
		for i := 0; i < int(n); i++ {
			r.lock.Lock()
			l := r.links[ready[i].Fd]
			r.lock.Unlock()
			r.read(l)
		}
		r.waiting.send(time.Now())
	}
}

// read takes what has come for one link.
func (r *receiver) read(l *link) {
	for reads := 0; reads < readsAtOnce; reads++ {
		data, size, err := r.inbox.receive(l.socket)
		if errors.Is(err, unix.EAGAIN) {
			return
		}
		if err != nil {
			continue // an ICMP error for something sent earlier
		}
		l.arrived(data, size, &r.found, time.Now())
		if since, waits := l.waits(); waits {
			r.waiting.add(l, since)
		}
		if len(data) <= size {
			return // a single packet is seldom followed by another at once, and if it is, the kernel says so again
		}
	}
}

// lateAcks are the links that owe an acknowledgement, in the order in which they began to. All wait equally long.
type lateAcks struct {
	queue []lateAck
	first int
}

type lateAck struct {
	link  *link
	since time.Time
}

func (w *lateAcks) add(l *link, since time.Time) {
	if w.first > len(w.queue)/2 {
		w.queue = w.queue[:copy(w.queue, w.queue[w.first:])]
		w.first = 0
	}
	w.queue = append(w.queue, lateAck{l, since})
}

// patience is how many milliseconds there are until the next is due, rounded up; -1 when none is.
func (w *lateAcks) patience(now time.Time) int {
	if w.first == len(w.queue) {
		return -1
	}
	wait := w.queue[w.first].since.Add(maxAckDelay).Sub(now)
	if wait <= 0 {
		return 0
	}
	return int((wait + time.Millisecond - 1) / time.Millisecond)
}

// send sends those that are due, unless other packets have brought their acknowledgement about.
func (w *lateAcks) send(now time.Time) {
	for ; w.first < len(w.queue) && now.Sub(w.queue[w.first].since) >= maxAckDelay; w.first++ {
		late := &w.queue[w.first]
		late.link.acknowledgeLate(late.since, now)
		late.link = nil
	}
}
