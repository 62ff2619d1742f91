// Command quicgo_relay is a relay on quic-go that does nothing but pair connections two by two, in the order in which they come, and
// pass each one's DATAGRAMs and streams on to the other: what such a relay costs in Go. Two goroutines for the datagrams of a pair.
//
// Usage: quicgo_relay ADDRESS:PORT CERTIFICATE.pem KEY.pem; prints the address it listens on.
package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"time"

	"github.com/lucas-clemente/quic-go"
)

func forward(from, to quic.Connection) {
	for {
		payload, err := from.ReceiveMessage()
		if err != nil {
			return
		}
		to.SendMessage(payload) // what does not fit or has nowhere to go is dropped
	}
}

func mirror(from, to quic.Connection) {
	for {
		in, err := from.AcceptUniStream(context.Background())
		if err != nil {
			return
		}
		out, err := to.OpenUniStreamSync(to.Context())
		if err != nil {
			return
		}
		go func() {
			io.Copy(out, in)
			out.Close()
		}()
	}
}

func main() {
	if len(os.Args) != 4 {
		log.Fatal("usage: quicgo_relay ADDRESS:PORT CERTIFICATE KEY")
	}
	certificate, err := tls.LoadX509KeyPair(os.Args[2], os.Args[3])
	if err != nil {
		log.Fatal(err)
	}
	settings := &tls.Config{Certificates: []tls.Certificate{certificate}, NextProtos: []string{"zrc-relay"}}
	listener, err := quic.ListenAddr(os.Args[1], settings, &quic.Config{
		EnableDatagrams:          true,
		MaxIdleTimeout:           time.Minute,
		RequireAddressValidation: func(net.Addr) bool { return false },
	})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("listening on", listener.Addr())
	var waiting quic.Connection
	for {
		connection, err := listener.Accept(context.Background())
		if err != nil {
			log.Fatal(err)
		}
		if waiting == nil || waiting.Context().Err() != nil {
			waiting = connection
			continue
		}
		go forward(waiting, connection)
		go forward(connection, waiting)
		go mirror(waiting, connection)
		go mirror(connection, waiting)
		waiting = nil
	}
}
