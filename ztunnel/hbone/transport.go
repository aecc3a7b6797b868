package hbone

import (
	"crypto/tls"
	"net"

	"github.com/ambit-mesh/ambit/ztunnel/hbone/h2"
	"github.com/ambit-mesh/ambit/ztunnel/hbone/record"
)

// Batched prepares a TCP connection for crypto/tls, so that a tunnel over it
// moves many TLS records with one system call:
//
//	tls.Client(hbone.Batched(conn), config)
//
// A tunnel works without it, too. A wrapper of a TCP connection that changes no
// bytes shows it by a method Socket() *net.TCPConn.
func Batched(conn net.Conn) net.Conn { return record.New(conn) }

// transport returns how a tunnel uses a connection.
func transport(nc net.Conn) net.Conn {
	secure, ok := nc.(*tls.Conn)
	if !ok {
		return nc
	}
	records, ok := secure.NetConn().(*record.Conn)
	if !ok {
		return nc
	}
	return &batches{Conn: secure, below: records}
}

// batches is a [h2.Transport] over crypto/tls.
type batches struct {
	*tls.Conn
	below *record.Conn
	kept  bool // crypto/tls may have more of the last record
}

var _ h2.Transport = (*batches)(nil)

// Await implements [h2.Transport].
func (b *batches) Await() int {
	if b.kept {
		return record.MaxPlain
	}
	if b.Handshake() != nil { // until it is done it reads
		return 0 // comes again
	}
	return b.below.Await()
}

// ReadRecords implements [h2.Transport].
func (b *batches) ReadRecords(p []byte) (int, error) {
	n, err := b.Read(p)
	// The beginning of a record is worth no call of its own to an application.
	for err == nil && len(p)-n >= record.MaxPlain && b.below.More() {
		var m int
		m, err = b.Read(p[n:])
		n += m
	}
	b.kept = n == len(p)
	if n > 0 {
		return n, nil // an error of crypto/tls comes again
	}
	return 0, err
}

// WriteBuffers implements [h2.Transport].
func (b *batches) WriteBuffers(first, rest []byte) error {
	if err := b.Handshake(); err != nil { // until it is done nothing may be held
		return err
	}
	b.below.Hold()
	_, err := b.Write(first)
	if err == nil && len(rest) > 0 {
		_, err = b.Write(rest)
	}
	if flushed := b.below.Flush(); err == nil {
		err = flushed
	}
	return err
}
