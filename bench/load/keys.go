package main

// The packet protection of 1-RTT packets (RFC 9001 §5, §6), for packets that are not quic-go's.

import (
	"bytes"
	"crypto"
	"crypto/aes"
	"crypto/cipher"
	_ "crypto/sha256"
	_ "crypto/sha512"
	"crypto/tls"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"sync"

	"golang.org/x/crypto/hkdf"
)

// keys protect the packets of one direction.
type keys struct {
	hash   crypto.Hash
	length int
	secret []byte
	aead   cipher.AEAD
	iv     [12]byte
	header cipher.Block // stays the same when the keys are updated
}

func newKeys(suite uint16, secret []byte) (*keys, error) {
	k := &keys{secret: secret}
	switch suite {
	case tls.TLS_AES_128_GCM_SHA256:
		k.hash, k.length = crypto.SHA256, 16
	case tls.TLS_AES_256_GCM_SHA384:
		k.hash, k.length = crypto.SHA384, 32
	default:
		return nil, fmt.Errorf("the relay chose %s; only AES-GCM is served", tls.CipherSuiteName(suite))
	}
	var err error
	if k.header, err = aes.NewCipher(k.derive("quic hp", k.length)); err != nil {
		return nil, err
	}
	return k, k.prepare()
}

func (k *keys) prepare() error {
	block, err := aes.NewCipher(k.derive("quic key", k.length))
	if err != nil {
		return err
	}
	copy(k.iv[:], k.derive("quic iv", len(k.iv)))
	k.aead, err = cipher.NewGCM(block)
	return err
}

// updated gives the keys after a key update (RFC 9001 §6.1).
func (k *keys) updated() (*keys, error) {
	next := &keys{hash: k.hash, length: k.length, header: k.header, secret: k.derive("quic ku", len(k.secret))}
	return next, next.prepare()
}

// derive is HKDF-Expand-Label with an empty context (RFC 8446 §7.1).
func (k *keys) derive(label string, length int) []byte {
	info := binary.BigEndian.AppendUint16(nil, uint16(length))
	info = append(info, byte(len("tls13 ")+len(label)))
	info = append(append(info, "tls13 "+label...), 0)
	out := make([]byte, length)
	if _, err := io.ReadFull(hkdf.Expand(k.hash.New, k.secret, info), out); err != nil {
		panic(err) // only for lengths far beyond any key's
	}
	return out
}

func (k *keys) nonce(number uint64) [12]byte {
	nonce := k.iv
	for i := 0; i < 8; i++ {
		nonce[11-i] ^= byte(number >> (8 * i))
	}
	return nonce
}

// keyLog collects the secrets that crypto/tls writes for programs like Wireshark.
type keyLog struct {
	lock   sync.Mutex
	client []byte
	server []byte
}

// Write takes one line: label, client random, secret.
func (l *keyLog) Write(line []byte) (int, error) {
	fields := bytes.Fields(line)
	if len(fields) == 3 {
		secret, err := hex.DecodeString(string(fields[2]))
		if err != nil {
			return 0, err
		}
		l.lock.Lock()
		defer l.lock.Unlock()
		switch string(fields[0]) {
		case "CLIENT_TRAFFIC_SECRET_0":
			l.client = secret
		case "SERVER_TRAFFIC_SECRET_0":
			l.server = secret
		}
	}
	return len(line), nil
}
