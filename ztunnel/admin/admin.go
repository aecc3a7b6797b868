// Package admin serves what operators and probes ask a ztunnel process over
// HTTP: the config dump, log levels, profiles and shutdown on loopback port
// 15000, metrics on 15020, readiness on 15021. It knows none of what it shows;
// ztunnel.go passes functions. Requests that change something need POST, and
// the loopback port answers only to names of the loopback, so that a web page
// in a browser on the node cannot reach it. Formats: spec/ztunnel.md §8.
package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"runtime/pprof"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Levels are log levels that may be changed.
type Levels interface {
	Add(text string, lenient bool) error
	Reset()
	String() string
}

// Config is what a Server shows and where.
type Config struct {
	Admin   []string // addresses, loopback only
	Metrics []string
	Ready   []string

	Dump    func() any
	Levels  Levels
	Quit    func()
	Serve   http.Handler    // the metrics
	Pending func() []string // what the process is not ready for
	Log     *slog.Logger
}

// Server is the HTTP side of a process.
type Server struct {
	cfg     Config
	servers []*http.Server
	serve   []net.Listener
}

// New opens the listeners, so that an address in use is an error at start, and
// serves nothing yet.
func New(cfg Config) (*Server, error) {
	s := &Server{cfg: cfg}
	for _, part := range []struct {
		addresses []string
		handler   http.Handler
	}{
		{cfg.Admin, localOnly(s.adminMux())},
		{cfg.Metrics, s.metricsMux()},
		{cfg.Ready, s.readyMux()},
	} {
		server := &http.Server{Handler: part.handler, ReadHeaderTimeout: 2 * time.Second, MaxHeaderBytes: 8 << 10}
		for _, address := range part.addresses {
			l, err := net.Listen("tcp", address)
			if (errors.Is(err, syscall.EADDRNOTAVAIL) || errors.Is(err, syscall.EAFNOSUPPORT)) && strings.HasPrefix(address, "[::1]") {
				continue
			}
			if err != nil {
				s.close()
				return nil, err
			}
			s.servers, s.serve = append(s.servers, server), append(s.serve, l)
		}
	}
	return s, nil
}

func (s *Server) close() {
	for _, l := range s.serve {
		_ = l.Close() // nothing was accepted
	}
}

// Run serves until ctx is done, then finishes the requests it has.
func (s *Server) Run(ctx context.Context) error {
	ended := make(chan error, len(s.serve))
	for i, l := range s.serve {
		go func() { ended <- s.servers[i].Serve(l) }() // ends with Shutdown below
	}
	var first error
	running := len(s.serve)
	select {
	case <-ctx.Done():
	case first = <-ended:
		running--
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	for _, server := range s.servers {
		if server.Shutdown(ctx) != nil {
			_ = server.Close() // a profile may still be running
		}
	}
	for range running {
		if err := <-ended; first == nil && !errors.Is(err, http.ErrServerClosed) {
			first = err
		}
	}
	return first
}

// localOnly refuses requests for other hosts than the loopback's.
func localOnly(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host := r.Host
		if h, _, err := net.SplitHostPort(host); err == nil {
			host = h
		}
		host = strings.Trim(host, "[]")
		if ip := net.ParseIP(host); host != "localhost" && (ip == nil || !ip.IsLoopback()) {
			http.Error(w, fmt.Sprintf("host %q is not this machine's loopback", r.Host), http.StatusForbidden)
			return
		}
		next.ServeHTTP(w, r)
	})
}

func (s *Server) adminMux() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/{$}", index)
	mux.HandleFunc("/config_dump", s.dump)
	mux.HandleFunc("/logging", s.logging)
	mux.HandleFunc("/quitquitquit", s.quit)
	mux.HandleFunc("/debug/pprof/profile", profile)
	for _, name := range []string{"heap", "goroutine", "allocs", "block", "mutex", "threadcreate"} {
		mux.HandleFunc("/debug/pprof/"+name, func(w http.ResponseWriter, _ *http.Request) {
			if err := pprof.Lookup(name).WriteTo(w, 0); err != nil {
				http.Error(w, err.Error(), http.StatusInternalServerError)
			}
		})
	}
	return mux
}

func index(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	_, _ = fmt.Fprint(w, `<!doctype html><title>ztunnel</title><h1>ztunnel</h1><ul>
<li><a href="config_dump">config_dump</a>: what istiod and the node agent told us, certificates, open connections
<li>logging: POST shows the levels; ?level=debug or ?level=xds=debug changes them, ?reset restores them
<li>quitquitquit: POST drains connections and ends the process
<li><a href="debug/pprof/profile?seconds=10">debug/pprof/profile</a>, <a href="debug/pprof/heap">heap</a>, <a href="debug/pprof/goroutine">goroutine</a>
</ul>
`) // the client's loss
}

func (s *Server) dump(w http.ResponseWriter, _ *http.Request) {
	data, err := json.MarshalIndent(s.cfg.Dump(), "", "  ")
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(append(data, '\n')) // the client's loss
}

func (s *Server) logging(w http.ResponseWriter, r *http.Request) {
	if !post(w, r) {
		return
	}
	q := r.URL.Query()
	if q.Has("reset") {
		s.cfg.Levels.Reset()
	}
	if level := q.Get("level"); level != "" {
		if err := s.cfg.Levels.Add(level, false); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
	}
	_, _ = fmt.Fprintf(w, "current log level is %s\n", s.cfg.Levels.String()) // the client's loss
}

func (s *Server) quit(w http.ResponseWriter, r *http.Request) {
	if !post(w, r) {
		return
	}
	_, _ = fmt.Fprintln(w, "shutdown now") // the client's loss
	s.cfg.Log.Info("shutdown requested")
	s.cfg.Quit()
}

func post(w http.ResponseWriter, r *http.Request) bool {
	if r.Method == http.MethodPost {
		return true
	}
	w.Header().Set("Allow", http.MethodPost)
	http.Error(w, "use POST", http.StatusMethodNotAllowed)
	return false
}

func profile(w http.ResponseWriter, r *http.Request) {
	seconds := 10
	if text := r.URL.Query().Get("seconds"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 || n > 300 {
			http.Error(w, "seconds is not a number from 1 to 300", http.StatusBadRequest)
			return
		}
		seconds = n
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	if err := pprof.StartCPUProfile(w); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	defer pprof.StopCPUProfile()
	select {
	case <-time.After(time.Duration(seconds) * time.Second):
	case <-r.Context().Done():
	}
}

func (s *Server) metricsMux() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/metrics", s.cfg.Serve)
	mux.Handle("/stats/prometheus", s.cfg.Serve)
	return mux
}

func (s *Server) readyMux() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/healthz/ready", func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet {
			http.Error(w, "use GET", http.StatusMethodNotAllowed)
			return
		}
		pending := slices.Sorted(slices.Values(s.cfg.Pending()))
		if len(pending) > 0 {
			http.Error(w, "not ready, pending: "+strings.Join(pending, ", "), http.StatusInternalServerError)
			return
		}
		_, _ = fmt.Fprintln(w, "ready") // the client's loss
	})
	return mux
}
