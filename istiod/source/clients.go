package source

import (
	"context"
	"fmt"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/dynamic"
	appsv1 "k8s.io/client-go/kubernetes/typed/apps/v1"
	corev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	discoveryv1 "k8s.io/client-go/kubernetes/typed/discovery/v1"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"
)

// clients talk to the API server: typed ones, which are fast, for the kinds
// that every cluster has; others for kinds that come and go.
type clients struct {
	core      corev1.CoreV1Interface
	apps      appsv1.AppsV1Interface
	discovery discoveryv1.DiscoveryV1Interface
	dynamic   dynamic.Interface
	metadata  metadata.Interface
}

// newClients makes clients without a rate limit of their own: a watch is one
// request, they back off by themselves, and the API server protects itself.
func newClients(config *rest.Config) (clients, error) {
	config = rest.CopyConfig(config)
	config.QPS = -1
	config.Timeout = 0 // a watch lasts
	proto := rest.CopyConfig(config)
	proto.ContentType = runtime.ContentTypeProtobuf
	proto.AcceptContentTypes = runtime.ContentTypeProtobuf + "," + runtime.ContentTypeJSON
	var out clients
	var err error
	if out.core, err = corev1.NewForConfig(proto); err != nil {
		return clients{}, fmt.Errorf("kubernetes source: %w", err)
	}
	if out.apps, err = appsv1.NewForConfig(proto); err != nil {
		return clients{}, fmt.Errorf("kubernetes source: %w", err)
	}
	if out.discovery, err = discoveryv1.NewForConfig(proto); err != nil {
		return clients{}, fmt.Errorf("kubernetes source: %w", err)
	}
	if out.dynamic, err = dynamic.NewForConfig(config); err != nil {
		return clients{}, fmt.Errorf("kubernetes source: %w", err)
	}
	if out.metadata, err = metadata.NewForConfig(config); err != nil {
		return clients{}, fmt.Errorf("kubernetes source: %w", err)
	}
	return out, nil
}

// listWatch is how the objects of one kind are read. client is what the
// functions come from: some fakes say by it what they cannot do.
type listWatch struct {
	client any
	list   func(ctx context.Context, options metav1.ListOptions) (runtime.Object, error)
	watch  func(ctx context.Context, options metav1.ListOptions) (watch.Interface, error)
}

// resource is the part of a typed client that is used.
type resource[L runtime.Object] interface {
	List(ctx context.Context, options metav1.ListOptions) (L, error)
	Watch(ctx context.Context, options metav1.ListOptions) (watch.Interface, error)
}

func reading[L runtime.Object](client any, r resource[L]) listWatch {
	return listWatch{
		client: client, watch: r.Watch,
		list: func(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
			return r.List(ctx, options)
		},
	}
}

// builtin returns the resources of the kinds that every cluster has.
func (c clients) builtin() map[groupKind]builtin {
	const all = metav1.NamespaceAll
	return map[groupKind]builtin{
		{"", "Namespace"}:                     {"namespaces", reading(c.core, c.core.Namespaces())},
		{"", "Node"}:                          {"nodes", reading(c.core, c.core.Nodes())},
		{"", "ConfigMap"}:                     {"configmaps", reading(c.core, c.core.ConfigMaps(all))},
		{"", "ServiceAccount"}:                {"serviceaccounts", reading(c.core, c.core.ServiceAccounts(all))},
		{"", "Pod"}:                           {"pods", reading(c.core, c.core.Pods(all))},
		{"", "Service"}:                       {"services", reading(c.core, c.core.Services(all))},
		{"discovery.k8s.io", "EndpointSlice"}: {"endpointslices", reading(c.discovery, c.discovery.EndpointSlices(all))},
		{"apps", "Deployment"}:                {"deployments", reading(c.apps, c.apps.Deployments(all))},
	}
}

type builtin struct {
	plural string
	lw     listWatch
}

// custom reads objects whole, without a Go type.
func (c clients) custom(gvr schema.GroupVersionResource) listWatch {
	r := c.dynamic.Resource(gvr)
	return listWatch{
		client: c.dynamic, watch: r.Watch,
		list: func(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
			return r.List(ctx, options)
		},
	}
}

// names reads nothing of objects but their metadata.
func (c clients) names(gvr schema.GroupVersionResource) listWatch {
	r := c.metadata.Resource(gvr)
	return listWatch{
		client: c.metadata, watch: r.Watch,
		list: func(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
			return r.List(ctx, options)
		},
	}
}
