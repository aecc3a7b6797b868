package istiod

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	grpcstatus "google.golang.org/grpc/status"

	"github.com/ambit-mesh/ambit/apis/mesh"
	"github.com/ambit-mesh/ambit/istiod/admin"
	"github.com/ambit-mesh/ambit/istiod/authn"
	"github.com/ambit-mesh/ambit/istiod/ca"
	"github.com/ambit-mesh/ambit/istiod/model"
	"github.com/ambit-mesh/ambit/istiod/xds"
)

const (
	// pingsAllowed is how often a client may ping; ztunnel does every 30 s.
	pingsAllowed = 10 * time.Second
	// pingAfter and pingTimeout find proxies that are gone without a word.
	pingAfter   = 30 * time.Second
	pingTimeout = 10 * time.Second
	// drain is how long running requests may take at the end.
	drain = 5 * time.Second
	// connectionAge is when a proxy is sent elsewhere, so that a replica that has
	// come up gets its share; gRPC varies it by a tenth. Streams, which never end
	// by themselves, have connectionGrace and are resumed where they were.
	connectionAge   = 30 * time.Minute
	connectionGrace = 10 * time.Second
)

// What somebody may cost us who has not said who it is: a connection has so many
// streams, of each so much is read before its handler asks for it, and so long
// may its headers and its handshake be. A proxy has a few streams.
const (
	streamsAtOnce    = 100
	readAhead        = 64 << 10
	headersAtMost    = 64 << 10
	handshakeTimeout = 20 * time.Second
)

// serve runs xDS and the CA over TLS until ctx is done.
func (i *Istiod) serve(ctx context.Context, l net.Listener, authority *ca.Authority, server *xds.Server, service *ca.Service) error {
	certificates := authority.ServingSource(servingNames(i.cfg.ClusterDomain), servingIPs(l.Addr()))
	options := append(xds.Options(),
		grpc.Creds(credentials.NewTLS(&tls.Config{MinVersion: tls.VersionTLS13, GetCertificate: certificates})),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: pingsAllowed, PermitWithoutStream: true}),
		grpc.KeepaliveParams(keepalive.ServerParameters{
			Time: pingAfter, Timeout: pingTimeout, MaxConnectionAge: connectionAge, MaxConnectionAgeGrace: connectionGrace,
		}),
		grpc.MaxConcurrentStreams(streamsAtOnce), grpc.StaticStreamWindowSize(readAhead),
		grpc.MaxHeaderListSize(headersAtMost), grpc.ConnectionTimeout(handshakeTimeout),
	)
	rpc := grpc.NewServer(options...)
	server.Register(rpc)
	service.Register(rpc)
	stop := context.AfterFunc(ctx, func() {
		server.Close() // streams never end by themselves
		end := time.AfterFunc(drain, rpc.Stop)
		defer end.Stop()
		rpc.GracefulStop()
	})
	defer stop()
	if err := rpc.Serve(l); err != nil && !errors.Is(err, grpc.ErrServerStopped) {
		return err
	}
	return nil
}

// servingNames are the names by which proxies know istiod.
func servingNames(clusterDomain string) []string {
	service := mesh.ServiceIstiod + "." + mesh.DefaultSystemNamespace + ".svc"
	return []string{service, service + "." + clusterDomain, mesh.ServiceIstiod + "." + mesh.DefaultSystemNamespace, mesh.ServiceIstiod, "localhost"}
}

func servingIPs(address net.Addr) []netip.Addr {
	out := []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()}
	if tcp, ok := address.(*net.TCPAddr); ok {
		if ip := tcp.AddrPort().Addr().Unmap().WithZone(""); !ip.IsUnspecified() && !slices.Contains(out, ip) {
			out = append(out, ip)
		}
	}
	return out
}

// monitor runs the monitoring server until ctx is done.
func (i *Istiod) monitor(ctx context.Context, l net.Listener, server *xds.Server) error {
	hosts := servingNames(i.cfg.ClusterDomain)
	if i.cfg.ListenAddress != "" {
		hosts = append(hosts, i.cfg.ListenAddress)
	}
	handler := admin.New(admin.Config{
		Hosts:   hosts,
		Metrics: i.metrics,
		Ready: func() error {
			if !i.serving.Load() {
				return fmt.Errorf("first load of the configuration is not done; missing: %s", cmp.Or(i.platform.source.Missing(), "the signer"))
			}
			return nil
		},
		Version: i.version,
		Debug:   i.dumps(server),
		Log:     i.log,
	})
	web := &http.Server{
		Handler: handler, ReadHeaderTimeout: 10 * time.Second, ErrorLog: slog.NewLogLogger(i.log.Handler(), slog.LevelDebug),
	}
	done := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(done)
		_ = web.Close() // scrapes may be cut
	})
	err := web.Serve(l)
	if !stop() {
		<-done
	}
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

