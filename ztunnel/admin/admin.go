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
	"runtime"
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
	Pending func() []Task   // what the process is not ready for
	Notes   func() []string // what someone should look at all the same; nil: nothing
	Log     *slog.Logger
}

// A Task is something that the process is not ready for.
type Task struct {
	Name   string // as existing tools know it
	Detail string // why, for people
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
	mux.HandleFunc("/debug/pprof/heap/profiling", heapProfiling)
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

// heapProfiling answers tools that switch heap profiling on before they ask for
// a profile: here it always is.
func heapProfiling(w http.ResponseWriter, r *http.Request) {
	switch v := r.URL.Query().Get("activate"); v {
	case "", "true":
		_, _ = fmt.Fprintln(w, "heap profiling is active") // the client's loss
	default:
		http.Error(w, fmt.Sprintf("activate=%s: heap profiling is always active", v), http.StatusBadRequest)
	}
}

func profile(w http.ResponseWriter, r *http.Request) {
	const usualFrequency = 100
	seconds, errSeconds := within(r, "seconds", 10, 300)
	frequency, errFrequency := within(r, "frequency", usualFrequency, 1000)
	if err := errors.Join(errSeconds, errFrequency); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	if frequency != usualFrequency {
		// StartCPUProfile keeps a rate that is set, and says so on standard error.
		runtime.SetCPUProfileRate(frequency)
	}
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

// within reads a number from 1 to most out of the query.
func within(r *http.Request, name string, preset, most int) (int, error) {
	text := r.URL.Query().Get(name)
	if text == "" {
		return preset, nil
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 || n > most {
		return 0, fmt.Errorf("%s is not a number from 1 to %d", name, most)
	}
	return n, nil
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
		pending := s.cfg.Pending()
		slices.SortFunc(pending, func(a, b Task) int { return strings.Compare(a.Name, b.Name) })
		if len(pending) > 0 {
			http.Error(w, strings.TrimSuffix(notReady(pending)+s.notes(), "\n"), http.StatusInternalServerError)
			return
		}
		_, _ = fmt.Fprint(w, "ready\n", s.notes()) // the client's loss
	})
	return mux
}

// notReady lists tasks: the first line is for tools, the others say why.
func notReady(pending []Task) string {
	var names []string
	var details strings.Builder
	for _, task := range pending {
		names = append(names, task.Name)
		if task.Detail != "" {
			fmt.Fprintf(&details, "\n%s: %s", task.Name, task.Detail)
		}
	}
	return "not ready, pending: " + strings.Join(names, ", ") + details.String() + "\n"
}

func (s *Server) notes() string {
	if s.cfg.Notes == nil {
		return ""
	}
	var b strings.Builder
	for _, note := range s.cfg.Notes() {
		fmt.Fprintf(&b, "note: %s\n", note)
	}
	return b.String()
}
