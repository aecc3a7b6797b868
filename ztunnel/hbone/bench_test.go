package hbone

import (
	"errors"
	"io"
	"testing"
)

// BenchmarkThroughput: one stream over loopback TCP, one direction.
func BenchmarkThroughput(b *testing.B) {
	client, server := tcpPair(b)
	handle, streams := accepting(b)
	e := connectOver(b, client, server, Config{}, Config{}, handle)
	near, far := e.open(), <-streams
	received := make(chan int64, 1)
	go func() {
		n, _ := far.WriteTo(io.Discard)
		received <- n
	}()
	p := make([]byte, 64<<10)
	b.SetBytes(int64(len(p)))
	b.ReportAllocs()
	var sent int64
	for b.Loop() {
		if _, err := near.Write(p); err != nil {
			b.Fatal(err)
		}
		sent += int64(len(p))
	}
	_ = near.CloseWrite()
	if n := <-received; n != sent {
		b.Errorf("received %d of %d bytes", n, sent)
	}
	e.close()
}

// BenchmarkPing: one byte there and back over loopback TCP.
func BenchmarkPing(b *testing.B) {
	client, server := tcpPair(b)
	e := connectOver(b, client, server, Config{}, Config{}, echo(b))
	s := e.open()
	p := make([]byte, 1)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := s.Write(p); err != nil {
			b.Fatal(err)
		}
		if _, err := s.Read(p); err != nil {
			b.Fatal(err)
		}
	}
	_ = s.Close()
	e.close()
}

// BenchmarkOpen: open, end both ways, close, over loopback TCP.
func BenchmarkOpen(b *testing.B) {
	client, server := tcpPair(b)
	e := connectOver(b, client, server, Config{}, Config{}, echo(b))
	b.ReportAllocs()
	for b.Loop() {
		s := e.open()
		_ = s.CloseWrite()
		if _, err := s.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
			b.Fatal(err)
		}
		_ = s.Close()
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "opens/s")
	e.close()
}
