// Package admin is istiod's monitoring server: metrics, readiness, version and
// debug dumps. It knows nothing of what it shows: the parts hand it functions.
// It changes nothing and answers GET only.
//
// It listens on the pod network without authentication, so two rules guard it.
// The Host header must name localhost, the address that the connection was
// accepted on, or one of Config.Hosts; a page in someone's browser whose name
// was rebound to our address fails that. And dumps, which show what the whole
// mesh is made of, are for loopback peers: someone in the pod, or a
// port-forward. The handler is safe for concurrent use if the functions are.
//
// Spec: spec/control-plane.md §7.4, DESIGN §3.5.
package admin

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Config is all that the handler shows. Functions may be nil.
type Config struct {
	// Hosts are names and addresses by which it may be called, without port,
	// beside localhost and the address that the connection was accepted on.
	Hosts   []string
	Metrics prometheus.Gatherer
	// Ready returns nil when istiod serves, else why it does not yet.
	Ready   func() error
	Version func() any // shown as JSON
	// Debug are the dumps by name: "syncz" is served as /debug/syncz, as JSON.
	Debug map[string]func() any
	Log   *slog.Logger
}

// New returns the handler.
func New(cfg Config) http.Handler {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	mux := http.NewServeMux()
	if cfg.Metrics != nil {
		mux.Handle("/metrics", promhttp.HandlerFor(cfg.Metrics, promhttp.HandlerOpts{}))
	}
	if cfg.Version != nil {
		mux.HandleFunc("/version", func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, cfg.Version(), cfg.Log) })
	}
	mux.HandleFunc("/ready", func(w http.ResponseWriter, _ *http.Request) {
		if cfg.Ready != nil {
			if err := cfg.Ready(); err != nil {
				http.Error(w, "not ready: "+err.Error(), http.StatusServiceUnavailable)
				return
			}
		}
		writeText(w, "ready\n")
	})
	mux.Handle("/debug/", local(debug(cfg)))
	return guard(cfg.Hosts, mux)
}

// debug serves the dumps, and their names under /debug/.
func debug(cfg Config) http.Handler {
	names := slices.Sorted(maps.Keys(cfg.Debug))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		name := strings.TrimPrefix(r.URL.Path, "/debug/")
		if name == "" || name == "list" {
			writeText(w, "/debug/"+strings.Join(names, "\n/debug/")+"\n")
			return
		}
		dump, ok := cfg.Debug[name]
		if !ok {
			http.Error(w, "no such dump; see /debug/list", http.StatusNotFound)
			return
		}
		writeJSON(w, dump(), cfg.Log)
	})
}

// guard lets only GET requests to our own addresses pass.
func guard(hosts []string, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case !ours(r, hosts):
			http.Error(w, "the Host header names someone else", http.StatusMisdirectedRequest)
		case r.Method != http.MethodGet:
			w.Header().Set("Allow", http.MethodGet)
			http.Error(w, "only GET", http.StatusMethodNotAllowed)
		default:
			w.Header().Set("X-Content-Type-Options", "nosniff")
			next.ServeHTTP(w, r)
		}
	})
}

// ours reports whether the request was meant for this server.
func ours(r *http.Request, hosts []string) bool {
	host := hostOnly(r.Host)
	if strings.EqualFold(host, "localhost") {
		return true
	}
	for _, known := range hosts {
		if strings.EqualFold(host, known) {
			return true
		}
	}
	addr, err := netip.ParseAddr(host)
	if err != nil {
		return false
	}
	addr = addr.Unmap()
	if addr.IsLoopback() {
		return true
	}
	accepted, _ := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
	at, ok := address(accepted)
	return ok && at == addr
}

// hostOnly strips the port and the brackets of an IPv6 address.
func hostOnly(hostport string) string {
	if host, _, err := net.SplitHostPort(hostport); err == nil {
		return host
	}
	return strings.TrimSuffix(strings.TrimPrefix(hostport, "["), "]")
}

// address is the IP of a TCP address, without zone.
func address(a net.Addr) (netip.Addr, bool) {
	if a == nil {
		return netip.Addr{}, false
	}
	ap, err := netip.ParseAddrPort(a.String())
	return ap.Addr().Unmap().WithZone(""), err == nil
}

// local lets only loopback peers pass.
func local(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if peer, err := netip.ParseAddrPort(r.RemoteAddr); err != nil || !peer.Addr().Unmap().IsLoopback() {
			http.Error(w, "dumps are served on loopback only; use a port-forward", http.StatusForbidden)
			return
		}
		next.ServeHTTP(w, r)
	})
}

func writeText(w http.ResponseWriter, text string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	_, _ = fmt.Fprint(w, text) // the client may be gone: nobody to tell
}

// writeJSON encodes before it writes, so that a value that has no JSON is an
// error and not half an answer.
func writeJSON(w http.ResponseWriter, value any, log *slog.Logger) {
	text, err := json.MarshalIndent(value, "", "  ")
	if err != nil {
		log.Error("admin dump has no JSON", "error", err)
		http.Error(w, "dump has no JSON", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(append(text, '\n')) // as above
}
