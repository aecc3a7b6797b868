package xds

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/proto"
)

const (
	typeA = "type.googleapis.com/a"
	typeB = "type.googleapis.com/b"
	typeD = "type.googleapis.com/demand"
)

// served is one stream as the server sees it; the test plays the server.
type served struct {
	t    *testing.T
	in   chan *discoveryv3.DeltaDiscoveryRequest
	out  chan *discoveryv3.DeltaDiscoveryResponse
	done chan error // ends the stream
}

type server struct {
	discoveryv3.UnimplementedAggregatedDiscoveryServiceServer
	t        *testing.T
	sessions chan *served
}

func (s *server) DeltaAggregatedResources(stream discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
	v := &served{
		t: s.t, in: make(chan *discoveryv3.DeltaDiscoveryRequest, 100),
		out: make(chan *discoveryv3.DeltaDiscoveryResponse, 100), done: make(chan error, 1),
	}
	go func() {
		for {
			req, err := stream.Recv()
			if err != nil {
				return
			}
			v.in <- req
		}
	}()
	s.sessions <- v
	for {
		select {
		case res := <-v.out:
			if err := stream.Send(res); err != nil {
				return err
			}
		case err := <-v.done:
			return err
		case <-stream.Context().Done():
			return nil
		}
	}
}

// want compares a request with its summary.
func (v *served) want(what, summary string) {
	v.t.Helper()
	select {
	case req := <-v.in:
		if got := summarize(req); got != summary {
			v.t.Fatalf("%s: got %q, want %q", what, got, summary)
		}
	case <-time.After(10 * time.Second):
		v.t.Fatalf("%s: nothing, want %q", what, summary)
	}
}

// summarize: "type [node] +subscribed -unsubscribed have=name@version nonce=n error=text".
func summarize(req *discoveryv3.DeltaDiscoveryRequest) string {
	parts := []string{strings.TrimPrefix(req.GetTypeUrl(), "type.googleapis.com/")}
	if req.GetNode() != nil {
		parts = append(parts, req.GetNode().GetId())
	}
	for _, n := range req.GetResourceNamesSubscribe() {
		parts = append(parts, "+"+n)
	}
	for _, n := range req.GetResourceNamesUnsubscribe() {
		parts = append(parts, "-"+n)
	}
	for _, n := range slices.Sorted(maps.Keys(req.GetInitialResourceVersions())) {
		parts = append(parts, "have="+n+"@"+req.GetInitialResourceVersions()[n])
	}
	if req.GetResponseNonce() != "" {
		parts = append(parts, "nonce="+req.GetResponseNonce())
	}
	if req.GetErrorDetail() != nil {
		parts = append(parts, "error="+req.GetErrorDetail().GetMessage())
	}
	return strings.Join(parts, " ")
}

// send sends resources given as "name@version" and removals as "-name".
func (v *served) send(url, nonce string, resources ...string) {
	res := &discoveryv3.DeltaDiscoveryResponse{TypeUrl: url, Nonce: nonce}
	for _, r := range resources {
		if removed, ok := strings.CutPrefix(r, "-"); ok {
			res.RemovedResources = append(res.RemovedResources, removed)
			continue
		}
		name, version, _ := strings.Cut(r, "@")
		name, alias, isAliased := strings.Cut(name, "=")
		resource := &discoveryv3.Resource{Name: name, Version: version}
		if isAliased {
			resource.Aliases = []string{alias}
		}
		res.Resources = append(res.Resources, resource)
	}
	v.out <- res
}

// state is what an owner of a type keeps; versions with "bad" are refused.
type state map[string]string

func (s state) apply(u Update) map[string]error {
	refused := map[string]error{}
	for _, r := range u.Resources {
		if strings.Contains(r.GetVersion(), "bad") {
			refused[r.GetName()] = errors.New("cannot be read")
			continue
		}
		s[r.GetName()] = r.GetVersion()
	}
	for _, name := range u.Removed {
		delete(s, name)
	}
	return refused
}

func (s state) String() string {
	parts := []string{}
	for _, n := range slices.Sorted(maps.Keys(s)) {
		parts = append(parts, n+"@"+s[n])
	}
	return strings.Join(parts, " ")
}

