package cni

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/ambit-mesh/ambit/apis/mesh"
)

var (
	podResource       = schema.GroupVersionResource{Version: "v1", Resource: "pods"}
	namespaceResource = schema.GroupVersionResource{Version: "v1", Resource: "namespaces"}
)

// annotationMirror is on the object that stands for a pod of the kubelet's own (a static
// pod): the UID by which kubelet and container runtime know it.
const annotationMirror = "kubernetes.io/config.mirror"

// Kubernetes is the Source of a cluster's node: the API server's pods of the node, and
// the labels of all namespaces. It knows, too, whether the agent's DaemonSet wants it.
type Kubernetes struct {
	log        *slog.Logger
	node       string
	daemonSet  types.NamespacedName // the agent's own
	meta       metadata.Interface
	core, apps *rest.RESTClient
	pods       cache.SharedIndexInformer
	namespaces cache.SharedIndexInformer
	daemonSets cache.SharedIndexInformer // of the one
	dirty      chan struct{}             // holds a token when there is something new
}

// KubeConfig says how to reach the API server: as the file says, or as a pod does when
// it is empty.
func KubeConfig(file string) (*rest.Config, error) {
	if file != "" {
		return clientcmd.BuildConfigFromFlags("", file)
	}
	return rest.InClusterConfig()
}

// NewKubernetes makes the source of a node, for the agent of a DaemonSet. It does not
// talk to the API server yet.
func NewKubernetes(log *slog.Logger, node string, daemonSet types.NamespacedName, config *rest.Config) (*Kubernetes, error) {
	k := &Kubernetes{log: log, node: node, daemonSet: daemonSet, dirty: make(chan struct{}, 1)}
	config = rest.CopyConfig(config)
	config.QPS = -1 // no queue of our own: pods are few, and retries wait longer each time
	var err error
	if k.meta, err = metadata.NewForConfig(config); err != nil {
		return nil, fmt.Errorf("API client: %w", err)
	}
	if k.core, err = restClient(config, "/api", corev1.SchemeGroupVersion, &corev1.Pod{}, &corev1.PodList{}, &corev1.Node{}); err != nil {
		return nil, fmt.Errorf("API client: %w", err)
	}
	if k.apps, err = restClient(config, "/apis", appsv1.SchemeGroupVersion, &appsv1.DaemonSet{}, &appsv1.DaemonSetList{}); err != nil {
		return nil, fmt.Errorf("API client: %w", err)
	}
	namespaces := k.meta.Resource(namespaceResource)
	k.pods = cache.NewSharedIndexInformer(
		cache.NewListWatchFromClient(k.core, "pods", metav1.NamespaceAll, fields.OneTermEqualSelector("spec.nodeName", node)),
		&corev1.Pod{}, 0, cache.Indexers{})
	k.namespaces = cache.NewSharedIndexInformer(
		&cache.ListWatch{
			ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
				return namespaces.List(ctx, o)
			},
			WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
				return namespaces.Watch(ctx, o)
			},
		},
		&metav1.PartialObjectMetadata{}, 0, cache.Indexers{})
	k.daemonSets = cache.NewSharedIndexInformer(
		cache.NewListWatchFromClient(k.apps, "daemonsets", daemonSet.Namespace, fields.OneTermEqualSelector("metadata.name", daemonSet.Name)),
		&appsv1.DaemonSet{}, 0, cache.Indexers{})
	return k, k.prepare()
}

// restClient knows these types and nothing else of the API, to keep the others out of
// the program.
func restClient(config *rest.Config, path string, group schema.GroupVersion, types ...runtime.Object) (*rest.RESTClient, error) {
	scheme := runtime.NewScheme()
	scheme.AddKnownTypes(group, types...)
	metav1.AddToGroupVersion(scheme, group)
	c := rest.CopyConfig(config)
	c.APIPath, c.GroupVersion = path, &group
	c.NegotiatedSerializer = serializer.NewCodecFactory(scheme).WithoutConversion()
	c.AcceptContentTypes = runtime.ContentTypeProtobuf + "," + runtime.ContentTypeJSON
	return rest.RESTClientFor(c)
}

func (k *Kubernetes) prepare() error {
	wake := func() {
		select {
		case k.dirty <- struct{}{}:
		default:
		}
	}
	for what, informer := range map[string]cache.SharedIndexInformer{"pods": k.pods, "namespaces": k.namespaces, "daemonsets": k.daemonSets} {
		if err := informer.SetTransform(trim); err != nil {
			return err
		}
		err := informer.SetWatchErrorHandlerWithContext(func(ctx context.Context, _ *cache.Reflector, err error) {
			if ctx.Err() == nil && !apierrors.IsResourceExpired(err) {
				k.log.Warn("API server does not answer, to be tried again", "resource", what, "error", err)
			}
		})
		if err != nil {
			return err
		}
		if informer == k.daemonSets {
			continue // its state is looked up
		}
		if _, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
			AddFunc:    func(any) { wake() },
			UpdateFunc: func(_, _ any) { wake() },
			DeleteFunc: func(any) { wake() },
		}); err != nil {
			return err
		}
	}
	return nil
}

