package main

// UDP sockets that send a train of equal-sized packets in one call (UDP_SEGMENT) and receive what the kernel kept together in one
// (UDP_GRO).

import (
	"encoding/binary"
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	udpSegment   = 103 // linux/udp.h
	udpGRO       = 104
	maxTrain     = 48 // packets in one call: the kernel takes 64, and 65507 bytes
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

// send sends the train over a connected socket. A full buffer loses it, like any network.
func (t *train) send(socket *net.UDPConn) error {
	var err error
	if len(t.data) > t.size {
		_, _, err = socket.WriteMsgUDP(t.data, t.control, nil)
	} else {
		_, err = socket.Write(t.data)
	}
	return err
}

// prepare sets a socket's options; false if the kernel has no UDP_GRO.
func prepare(socket *net.UDPConn) (gro bool, err error) {
	raw, err := socket.SyscallConn()
	if err != nil {
		return false, err
	}
	err = raw.Control(func(fd uintptr) {
		gro = syscall.SetsockoptInt(int(fd), unix.IPPROTO_UDP, udpGRO, 1) == nil
	})
	socket.SetReadBuffer(socketBuffer)
	socket.SetWriteBuffer(socketBuffer)
	return gro, err
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
