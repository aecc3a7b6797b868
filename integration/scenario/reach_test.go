package scenario

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/ambit-mesh/ambit/integration/bed"
)

// reach: who reaches whom, and by which way.
var reach = []scenario{
	{"matrix", nil, matrix},
	{"server speaks first", nil, serverFirst},
	{"half-close", nil, halfClose},
	{"service over both kinds of endpoint", nil, loadBalancing},
	{"unknown destination", nil, unknownDestination},
}

// matrix: captured and not, on one node and across, IPv4 and IPv6.
func matrix(w *world) {
	const node = 1
	type end struct {
		pod      *bed.Pod
		node     int
		captured bool
	}
	var clients, servers []end
	for _, n := range []int{0, 1} {
		clients = append(clients,
			end{w.pod(n, fmt.Sprintf("client-%d", n)), n, true},
			end{w.plainPod(n, fmt.Sprintf("plain-client-%d", n)), n, false})
	}
	servers = append(servers, end{w.pod(node, "server"), node, true}, end{w.plainPod(node, "plain-server"), node, false})
	for _, s := range servers {
		w.serve(s.pod, 8080)
	}
	w.tell()
	for _, c := range clients {
		for _, s := range servers {
			for _, family := range []string{"v4", "v6"} {
				w.Run(fmt.Sprintf("%s to %s %s", c.pod.Name, s.pod.Name, family), func(t *testing.T) {
					from, to := c.pod.Addr, s.pod.Addr
					if family == "v6" {
						from, to = c.pod.Addr6, s.pod.Addr6
					}
					got, err := w.ask(c.pod, at(to, 8080))
					if want := (answer{s.pod.Name, from}); err != nil || got != want {
						t.Fatalf("answer: %v, %v; want %v, nil", got, err, want)
					}
					both := c.captured && s.captured
					if c.captured {
						l := w.awaitLine(c.node, "of the client", func(l line) bool { return l.Direction == "outbound" && isFrom(l, from) && l.DstWorkload == s.pod.Name })
						check(t, l, both, c.pod, s.pod, to)
					}
					if s.captured {
						l := w.awaitLine(s.node, "of the server", func(l line) bool { return l.Direction == "inbound" && isFrom(l, from) && l.DstWorkload == s.pod.Name })
						check(t, l, both, c.pod, s.pod, to)
					}
				})
			}
		}
	}
}

func isFrom(l line, addr netip.Addr) bool {
	from, err := netip.ParseAddrPort(l.SrcAddr)
	return err == nil && from.Addr() == addr
}

// check compares an access line with what was done.
func check(t *testing.T, l line, mtls bool, from, to *bed.Pod, addr netip.Addr) {
	t.Helper()
	src, dst, hbone, port := "", "", "", uint16(8080)
	if mtls {
		src, dst, hbone, port = identity(from), identity(to), at(addr, 8080).String(), 15008
	}
	if l.SrcIdentity != src || l.DstIdentity != dst || l.DstHBONE != hbone || l.DstAddr != at(addr, port).String() || l.Error != "" {
		t.Errorf("line %+v; want identities %q and %q, authority %q, destination port %d", l, src, dst, hbone, port)
	}
}

func serverFirst(w *world) {
	client, server := w.pod(0, "client"), w.pod(1, "server")
	l, err := server.Listen(8080)
	w.must(err)
	w.accept(l, func(c net.Conn) { _, _ = io.WriteString(c, "banner\n") })
	w.tell()
	c, err := w.dial(client, at(server.Addr, 8080))
	w.must(err)
	if got, err := io.ReadAll(c); string(got) != "banner\n" || err != nil {
		w.Errorf("got %q, %v", got, err)
	}
}

// halfClose: the server answers only when the client has ended, and the other
// way round; nothing is cut short.
func halfClose(w *world) {
	client, server := w.pod(0, "client"), w.pod(1, "server")
	l, err := server.Listen(8080)
	w.must(err)
	w.accept(l, func(c net.Conn) {
		got, err := io.ReadAll(c)
		if err == nil {
			_, _ = fmt.Fprintf(c, "%d\n", len(got))
		}
	})
	w.tell()
	for _, size := range []int{0, 1, 100_000, 10_000_000} {
		c, err := client.Dial(w.ctx, at(server.Addr, 8080))
		w.must(err)
		w.Cleanup(func() { _ = c.Close() })
		if _, err := io.Copy(c, io.LimitReader(zeros{}, int64(size))); err != nil {
			w.Fatal(err)
		}
		w.must(c.CloseWrite())
		got, err := bufio.NewReader(c).ReadString('\n')
		if strings.TrimSpace(got) != fmt.Sprint(size) || err != nil {
			w.Errorf("%d bytes: the server has seen %q, %v", size, got, err)
		}
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { return len(p), nil }

// loadBalancing: 50 connections to a virtual address reach both endpoints, one
// of the mesh and one that is not.
func loadBalancing(w *world) {
	client, inside, outside := w.pod(0, "client"), w.pod(1, "inside"), w.plainPod(1, "outside")
	w.service("web", "10.96.0.10", inside, outside)
	w.serve(inside, 8080)
	w.serve(outside, 8080)
	w.tell()
	seen := map[string]int{}
	for range 50 {
		got, err := w.ask(client, netip.MustParseAddrPort("10.96.0.10:80"))
		w.must(err)
		seen[got.pod]++
	}
	if seen["inside"] == 0 || seen["outside"] == 0 || len(seen) != 2 {
		w.Errorf("answered by %v", seen)
	}
	for _, pod := range []*bed.Pod{inside, outside} {
		l := w.awaitLine(0, pod.Name, func(l line) bool { return l.DstWorkload == pod.Name })
		if l.DstService != "web.shop.svc.cluster.local" {
			w.Errorf("line %+v lacks the service", l)
		}
	}
}

// unknownDestination: what the mesh does not know is passed through as it is.
func unknownDestination(w *world) {
	client, server := w.pod(0, "client"), w.plainPod(1, "server")
	w.serve(server, 8080)
	w.workloads = w.workloads[:1]
	w.tell()
	if got, err := w.ask(client, at(server.Addr, 8080)); err != nil || got != (answer{"server", client.Addr}) {
		w.Errorf("answer %v, %v", got, err)
	}
}
