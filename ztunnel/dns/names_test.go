package dns

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"

	api "github.com/ambit-mesh/ambit/apis/workload"
	"github.com/ambit-mesh/ambit/ztunnel/workload"
	"github.com/ambit-mesh/ambit/ztunnel/workload/workloadtest"
)

// service returns a service by "namespace/hostname" with virtual addresses on the default
// network.
func service(key string, vips ...string) *api.Service {
	namespace, hostname, _ := strings.Cut(key, "/")
	s := &api.Service{Namespace: namespace, Hostname: hostname, Name: hostname}
	for _, vip := range vips {
		s.Addresses = append(s.Addresses, workloadtest.VIP(vip))
	}
	return s
}

func with(s *api.Service, change func(*api.Service)) *api.Service {
	change(s)
	return s
}

// pod returns a workload that serves the services named.
func pod(name, workloadName string, services []string, addresses ...string) *api.Workload {
	w := &api.Workload{Uid: "c//Pod/shop/" + name, Name: name, Namespace: "shop", WorkloadName: workloadName, Services: map[string]*api.PortList{}}
	for _, s := range services {
		w.Services[s] = &api.PortList{Ports: []*api.Port{{ServicePort: 80, TargetPort: 80}}}
	}
	for _, a := range addresses {
		w.Addresses = append(w.Addresses, workloadtest.IP(a))
	}
	return w
}

func world() []proto.Message {
	remote := service("shop/global.shop.svc.cluster.local", "10.96.0.9")
	remote.Addresses = append(remote.Addresses, &api.NetworkAddress{Network: "elsewhere", Address: workloadtest.IP("10.96.1.9")})
	unready := pod("db-1", "db", []string{"shop/db.shop.svc.cluster.local"}, "10.1.0.3")
	unready.Status = api.WorkloadStatus_UNHEALTHY
	return []proto.Message{
		pod("client", "client", nil, "10.1.0.99"),
		service("shop/cart.shop.svc.cluster.local", "10.96.0.1", "fd00:96::1"),
		service("other/cart.other.svc.cluster.local", "10.96.0.2"),
		with(service("shop/four.shop.svc.cluster.local", "10.96.0.3"), func(s *api.Service) { s.IpFamilies = api.IPFamilies_IPV4_ONLY }),
		service("shop/mapped.shop.svc.cluster.local", "::ffff:10.96.0.4"),
		service("shop/db.shop.svc.cluster.local"),
		service("shop/empty.shop.svc.cluster.local"),
		remote,
		service("shop/api.example.com", "240.240.0.1", "2001:2::1"),
		service("shop/*.wild.example.com", "240.240.0.2"),
		service("shop/deep.wild.example.com", "240.240.0.3"),
		service("shop/unallocated.example.com"),
		with(service("shop/ranges.example.com"), func(s *api.Service) {
			s.Addresses = []*api.NetworkAddress{{Address: workloadtest.IP("10.7.0.0"), Length: new(uint32(16))}}
		}),
		with(service("other/secret.example.com", "240.240.1.1"), func(s *api.Service) { s.Visibility = api.Service_NAMESPACE }),
		service("other/shared.example.com", "240.240.1.2"),
		with(service("third/shared.example.com", "240.240.1.3"), func(s *api.Service) { s.Canonical = true }),
		with(service("other/mine.example.com", "240.240.1.4"), func(s *api.Service) { s.Canonical = true }),
		service("shop/mine.example.com", "240.240.1.5"),
		service("other/tie.example.com", "240.240.1.6"),
		service("third/tie.example.com", "240.240.1.7"),
		service("other/short", "240.240.1.8"),
		pod("db-0", "db", []string{"shop/db.shop.svc.cluster.local"}, "10.1.0.2", "fd00:1::2"),
		unready,
		pod("dbclone-0", "db", []string{"shop/db.shop.svc.cluster.local"}, "10.1.0.4"),
	}
}

