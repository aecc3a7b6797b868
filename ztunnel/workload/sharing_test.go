package workload

import (
	"context"
	"fmt"
	"testing"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	api "github.com/ambit-mesh/ambit/apis/workload"
)

// TestSharingForgets lets workloads come and go, each with names that no other
// has had, while others are read that stay: what is gone is forgotten, and what
// stays is still shared.
func TestSharingForgets(t *testing.T) {
	resource := func(name, unique string) *discoveryv3.Resource {
		w := &api.Workload{
			Uid: name, Name: name, Namespace: "ns", Node: unique, CanonicalName: unique + "-c", CanonicalRevision: unique + "-r", ServiceAccount: "sa-" + unique,
			AuthorizationPolicies: []string{"ns/" + unique}, Services: map[string]*api.PortList{"ns/" + unique: {Ports: []*api.Port{{ServicePort: 80}}}},
		}
		data, err := proto.Marshal(&api.Address{Type: &api.Address_Workload{Workload: w}})
		if err != nil {
			t.Fatal(err)
		}
		return &discoveryv3.Resource{Name: name, Resource: &anypb.Any{Value: data}}
	}
	store := NewStore("", "")
	store.ApplyAddresses([]*discoveryv3.Resource{resource("stays", "common")}, nil)
	ctx, cancel := context.WithCancel(t.Context())
	read := make(chan struct{})
	go func() {
		defer close(read)
		for ctx.Err() == nil {
			w := store.Snapshot().Workload("stays")
			if w.Name+w.Node+w.Policies[0]+w.Services[0].Service.Hostname != "stayscommonns/commoncommon" || w.Self()[0] != w.Identity {
				t.Error("a workload changes while it is read")
				return
			}
		}
	}()
	for i := range 5000 {
		store.ApplyAddresses([]*discoveryv3.Resource{resource("comes-and-goes", fmt.Sprint(i))}, nil)
	}
	cancel()
	<-read
	if n := store.shared.size(); n > 2*sharingFloor {
		t.Errorf("%d entries for two workloads", n)
	}
	store.ApplyAddresses([]*discoveryv3.Resource{resource("like-it", "common")}, nil)
	a, b := store.Snapshot().Workload("stays"), store.Snapshot().Workload("like-it")
	if &a.Policies[0] != &b.Policies[0] || &a.Services[0] != &b.Services[0] || &a.Self()[0] != &b.Self()[0] {
		t.Error("two workloads do not share what they have in common")
	}
}

func TestListsThatLookAlike(t *testing.T) {
	var s sharing
	s.clear()
	for _, l := range [][]string{{"a", "b"}, {"ab"}, {"a\x01b"}, {"", "ab"}, {"ab", ""}} {
		if got := s.list(append([]string{}, l...)); fmt.Sprint(got) != fmt.Sprint(l) || len(got) != len(l) {
			t.Errorf("%q became %q", l, got)
		}
	}
	for _, l := range [][]Membership{
		{{Service: ServiceKey{"a", "b"}}}, {{Service: ServiceKey{"a", "b"}, Ports: []Port{{1, 2}}}}, {{Service: ServiceKey{"a", "b"}, Ports: []Port{{1, 3}}}}, {{Service: ServiceKey{"", "ab"}}},
	} {
		if got := s.services(append([]Membership{}, l...)); fmt.Sprint(got) != fmt.Sprint(l) {
			t.Errorf("%v became %v", l, got)
		}
	}
}
