// Package xds is the client of the control plane's delta xDS stream
// (spec/ztunnel.md §4): it subscribes, acknowledges or refuses what arrives,
// reconnects and resumes. It knows no message type: owners of types give an
// Apply function and keep the state. Nothing is flushed when the stream
// breaks; the server learns from the versions that are sent on reconnect what
// we have.
//
// [Dial] makes the connection, which the CA client uses, too. ztunnel.go and
// the waypoint call this package. A [Client]'s methods are safe for concurrent
// use; Apply functions are called from Run, one at a time.
package xds

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	grpcstatus "google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

// Delays before the next attempt, spec/ztunnel.md §4.6.
const (
	minBackoff = 10 * time.Millisecond
	maxBackoff = 15 * time.Second
)

// An Update is what one response says about a type.
type Update struct {
	Resources []*discoveryv3.Resource
	Removed   []string
}

// A Type is one kind of resource.
type Type struct {
	URL string
	// OnDemand subscribes only to what Subscribe names; otherwise to all.
	OnDemand bool
	// Apply takes an update over and returns why it refuses some of the
	// resources, by name. It applies the others all the same.
	Apply func(Update) map[string]error
}

// Config configures a client. Types are asked for in their order.
type Config struct {
	Conn  grpc.ClientConnInterface
	Node  *corev3.Node
	Types []Type
	Log   *slog.Logger
}

// A Client keeps one stream to the control plane.
type Client struct {
	cfg  Config
	warm chan struct{}
	wake chan struct{} // a subscription has changed

	mu    sync.Mutex
	types map[string]*typeState
	cold  int // wildcard types of which nothing has arrived yet
	stats Stats
}

// typeState is under Client.mu.
type typeState struct {
	Type
	accepted    map[string]held // what a server is told that we have
	wanted      map[string]bool // OnDemand: names subscribed to
	subscribe   map[string]bool // not yet sent
	unsubscribe map[string]bool
	cold        bool
}

// held is a resource that Apply has accepted; without a version, only refused.
type held struct {
	version string
	aliases []string
}

// Why a stream has ended, for Stats.Terminations.
const (
	ConnectionError = "ConnectionError" // there never was one
	Error           = "Error"
	Reconnect       = "Reconnect" // in the ordinary course of things
	Complete        = "Complete"  // by the server, cleanly
)

// Stats are totals since the client was made.
type Stats struct {
	Connected    bool
	Err          error             // why the latest stream has ended; nil if none has
	Messages     map[string]uint64 // responses, by type URL
	Bytes        map[string]uint64 // of responses, by type URL
	Terminations map[string]uint64 // by reason
}

// New returns a client; Run makes it work.
func New(cfg Config) *Client {
	c := &Client{
		cfg: cfg, warm: make(chan struct{}), wake: make(chan struct{}, 1),
		types: map[string]*typeState{},
		stats: Stats{Messages: map[string]uint64{}, Bytes: map[string]uint64{}, Terminations: map[string]uint64{}},
	}
	for _, t := range cfg.Types {
		c.types[t.URL] = &typeState{
			Type: t, accepted: map[string]held{}, wanted: map[string]bool{},
			subscribe: map[string]bool{}, unsubscribe: map[string]bool{}, cold: !t.OnDemand,
		}
		if !t.OnDemand {
			c.cold++
		}
	}
	if c.cold == 0 {
		close(c.warm)
	}
	return c
}

// Warm is closed once a response of every wildcard type has been processed. What
// was refused of it does not count: one bad resource must not keep everything
// else from working, and its owner stands in for it (see workload.Store). It
// stays closed.
func (c *Client) Warm() <-chan struct{} { return c.warm }

// Stats returns a copy of the counters.
func (c *Client) Stats() Stats {
	c.mu.Lock()
	defer c.mu.Unlock()
	return Stats{
		Connected:    c.stats.Connected,
		Err:          c.stats.Err,
		Messages:     maps.Clone(c.stats.Messages),
		Bytes:        maps.Clone(c.stats.Bytes),
		Terminations: maps.Clone(c.stats.Terminations),
	}
}

