package relay

import (
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// stuff writes to a connection until nothing moves any more.
func stuff(conn *net.TCPConn) {
	for p := make([]byte, 64<<10); ; {
		_ = conn.SetWriteDeadline(time.Now().Add(20 * time.Millisecond))
		if _, err := conn.Write(p); err != nil {
			return
		}
	}
}

func resetTCP(conn *net.TCPConn) {
	_ = conn.SetLinger(0)
	_ = conn.Close()
}

// TestResetBeneathAWrite: Linux reports a reset once. If a write has learnt of
// it, a read says EOF, which the other application must not get to see.
func TestResetBeneathAWrite(t *testing.T) {
	t.Run("the write waits", func(t *testing.T) {
		t.Parallel()
		var all sync.WaitGroup
		for range 60 {
			all.Go(func() {
				var c Counters
				caller, target, result := between(t, &c)
				_ = target.SetReadBuffer(8 << 10)
				stuff(caller)
				_, _ = io.WriteString(target, "part of an answer")
				resetTCP(target)
				if b, err := io.ReadAll(caller); !errors.Is(err, syscall.ECONNRESET) {
					t.Errorf("caller reads %q, %v, want a reset", b, err)
				}
				_ = caller.Close()
				if err := <-result; err != nil {
					t.Errorf("copy: %v", err)
				}
			})
		}
		all.Wait()
	})
	t.Run("writes go on", func(t *testing.T) {
		t.Parallel()
		for range 300 {
			var c Counters
			caller, target, result := between(t, &c)
			var wrote error
			var uploading sync.WaitGroup
			uploading.Go(func() {
				for p := make([]byte, 4096); wrote == nil; {
					_, wrote = caller.Write(p)
				}
			})
			_, _ = io.ReadFull(target, make([]byte, 64<<10))
			_, _ = io.WriteString(target, "part of an answer")
			resetTCP(target)
			b, err := io.ReadAll(caller)
			uploading.Wait()
			// After a good end the write would be told EPIPE.
			if !errors.Is(err, syscall.ECONNRESET) && !errors.Is(wrote, syscall.ECONNRESET) {
				t.Fatalf("caller reads %q, %v, and is told %v when it writes, want a reset", b, err, wrote)
			}
			_ = caller.Close()
			if err := <-result; err != nil {
				t.Errorf("copy: %v", err)
			}
		}
	})
	t.Run("a stream forwards", func(t *testing.T) {
		t.Parallel()
		for range 300 {
			far, result := &pushing{fake: newFake()}, make(chan error, 1)
			near, target := tcpPair(t)
			var c Counters
			go func() { result <- Copy(far, near, &c) }()
			poll(t, "forwarding", func() bool { far.mu.Lock(); defer far.mu.Unlock(); return far.to != nil })
			var uploading sync.WaitGroup
			uploading.Go(func() {
				for p := make([]byte, 4096); ; {
					if _, err := far.to.TryWrite(p); err != nil {
						far.end(err)
						return
					}
				}
			})
			_, _ = io.ReadFull(target, make([]byte, 64<<10))
			resetTCP(target)
			uploading.Wait()
			if err := <-result; err != nil {
				t.Errorf("copy: %v", err)
			}
			select {
			case <-far.finished:
				t.Error("the stream has ended well")
			default:
			}
			if !far.wasReset {
				t.Error("the stream was not reset")
			}
		}
	})
}

// TestEndBeforeAReset: a receiver that ends well and then takes no more is no
// reset, and its end is passed on even while a write to it waits.
func TestEndBeforeAReset(t *testing.T) {
	var c Counters
	caller, target, result := between(t, &c)
	_ = target.SetReadBuffer(8 << 10)
	stuff(caller)
	_, _ = io.WriteString(target, "all of an answer")
	_ = target.CloseWrite()
	_ = caller.SetReadDeadline(time.Now().Add(10 * time.Second))
	if b, err := io.ReadAll(caller); string(b) != "all of an answer" || err != nil {
		t.Errorf("caller reads %q, %v", b, err)
	}
	resetTCP(target)
	if err := <-result; err != nil {
		t.Errorf("copy: %v", err)
	}
	_ = caller.Close()
}

// TestWriteThatHasNotSaidSo: the read may say EOF before the write that took
// the reset has returned.
func TestWriteThatHasNotSaidSo(t *testing.T) {
	near, far := tcpPair(t)
	out := newTarget(near, &atomic.Uint64{})
	defer func() { _ = near.Close() }()
	resetTCP(far)
	_, _ = near.Read(make([]byte, 1))
	out.mu.Lock()
	got := make(chan bool)
	go func() { got <- out.wasReset() }()
	select {
	case <-got:
		t.Fatal("did not wait for the write")
	case <-time.After(20 * time.Millisecond):
	}
	out.err = syscall.ECONNRESET
	out.mu.Unlock()
	if !<-got {
		t.Error("the reset was not seen")
	}
}