// start runs a client against a scripted server.
func start(t *testing.T, types ...Type) (*Client, *server) {
	t.Helper()
	s := &server{t: t, sessions: make(chan *served, 10)}
	l := bufconn.Listen(1 << 20)
	g := grpc.NewServer()
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(g, s)
	go func() { _ = g.Serve(l) }()
	conn, err := grpc.NewClient("passthrough:///ads", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return l.DialContext(ctx) }))
	if err != nil {
		t.Fatalf("client: %v", err)
	}
	c := New(Config{Conn: conn, Node: &corev3.Node{Id: "node"}, Types: types, Log: slog.New(slog.DiscardHandler)})
	ctx, cancel := context.WithCancel(context.Background())
	ran := make(chan error, 1)
	go func() { ran <- c.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ran; err != nil {
			t.Errorf("run: %v", err)
		}
		_ = conn.Close()
		g.Stop()
	})
	return c, s
}

func (s *server) session() *served {
	s.t.Helper()
	select {
	case v := <-s.sessions:
		return v
	case <-time.After(10 * time.Second):
		s.t.Fatal("no stream within 10s")
		return nil
	}
}

func isWarm(c *Client) bool {
	select {
	case <-c.Warm():
		return true
	default:
		return false
	}
}

func TestAckNackAndResume(t *testing.T) {
	a, b := state{}, state{}
	c, s := start(t, Type{URL: typeA, Apply: a.apply}, Type{URL: typeB, Apply: b.apply})
	v := s.session()
	v.want("first of A", "a node")
	v.want("first of B", "b node")
	v.send(typeA, "1", "x@1", "y@1", "z@bad")
	v.want("z is refused", "a nonce=1 error=z: cannot be read")
	if a.String() != "x@1 y@1" {
		t.Errorf("the others are applied: got %q", a)
	}
	if isWarm(c) {
		t.Error("warm although nothing of B has arrived")
	}
	v.send(typeB, "2")
	v.want("empty response", "b nonce=2")
	if !isWarm(c) {
		t.Error("one refused resource of A keeps the client cold")
	}
	v.send(typeA, "3", "y@bad2", "w@bad", "-x", "v@1")
	v.want("two refusals in order", "a nonce=3 error=w: cannot be read; y: cannot be read")
	v.send(typeA, "4", "u@7")
	v.want("accepted", "a nonce=4")
	v.send("type.googleapis.com/unknown", "5", "x@1")
	v.want("unknown type", "unknown nonce=5")

	v.done <- status.Error(codes.Unavailable, "transport is closing")
	v = s.session()
	// What was refused is there as its owner still has it, else without a
	// version: the server is to say whether it is there still.
	v.want("resumes with what it has", "a node have=u@7 have=v@1 have=w@ have=y@1 have=z@")
	v.want("and", "b node")
	v.send(typeA, "1", "-u", "-w", "-z", "y@2")
	v.want("accepted", "a nonce=1")
	if a.String() != "v@1 y@2" {
		t.Errorf("after resumption: got %q", a)
	}
	v.done <- nil
	v = s.session()
	v.want("resumes", "a node have=v@1 have=y@2")
	stats := c.Stats()
	if stats.Messages[typeA] != 4 || stats.Messages[typeB] != 1 || stats.Bytes[typeA] == 0 ||
		stats.Terminations[Reconnect] != 1 || stats.Terminations[Complete] != 1 {
		t.Errorf("stats: %+v", stats)
	}
}

func TestOnDemand(t *testing.T) {
	a, d := state{}, state{}
	c, s := start(t, Type{URL: typeA, Apply: a.apply}, Type{URL: typeD, OnDemand: true, Apply: d.apply})
	v := s.session()
	v.want("first of A", "a node")
	v.want("nothing yet", "demand node +* -*")
	c.Subscribe(typeD, "n1/10.0.0.1", "n1/10.0.0.2")
	v.want("subscribed", "demand +n1/10.0.0.1 +n1/10.0.0.2")
	c.Subscribe(typeD, "n1/10.0.0.1") // already
	v.send(typeD, "1", "uid1=n1/10.0.0.1@1", "-n1/10.0.0.2")
	v.want("accepted", "demand nonce=1")
	c.Unsubscribe(typeD, "n1/10.0.0.2", "never subscribed")
	v.want("unsubscribed", "demand -n1/10.0.0.2")
	c.Subscribe(typeA, "x") // wildcard: of no effect
	v.send(typeA, "2")
	v.want("accepted", "a nonce=2")
	<-c.Warm() // on-demand types do not count
	v.done <- nil
	v = s.session()
	v.want("A again", "a node")
	v.want("with its names and what it has", "demand node +n1/10.0.0.1 have=uid1@1")
	c.Unsubscribe(typeD, "n1/10.0.0.1")
	v.want("unsubscribed", "demand -n1/10.0.0.1")
	v.done <- nil
	v = s.session()
	v.want("A again", "a node")
	v.want("nothing, and has nothing", "demand node +* -*")
}

