package identity

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ambit-mesh/ambit/apis/spiffe"
	"github.com/ambit-mesh/ambit/ztunnel/identity/identitytest"
	"github.com/ambit-mesh/ambit/ztunnel/mtls"
)

// authority is a Fetch that a test can steer. Its fields are set before Run or
// between synctest.Waits.
type authority struct {
	ca   *identitytest.CA
	ttl  time.Duration
	fail error
	hold chan struct{} // requests wait for it, if not nil

	mu    sync.Mutex
	calls []string // "elapsed identity"
	start time.Time
	most  int // requests at a time
	now   int
}

func (a *authority) fetch(ctx context.Context, id spiffe.ID) (*mtls.Certificate, error) {
	a.mu.Lock()
	a.calls = append(a.calls, fmt.Sprintf("%v %s", time.Since(a.start).Round(time.Second), id.ServiceAccount()))
	a.now++
	a.most = max(a.most, a.now)
	hold, fail := a.hold, a.fail
	a.mu.Unlock()
	defer func() {
		a.mu.Lock()
		a.now--
		a.mu.Unlock()
	}()
	if hold != nil {
		select {
		case <-hold:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	if fail != nil {
		return nil, fail
	}
	return a.ca.Issue(id, a.ttl), nil
}

func (a *authority) set(fail error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.fail = fail
}

func (a *authority) count() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.calls)
}

// cacheTest runs a cache inside a bubble.
func cacheTest(t *testing.T, ttl time.Duration, test func(t *testing.T, c *Cache, a *authority)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		a := &authority{ca: identitytest.New(t, "cluster.local"), ttl: ttl, start: time.Now()}
		c := NewCache(CacheConfig{Fetch: a.fetch, Log: slog.New(slog.DiscardHandler)})
		ctx, cancel := context.WithCancel(t.Context())
		ran := make(chan error, 1)
		go func() { ran <- c.Run(ctx) }()
		test(t, c, a)
		cancel()
		if err := <-ran; err != nil {
			t.Errorf("run: %v", err)
		}
		if _, err := c.Get(t.Context(), a.ca.ID("ns", "late")); !errors.Is(err, errStopped) {
			t.Errorf("get after the end: got %v", err)
		}
	})
}

func TestRenewal(t *testing.T) {
	for _, ttl := range []time.Duration{10 * time.Second, time.Hour, 24 * time.Hour} {
		cacheTest(t, ttl, func(t *testing.T, c *Cache, a *authority) {
			t.Helper()
			id := a.ca.ID("ns", "a")
			first, err := c.Get(t.Context(), id)
			if err != nil {
				t.Fatalf("get: %v", err)
			}
			if _, err := c.Get(t.Context(), a.ca.ID("ns", "b")); err != nil {
				t.Fatalf("get: %v", err)
			}
			if roots := c.Roots(); len(roots) != 1 || !roots[0].Equal(a.ca.Root()) {
				t.Errorf("%d roots, want the authority's", len(roots))
			}
			c.Forget(a.ca.ID("ns", "b"))
			time.Sleep(ttl * 44 / 100)
			if got, _ := c.Get(t.Context(), id); got != first {
				t.Errorf("ttl %v: renewed before 45 %% of its life", ttl)
			}
			time.Sleep(ttl * 12 / 100)
			if got, _ := c.Get(t.Context(), id); got == first {
				t.Errorf("ttl %v: not renewed after 56 %% of its life", ttl)
			}
			before := a.count()
			time.Sleep(10 * ttl)
			if got := a.count() - before; got < 17 || got > 23 {
				t.Errorf("ttl %v: %d renewals in ten lives, want about 20", ttl, got)
			}
		})
	}
}

// TestBriefLife: no busy loop, whatever the authority gives.
func TestBriefLife(t *testing.T) {
	cacheTest(t, time.Millisecond, func(t *testing.T, c *Cache, a *authority) {
		t.Helper()
		c.Prefetch(a.ca.ID("ns", "a"))
		time.Sleep(10 * time.Second)
		if got := a.count(); got > 25 {
			t.Errorf("%d requests in 10s", got)
		}
	})
}

