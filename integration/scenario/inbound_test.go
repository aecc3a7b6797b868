package scenario

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/ambit-mesh/ambit/apis/spiffe"
	"github.com/ambit-mesh/ambit/apis/workload"
	"github.com/ambit-mesh/ambit/integration/bed"
	"github.com/ambit-mesh/ambit/ztunnel/hbone"
)

// inbound: what a tunnel may ask for, and calls in bad faith.
var inbound = []scenario{
	{"authority of another address", nil, authorityMismatch},
	{"authority is a hostname", nil, authorityHostname},
	{"client of another trust domain", nil, foreignTrustDomain},
	{"malicious calls", nil, maliciousCalls},
}

// status is that of an answer to a CONNECT, 200 when there is no error.
func status(err error) int {
	var refused *hbone.StatusError
	switch {
	case err == nil:
		return 200
	case errors.As(err, &refused):
		return refused.Status
	}
	return 0
}

func authorityMismatch(w *world) {
	outside, server, other := w.plainPod(0, "outside"), w.pod(1, "server"), w.pod(1, "other")
	w.serve(server, 8080)
	w.serve(other, 8080)
	w.tell()
	as, err := w.bed.Certificate("shop", "outside")
	w.must(err)
	for authority, want := range map[string]int{
		at(server.Addr, 8080).String():  200,
		at(server.Addr6, 8080).String(): 400, // the tunnel came to the other address
		at(other.Addr, 8080).String():   400,
		"10.1.2.3:8080":                 400,
		"127.0.0.1:8080":                400,
		server.Addr.String():            400,
		"nobody.shop:80":                503,
		at(server.Addr, 9).String():     503, // nobody listens
		at(server.Addr, 15008).String(): 503, // it would loop
	} {
		if _, err := w.open(outside, as, at(server.Addr, 15008), authority); status(err) != want {
			w.Errorf("CONNECT %q: %v, want status %d", authority, err, want)
		}
	}
}

func authorityHostname(w *world) {
	outside, server := w.plainPod(0, "outside"), w.pod(1, "server")
	s := w.service("web", "10.96.0.10", server)
	s.Ports = append(s.Ports, &workload.Port{ServicePort: 81}) // a named port: each endpoint has its own
	w.workload(server).Services["shop/"+s.Hostname].Ports = []*workload.Port{{ServicePort: 80, TargetPort: 8080}, {ServicePort: 81, TargetPort: 8081}}
	w.serve(server, 8080)
	w.serve(server, 8081)
	w.tell()
	as, err := w.bed.Certificate("shop", "outside")
	w.must(err)
	for _, port := range []int{80, 81} {
		stream, err := w.open(outside, as, at(server.Addr, 15008), fmt.Sprintf("%s:%d", s.Hostname, port))
		if err != nil {
			w.Errorf("port %d: %v", port, err)
			continue
		}
		if _, err := io.WriteString(stream, "hello\n"); err != nil {
			w.Error(err)
		}
		answer := make([]byte, len("server "))
		if _, err := io.ReadFull(stream, answer); err != nil || string(answer) != "server " {
			w.Errorf("port %d: answer %q, %v", port, answer, err)
		}
	}
	if _, err := w.open(outside, as, at(server.Addr, 15008), s.Hostname+":82"); status(err) != 503 {
		w.Errorf("a port that the service does not have: %v", err)
	}
}

// foreignTrustDomain: a certificate of the same authority for another trust
// domain is none of ours.
func foreignTrustDomain(w *world) {
	outside, server := w.plainPod(0, "outside"), w.pod(1, "server")
	w.serve(server, 8080)
	w.tell()
	id, err := spiffe.New("other.example", "shop", "outside")
	w.must(err)
	as, err := w.bed.CertificateFor(id)
	w.must(err)
	if _, err := w.open(outside, as, at(server.Addr, 15008), at(server.Addr, 8080).String()); err == nil || status(err) != 0 {
		w.Errorf("got %v, want no answer at all", err)
	}
}

// maliciousCalls: plaintext to every port of ztunnel's, from wherever: no answer
// but a refusal, no loop, and the pod still serves afterwards.
func maliciousCalls(w *world) {
	captured, plain, server := w.pod(0, "captured"), w.plainPod(0, "plain"), w.pod(1, "server")
	w.serve(server, 8080)
	w.tell()
	loopback := netip.MustParseAddr("127.0.0.1")
	for _, call := range []struct {
		from *bed.Pod
		to   netip.Addr
	}{{captured, server.Addr}, {plain, server.Addr}, {server, server.Addr}, {server, loopback}, {captured, server.Addr6}} {
		for _, port := range []uint16{15000, 15001, 15006, 15008, 15020, 15021, 15053, 15080} {
			if got := w.malicious(call.from, at(call.to, port)); got != "" && !strings.HasPrefix(got, "HTTP/1.1 400") {
				w.Errorf("%s to %s is answered %.100q", call.from.Name, at(call.to, port), got)
			}
		}
	}
	if got, err := w.ask(captured, at(server.Addr, 8080)); err != nil || got.pod != "server" {
		w.Errorf("afterwards: %v, %v", got, err)
	}
}

// malicious returns what a request in plain HTTP is answered.
func (w *world) malicious(from *bed.Pod, to netip.AddrPort) string {
	w.Helper()
	c, err := from.Dial(w.ctx, to)
	if err != nil {
		return ""
	}
	defer func() { _ = c.Close() }()
	w.must(c.SetDeadline(time.Now().Add(20 * time.Second)))
	if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"); err != nil {
		return ""
	}
	_ = c.CloseWrite() // the peer may have gone
	got, err := io.ReadAll(c)
	if err != nil && errors.Is(err, os.ErrDeadlineExceeded) {
		w.Errorf("%s to %s: neither answered nor closed", from.Name, to)
	}
	return string(got)
}
