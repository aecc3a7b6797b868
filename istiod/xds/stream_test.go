package xds

import (
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/ambit-mesh/ambit/apis/mesh"
)

// FuzzRequest applies two requests of any content to a stream, in either
// protocol: no panic, and only what is visible is ever sent.
func FuzzRequest(f *testing.F) {
	add := func(first, second *discoveryv3.DeltaDiscoveryRequest) {
		one, err := proto.Marshal(first)
		if err != nil {
			f.Fatal(err)
		}
		two, err := proto.Marshal(second)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(one, two)
	}
	add(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: mesh.TypeAddress, Node: &corev3.Node{Id: "ztunnel~1"}},
		&discoveryv3.DeltaDiscoveryRequest{TypeUrl: mesh.TypeAddress, ResponseNonce: "x.0.1"})
	add(&discoveryv3.DeltaDiscoveryRequest{
		TypeUrl: mesh.TypeAddress, ResourceNamesSubscribe: []string{"*", "secret", "/10.0.0.1"},
		InitialResourceVersions: map[string]string{"secret": "1", "a": "1"},
	}, &discoveryv3.DeltaDiscoveryRequest{TypeUrl: mesh.TypeAddress, ResourceNamesUnsubscribe: []string{"*", "a"}})
	f.Fuzz(func(t *testing.T, first, second []byte) {
		for _, full := range []bool{false, true} {
			server := NewServer(Config{Store: NewStore()})
			body := &anypb.Any{TypeUrl: mesh.TypeAddress, Value: []byte("1")}
			server.cfg.Store.Update([]Resource{
				{TypeURL: mesh.TypeAddress, Name: "a", Aliases: []string{"/10.0.0.1"}, Body: body},
				{TypeURL: mesh.TypeAddress, Name: "secret", Aliases: []string{"/10.0.0.1"}, Scopes: []string{"other"}, Body: body},
			}, nil)
			st := newStream(&corev3.Node{Id: "ztunnel~1"}, nil, full)
			server.cfg.Store.join(st)
			for _, raw := range [][]byte{first, second} {
				var m discoveryv3.DeltaDiscoveryRequest
				if err := proto.Unmarshal(raw, &m); err != nil {
					return
				}
				r := request{
					node: m.GetNode(), typeURL: m.GetTypeUrl(), names: m.GetResourceNamesSubscribe(),
					subscribe: m.GetResourceNamesSubscribe(), unsubscribe: m.GetResourceNamesUnsubscribe(),
					versions: m.GetInitialResourceVersions(), nonce: m.GetResponseNonce(),
					rejected: m.GetErrorDetail() != nil, rejection: m.GetErrorDetail().GetMessage(),
				}
				if err := server.handle(st, r); err != nil {
					return
				}
				server.cfg.Store.Update(nil, []Ref{{mesh.TypeAddress, "a"}})
				for _, p := range st.take(server.cfg.Store) {
					if full {
						st.complete(server.cfg.Store, &p)
					}
					for _, e := range p.add {
						if e.Name == "secret" {
							t.Error("a resource of another scope is sent")
						}
					}
				}
			}
		}
	})
}