func TestLastGoodUntilExpiry(t *testing.T) {
	cacheTest(t, 10*time.Minute, func(t *testing.T, c *Cache, a *authority) {
		t.Helper()
		id := a.ca.ID("ns", "a")
		first, err := c.Get(t.Context(), id)
		if err != nil {
			t.Fatalf("get: %v", err)
		}
		a.set(errors.New("authority is away"))
		time.Sleep(10*time.Minute - time.Second)
		if got, err := c.Get(t.Context(), id); got != first || err != nil {
			t.Errorf("while it is valid: got %v, %v", got, err)
		}
		if d := c.Dump(); len(d) != 1 || d[0].State != Available || d[0].Err == nil {
			t.Errorf("dump: got %+v", d)
		}
		time.Sleep(2 * time.Second)
		if _, err := c.Get(t.Context(), id); err == nil || !strings.Contains(err.Error(), "identity spiffe://cluster.local/ns/ns/sa/a: authority is away") {
			t.Errorf("after expiry: got %v", err)
		}
		if d := c.Dump(); d[0].State != Unavailable || d[0].Certificate != nil {
			t.Errorf("dump: got %+v", d)
		}
		a.set(nil)
		time.Sleep(2 * time.Second)
		if _, err := c.Get(t.Context(), id); err != nil {
			t.Errorf("authority is back: %v", err)
		}
	})
}

func TestBackoff(t *testing.T) {
	cacheTest(t, time.Hour, func(t *testing.T, c *Cache, a *authority) {
		t.Helper()
		a.set(errors.New("no"))
		c.Prefetch(a.ca.ID("ns", "a"))
		time.Sleep(90 * time.Second)
		// 0, 1, 3, 7, 15, 31, 63 s, each ± 20 %
		if got := a.count(); got < 6 || got > 8 {
			t.Errorf("%d attempts in 90s: %v", got, a.calls)
		}
		time.Sleep(time.Hour)
		before := a.count()
		time.Sleep(time.Hour)
		if got := a.count() - before; got < 23 || got > 31 {
			t.Errorf("%d attempts an hour, want one in 150s", got)
		}
	})
}

// TestDemandBringsRetryForward: traffic does not wait for the back-off, and
// does not turn into a storm either.
func TestDemandBringsRetryForward(t *testing.T) {
	cacheTest(t, time.Hour, func(t *testing.T, c *Cache, a *authority) {
		t.Helper()
		id := a.ca.ID("ns", "a")
		a.set(errors.New("no"))
		for range 6 {
			if _, err := c.Get(t.Context(), id); err == nil {
				t.Error("get succeeded")
			}
			time.Sleep(20 * time.Second)
		}
		a.set(nil)
		start := time.Now()
		if _, err := c.Get(t.Context(), id); err != nil || time.Since(start) != 0 {
			t.Errorf("authority is back: got %v after %v", err, time.Since(start))
		}
		other := a.ca.ID("ns", "b")
		a.set(errors.New("no"))
		before := a.count()
		for range 1000 {
			_, _ = c.Get(t.Context(), other)
			time.Sleep(time.Millisecond)
		}
		if got := a.count() - before; got > 3 {
			t.Errorf("1000 demands in a second: %d requests", got)
		}
	})
}