func TestNames(t *testing.T) {
	s := workload.NewStore("", "")
	workloadtest.Apply(t, s, world()...)
	for _, test := range []struct {
		name, want string // "" is forwarded; addresses, after "alias -> " if there is one
		kind       uint16
		change     func(*Config)
	}{
		// Names of Kubernetes, whole and short.
		{name: "cart.shop.svc.cluster.local", want: "10.96.0.1"},
		{name: "cart.shop.svc.cluster.local", kind: typeAAAA, want: "fd00:96::1"},
		{name: "cart.shop.svc", want: "10.96.0.1"},
		{name: "cart.shop", want: "10.96.0.1"},
		{name: "cart", want: "10.96.0.1"},
		{name: "cart.other", want: "10.96.0.2"},
		{name: "cart.other.svc.cluster.local", want: "10.96.0.2"},
		{name: "nothing.shop.svc.cluster.local"},
		{name: "nothing"},
		{name: ""},
		{name: "cart.shop.svc.cluster.other"},
		{name: "cart", change: func(c *Config) { c.Pod.Namespace = "third" }},
		{name: "cart.shop.svc.example.org", change: func(c *Config) { c.ClusterDomain = "Example.Org." }},
		// What a resolver library has appended.
		{name: "cart.shop.shop.svc.cluster.local", want: "cart.shop -> 10.96.0.1"},
		{name: "cart.other.svc.svc.cluster.local", want: "cart.other.svc -> 10.96.0.2"},
		{name: "api.example.com.shop.svc.cluster.local", want: "api.example.com -> 240.240.0.1"},
		{name: "api.example.com.svc.cluster.local", want: "api.example.com -> 240.240.0.1"},
		{name: "api.example.com.cluster.local", want: "api.example.com -> 240.240.0.1"},
		{name: "api.example.com.other.svc.cluster.local"}, // not the client's namespace
		{name: "api.example.com.lan", change: func(c *Config) { c.Search = []string{"lan"} }, want: "api.example.com -> 240.240.0.1"},
		{name: "api.example.com.shop.svc.cluster.local", change: func(c *Config) { c.Search = []string{"lan"} }},
		// Hosts of ServiceEntries.
		{name: "api.example.com", want: "240.240.0.1"},
		{name: "api.example.com", kind: typeAAAA, want: "2001:2::1"},
		{name: "a.wild.example.com", want: "240.240.0.2"},
		{name: "a.b.c.wild.example.com", want: "240.240.0.2"},
		{name: "deep.wild.example.com", want: "240.240.0.3"},
		{name: "x.deep.wild.example.com", want: "240.240.0.2"},
		{name: "wild.example.com"},
		{name: "a.wild.example.com.shop.svc.cluster.local", want: "240.240.0.2"}, // no CNAME
		{name: "unallocated.example.com"},
		{name: "ranges.example.com"},
		{name: "other.example.com"},
		{name: "short", want: "240.240.1.8"},
		// Who is meant, of several.
		{name: "secret.example.com"},
		{name: "secret.example.com", change: func(c *Config) { c.Pod.Namespace = "other" }, want: "240.240.1.1"},
		{name: "shared.example.com", want: "240.240.1.3"},
		{name: "shared.example.com", change: func(c *Config) { c.PreferredNamespace = "other" }, want: "240.240.1.3"},
		{name: "mine.example.com", want: "240.240.1.5"},
		{name: "tie.example.com", want: "240.240.1.6"},
		{name: "tie.example.com", change: func(c *Config) { c.PreferredNamespace = "third" }, want: "240.240.1.7"},
		// Families, networks, nothing.
		{name: "four.shop", want: "10.96.0.3"},
		{name: "four.shop", kind: typeAAAA, want: "none"},
		{name: "mapped.shop", want: "10.96.0.4"},
		{name: "mapped.shop", kind: typeAAAA, want: "none"},
		{name: "cart.shop", kind: typeAAAA, change: func(c *Config) { c.IPv4Only = true }, want: "none"},
		{name: "cart.other", kind: typeAAAA, want: "none"},
		{name: "global.shop", want: "10.96.0.9"},
		{name: "empty.shop", want: "none"},
		// Services without addresses: endpoints that are ready, and by name if a StatefulSet's.
		{name: "db.shop", want: "10.1.0.2 10.1.0.4"},
		{name: "db.shop", kind: typeAAAA, want: "fd00:1::2"},
		{name: "db-0.db.shop.svc.cluster.local", want: "10.1.0.2"},
		{name: "db-0.db.shop.svc.cluster.local", kind: typeAAAA, want: "fd00:1::2"},
		{name: "db-0.db.shop.svc", want: "10.1.0.2"},
		{name: "db-0.db", want: "10.1.0.2"},
		{name: "db-0.db.shop.svc.cluster.local.shop.svc.cluster.local", want: "db-0.db.shop.svc.cluster.local -> 10.1.0.2"},
		{name: "db-1.db.shop.svc.cluster.local", want: "none"},
		{name: "db-2.db.shop.svc.cluster.local"},
		{name: "dbclone-0.db.shop.svc.cluster.local"},
		{name: "client.shop.svc.cluster.local"},
	} {
		cfg := Config{Pod: workload.Info{Name: "client", Namespace: "shop"}, ClusterDomain: "cluster.local"}
		if test.change != nil {
			test.change(&cfg)
		}
		if test.kind == 0 {
			test.kind = typeA
		}
		if got := resolved(s.Snapshot(), &cfg, test.name, test.kind); got != test.want {
			t.Errorf("%s (type %d) is %q, want %q", test.name, test.kind, got, test.want)
		}
	}
}

