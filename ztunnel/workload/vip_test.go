package workload_test

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"

	"google.golang.org/protobuf/proto"

	api "github.com/ambit-mesh/ambit/apis/workload"
	"github.com/ambit-mesh/ambit/ztunnel/workload"
	"github.com/ambit-mesh/ambit/ztunnel/workload/workloadtest"
)

func at(t *testing.T, store *workload.Store, ip, client, want string) {
	t.Helper()
	got := ""
	if svc := store.Snapshot().ServiceByVIP("", netip.MustParseAddr(ip), client); svc != nil {
		got = svc.Key.Namespace + "/" + svc.Name
	}
	if got != want {
		t.Errorf("service at %s for a client in %s: %q, want %q", ip, client, got, want)
	}
}

// TestSharedVirtualAddress removes either of two services at one address; the
// other stays (spec §12.2, defect 5).
func TestSharedVirtualAddress(t *testing.T) {
	for _, address := range []func(*api.Service){func(s *api.Service) { s.Addresses = []*api.NetworkAddress{workloadtest.VIP("10.96.0.1")} }, cidr("10.96.0.0", 24)} {
		for _, namespaces := range [][2]string{{"a", "b"}, {"a", "a"}} {
			for removed := range 2 {
				store := workload.NewStore("", "")
				names := [2]string{"s", "t"}
				for i, ns := range namespaces {
					workloadtest.Apply(t, store, service(ns, names[i], "", address))
				}
				at(t, store, "10.96.0.1", "x", namespaces[0]+"/s")
				store.ApplyAddresses(nil, []string{namespaces[removed] + "/" + names[removed] + ".example"})
				at(t, store, "10.96.0.1", "x", namespaces[1-removed]+"/"+names[1-removed])
				store.ApplyAddresses(nil, []string{namespaces[1-removed] + "/" + names[1-removed] + ".example"})
				at(t, store, "10.96.0.1", "x", "")
			}
		}
	}
}

func TestCanonicalOfTheOwnNamespace(t *testing.T) {
	store := workload.NewStore("", "")
	workloadtest.Apply(t, store, service("b", "z", "10.96.0.1", canonical), service("a", "s", "10.96.0.1"), service("a", "t", "10.96.0.1", canonical))
	at(t, store, "10.96.0.1", "a", "a/t")
	at(t, store, "10.96.0.1", "x", "b/z")
}

func TestRanges(t *testing.T) {
	store := workload.NewStore("", "")
	other := service("a", "other", "", cidr("10.96.0.0", 30))
	other.Addresses[0].Network = "far"
	twice := service("a", "twice", "", cidr("10.97.0.0", 16), cidr("10.97.0.0", 16), cidr("10.97.9.9", 16))
	workloadtest.Apply(t, store, service("a", "v4", "", cidr("10.96.0.0", 16)), service("a", "v6", "", cidr("fd00::", 64)), other, twice,
		service("a", "dual", "", cidr("10.98.0.0", 24), cidr("fd01::", 112)), service("a", "all", "", cidr("0.0.0.0", 0)),
		service("a", "mapped", "", cidr("::ffff:10.99.0.0", 120)))
	for ip, want := range map[string]string{
		"10.96.3.4": "a/v4", "fd00::1": "a/v6", "fd00:0:0:1::1": "", "10.97.1.1": "a/twice", "10.98.0.9": "a/dual", "fd01::9": "a/dual",
		"192.0.2.1": "a/all", "10.99.0.7": "a/mapped", "10.99.1.7": "a/all",
	} {
		at(t, store, ip, "x", want)
	}
	if svc := store.Snapshot().ServiceByVIP("far", netip.MustParseAddr("10.96.0.1"), "x"); svc == nil || svc.Name != "other" {
		t.Errorf("on the other network: %v", svc)
	}
	workloadtest.Apply(t, store, service("a", "twice", "", cidr("10.97.0.0", 16)))
	store.ApplyAddresses(nil, []string{"a/twice.example", "a/all.example"})
	at(t, store, "10.97.1.1", "x", "")
}

// TestVIPsAgainstModel changes services at random and compares look-ups with the
// rule of spec §2.4, read off a list.
func TestVIPsAgainstModel(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	store := workload.NewStore("", "")
	var order []*api.Service // as they first came
	for step := range 2000 {
		ns := string(rune('a' + r.IntN(3)))
		svc := service(ns, fmt.Sprint(r.IntN(8)), "")
		svc.Canonical, svc.Visibility = r.IntN(3) == 0, api.Service_Visibility(r.IntN(2))
		for range r.IntN(3) {
			bits := uint32(28 + r.IntN(5))
			svc.Addresses = append(svc.Addresses, &api.NetworkAddress{Address: []byte{10, 0, 0, byte(r.IntN(8))}, Length: &bits})
		}
		i := 0
		for i < len(order) && (order[i].GetNamespace() != ns || order[i].GetHostname() != svc.GetHostname()) {
			i++
		}
		switch {
		case r.IntN(4) == 0:
			store.ApplyAddresses(nil, []string{ns + "/" + svc.GetHostname()})
			if i < len(order) {
				order = append(order[:i], order[i+1:]...)
			}
		case i < len(order):
			workloadtest.Apply(t, store, svc)
			order[i] = svc
		default:
			workloadtest.Apply(t, store, svc)
			order = append(order, svc)
		}
		ip, client := netip.AddrFrom4([4]byte{10, 0, 0, byte(r.IntN(20))}), string(rune('a'+r.IntN(4)))
		best, bits := model(order, ip, client)
		svcAt := store.Snapshot().ServiceByVIP("", ip, client)
		if (best == nil) != (svcAt == nil) {
			t.Fatalf("step %d: %s from %s: %v, want %v", step, ip, client, svcAt, best)
		}
		if best == nil {
			continue
		}
		// Which came first at an address is the one's who came there first, which
		// the model does not know; all else must be equal.
		var got *api.Service
		for _, o := range order {
			if o.GetNamespace() == svcAt.Key.Namespace && o.GetHostname() == svcAt.Key.Hostname {
				got = o
			}
		}
		if a, b := worth(got, ip, client), worth(best, ip, client); a != b {
			t.Fatalf("step %d: %s from %s: %v of worth %v, want %v of worth %v (%d bits)", step, ip, client, got, a, best, b, bits)
		}
	}
}

