package main

// UDP sockets that send a train of equal-sized packets in one call (UDP_SEGMENT) and receive what the kernel kept together in one
// (UDP_GRO).

import (
	"encoding/binary"
	"net"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	udpSegment   = 103 // linux/udp.h
	udpGRO       = 104
	maxTrain     = 48 // packets in one call: the kernel takes 64, and 65507 bytes
	maxMessage   = 65535 + 1
	socketBuffer = 4 << 20
)

// train is one call's worth of equal-sized packets, one behind the other.
type train struct {
	data    []byte
	size    int // of each
	control []byte
}

func (t *train) reset(size int) {
	t.data = t.data[:0]
	t.size = size
	if t.control == nil {
		t.control = make([]byte, unix.CmsgSpace(2))
		header := (*unix.Cmsghdr)(ptr(t.control))
		header.Level, header.Type = unix.IPPROTO_UDP, udpSegment
		header.SetLen(unix.CmsgLen(2))
	}
	binary.LittleEndian.PutUint16(t.control[unix.CmsgLen(0):], uint16(size))
}

// socket is the descriptor of a connected UDP socket that Go's own poller knows nothing of: with thousands of sockets it would wake
// one goroutine for each packet.
type socket int

// detach takes the socket out of Go's hands, which are left with none.
func detach(from *net.UDPConn) (socket, error) {
	raw, err := from.SyscallConn()
	if err != nil {
		return 0, err
	}
	made := -1
	if controlled := raw.Control(func(fd uintptr) {
		made, err = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0)
	}); controlled != nil {
		return 0, controlled
	}
	if err != nil {
		return 0, err
	}
	from.Close()
	for option, value := range map[int]int{unix.SO_RCVBUF: socketBuffer, unix.SO_SNDBUF: socketBuffer} {
		if err = unix.SetsockoptInt(made, unix.SOL_SOCKET, option, value); err != nil {
			return 0, err
		}
	}
	unix.SetsockoptInt(made, unix.IPPROTO_UDP, udpGRO, 1) // a kernel that has none hands over single packets
	return socket(made), nil
}

// send sends the train. A full buffer loses it, like any network.
func (s socket) send(t *train) error {
	var control []byte
	if len(t.data) > t.size {
		control = t.control
	}
	_, err := unix.SendmsgN(int(s), t.data, control, nil, 0)
	return err
}

// inbox is where one thread receives to, from whatever socket.
type inbox struct {
	data    []byte
	control []byte
	vector  unix.Iovec
	header  unix.Msghdr
}

func newInbox() *inbox {
	b := &inbox{data: make([]byte, maxMessage), control: make([]byte, 64)}
	b.vector.Base = &b.data[0]
	b.vector.SetLen(len(b.data))
	b.header.Iov = &b.vector
	b.header.SetIovlen(1)
	b.header.Control = &b.control[0]
	return b
}

// receive takes what has come, if something has: a train, and the size of its packets, the last of which may be shorter.
func (b *inbox) receive(from socket) (data []byte, size int, err error) {
	b.header.SetControllen(len(b.control))
	// Not unix.Recvmsg, which makes an address for each packet; and not Syscall, because this never waits.
	n, _, errno := unix.RawSyscall(unix.SYS_RECVMSG, uintptr(from), uintptr(unsafe.Pointer(&b.header)), unix.MSG_DONTWAIT)
	if errno != 0 {
		return nil, 0, errno
	}
	if size = segmentSize(b.control[:b.header.Controllen]); size == 0 {
		size = int(n)
	}
	return b.data[:n], size, nil
}

// segmentSize is what the kernel says about a received train: the size of its packets, or 0 for a single packet.
func segmentSize(control []byte) int {
	if len(control) < unix.CmsgLen(4) {
		return 0
	}
	header := (*unix.Cmsghdr)(ptr(control))
	if header.Level != unix.IPPROTO_UDP || header.Type != udpGRO {
		return 0
	}
	return int(binary.LittleEndian.Uint32(control[unix.CmsgLen(0):]))
}