func TestConcurrentGets(t *testing.T) {
	cacheTest(t, time.Hour, func(t *testing.T, c *Cache, a *authority) {
		t.Helper()
		a.hold = make(chan struct{})
		var all sync.WaitGroup
		for i := range 100 {
			all.Go(func() {
				if _, err := c.Get(t.Context(), a.ca.ID("ns", fmt.Sprint("a", i%20))); err != nil {
					t.Errorf("get: %v", err)
				}
			})
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := c.Get(ctx, a.ca.ID("ns", "a0")); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("caller that leaves: got %v", err)
		}
		if d := c.Dump(); len(d) != 20 || d[0].State != Initializing {
			t.Errorf("dump: got %+v", d)
		}
		close(a.hold)
		all.Wait()
		if a.count() != 20 || a.most != 8 {
			t.Errorf("%d requests, %d at a time, want 20 and 8", a.count(), a.most)
		}
	})
}

// TestUrgency: who waits comes before what was only announced.
func TestUrgency(t *testing.T) {
	cacheTest(t, time.Hour, func(t *testing.T, c *Cache, a *authority) {
		t.Helper()
		a.hold = make(chan struct{})
		for i := range 12 {
			c.Prefetch(a.ca.ID("ns", fmt.Sprintf("warm%02d", i)))
			time.Sleep(time.Millisecond)
		}
		var get sync.WaitGroup
		get.Go(func() { _, _ = c.Get(t.Context(), a.ca.ID("ns", "urgent")) })
		synctest.Wait()
		a.hold <- struct{}{}
		synctest.Wait()
		if got := a.calls[8]; !strings.Contains(got, "urgent") {
			t.Errorf("ninth request: got %q", got)
		}
		close(a.hold)
		get.Wait()
	})
}

func TestForget(t *testing.T) {
	cacheTest(t, time.Hour, func(t *testing.T, c *Cache, a *authority) {
		t.Helper()
		a.hold = make(chan struct{})
		id := a.ca.ID("ns", "a")
		got := make(chan error, 1)
		go func() {
			_, err := c.Get(t.Context(), id)
			got <- err
		}()
		synctest.Wait()
		c.Forget(id)
		c.Forget(id)
		if err := <-got; !errors.Is(err, errForgotten) {
			t.Errorf("waiting caller: got %v", err)
		}
		close(a.hold)
		a.mu.Lock()
		a.hold = nil
		a.mu.Unlock()
		time.Sleep(time.Hour)
		if len(c.Dump()) != 0 || a.count() != 1 {
			t.Errorf("forgotten, and still: %v, %d requests", c.Dump(), a.count())
		}
		if _, err := c.Get(t.Context(), id); err != nil {
			t.Errorf("wanted again: %v", err)
		}
	})
}

func TestGetBeforeRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := identitytest.New(t, "cluster.local")
		c := NewCache(CacheConfig{Fetch: ca.Fetch, Log: slog.New(slog.DiscardHandler)})
		got := make(chan error, 1)
		go func() {
			_, err := c.Get(t.Context(), ca.ID("ns", "a"))
			got <- err
		}()
		synctest.Wait()
		ctx, cancel := context.WithCancel(t.Context())
		go func() { _ = c.Run(ctx) }()
		if err := <-got; err != nil {
			t.Errorf("get: %v", err)
		}
		cancel()
	})
}

// TestFailureIsLogged once per attempt, with what an operator needs.
func TestFailureIsLogged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := identitytest.New(t, "cluster.local")
		var log bytes.Buffer
		c := NewCache(CacheConfig{
			Fetch: func(context.Context, spiffe.ID) (*mtls.Certificate, error) { return nil, errors.New("token expired") },
			Log:   slog.New(slog.NewTextHandler(&log, nil)),
		})
		ctx, cancel := context.WithCancel(t.Context())
		ran := make(chan error, 1)
		go func() { ran <- c.Run(ctx) }()
		_, _ = c.Get(t.Context(), ca.ID("ns", "a"))
		cancel()
		if err := <-ran; err != nil {
			t.Errorf("run: %v", err)
		}
		for _, want := range []string{"token expired", "identity=spiffe://cluster.local/ns/ns/sa/a", "retry_in="} {
			if strings.Count(log.String(), want) != 1 {
				t.Errorf("log lacks %q: %s", want, log.String())
			}
		}
	})
}