func TestWarmWithoutWildcard(t *testing.T) {
	if c := New(Config{Types: []Type{{URL: typeD, OnDemand: true}}}); !isWarm(c) {
		t.Error("not warm, with nothing to wait for")
	}
}

// refusing is a connection on which no stream can be opened.
type refusing struct {
	grpc.ClientConnInterface
	start time.Time
	tries []time.Duration
}

func (r *refusing) NewStream(context.Context, *grpc.StreamDesc, string, ...grpc.CallOption) (grpc.ClientStream, error) {
	r.tries = append(r.tries, time.Since(r.start))
	return nil, status.Error(codes.Unavailable, "connection refused")
}

func TestBackoff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		conn := &refusing{start: time.Now()}
		c := New(Config{Conn: conn, Types: []Type{{URL: typeA}}, Log: slog.New(slog.DiscardHandler)})
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
		defer cancel()
		if err := c.Run(ctx); err != nil {
			t.Errorf("run: %v", err)
		}
		want := minBackoff
		for i := 1; i < len(conn.tries); i++ {
			got := conn.tries[i] - conn.tries[i-1]
			if got < want*8/10 || got > want*12/10 {
				t.Errorf("delay %d: got %v, want %v ± 20%%", i, got, want)
			}
			want = min(2*want, maxBackoff)
		}
		if n := len(conn.tries); n < 40 {
			t.Errorf("%d attempts in 10m", n)
		}
		if err := c.Stats().Err; status.Code(err) != codes.Unavailable {
			t.Errorf("why there is no stream: %v", err)
		}
		if got := c.Stats().Terminations[ConnectionError]; int(got) < len(conn.tries)-1 {
			t.Errorf("%d connection errors counted, of %d", got, len(conn.tries))
		}
	})
}

// lasting opens streams that answer once and fail after a minute.
type lasting struct {
	grpc.ClientConnInterface
	opened int
}

func (l *lasting) NewStream(ctx context.Context, _ *grpc.StreamDesc, _ string, _ ...grpc.CallOption) (grpc.ClientStream, error) {
	l.opened++
	return &lastingStream{ctx: ctx}, nil
}

type lastingStream struct {
	grpc.ClientStream
	ctx      context.Context
	answered bool
}

func (s *lastingStream) SendMsg(any) error { return nil }

func (s *lastingStream) RecvMsg(m any) error {
	if !s.answered {
		s.answered = true
		proto.Merge(m.(proto.Message), &discoveryv3.DeltaDiscoveryResponse{TypeUrl: typeA, Nonce: "1"})
		return nil
	}
	select {
	case <-time.After(time.Minute):
		return status.Error(codes.Unavailable, "no endpoints")
	case <-s.ctx.Done():
		return s.ctx.Err()
	}
}

// TestBackoffForgets: a stream that has lasted makes earlier failures history.
func TestBackoffForgets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		conn := &lasting{}
		apply := func(Update) map[string]error { return nil }
		c := New(Config{Conn: conn, Types: []Type{{URL: typeA, Apply: apply}}, Log: slog.New(slog.DiscardHandler)})
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		if err := c.Run(ctx); err != nil {
			t.Errorf("run: %v", err)
		}
		if conn.opened < 59 {
			t.Errorf("%d streams in an hour, want one a minute", conn.opened)
		}
	})
}

func TestClassify(t *testing.T) {
	tests := []struct {
		heard bool
		err   error
		want  string
	}{
		{false, status.Error(codes.Unauthenticated, "no"), ConnectionError},
		{true, status.Error(codes.Unauthenticated, "no"), Error},
		{true, status.Error(codes.Unavailable, "no endpoints"), Error},
		{true, status.Error(codes.Unavailable, "transport is closing"), Reconnect},
		{true, status.Error(codes.Unavailable, "closing transport due to: connection error: desc = \"x\", received prior goaway: code: NO_ERROR"), Reconnect},
		{true, status.Error(codes.DeadlineExceeded, "x"), Reconnect},
		{true, status.Error(codes.Canceled, "x"), Reconnect},
		{true, status.Error(codes.Unknown, "x"), Reconnect},
		{true, fmt.Errorf("x"), Complete},
	}
	for _, test := range tests {
		if got := classify(test.heard, test.err); got != test.want {
			t.Errorf("%v, heard %v: got %s, want %s", test.err, test.heard, got, test.want)
		}
	}
}
