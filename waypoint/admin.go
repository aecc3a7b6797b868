package waypoint

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/pprof"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/ambit-mesh/ambit/ztunnel/identity"
)

// readiness is what is still missing.
type readiness struct {
	mu      sync.Mutex
	pending []string
}

func (r *readiness) await(names ...string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.pending = append(r.pending, names...)
	slices.Sort(r.pending)
}

func (r *readiness) done(name string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.pending = slices.DeleteFunc(r.pending, func(n string) bool { return n == name })
}

func (r *readiness) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	r.mu.Lock()
	pending := strings.Join(r.pending, ", ")
	r.mu.Unlock()
	switch {
	case req.Method != http.MethodGet && req.Method != http.MethodHead:
		w.WriteHeader(http.StatusMethodNotAllowed)
	case pending != "":
		http.Error(w, "not ready, pending: "+pending, http.StatusInternalServerError)
	default:
		_, _ = fmt.Fprintln(w, "ready")
	}
}

// serveAdmin starts the three small servers.
func (w *Waypoint) serveAdmin(ctx context.Context, group *errgroup.Group) error {
	ready := http.NewServeMux()
	ready.Handle("/healthz/ready", &w.ready)
	metrics := http.NewServeMux()
	handler := promhttp.HandlerFor(w.registry, promhttp.HandlerOpts{})
	metrics.Handle("/metrics", handler)
	metrics.Handle("/stats/prometheus", handler)
	for _, s := range []struct {
		address string
		handler http.Handler
	}{{w.cfg.Readiness, ready}, {w.cfg.Metrics, metrics}, {w.cfg.Admin, localOnly(w.admin())}} {
		if s.address == "" {
			continue
		}
		l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", s.address)
		if err != nil {
			return err
		}
		server := &http.Server{Handler: s.handler, ReadHeaderTimeout: 2 * time.Second}
		group.Go(func() error {
			defer context.AfterFunc(ctx, func() { _ = server.Close() })()
			if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
				return err
			}
			return nil
		})
	}
	return nil
}

// localOnly refuses requests whose Host is a name that a browser could have
// been tricked into resolving to this address.
func localOnly(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host := r.Host
		if h, _, err := net.SplitHostPort(host); err == nil {
			host = h
		}
		ip := net.ParseIP(strings.Trim(host, "[]"))
		if host != "localhost" && (ip == nil || !ip.IsLoopback()) {
			http.Error(w, "host is not local", http.StatusForbidden)
			return
		}
		next.ServeHTTP(w, r)
	})
}

func (w *Waypoint) admin() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/config_dump", w.configDump)
	mux.HandleFunc("/clusters", w.clusters)
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	return mux
}

// configDump prints the configuration in use and our certificates.
func (w *Waypoint) configDump(out http.ResponseWriter, _ *http.Request) {
	d := w.routes.Dump()
	dump := struct {
		Listeners    []json.RawMessage `json:"listeners"`
		Routes       []json.RawMessage `json:"routes"`
		Clusters     []json.RawMessage `json:"clusters"`
		Endpoints    []json.RawMessage `json:"endpoints"`
		Certificates []certificateDump `json:"certificates"`
	}{messages(d.Listeners), messages(d.Routes), messages(d.Clusters), messages(d.Endpoints), certificates(w.identity.Dump())}
	out.Header().Set("Content-Type", "application/json")
	e := json.NewEncoder(out)
	e.SetIndent("", "  ")
	if err := e.Encode(dump); err != nil {
		http.Error(out, err.Error(), http.StatusInternalServerError)
	}
}

func messages(list []proto.Message) []json.RawMessage {
	texts := []json.RawMessage{}
	for _, m := range list {
		text, err := protojson.Marshal(m)
		if err != nil {
			text, _ = json.Marshal(err.Error())
		}
		texts = append(texts, text)
	}
	return texts
}

// certificateDump is the shape of spec/ztunnel.md App. B.1.
type certificateDump struct {
	Identity  string    `json:"identity"`
	State     string    `json:"state"`
	CertChain []certDER `json:"certChain"`
	RootCerts []certDER `json:"rootCerts"`
}

type certDER struct {
	PEM            string `json:"pem"`
	SerialNumber   string `json:"serialNumber"`
	ValidFrom      string `json:"validFrom"`
	ExpirationTime string `json:"expirationTime"`
}

func certificates(entries []identity.Entry) []certificateDump {
	list := []certificateDump{}
	for _, e := range entries {
		d := certificateDump{Identity: e.ID.String(), State: string(e.State), CertChain: []certDER{}, RootCerts: []certDER{}}
		if e.Err != nil && e.Certificate == nil {
			d.State += ": " + e.Err.Error()
		}
		if c := e.Certificate; c != nil {
			d.CertChain = append(d.CertChain, certDER{
				PEM: encodePEM(c.Leaf.Raw), SerialNumber: c.Leaf.SerialNumber.String(),
				ValidFrom: c.Leaf.NotBefore.UTC().Format(time.RFC3339), ExpirationTime: c.Leaf.NotAfter.UTC().Format(time.RFC3339),
			})
			for _, root := range c.Roots {
				d.RootCerts = append(d.RootCerts, certDER{
					PEM: encodePEM(root.Raw), SerialNumber: root.SerialNumber.String(),
					ValidFrom: root.NotBefore.UTC().Format(time.RFC3339), ExpirationTime: root.NotAfter.UTC().Format(time.RFC3339),
				})
			}
		}
		list = append(list, d)
	}
	return list
}

func encodePEM(der []byte) string {
	return base64.StdEncoding.EncodeToString(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

// clusters prints the endpoints of each cluster with what runs on them.
func (w *Waypoint) clusters(out http.ResponseWriter, _ *http.Request) {
	for _, c := range w.routes.Snapshot().Clusters() {
		for _, e := range c.Endpoints() {
			_, _ = fmt.Fprintf(out, "%s::%s::running::%d\n", c.Name, e.Addr, e.Running())
			_, _ = fmt.Fprintf(out, "%s::%s::workload::%s\n", c.Name, e.Addr, e.Workload)
			_, _ = fmt.Fprintf(out, "%s::%s::identities::%s\n", c.Name, e.Addr, e.IDs)
		}
	}
}