// resolved is what a name means, in words.
func resolved(s *workload.Snapshot, cfg *Config, name string, kind uint16) string {
	m := newNamer(cfg).find(s, name)
	if m.service == nil {
		return ""
	}
	var text []string
	if familyAllowed(m, kind, cfg.IPv4Only) {
		for _, a := range addresses(s, m, kind, s.WorkloadByInfo("client", "shop", "default")) {
			text = append(text, a.String())
		}
	}
	slices.Sort(text)
	switch {
	case len(text) == 0:
		return "none"
	case m.alias > 0:
		return name[:m.alias] + " -> " + strings.Join(text, " ")
	}
	return strings.Join(text, " ")
}

// A service that prefers what is near has those endpoints first.
func TestNearFirst(t *testing.T) {
	const db = "shop/db.shop.svc.cluster.local"
	svc := with(service(db), func(s *api.Service) {
		s.LoadBalancing = &api.LoadBalancing{
			Mode:              api.LoadBalancing_FAILOVER,
			RoutingPreference: []api.LoadBalancing_Scope{api.LoadBalancing_REGION, api.LoadBalancing_ZONE},
		}
	})
	at := func(w *api.Workload, region, zone string) *api.Workload {
		w.Locality = &api.Locality{Region: region, Zone: zone}
		return w
	}
	s := workload.NewStore("", "")
	workloadtest.Apply(
		t, s, svc, at(pod("client", "client", nil, "10.1.0.1"), "r", "z"),
		at(pod("far", "", []string{db}, "10.1.0.2"), "elsewhere", "z"),
		at(pod("near", "", []string{db}, "10.1.0.3"), "r", "other"),
		at(pod("here", "", []string{db}, "10.1.0.4"), "r", "z"),
	)
	snapshot := s.Snapshot()
	cfg := Config{Pod: workload.Info{Name: "client", Namespace: "shop"}, ClusterDomain: "cluster.local"}
	m := newNamer(&cfg).find(snapshot, "db.shop")
	got := addresses(snapshot, m, typeA, snapshot.WorkloadByInfo("client", "shop", "default"))
	want := []netip.Addr{netip.MustParseAddr("10.1.0.4"), netip.MustParseAddr("10.1.0.3"), netip.MustParseAddr("10.1.0.2")}
	if d := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); d != "" {
		t.Errorf("same zone, same region, others (-want +got):\n%s", d)
	}
}

func TestResolvConf(t *testing.T) {
	got, err := ParseResolvConf(strings.NewReader("# comment\ndomain old.example\nsearch Shop.svc.cluster.local. svc.cluster.local\n" +
		"nameserver 10.96.0.10\nnameserver fd00:96::10\noptions ndots:5\n"))
	if err != nil {
		t.Fatal(err)
	}
	want := ResolvConf{
		Servers: []netip.AddrPort{netip.MustParseAddrPort("10.96.0.10:53"), netip.MustParseAddrPort("[fd00:96::10]:53")},
		Search:  []string{"shop.svc.cluster.local", "svc.cluster.local"},
	}
	if d := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	if _, err := ParseResolvConf(strings.NewReader("nameserver resolver.example\n")); err == nil {
		t.Error("a nameserver that is no address is accepted")
	}
}

func FuzzParseResolvConf(f *testing.F) {
	f.Add("search a b\nnameserver ::1\n")
	f.Fuzz(func(t *testing.T, text string) {
		c, err := ParseResolvConf(strings.NewReader(text))
		for _, s := range c.Servers {
			if err != nil || !s.IsValid() {
				t.Errorf("server %s, %v", s, err)
			}
		}
	})
}