// Subscribe asks for resources of an on-demand type by name. One that does not
// exist comes back among Update.Removed.
func (c *Client) Subscribe(url string, names ...string) {
	c.change(url, names, func(t *typeState, name string) {
		if !t.wanted[name] {
			t.wanted[name] = true
			t.subscribe[name] = true
		}
		delete(t.unsubscribe, name)
	})
}

// Unsubscribe ends updates of resources. What was applied stays applied: it is
// the owner's to drop.
func (c *Client) Unsubscribe(url string, names ...string) {
	c.change(url, names, func(t *typeState, name string) {
		if !t.wanted[name] {
			return
		}
		delete(t.wanted, name)
		if t.subscribe[name] {
			delete(t.subscribe, name) // the server has never heard of it
			return
		}
		t.unsubscribe[name] = true
	})
}

func (c *Client) change(url string, names []string, each func(*typeState, string)) {
	c.mu.Lock()
	if t := c.types[url]; t != nil && t.OnDemand {
		for _, name := range names {
			each(t, name)
		}
	}
	c.mu.Unlock()
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// Run keeps the stream up until ctx ends.
func (c *Client) Run(ctx context.Context) error {
	backoff := minBackoff
	for {
		began := time.Now()
		heard, err := c.session(ctx)
		if ctx.Err() != nil {
			return nil
		}
		reason := classify(heard, err)
		c.mu.Lock()
		c.stats.Terminations[reason]++
		c.stats.Err = err
		c.mu.Unlock()
		if heard && time.Since(began) > maxBackoff {
			backoff = minBackoff // what went wrong before is long ago
		}
		delay := minBackoff
		switch reason {
		case ConnectionError, Error:
			delay = backoff
			backoff = min(2*backoff, maxBackoff)
			c.cfg.Log.Warn("xds stream", "reason", reason, "error", err, "retry_in", delay)
		default:
			backoff = minBackoff
			c.cfg.Log.Debug("xds stream", "reason", reason, "error", err)
		}
		if !sleep(ctx, delay) {
			return nil
		}
	}
}

// classify names the way in which a stream has ended (spec/ztunnel.md §4.6).
func classify(heard bool, err error) string {
	s, isStatus := grpcstatus.FromError(err)
	switch {
	case !heard:
		return ConnectionError
	case errors.Is(err, io.EOF) || !isStatus:
		return Complete
	case s.Code() == codes.Unknown, s.Code() == codes.Canceled, s.Code() == codes.DeadlineExceeded:
		return Reconnect
	case s.Code() == codes.Unavailable && ordinary(s.Message()):
		return Reconnect
	}
	return Error
}

// ordinary recognises how gRPC tells that a server has shut down or restarted.
func ordinary(message string) bool {
	for _, part := range []string{"transport is closing", "received prior goaway", "error reading from server: EOF"} {
		if strings.Contains(message, part) {
			return true
		}
	}
	return false
}

// sleep waits for d ± 20 %, and reports false if ctx ends first.
func sleep(ctx context.Context, d time.Duration) bool {
	d = time.Duration(float64(d) * (0.8 + 0.4*rand.Float64()))
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// initial returns the first request for a type on a stream.
//
//   - Wildcard: no names at all, as the protocol has it: "if the client sends an
//     initial request without any resource names, that is a wildcard
//     subscription" (xDS protocol, "How the client specifies what resources to
//     return", https://www.envoyproxy.io/docs/envoy/latest/api-docs/xds_protocol).
//   - On demand: the names; when there are none, "*" both subscribed and
//     unsubscribed, which means "nothing yet" (spec/ztunnel.md §4.3).
func (c *Client) initial(t *typeState) *discoveryv3.DeltaDiscoveryRequest {
	c.mu.Lock()
	defer c.mu.Unlock()
	req := &discoveryv3.DeltaDiscoveryRequest{
		Node: c.cfg.Node, TypeUrl: t.URL, InitialResourceVersions: map[string]string{},
	}
	for name, h := range t.accepted {
		if !t.OnDemand || t.wants(name, h) {
			req.InitialResourceVersions[name] = h.version
		}
	}
	if t.OnDemand {
		clear(t.subscribe)
		clear(t.unsubscribe)
		req.ResourceNamesSubscribe = slices.Sorted(maps.Keys(t.wanted))
		if len(t.wanted) == 0 {
			req.ResourceNamesSubscribe = []string{"*"}
			req.ResourceNamesUnsubscribe = []string{"*"}
		}
	}
	return req
}

func (t *typeState) wants(name string, h held) bool {
	return t.wanted[name] || slices.ContainsFunc(h.aliases, func(alias string) bool { return t.wanted[alias] })
}

// changes returns a request with the subscriptions that changed since the last
// one, nil if none did.
func (c *Client) changes(t *typeState) *discoveryv3.DeltaDiscoveryRequest {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(t.subscribe)+len(t.unsubscribe) == 0 {
		return nil
	}
	req := &discoveryv3.DeltaDiscoveryRequest{
		TypeUrl:                  t.URL,
		ResourceNamesSubscribe:   slices.Sorted(maps.Keys(t.subscribe)),
		ResourceNamesUnsubscribe: slices.Sorted(maps.Keys(t.unsubscribe)),
	}
	clear(t.subscribe)
	clear(t.unsubscribe)
	for name, h := range t.accepted {
		if !t.wants(name, h) {
			delete(t.accepted, name)
		}
	}
	return req
}

// handle applies a response and returns the answer to it.
func (c *Client) handle(res *discoveryv3.DeltaDiscoveryResponse) *discoveryv3.DeltaDiscoveryRequest {
	answer := &discoveryv3.DeltaDiscoveryRequest{TypeUrl: res.GetTypeUrl(), ResponseNonce: res.GetNonce()}
	c.mu.Lock()
	c.stats.Messages[res.GetTypeUrl()]++
	c.stats.Bytes[res.GetTypeUrl()] += uint64(proto.Size(res))
	t := c.types[res.GetTypeUrl()]
	c.mu.Unlock()
	if t == nil {
		c.cfg.Log.Error("xds response of a type that was not asked for", "type", res.GetTypeUrl())
		return answer
	}
	refused := t.Apply(Update{Resources: res.GetResources(), Removed: res.GetRemovedResources()})
	c.accept(t, res, refused)
	if len(refused) > 0 {
		answer.ErrorDetail = &status.Status{Message: refusal(refused)}
		c.cfg.Log.Warn("xds resources refused", "type", res.GetTypeUrl(), "error", answer.GetErrorDetail().GetMessage())
	}
	return answer
}

// accept remembers what we have now. A refused resource keeps the version that
// was accepted before, because so does its owner; without one it is remembered
// with no version, so that a server that we come back to says whether it still
// exists.
func (c *Client) accept(t *typeState, res *discoveryv3.DeltaDiscoveryResponse, refused map[string]error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, r := range res.GetResources() {
		name := r.GetName()
		if _, known := t.accepted[name]; refused[name] == nil {
			t.accepted[name] = held{version: r.GetVersion(), aliases: r.GetAliases()}
		} else if !known {
			t.accepted[name] = held{aliases: r.GetAliases()}
		}
	}
	for _, name := range res.GetRemovedResources() {
		delete(t.accepted, name)
	}
	if t.cold {
		t.cold = false
		if c.cold--; c.cold == 0 {
			close(c.warm)
		}
	}
}

// refusal lists what was refused and why, in order.
func refusal(refused map[string]error) string {
	names := slices.Sorted(maps.Keys(refused))
	parts := make([]string, len(names))
	for i, name := range names {
		parts[i] = fmt.Sprintf("%s: %v", name, cmp.Or(refused[name], errNoReason))
	}
	return strings.Join(parts, "; ")
}

var errNoReason = errors.New("refused")
