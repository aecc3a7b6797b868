package xds_test

import (
	"slices"
	"testing"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	statusv1 "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"

	"github.com/ambit-mesh/ambit/istiod/xds"
	"github.com/ambit-mesh/ambit/istiod/xds/xdstest"
)

// sotw is a client of the state-of-the-world protocol.
type sotw struct {
	t      *testing.T
	stream grpc.BidiStreamingClient[discoveryv3.DiscoveryRequest, discoveryv3.DiscoveryResponse]
	first  bool
}

func newSotw(t *testing.T, r *rig) *sotw {
	t.Helper()
	stream, err := discoveryv3.NewAggregatedDiscoveryServiceClient(r.conn).StreamAggregatedResources(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return &sotw{t: t, stream: stream, first: true}
}

func (s *sotw) send(r *discoveryv3.DiscoveryRequest) {
	s.t.Helper()
	if s.first {
		r.Node, s.first = xdstest.Node("sidecar", "shop", "client"), false
	}
	if err := s.stream.Send(r); err != nil {
		s.t.Fatal(err)
	}
}

// want reads a response, compares the bodies in it and accepts it for names.
func (s *sotw) want(what, typeURL string, bodies []string, names ...string) *discoveryv3.DiscoveryResponse {
	s.t.Helper()
	response, err := s.stream.Recv()
	if err != nil {
		s.t.Fatalf("%s: %v", what, err)
	}
	var got []string
	for _, body := range response.GetResources() {
		got = append(got, string(body.GetValue()))
	}
	if response.GetTypeUrl() != typeURL || !slices.Equal(got, bodies) {
		s.t.Errorf("%s: got %s %v, want %s %v", what, response.GetTypeUrl(), got, typeURL, bodies)
	}
	s.send(&discoveryv3.DiscoveryRequest{
		TypeUrl: typeURL, ResourceNames: names, ResponseNonce: response.GetNonce(), VersionInfo: response.GetVersionInfo(),
	})
	return response
}

func TestStateOfTheWorld(t *testing.T) {
	r := newRig(t)
	r.store.Update([]xds.Resource{
		resource(cluster, "a", "cluster a"), resource(cluster, "b", "cluster b"), resource(cluster, "x", "not for it", "wp1"),
		resource(endpoint, "a", "endpoints a"), resource(endpoint, "b", "endpoints b"),
		resource(listener, "l", "listener l"), resource(route, "r", "route r"),
	}, nil)
	s := newSotw(t, r)
	s.send(&discoveryv3.DiscoveryRequest{TypeUrl: cluster})
	s.want("no names: everything", cluster, []string{"cluster a", "cluster b"})
	s.send(&discoveryv3.DiscoveryRequest{TypeUrl: endpoint})
	s.send(&discoveryv3.DiscoveryRequest{TypeUrl: listener, ResourceNames: []string{"l"}})
	s.want("endpoints only by name; a listener by name", listener, []string{"listener l"}, "l")
	s.send(&discoveryv3.DiscoveryRequest{TypeUrl: endpoint, ResourceNames: []string{"a"}})
	s.want("by name", endpoint, []string{"endpoints a"}, "a", "b")
	s.want("the ACK asks for one more: all that is subscribed to", endpoint, []string{"endpoints a", "endpoints b"}, "a", "b")

	r.store.Update([]xds.Resource{resource(cluster, "c", "cluster c"), resource(endpoint, "c", "endpoints c")}, nil)
	last := s.want("a change: the full set, and nothing unsubscribed", cluster, []string{"cluster a", "cluster b", "cluster c"})
	s.send(&discoveryv3.DiscoveryRequest{ // answered already, so out of date
		TypeUrl: cluster, ResponseNonce: last.GetNonce(), ErrorDetail: &statusv1.Status{Message: "late"},
	})
	eventually(t, "the late answer is counted", func() bool { return r.metric("pilot_xds_expired_nonce") == 1 })
	r.store.Update([]xds.Resource{resource(listener, "l", "listener l2")}, []xds.Ref{{TypeURL: cluster, Name: "a"}})
	s.want("what lets go comes first", listener, []string{"listener l2"}, "l")
	s.want("what goes comes last", cluster, []string{"cluster b", "cluster c"})
	if got := r.metric("pilot_total_xds_rejects"); got != 0 {
		t.Errorf("rejects = %v", got)
	}
}