func (i *Istiod) dumps(server *xds.Server) map[string]func() any {
	out := map[string]func() any{
		"syncz":     server.Debug,
		"workloads": func() any { return i.views.workloads.List() },
		"services":  func() any { return i.views.boundServices.List() },
		"waypoints": func() any { return i.views.waypoints.List() },
		"policies":  func() any { return policyDump(i.views.policies.List(), i.mesh().RootNamespace) },
		"mesh":      func() any { return i.mesh() },
	}
	if i.platform.watched != nil {
		out["sources"] = i.platform.watched
	}
	return out
}

func (i *Istiod) version() any {
	out := map[string]string{"version": i.cfg.Version}
	if build, ok := debug.ReadBuildInfo(); ok {
		out["go"] = build.GoVersion
		if out["version"] == "" {
			out["version"] = build.Main.Version
		}
	}
	return out
}

// ztunnelScope is the scope of what ztunnels need and no other proxy.
const ztunnelScope = "ztunnel"

// visitor is who has opened a stream, and as what its account and pod may.
type visitor struct {
	authn.Caller

	ztunnel  bool
	waypoint string // scope of the waypoint whose pod it is; "" when it is none's
}

// visitorKey is under which a stream's context has its visitor.
type visitorKey struct{}

// What a caller is told; the reason is for the log.
var (
	errUnauthenticated = grpcstatus.Error(codes.Unauthenticated, "not authenticated")
	errUnverifiable    = grpcstatus.Error(codes.Unavailable, "callers cannot be authenticated now")
	errNotPermitted    = grpcstatus.Error(codes.PermissionDenied, "node is not permitted")
)

// authenticate finds out who opens a stream, before anything of it is read: a
// live pod of ztunnel's account, or of a waypoint's.
func (i *Istiod) authenticate(ctx context.Context) (context.Context, error) {
	caller, _, err := ca.Authenticate(ctx, i.platform.verify, podDirectory{i.views})
	if no, ok := errors.AsType[*ca.Refusal](err); ok {
		told := errUnauthenticated
		if no.Reason.Code() == codes.Unavailable {
			told = errUnverifiable // no fault of the caller's: it comes again
		}
		return nil, fmt.Errorf("%w: %w: %s", told, err, caller)
	}
	c := visitor{Caller: caller, ztunnel: slices.Contains(i.cfg.TrustedNodeAccounts, caller.Namespace+"/"+caller.ServiceAccount)}
	pod, _ := i.views.pods.Get(model.Key(caller.Namespace, caller.Pod.Name))
	name := model.Name{Namespace: caller.Namespace, Name: pod.Labels[mesh.LabelGatewayName]}
	w, ok := i.views.waypoints.Get(name.String())
	if ok && w.Class == mesh.WaypointGatewayClass && w.ServiceAccount == caller.ServiceAccount {
		c.waypoint = w.Scope()
	}
	if !c.ztunnel && c.waypoint == "" {
		return nil, fmt.Errorf("%w: neither an account of ztunnel, see CA_TRUSTED_NODE_ACCOUNTS, nor label %s and account of a waypoint: %s",
			errNotPermitted, mesh.LabelGatewayName, caller)
	}
	return context.WithValue(ctx, visitorKey{}, c), nil
}

// authorize decides what a proxy may see. What it says of itself must agree with
// its token: namespace, account, and what it is.
func (i *Istiod) authorize(ctx context.Context, node *corev3.Node) ([]string, error) {
	c, _ := ctx.Value(visitorKey{}).(visitor)
	fields := node.GetMetadata().GetFields()
	if got := fields["NAMESPACE"].GetStringValue(); got != c.Namespace {
		return nil, fmt.Errorf("%w: node metadata NAMESPACE is %q: %s", errNotPermitted, got, c)
	}
	if got := fields["SERVICE_ACCOUNT"].GetStringValue(); got != "" && got != c.ServiceAccount {
		return nil, fmt.Errorf("%w: node metadata SERVICE_ACCOUNT is %q: %s", errNotPermitted, got, c)
	}
	switch kind, _, _ := strings.Cut(node.GetId(), "~"); {
	case kind == mesh.NodeTypeZtunnel && c.ztunnel:
		return []string{ztunnelScope}, nil
	case kind == mesh.NodeTypeWaypoint && c.waypoint != "":
		return []string{c.waypoint}, nil
	default:
		return nil, fmt.Errorf("%w: is no proxy of type %.32q: %s", errNotPermitted, kind, c)
	}
}

// podDirectory is the CA's view of the pods as they are now.
type podDirectory struct{ views *views }

// Pod implements ca.Pods.
func (d podDirectory) Pod(namespace, name string) (ca.Pod, bool) {
	p, ok := d.views.pods.Get(model.Key(namespace, name))
	if !ok {
		return ca.Pod{}, false
	}
	return ca.Pod{UID: p.UID, ServiceAccount: p.ServiceAccount, Node: p.Node, Phase: string(p.Phase)}, true
}

// RunsOn implements ca.Pods.
func (d podDirectory) RunsOn(node, namespace, serviceAccount string) bool {
	return node != "" && slices.ContainsFunc(d.views.podsByNode.Get(node), func(p model.Pod) bool {
		return p.Name.Namespace == namespace && p.ServiceAccount == serviceAccount && !p.Terminal()
	})
}
