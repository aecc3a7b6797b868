package hbone

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// goodbyePing is the PING between the two GOAWAYs of a server that drains.
var goodbyePing = [8]byte{'g', 'o', 'o', 'd', 'b', 'y', 'e'}

// A peer is the other end of a connection, frame by frame.
type peer struct {
	t     testing.TB
	conn  net.Conn
	fr    *http2.Framer
	block bytes.Buffer
	enc   *hpack.Encoder
}

func newPeer(tb testing.TB, conn net.Conn) *peer {
	tb.Helper()
	p := &peer{t: tb, conn: conn, fr: http2.NewFramer(conn, conn)}
	p.fr.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	p.fr.AllowIllegalWrites = true
	p.enc = hpack.NewEncoder(&p.block)
	return p
}

// check is for the writes of a script.
func (p *peer) check(err error) {
	p.t.Helper()
	if err != nil {
		p.t.Fatalf("peer: %v", err)
	}
}

func (p *peer) headers(id uint32, end bool, fields ...string) {
	p.t.Helper()
	p.block.Reset()
	for i := 0; i < len(fields); i += 2 {
		p.check(p.enc.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]}))
	}
	p.check(p.fr.WriteHeaders(http2.HeadersFrameParam{
		StreamID: id, BlockFragment: p.block.Bytes(), EndHeaders: true, EndStream: end,
	}))
}

func (p *peer) connect(id uint32) {
	p.t.Helper()
	p.headers(id, false, ":method", "CONNECT", ":authority", "10.0.0.1:80")
}

// want reads the next frame that is not about windows and compares its
// summary: "TYPE stream [ack] [end] [code] [data]".
func (p *peer) want(what, summary string) {
	p.t.Helper()
	if got := p.next(); got != summary {
		p.t.Fatalf("%s: got %q, want %q", what, got, summary)
	}
}

func (p *peer) next() string {
	for {
		f, err := p.fr.ReadFrame()
		if err != nil {
			if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.ErrClosedPipe) {
				return "EOF"
			}
			return err.Error()
		}
		switch f := f.(type) {
		case *http2.WindowUpdateFrame:
		case *http2.SettingsFrame:
			if f.IsAck() {
				return "SETTINGS ack"
			}
			return "SETTINGS"
		case *http2.MetaHeadersFrame:
			s := fmt.Sprintf("HEADERS %d", f.StreamID)
			for _, hf := range f.PseudoFields() {
				s += " " + hf.Value
			}
			if f.StreamEnded() {
				s += " end"
			}
			return s
		case *http2.DataFrame:
			s := fmt.Sprintf("DATA %d %s", f.StreamID, f.Data())
			if f.StreamEnded() {
				s = strings.TrimSpace(s) + " end"
			}
			return s
		case *http2.RSTStreamFrame:
			return fmt.Sprintf("RST_STREAM %d %v", f.StreamID, f.ErrCode)
		case *http2.GoAwayFrame:
			return fmt.Sprintf("GOAWAY %d %v", f.LastStreamID, f.ErrCode)
		case *http2.PingFrame:
			if f.IsAck() {
				return "PING ack"
			}
			return "PING"
		default:
			return f.Header().Type.String()
		}
	}
}

// scriptedClient is a peer at whose other end is Serve; the preface is done.
func scriptedClient(tb testing.TB, cfg Config, handle func(*Incoming)) (p *peer, stop context.CancelFunc, served chan error) {
	tb.Helper()
	client, server := connPair(tb)
	ctx, stop := context.WithCancel(context.Background())
	served = make(chan error, 1)
	go func() { served <- Serve(ctx, server, cfg, handle) }()
	p = newPeer(tb, client)
	_, err := io.WriteString(client, http2.ClientPreface)
	p.check(err)
	p.check(p.fr.WriteSettings())
	p.want("server preface", "SETTINGS")
	p.want("settings are acknowledged", "SETTINGS ack")
	p.check(p.fr.WriteSettingsAck())
	return p, stop, served
}

// scriptedServer is a peer at whose other end is a tunnel; the preface is done.
func scriptedServer(tb testing.TB, cfg Config, settings ...http2.Setting) (*peer, *Tunnel) {
	tb.Helper()
	client, server := connPair(tb)
	tunnel, err := NewTunnel(client, cfg)
	if err != nil {
		tb.Fatalf("new tunnel: %v", err)
	}
	p := newPeer(tb, server)
	preface := make([]byte, len(http2.ClientPreface))
	_, err = io.ReadFull(server, preface)
	p.check(err)
	p.check(p.fr.WriteSettings(settings...))
	p.want("client preface", "SETTINGS")
	p.check(p.fr.WriteSettingsAck())
	p.want("settings are acknowledged", "SETTINGS ack")
	return p, tunnel
}

// opening opens a stream that the script is about to answer.
func opening(tunnel *Tunnel) func() (*Stream, error) {
	type result struct {
		s   *Stream
		err error
	}
	done := make(chan result, 1)
	go func() {
		s, err := tunnel.Open(context.Background(), Request{Authority: "10.0.0.1:80"})
		done <- result{s, err}
	}()
	return func() (*Stream, error) { r := <-done; return r.s, r.err }
}
