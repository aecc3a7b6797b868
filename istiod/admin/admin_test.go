package admin_test

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/ambit-mesh/ambit/istiod/admin"
)

func handler(ready func() error) http.Handler {
	registry := prometheus.NewRegistry()
	counter := prometheus.NewCounter(prometheus.CounterOpts{Name: "pilot_test", Help: "."})
	registry.MustRegister(counter)
	return admin.New(admin.Config{
		Hosts: []string{"istiod.istio-system.svc"}, Metrics: registry, Ready: ready,
		Version: func() any { return map[string]string{"version": "v1"} },
		Debug: map[string]func() any{
			"syncz": func() any { return []string{"ztunnel-1"} },
			"bad":   func() any { return func() {} },
		},
	})
}

// get asks a server that listens on 10.244.1.5.
func get(h http.Handler, method, host, path, peer string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, "http://x"+path, nil)
	r.Host, r.RemoteAddr = host, peer
	accepted := &net.TCPAddr{IP: net.IPv4(10, 244, 1, 5), Port: 15014}
	r = r.WithContext(context.WithValue(r.Context(), http.LocalAddrContextKey, net.Addr(accepted)))
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

func TestAdmin(t *testing.T) {
	const self, peer = "127.0.0.1:4000", "10.244.2.9:4000"
	cases := map[string]struct {
		method, host, path, peer string
		code                     int
		body                     string
	}{
		"metrics by pod address":    {"GET", "10.244.1.5:15014", "/metrics", peer, 200, "pilot_test 0"},
		"metrics by service name":   {"GET", "ISTIOD.istio-system.svc:15014", "/metrics", peer, 200, "pilot_test 0"},
		"version":                   {"GET", "localhost:15014", "/version", self, 200, `"version": "v1"`},
		"ready without port":        {"GET", "127.0.0.1", "/ready", self, 200, "ready"},
		"IPv6 loopback":             {"GET", "[::1]:15014", "/ready", "[::1]:1", 200, "ready"},
		"mapped loopback peer":      {"GET", "[::1]", "/debug/syncz", "[::ffff:127.0.0.1]:1", 200, "ztunnel-1"},
		"dump":                      {"GET", "localhost", "/debug/syncz", self, 200, `"ztunnel-1"`},
		"list":                      {"GET", "localhost", "/debug/", self, 200, "/debug/syncz\n"},
		"unknown dump":              {"GET", "localhost", "/debug/x", self, 404, ""},
		"dump that has no JSON":     {"GET", "localhost", "/debug/bad", self, 500, ""},
		"dump for another pod":      {"GET", "10.244.1.5", "/debug/syncz", peer, 403, "port-forward"},
		"rebound name":              {"GET", "evil.example:15014", "/metrics", self, 421, ""},
		"rebound name, dump":        {"GET", "evil.example", "/debug/syncz", self, 421, ""},
		"another address":           {"GET", "10.244.1.6:15014", "/metrics", peer, 421, ""},
		"name that starts like one": {"GET", "localhost.evil.example", "/metrics", self, 421, ""},
		"no host":                   {"GET", "", "/metrics", self, 421, ""},
		"POST":                      {"POST", "localhost", "/ready", self, 405, "only GET"},
		"DELETE":                    {"DELETE", "localhost", "/debug/syncz", self, 405, "only GET"},
		"unknown path":              {"GET", "localhost", "/quitquitquit", self, 404, ""},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			w := get(handler(nil), c.method, c.host, c.path, c.peer)
			if w.Code != c.code || !strings.Contains(w.Body.String(), c.body) {
				t.Errorf("got %d %q, want %d with %q", w.Code, w.Body, c.code, c.body)
			}
		})
	}
}

func TestNotReady(t *testing.T) {
	w := get(handler(func() error { return errors.New("first reading of the directory") }), "GET", "localhost", "/ready", "127.0.0.1:1")
	if w.Code != 503 || !strings.Contains(w.Body.String(), "first reading") {
		t.Errorf("got %d %q", w.Code, w.Body)
	}
}
