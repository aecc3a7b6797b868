package istiod

import (
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
)

// serve runs xDS and the CA over TLS until ctx is done.
func (i *Istiod) serve(ctx context.Context, l net.Listener, authority *ca.Authority, server *xds.Server, service *ca.Service) error {
	certificates := authority.ServingSource(servingNames(i.cfg.ClusterDomain), servingIPs(l.Addr()))
	options := append(xds.Options(),
		grpc.Creds(credentials.NewTLS(&tls.Config{MinVersion: tls.VersionTLS13, GetCertificate: certificates})),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: pingsAllowed, PermitWithoutStream: true}),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: pingAfter, Timeout: pingTimeout}),
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
				return errors.New("first load of the configuration is not done")
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

// callerKey is under which a stream's context has its authn.Caller.
type callerKey struct{}

// What a refused proxy is told; the log has the reason.
var (
	errUnauthenticated = grpcstatus.Error(codes.Unauthenticated, "not authenticated")
	errUnverifiable    = grpcstatus.Error(codes.Unavailable, "callers cannot be authenticated now")
	errNotPermitted    = grpcstatus.Error(codes.PermissionDenied, "node is not permitted")
)

// authenticate says who opens a stream, spec/control-plane.md §3.1: the caller
// must be a pod that lives, on the node that its token names.
func (i *Istiod) authenticate(ctx context.Context) (context.Context, error) {
	token, err := authn.BearerToken(ctx)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errUnauthenticated, err)
	}
	caller, err := i.platform.verify(ctx, token)
	switch {
	case err == nil:
	case authn.ReasonOf(err) == authn.ReasonUnavailable:
		return nil, fmt.Errorf("%w: %w", errUnverifiable, err) // no fault of the caller's: it comes again
	default:
		return nil, fmt.Errorf("%w: %w", errUnauthenticated, err)
	}
	if _, err := i.callerPod(caller); err != nil {
		return nil, err
	}
	return context.WithValue(ctx, callerKey{}, caller), nil
}

// callerPod returns the live pod that a token is bound to.
func (i *Istiod) callerPod(caller authn.Caller) (model.Pod, error) {
	pod, ok := i.views.pods.Get(model.Key(caller.Namespace, caller.Pod.Name))
	switch {
	case !caller.Bound() || !ok || pod.UID != caller.Pod.UID || pod.ServiceAccount != caller.ServiceAccount || pod.Terminal():
		return model.Pod{}, fmt.Errorf("%w: token is not bound to a pod that lives: %s", errUnauthenticated, caller)
	case caller.Node != "" && caller.Node != pod.Node:
		return model.Pod{}, fmt.Errorf("%w: caller's pod is on node %q: %s", errUnauthenticated, pod.Node, caller)
	}
	return pod, nil
}

// authorize decides what a proxy may see. What it says of itself must agree with
// its token, and it must be of a type that is served: a trusted ztunnel, or a
// pod of a waypoint Gateway, which also gets what is that waypoint's alone.
func (i *Istiod) authorize(ctx context.Context, node *corev3.Node) ([]string, error) {
	caller, _ := ctx.Value(callerKey{}).(authn.Caller)
	pod, err := i.callerPod(caller)
	if err != nil {
		return nil, err
	}
	fields := node.GetMetadata().GetFields()
	if got := fields["NAMESPACE"].GetStringValue(); got != caller.Namespace {
		return nil, fmt.Errorf("%w: node metadata NAMESPACE is %q: %s", errNotPermitted, got, caller)
	}
	if got := fields["SERVICE_ACCOUNT"].GetStringValue(); got != "" && got != caller.ServiceAccount {
		return nil, fmt.Errorf("%w: node metadata SERVICE_ACCOUNT is %q: %s", errNotPermitted, got, caller)
	}
	switch kind, _, _ := strings.Cut(node.GetId(), "~"); kind {
	case mesh.NodeTypeZtunnel:
		if !slices.Contains(i.cfg.TrustedNodeAccounts, caller.Namespace+"/"+caller.ServiceAccount) {
			return nil, fmt.Errorf("%w: no account of ztunnel, see CA_TRUSTED_NODE_ACCOUNTS: %s", errNotPermitted, caller)
		}
		return nil, nil
	case mesh.NodeTypeWaypoint:
		name := model.Name{Namespace: caller.Namespace, Name: pod.Labels[mesh.LabelGatewayName]}
		if w, ok := i.views.waypoints.Get(name.String()); !ok || w.Class != mesh.WaypointGatewayClass {
			return nil, fmt.Errorf("%w: label %s of the pod names no waypoint Gateway: %s", errNotPermitted, mesh.LabelGatewayName, caller)
		}
		return []string{model.WaypointScope(name)}, nil
	default:
		return nil, fmt.Errorf("%w: proxies of type %.32q are not served: %s", errNotPermitted, kind, caller)
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
