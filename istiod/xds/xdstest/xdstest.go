// Package xdstest is a scripted xDS client and an in-memory server to connect it
// to, for tests of what istiod sends. It never leaves a test binary.
package xdstest

import (
	"context"
	"errors"
	"io"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	statusv1 "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
)

// patience is how long a test waits for what must come.
const patience = 10 * time.Second

// Serve runs a gRPC server until the test ends and returns a connection to it.
func Serve(tb testing.TB, register func(grpc.ServiceRegistrar), opts ...grpc.ServerOption) *grpc.ClientConn {
	tb.Helper()
	listener := bufconn.Listen(1 << 16)
	server := grpc.NewServer(opts...)
	register(server)
	var wait sync.WaitGroup
	wait.Go(func() {
		if err := server.Serve(listener); err != nil && !errors.Is(err, grpc.ErrServerStopped) {
			tb.Errorf("serve: %v", err)
		}
	})
	conn, err := grpc.NewClient("passthrough:///istiod",
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return listener.DialContext(ctx) }),
		grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		tb.Fatalf("client: %v", err)
	}
	tb.Cleanup(func() {
		if err := conn.Close(); err != nil {
			tb.Errorf("close: %v", err)
		}
		server.Stop()
		wait.Wait()
	})
	return conn
}

// Node returns a node as a proxy of the type sends it.
func Node(kind, namespace, pod string) *corev3.Node {
	return &corev3.Node{Id: kind + "~10.0.0.1~" + pod + "." + namespace + "~" + namespace + ".svc.cluster.local"}
}

// Delta is a client of the incremental protocol, in the test's goroutine.
type Delta struct {
	t      testing.TB
	stream grpc.BidiStreamingClient[discoveryv3.DeltaDiscoveryRequest, discoveryv3.DeltaDiscoveryResponse]
	cancel context.CancelFunc
	node   *corev3.Node
	inbox  chan *discoveryv3.DeltaDiscoveryResponse
	ended  chan error
}

// Connect opens a delta stream. The node goes with the first request.
func Connect(tb testing.TB, conn grpc.ClientConnInterface, node *corev3.Node) *Delta {
	tb.Helper()
	d := open(tb, conn, node)
	var wait sync.WaitGroup
	wait.Go(d.read)
	tb.Cleanup(func() { d.cancel(); wait.Wait() })
	return d
}

// Stalled opens a delta stream whose responses nobody reads.
func Stalled(tb testing.TB, conn grpc.ClientConnInterface, node *corev3.Node) *Delta {
	tb.Helper()
	d := open(tb, conn, node)
	tb.Cleanup(d.cancel)
	return d
}

func open(tb testing.TB, conn grpc.ClientConnInterface, node *corev3.Node) *Delta {
	tb.Helper()
	ctx, cancel := context.WithCancel(tb.Context())
	stream, err := discoveryv3.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(ctx)
	if err != nil {
		cancel()
		tb.Fatalf("open stream: %v", err)
	}
	return &Delta{
		t: tb, stream: stream, cancel: cancel, node: node,
		inbox: make(chan *discoveryv3.DeltaDiscoveryResponse, 1<<10), ended: make(chan error, 1),
	}
}

func (d *Delta) read() {
	for {
		response, err := d.stream.Recv()
		if err != nil {
			d.ended <- err
			return
		}
		select {
		case d.inbox <- response:
		case <-d.stream.Context().Done():
		}
	}
}

// Send sends any request, with the node if it is the first.
func (d *Delta) Send(r *discoveryv3.DeltaDiscoveryRequest) {
	d.t.Helper()
	r.Node, d.node = d.node, nil
	if err := d.stream.Send(r); err != nil && !errors.Is(err, io.EOF) { // EOF: Recv says why
		d.t.Fatalf("send: %v", err)
	}
}

// Subscribe asks for names, or in the first request without names for everything.
func (d *Delta) Subscribe(typeURL string, names ...string) {
	d.t.Helper()
	d.Send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: typeURL, ResourceNamesSubscribe: names})
}

// Resume asks for everything and says what is held already.
func (d *Delta) Resume(typeURL string, versions map[string]string) {
	d.t.Helper()
	d.Send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: typeURL, InitialResourceVersions: versions})
}

// Ack accepts a response.
func (d *Delta) Ack(r *discoveryv3.DeltaDiscoveryResponse) {
	d.t.Helper()
	d.Send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: r.GetTypeUrl(), ResponseNonce: r.GetNonce()})
}

// Nack rejects a response.
func (d *Delta) Nack(r *discoveryv3.DeltaDiscoveryResponse, why string) {
	d.t.Helper()
	d.Send(&discoveryv3.DeltaDiscoveryRequest{
		TypeUrl: r.GetTypeUrl(), ResponseNonce: r.GetNonce(), ErrorDetail: &statusv1.Status{Message: why},
	})
}

// Next returns the next response, which it accepts.
func (d *Delta) Next() *discoveryv3.DeltaDiscoveryResponse {
	d.t.Helper()
	r := d.Peek()
	d.Ack(r)
	return r
}

// Peek returns the next response and does not answer it.
func (d *Delta) Peek() *discoveryv3.DeltaDiscoveryResponse {
	d.t.Helper()
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case r := <-d.inbox:
		return r
	case err := <-d.ended:
		d.ended <- err
		d.t.Fatalf("stream ended: %v", err)
	case <-timer.C:
		d.t.Fatal("no response")
	}
	return nil
}

// Poll returns a response if one is there within the time.
func (d *Delta) Poll(wait time.Duration) (*discoveryv3.DeltaDiscoveryResponse, bool) {
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case r := <-d.inbox:
		return r, true
	case <-timer.C:
		return nil, false
	}
}

// Drain throws away all responses until the stream ends.
func (d *Delta) Drain() {
	for {
		select {
		case <-d.inbox:
		case <-d.stream.Context().Done():
			return
		}
	}
}

// End returns how the server ended the stream.
func (d *Delta) End() *status.Status {
	d.t.Helper()
	timer := time.NewTimer(patience)
	defer timer.Stop()
	for {
		select {
		case <-d.inbox:
		case err := <-d.ended:
			d.ended <- err
			return status.Convert(err)
		case <-timer.C:
			d.t.Fatal("the stream did not end")
		}
	}
}

// Close ends the stream as a proxy that goes away.
func (d *Delta) Close() { d.cancel() }

// Names returns the names of a response's resources, sorted.
func Names(r *discoveryv3.DeltaDiscoveryResponse) []string {
	names := make([]string, 0, len(r.GetResources()))
	for _, resource := range r.GetResources() {
		names = append(names, resource.GetName())
	}
	slices.Sort(names)
	return names
}