// trim leaves of an object what pod and list read.
func trim(o any) (any, error) {
	switch o := o.(type) {
	case *corev1.Pod:
		annotations := map[string]string{}
		for _, key := range []string{mesh.AnnotationRedirection, mesh.AnnotationDNSCapture, mesh.AnnotationSidecarStatus, annotationMirror} {
			if v, ok := o.Annotations[key]; ok {
				annotations[key] = v
			}
		}
		return &corev1.Pod{
			Name: o.Name, Namespace: o.Namespace, UID: o.UID, ResourceVersion: o.ResourceVersion,
			Labels: o.Labels, Annotations: annotations,
			Spec:   corev1.PodSpec{ServiceAccountName: o.Spec.ServiceAccountName, HostNetwork: o.Spec.HostNetwork},
			Status: corev1.PodStatus{Phase: o.Status.Phase, PodIPs: o.Status.PodIPs},
		}, nil
	case *metav1.PartialObjectMetadata:
		return &metav1.PartialObjectMetadata{
			Name: o.Name, ResourceVersion: o.ResourceVersion, DeletionTimestamp: o.DeletionTimestamp, Labels: o.Labels,
		}, nil
	}
	return o, nil
}

// Run implements Source. Changes that come while an update is taken make one update.
// With the API server away it waits for it.
func (k *Kubernetes) Run(ctx context.Context, update func([]Pod)) error {
	var informers sync.WaitGroup
	defer informers.Wait()
	informers.Go(func() { k.pods.RunWithContext(ctx) })
	informers.Go(func() { k.namespaces.RunWithContext(ctx) })
	informers.Go(func() { k.daemonSets.RunWithContext(ctx) })
	if !cache.WaitForCacheSync(ctx.Done(), k.pods.HasSynced, k.namespaces.HasSynced) {
		return ctx.Err()
	}
	for {
		update(k.list())
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-k.dirty:
		}
	}
}

// list joins the pods with the labels of their namespaces. A pod whose namespace is not
// known yet is left out: its labels alone do not say whether it is part of the mesh.
func (k *Kubernetes) list() []Pod {
	var pods []Pod
	for _, o := range k.pods.GetStore().List() {
		p := podFrom(o.(*corev1.Pod))
		if ns, ok, _ := k.namespaces.GetStore().GetByKey(p.Namespace); ok {
			p.NamespaceLabels = ns.(*metav1.PartialObjectMetadata).Labels
			pods = append(pods, p)
		}
	}
	return pods
}

func podFrom(o *corev1.Pod) Pod {
	p := Pod{
		UID:            podUID(o),
		Name:           o.Name,
		Namespace:      o.Namespace,
		ServiceAccount: o.Spec.ServiceAccountName,
		Labels:         o.Labels,
		Annotations:    o.Annotations,
		HostNetwork:    o.Spec.HostNetwork,
		Ended:          o.Status.Phase == corev1.PodSucceeded || o.Status.Phase == corev1.PodFailed,
	}
	if p.ServiceAccount == "" {
		p.ServiceAccount = "default" // a static pod's
	}
	for _, ip := range o.Status.PodIPs {
		if a, err := netip.ParseAddr(ip.IP); err == nil {
			p.IPs = append(p.IPs, a.Unmap())
		}
	}
	return p
}

// podUID is the UID that the node knows the pod by.
func podUID(o *corev1.Pod) string {
	if mirror := o.Annotations[annotationMirror]; mirror != "" {
		return mirror
	}
	return string(o.UID)
}

// patchTimeout bounds one annotation.
const patchTimeout = 10 * time.Second

// Annotate is of type Annotate. It patches the status, because the permission to change
// that changes less than the permission to change pods.
func (k *Kubernetes) Annotate(ctx context.Context, pod Pod, value string) error {
	ctx, cancel := context.WithTimeout(ctx, patchTimeout)
	defer cancel()
	annotation := any(value)
	if value == "" {
		annotation = nil // removes it: RFC 7386
	}
	// A patch that names another UID than the object's is a conflict.
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{
		"uid":         k.objectUID(pod),
		"annotations": map[string]any{mesh.AnnotationRedirection: annotation},
	}})
	if err != nil {
		return err
	}
	_, err = k.meta.Resource(podResource).Namespace(pod.Namespace).
		Patch(ctx, pod.Name, types.MergePatchType, patch, metav1.PatchOptions{}, "status")
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		return nil
	}
	return err
}

// objectUID is the UID of the API server's object of the pod.
func (k *Kubernetes) objectUID(pod Pod) types.UID {
	o, ok, _ := k.pods.GetStore().GetByKey(pod.Namespace + "/" + pod.Name)
	if ok && podUID(o.(*corev1.Pod)) == pod.UID {
		return o.(*corev1.Pod).UID
	}
	return types.UID(pod.UID)
}
