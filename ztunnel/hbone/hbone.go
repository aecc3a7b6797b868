// Package hbone carries byte streams inside HTTP/2 CONNECT: many streams over
// one connection (a tunnel), each with the half-close and the back-pressure of
// a TCP connection. [NewTunnel] is the client side, [Serve] the server side,
// [Pool] keeps tunnels open and shares them. HTTP/2 itself is package h2's.
//
// It knows no workloads, no TLS and no addresses: it is given a connection
// whose handshake is done. The parameters are those of spec/ztunnel.md §2.10.
// Everything is safe for concurrent use except where it says otherwise.
//
// Benchmarks: go test -run ^$ -bench . ./ztunnel/hbone
package hbone

import (
	"cmp"
	"fmt"
	"time"

	"github.com/ambit-mesh/ambit/ztunnel/hbone/h2"
)

// A Field is one header field. Names are lower case and never begin with ":".
type Field = h2.Field

// A Stream is one CONNECT that was answered with 200: a connection inside a
// tunnel. It is a [net.Conn] whose two directions end separately, like those
// of a TCP connection.
type Stream = h2.Stream

// A ResetError is a stream that one side has given up.
type ResetError = h2.ResetError

// A Request is what a CONNECT asks for.
type Request struct {
	Authority string
	Header    []Field
	// Early is what the stream begins with. It is sent before the answer, up to
	// MaxEarly bytes of it, which saves a round trip; the rest follows the
	// answer. Who gets a [*StatusError] may send it again elsewhere if the
	// status says that nobody has seen it (503), not otherwise.
	Early []byte
}

// MaxEarly is how many bytes may be sent before the answer: as many as a
// server takes before it has one, with most servers.
const MaxEarly = 64<<10 - 1

// Config tunes an endpoint. The zero value gives the defaults named below,
// which are those of spec/ztunnel.md §2.10.
type Config struct {
	StreamWindow   uint32        // bytes that the peer may send unread on a stream; grows from 64 KiB, a client's from 256 KiB, to it; 4 MiB
	ConnWindow     uint32        // bytes in flight on the connection, at least 64 KiB; 16 MiB
	MaxFrameSize   uint32        // largest frame that we ask for; 1 MiB
	MaxHeaderBytes uint32        // header list limit; 16 KiB for a client, 64 KiB for a server
	MaxStreams     uint32        // server: advertised limit, 200. Pool: streams on one tunnel, 100
	PingInterval   time.Duration // since the last answer; 10 s. Negative: no pings
	PingTimeout    time.Duration // 20 s
	OpenTimeout    time.Duration // client: for the answer to a CONNECT; 30 s
	PrefaceTimeout time.Duration // server: for the client's preface; 10 s
	IdleTimeout    time.Duration // pool: a tunnel without a stream is closed after; 5 min
	Grace          time.Duration // server: for streams to end once ctx is done; 5 s
}

// First windows. A server's is small, so that a client costs little before it
// is allowed in and somebody reads.
const (
	serverWindow = 64<<10 - 1
	clientWindow = 256 << 10
)

// withDefaults fills in what package h2 has no default for.
func (c Config) withDefaults(client bool) Config {
	headerBytes, streams := uint32(64<<10), uint32(200)
	if client {
		headerBytes, streams = 16<<10, 100
	}
	c.MaxHeaderBytes = cmp.Or(c.MaxHeaderBytes, headerBytes)
	c.MaxStreams = cmp.Or(c.MaxStreams, streams)
	c.OpenTimeout = cmp.Or(c.OpenTimeout, 30*time.Second)
	c.IdleTimeout = cmp.Or(c.IdleTimeout, 5*time.Minute)
	return c
}

func (c Config) http2(client bool) h2.Config {
	first := uint32(serverWindow)
	if client {
		first = clientWindow
	}
	return h2.Config{
		Client: client, FirstWindow: first, StreamWindow: c.StreamWindow, ConnWindow: c.ConnWindow,
		MaxFrameSize: c.MaxFrameSize, MaxHeaderBytes: c.MaxHeaderBytes, MaxStreams: c.MaxStreams,
		PingInterval: c.PingInterval, PingTimeout: c.PingTimeout, PrefaceTimeout: c.PrefaceTimeout, Grace: c.Grace,
	}
}

// A StatusError is a CONNECT that was answered with a status other than 200.
type StatusError struct{ Status int }

func (e *StatusError) Error() string { return fmt.Sprintf("connect: peer answered %d", e.Status) }
