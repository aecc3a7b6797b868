package admin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

type levels struct{ text string }

func (l *levels) Add(text string, _ bool) error {
	if text == "bad" {
		return errors.New("no level")
	}
	l.text = text
	return nil
}
func (l *levels) Reset()         { l.text = "info" }
func (l *levels) String() string { return l.text }

func server(t *testing.T, pending *[]Task, quit func()) *Server {
	t.Helper()
	s, err := New(Config{
		Dump: func() any { return map[string]int{"workloads": 1} }, Levels: &levels{"info"}, Quit: quit,
		Serve:   http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "metrics") }),
		Pending: func() []Task { return *pending }, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestRequests(t *testing.T) {
	quits, pending := 0, []Task{{Name: "state manager", Detail: "istiod is away"}, {Name: "proxy"}}
	s := server(t, &pending, func() { quits++ })
	parts := map[string]http.Handler{"admin": localOnly(s.adminMux()), "metrics": s.metricsMux(), "ready": s.readyMux()}
	for _, tc := range []struct {
		part, method, url string
		status            int
		body              string
	}{
		{"admin", "GET", "http://localhost:15000/", 200, "config_dump"},
		{"admin", "GET", "http://127.0.0.1:15000/config_dump", 200, `"workloads": 1`},
		{"admin", "GET", "http://[::1]:15000/config_dump", 200, `"workloads": 1`},
		{"admin", "GET", "http://evil.example/config_dump", 403, "evil.example"},
		{"admin", "GET", "http://10.0.0.1:15000/config_dump", 403, "10.0.0.1"},
		{"admin", "GET", "http://localhost/none", 404, ""},
		{"admin", "GET", "http://localhost/logging", 405, ""},
		{"admin", "POST", "http://localhost/logging", 200, "current log level is info"},
		{"admin", "POST", "http://localhost/logging?level=debug", 200, "current log level is debug"},
		{"admin", "POST", "http://localhost/logging?reset", 200, "current log level is info"},
		{"admin", "POST", "http://localhost/logging?level=bad", 400, "no level"},
		{"admin", "GET", "http://localhost/quitquitquit", 405, ""},
		{"admin", "POST", "http://evil.example/quitquitquit", 403, ""},
		{"admin", "POST", "http://localhost/quitquitquit", 200, "shutdown now"},
		{"admin", "GET", "http://localhost/debug/pprof/heap", 200, ""},
		{"admin", "GET", "http://localhost/debug/pprof/profile?seconds=0", 400, "seconds"},
		{"admin", "GET", "http://localhost/debug/pprof/profile?frequency=1001", 400, "frequency"},
		{"admin", "GET", "http://localhost/debug/pprof/heap/profiling", 200, "active"},
		{"admin", "POST", "http://localhost/debug/pprof/heap/profiling?activate=true", 200, "active"},
		{"admin", "POST", "http://localhost/debug/pprof/heap/profiling?activate=false", 400, "always"},
		{"metrics", "GET", "http://x/metrics", 200, "metrics"},
		{"metrics", "POST", "http://x/stats/prometheus", 200, "metrics"},
		{"metrics", "GET", "http://x/", 404, ""},
		{"ready", "GET", "http://x/healthz/ready", 500, "not ready, pending: proxy, state manager\nstate manager: istiod is away\n"},
		{"ready", "POST", "http://x/healthz/ready", 405, ""},
		{"ready", "GET", "http://x/", 404, ""},
	} {
		w := httptest.NewRecorder()
		parts[tc.part].ServeHTTP(w, httptest.NewRequest(tc.method, tc.url, nil))
		if w.Code != tc.status || !strings.Contains(w.Body.String(), tc.body) {
			t.Errorf("%s %s: %d %q, want %d %q", tc.method, tc.url, w.Code, w.Body, tc.status, tc.body)
		}
	}
	if quits != 1 {
		t.Errorf("%d shutdowns, want 1", quits)
	}
	pending = nil
	w := httptest.NewRecorder()
	parts["ready"].ServeHTTP(w, httptest.NewRequest("GET", "http://x/healthz/ready", nil))
	if w.Code != 200 || w.Body.String() != "ready\n" {
		t.Errorf("ready: %d %s", w.Code, w.Body)
	}
	s.cfg.Notes = func() []string { return []string{"a file is broken"} }
	w = httptest.NewRecorder()
	parts["ready"].ServeHTTP(w, httptest.NewRequest("GET", "http://x/healthz/ready", nil))
	if w.Code != 200 || w.Body.String() != "ready\nnote: a file is broken\n" {
		t.Errorf("ready with a note: %d %s", w.Code, w.Body)
	}
}

func TestRun(t *testing.T) {
	s, err := New(Config{Ready: []string{"127.0.0.1:0"}, Pending: func() []Task { return nil }, Levels: &levels{}, Serve: http.NotFoundHandler()})
	if err != nil {
		t.Fatal(err)
	}
	address := s.serve[0].Addr().String()
	if _, err := New(Config{Ready: []string{address}, Serve: http.NotFoundHandler()}); err == nil {
		t.Error("a port in use is no error")
	}
	ctx, cancel := context.WithCancel(t.Context())
	ran := make(chan error, 1)
	go func() { ran <- s.Run(ctx) }()
	r, err := http.Get(fmt.Sprintf("http://%s/healthz/ready", address))
	if err != nil {
		t.Fatal(err)
	}
	_ = r.Body.Close()
	cancel()
	if err := <-ran; err != nil || r.StatusCode != 200 {
		t.Errorf("status %d, ended with %v", r.StatusCode, err)
	}
}