// worth orders the services at an address for a client, spec §2.4: exact, of the
// client's namespace, longest prefix, canonical. The zero worth is no match.
func worth(s *api.Service, ip netip.Addr, client string) (out [4]int) {
	flag := func(b bool) int {
		if b {
			return 1
		}
		return 0
	}
	if s.GetVisibility() == api.Service_NAMESPACE && s.GetNamespace() != client {
		return out
	}
	for _, a := range s.GetAddresses() {
		addr, _ := netip.AddrFromSlice(a.GetAddress())
		if !netip.PrefixFrom(addr, int(a.GetLength())).Contains(ip) {
			continue
		}
		w := [4]int{flag(a.GetLength() == 32), flag(s.GetNamespace() == client), 1 + int(a.GetLength()), flag(s.GetCanonical())}
		if less(out, w) {
			out = w
		}
	}
	return out
}

func less(a, b [4]int) bool {
	for i := range a {
		if a[i] != b[i] {
			return a[i] < b[i]
		}
	}
	return false
}

func model(services []*api.Service, ip netip.Addr, client string) (best *api.Service, bits int) {
	var most [4]int
	for _, s := range services {
		if w := worth(s, ip, client); less(most, w) {
			best, most = s, w
		}
	}
	return best, most[2]
}

func TestLocalMeansSameCluster(t *testing.T) {
	of := func(cluster string) func(*api.Workload) {
		return func(w *api.Workload) { w.ClusterId, w.Uid = cluster, cluster+"//Pod/ns/"+w.GetName() }
	}
	for _, tc := range []struct {
		node, cluster string
		want          string
	}{
		{"n1", "c1", "a"}, {"n1", "c2", "b"}, {"n1", "", "ab"}, {"n2", "c1", ""}, {"", "", "ab"}, {"", "c1", "ab"},
	} {
		store := workload.NewStore(tc.node, tc.cluster)
		workloadtest.Apply(t, store, pod("a", "10.0.0.1", of("c1")), pod("b", "10.0.0.2", of("c2")))
		got := ""
		for _, name := range []string{"a", "b"} {
			if store.Snapshot().WorkloadByInfo(name, "ns", "sa") != nil {
				got += name
			}
		}
		if got != tc.want {
			t.Errorf("node %q of cluster %q: local are %q, want %q", tc.node, tc.cluster, got, tc.want)
		}
	}
}

func vipMesh(n int, edit func(i int) func(*api.Service)) []proto.Message {
	var all []proto.Message
	for i := range n {
		all = append(all, service(fmt.Sprintf("ns-%d", i%50), fmt.Sprintf("s%d", i), "", edit(i)))
	}
	return all
}

// BenchmarkVIP is one look-up by virtual address among many services:
// go test -bench VIP ./ztunnel/workload
func BenchmarkVIP(b *testing.B) {
	for _, n := range []int{1, 100, 10_000} {
		exact := workloadtest.Snapshot(b, vipMesh(n, func(i int) func(*api.Service) {
			return func(s *api.Service) {
				s.Addresses = []*api.NetworkAddress{{Address: []byte{10, 96, byte(i >> 8), byte(i)}}}
			}
		})...)
		ranges := workloadtest.Snapshot(b, vipMesh(n, func(i int) func(*api.Service) {
			bits := uint32(24 + i%5)
			return func(s *api.Service) {
				s.Addresses = []*api.NetworkAddress{{Address: []byte{10, byte(96 + i>>14), byte(i >> 6), byte(i << 2)}, Length: &bits}}
			}
		})...)
		for _, bm := range []struct {
			name string
			s    *workload.Snapshot
			ip   string
			hit  bool
		}{
			{"exact-hit", exact, "10.96.0.0", true},
			{"exact-miss", exact, "10.0.0.1", false},
			{"range-hit", ranges, "10.96.0.1", true},
			{"range-miss", ranges, "10.0.0.1", false},
		} {
			b.Run(fmt.Sprintf("%s-%d", bm.name, n), func(b *testing.B) {
				ip := netip.MustParseAddr(bm.ip)
				b.ReportAllocs()
				for b.Loop() {
					if (bm.s.ServiceByVIP("", ip, "client") != nil) != bm.hit {
						b.Fatal("wrong answer")
					}
				}
			})
		}
	}
}
