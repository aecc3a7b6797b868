// Package identity gets a certificate for every workload on this node and
// keeps it fresh (spec/ztunnel.md §5). [CA] asks the certificate authority,
// [Cache] remembers, renews at half life and retries. It does not decide which
// identities a caller may have: the authority does. Certificates live in
// memory only.
//
// The proxy asks the cache at each handshake; ztunnel.go tells it which
// identities will be needed and which are not any more. Everything is safe for
// concurrent use.
package identity

import (
	"cmp"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/ambit-mesh/ambit/apis/spiffe"
	"github.com/ambit-mesh/ambit/ztunnel/mtls"
)

const (
	defaultConcurrency = 8

	// Retries of a failed request: 1 s, then twice as long each time, ±20 %.
	minRetry = time.Second
	maxRetry = 150 * time.Second
	// minRenewal keeps a certificate that lives very briefly from being
	// renewed without pause.
	minRenewal = time.Second / 2
)

// CacheConfig configures a cache.
type CacheConfig struct {
	// Fetch asks the authority for a new certificate.
	Fetch func(ctx context.Context, id spiffe.ID) (*mtls.Certificate, error)
	Log   *slog.Logger
	// Concurrency is how many requests run at a time; 8 when zero.
	Concurrency int
}

// State says what a cache has for an identity.
type State string

// The states of an identity.
const (
	Initializing State = "Initializing" // no answer yet
	Available    State = "Available"    // a certificate that is valid now
	Unavailable  State = "Unavailable"  // the latest request has failed, or there is only an expired certificate
)

// An Entry is what the cache knows about an identity.
type Entry struct {
	ID          spiffe.ID
	State       State
	Certificate *mtls.Certificate // nil unless Available
	Err         error             // of the latest request, nil if it went well
}

// A Cache holds the certificate of each identity that was asked for.
type Cache struct {
	cfg  CacheConfig
	wake chan struct{} // something is due earlier than Run thinks

	mu       sync.Mutex
	entries  map[spiffe.ID]*entry
	inFlight int
	stopped  error // Run has returned
}

// entry is one identity; under Cache.mu.
type entry struct {
	id       spiffe.ID
	cert     *mtls.Certificate // the last good one, even if expired
	err      error             // of the latest request
	due      time.Time         // of the next request
	tried    time.Time         // end of the latest request
	failures int               // in a row
	waiters  int
	result   chan struct{}      // closed at the end of the next request, or when the entry goes
	cancel   context.CancelFunc // of the request in flight, nil if none is
}

var (
	errForgotten = errors.New("identity is not needed any more")
	errStopped   = errors.New("certificate cache has stopped")
)

// NewCache returns an empty cache. It asks for nothing until Run is called.
func NewCache(cfg CacheConfig) *Cache {
	cfg.Concurrency = cmp.Or(cfg.Concurrency, defaultConcurrency)
	return &Cache{cfg: cfg, wake: make(chan struct{}, 1), entries: map[spiffe.ID]*entry{}}
}

// Get returns the certificate of id that is valid now. It waits for the first
// one. After a failure it asks again, unless that was less than a second ago,
// and returns the error if it still fails.
func (c *Cache) Get(ctx context.Context, id spiffe.ID) (*mtls.Certificate, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.stopped != nil {
		return nil, fmt.Errorf("identity %s: %w", id, c.stopped)
	}
	e := c.entry(id)
	now := time.Now()
	if e.usable(now) {
		return e.cert, nil
	}
	if e.err != nil && e.cancel == nil {
		if now.Sub(e.tried) < minRetry {
			return nil, fmt.Errorf("identity %s: %w", id, e.err)
		}
		e.due = now
	}
	result := e.result
	e.waiters++
	c.mu.Unlock()
	c.poke()
	select {
	case <-result:
	case <-ctx.Done():
	}
	c.mu.Lock()
	e.waiters--
	switch {
	case e.usable(time.Now()) && c.entries[id] == e:
		return e.cert, nil
	case ctx.Err() != nil:
		return nil, fmt.Errorf("identity %s: %w", id, context.Cause(ctx))
	case e.err != nil:
		return nil, fmt.Errorf("identity %s: %w", id, e.err)
	}
	return nil, fmt.Errorf("identity %s: certificate has expired already", id)
}

// Prefetch makes sure that there will be a certificate for id.
func (c *Cache) Prefetch(id spiffe.ID) {
	c.mu.Lock()
	c.entry(id)
	c.mu.Unlock()
	c.poke()
}

// Forget drops id, its certificate and its request. Callers that wait for it
// get an error.
func (c *Cache) Forget(id spiffe.ID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.entries[id]
	if e == nil {
		return
	}
	delete(c.entries, id)
	e.drop(errForgotten)
}

// Dump lists what is known, ordered by identity.
func (c *Cache) Dump() []Entry {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	list := make([]Entry, 0, len(c.entries))
	for _, e := range c.entries {
		d := Entry{ID: e.id, State: Initializing, Err: e.err}
		switch {
		case e.usable(now):
			d.State, d.Certificate = Available, e.cert
		case e.err != nil || e.cert != nil:
			d.State = Unavailable
		}
		list = append(list, d)
	}
	slices.SortFunc(list, func(a, b Entry) int { return cmp.Compare(a.ID.String(), b.ID.String()) })
	return list
}

