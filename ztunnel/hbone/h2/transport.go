package h2

import "net"

// A Transport is a connection that moves many TLS records at once. It is the
// seam behind which crypto/tls can be replaced; a [net.Conn] that is none works
// as well. As of a net.Conn, reads and writes may go on at the same time, but no
// two reads and no two writes.
type Transport interface {
	net.Conn
	// Await waits until there is something to read, or why not, and returns
	// about how many bytes will come.
	Await() int
	// ReadRecords returns what has come and fits, and waits if that is nothing.
	ReadRecords(p []byte) (int, error)
	// WriteBuffers writes first and then rest, which may be nil, and keeps
	// neither. Where first ends a record ends, too.
	WriteBuffers(first, rest []byte) error
}

// recordSize is how much one TLS record carries.
const recordSize = 16 << 10

func transport(nc net.Conn) Transport {
	if t, ok := nc.(Transport); ok {
		return t
	}
	return &plain{Conn: nc}
}

// plain makes a Transport of a connection that is none.
type plain struct {
	net.Conn
	last int // length of the last read: as much may come again
}

func (p *plain) Await() int { return p.last }

func (p *plain) ReadRecords(b []byte) (int, error) {
	n, err := p.Read(b)
	p.last = n
	return n, err
}

func (p *plain) WriteBuffers(first, rest []byte) error {
	_, err := p.Write(first)
	if err == nil && len(rest) > 0 {
		_, err = p.Write(rest)
	}
	return err
}
