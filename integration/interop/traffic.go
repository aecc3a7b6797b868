package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"

	"github.com/ambit-mesh/ambit/integration/bed"
)

// Ports of the server and what they do.
const (
	mirrorPort = port     // sends back what it gets until its end
	lengthPort = port + 1 // after the client's end, says how much there was
	bannerPort = port + 2 // speaks first
	greeting   = "220 ready\n"
	bulkBytes  = 32 << 20
)

// serve starts the applications in the server's pod; they end with the bed's
// process.
func (p *place) serve() error {
	for at, application := range map[uint16]func(net.Conn) error{
		mirrorPort: func(c net.Conn) error {
			_, err := io.Copy(c, c)
			return err
		},
		lengthPort: func(c net.Conn) error {
			n, err := io.Copy(io.Discard, c)
			if err != nil {
				return err
			}
			return binary.Write(c, binary.BigEndian, n)
		},
		bannerPort: func(c net.Conn) error {
			_, err := io.WriteString(c, greeting)
			return err
		},
	} {
		l, err := p.server.Listen(at)
		if err != nil {
			return err
		}
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go func() {
					_ = application(c) // the client sees what is missing
					_ = c.Close()
				}()
			}
		}()
	}
	return nil
}

func (p *place) dial(ctx context.Context, from *bed.Pod, to netip.AddrPort) (*net.TCPConn, error) {
	c, err := from.Dial(ctx, to)
	if err != nil {
		return nil, err
	}
	if deadline, limited := ctx.Deadline(); limited {
		_ = c.SetDeadline(deadline)
	}
	context.AfterFunc(ctx, func() { _ = c.Close() })
	return c, nil
}

func (p *place) hello(ctx context.Context, to netip.AddrPort) error {
	return p.helloFrom(ctx, p.client, to)
}

// helloFrom exchanges a few bytes and ends in order.
func (p *place) helloFrom(ctx context.Context, from *bed.Pod, to netip.AddrPort) error {
	c, err := p.dial(ctx, from, to)
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	const text = "hello"
	if _, err := io.WriteString(c, text); err != nil {
		return err
	}
	if err := c.CloseWrite(); err != nil {
		return err
	}
	answer, err := io.ReadAll(c)
	if err == nil && string(answer) != text {
		err = fmt.Errorf("answer of %s is %q, want %q", to, answer, text)
	}
	return err
}

// halfClose sends, ends its side, and reads an answer that comes only then.
func (p *place) halfClose(ctx context.Context) error {
	c, err := p.dial(ctx, p.client, netip.AddrPortFrom(p.server.Addr, lengthPort))
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	const n = 1 << 20
	if _, err := c.Write(make([]byte, n)); err != nil {
		return err
	}
	if err := c.CloseWrite(); err != nil {
		return err
	}
	var got int64
	if err := binary.Read(c, binary.BigEndian, &got); err != nil {
		return fmt.Errorf("answer after our end: %w", err)
	}
	if got != n {
		return fmt.Errorf("the server got %d bytes, want %d", got, n)
	}
	if m, err := c.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		return fmt.Errorf("%d bytes and %w after the answer, want the end", m, err)
	}
	return nil
}

func (p *place) serverFirst(ctx context.Context) error {
	c, err := p.dial(ctx, p.client, netip.AddrPortFrom(p.server.Addr, bannerPort))
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	got, err := io.ReadAll(c)
	if err == nil && string(got) != greeting {
		err = fmt.Errorf("greeting is %q", got)
	}
	return err
}

// bulk sends much both ways at once and compares.
func (p *place) bulk(ctx context.Context) error {
	c, err := p.dial(ctx, p.client, p.direct())
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	block := bytes.Repeat([]byte("0123456789abcdef"), 4<<10)
	sent, got := sha256.New(), sha256.New()
	written := make(chan error, 1)
	go func() {
		for range bulkBytes / len(block) {
			sent.Write(block)
			if _, err := c.Write(block); err != nil {
				written <- err
				return
			}
			block[0]++
		}
		written <- c.CloseWrite()
	}()
	n, err := io.Copy(got, c)
	if err := errors.Join(err, <-written); err != nil {
		return fmt.Errorf("after %d bytes: %w", n, err)
	}
	if !bytes.Equal(sent.Sum(nil), got.Sum(nil)) {
		return fmt.Errorf("%d bytes came back, and not those that were sent", n)
	}
	return nil
}

// many opens more connections than one tunnel carries by default, at once.
func (p *place) many(ctx context.Context) error {
	const conns = 250
	errs := make([]error, conns)
	var all sync.WaitGroup
	for i := range errs {
		all.Go(func() { errs[i] = p.hello(ctx, p.direct()) })
	}
	all.Wait()
	return errors.Join(errs...)
}