// Roots returns the authorities of all certificates, without duplicates.
func (c *Cache) Roots() []*x509.Certificate {
	c.mu.Lock()
	defer c.mu.Unlock()
	var roots []*x509.Certificate
	seen := map[string]bool{}
	for _, e := range c.entries {
		if e.cert == nil {
			continue
		}
		for _, root := range e.cert.Roots {
			if !seen[string(root.Raw)] {
				seen[string(root.Raw)] = true
				roots = append(roots, root)
			}
		}
	}
	return roots
}

// Run requests and renews certificates until ctx ends, and returns when all
// requests have.
func (c *Cache) Run(ctx context.Context) error {
	var requests sync.WaitGroup
	defer requests.Wait()
	defer c.stop()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		next := c.startDue(ctx, &requests)
		if next.IsZero() {
			timer.Stop()
		} else {
			timer.Reset(time.Until(next))
		}
		select {
		case <-timer.C:
		case <-c.wake:
		case <-ctx.Done():
			return nil
		}
	}
}

// entry returns the entry of id, new if need be; c.mu is held.
func (c *Cache) entry(id spiffe.ID) *entry {
	e := c.entries[id]
	if e == nil {
		e = &entry{id: id, due: time.Now(), result: make(chan struct{})}
		if c.stopped == nil {
			c.entries[id] = e
		}
	}
	return e
}

func (c *Cache) poke() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

func (c *Cache) stop() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stopped = errStopped
	for _, e := range c.entries {
		e.drop(errStopped)
	}
	clear(c.entries)
}

// startDue starts what is due, the most urgent first, as far as Concurrency
// allows. It returns when to look again; the zero time is for "when poked".
func (c *Cache) startDue(ctx context.Context, requests *sync.WaitGroup) time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	var due []*entry
	var next time.Time
	for _, e := range c.entries {
		switch {
		case e.cancel != nil:
		case !e.due.After(now):
			due = append(due, e)
		case next.IsZero() || e.due.Before(next):
			next = e.due
		}
	}
	slices.SortFunc(due, func(a, b *entry) int {
		return cmp.Or(cmp.Compare(a.urgency(), b.urgency()), a.due.Compare(b.due))
	})
	for _, e := range due {
		if c.inFlight == c.cfg.Concurrency {
			break // the end of a request pokes
		}
		c.inFlight++
		fetchCtx, cancel := context.WithCancel(ctx)
		e.cancel = cancel
		requests.Go(func() {
			defer cancel()
			cert, err := c.cfg.Fetch(fetchCtx, e.id)
			c.finish(ctx, e, cert, err)
		})
	}
	return next
}

// finish notes the result of a request.
func (c *Cache) finish(ctx context.Context, e *entry, cert *mtls.Certificate, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	defer c.poke()
	c.inFlight--
	e.cancel = nil
	if c.entries[e.id] != e || ctx.Err() != nil {
		return // dropped meanwhile
	}
	now := time.Now()
	e.tried, e.err = now, err
	if err == nil {
		e.cert, e.failures = cert, 0
		e.due = now.Add(renewAfter(cert.Leaf.NotAfter.Sub(now)))
	} else {
		e.failures++
		delay := retryAfter(e.failures)
		if left := e.left(now); left > 0 {
			// Several attempts before it expires, however briefly it lives.
			delay = min(delay, max(left/2, minRetry))
		}
		e.due = now.Add(delay)
		c.cfg.Log.Warn("certificate request", "identity", e.id.String(), "error", err,
			"retry_in", delay, "valid_for", max(e.left(now), 0))
	}
	close(e.result)
	e.result = make(chan struct{})
}

// drop ends an entry that has left the map.
func (e *entry) drop(why error) {
	e.cert, e.err = nil, why
	if e.cancel != nil {
		e.cancel()
	}
	close(e.result)
	e.result = make(chan struct{})
}

func (e *entry) usable(now time.Time) bool { return e.left(now) > 0 }

// left returns how long the certificate is still valid.
func (e *entry) left(now time.Time) time.Duration {
	if e.cert == nil {
		return 0
	}
	return e.cert.Leaf.NotAfter.Sub(now)
}

// urgency orders requests: somebody waits, there is none yet, renewal.
func (e *entry) urgency() int {
	switch {
	case e.waiters > 0:
		return 0
	case e.cert == nil:
		return 1
	}
	return 2
}

// renewAfter returns half of the life that is left, ±5 %. It counts from now
// and not from NotBefore, which an authority may set back.
func renewAfter(left time.Duration) time.Duration {
	return max(jitter(left/2, 0.05), minRenewal)
}

func retryAfter(failures int) time.Duration {
	d := min(minRetry<<min(failures-1, 10), maxRetry)
	return min(jitter(d, 0.2), maxRetry)
}

// jitter returns d ± a part of it.
func jitter(d time.Duration, part float64) time.Duration {
	return time.Duration(float64(d) * (1 - part + 2*part*rand.Float64()))
}
