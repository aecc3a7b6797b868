package cni

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"time"

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
	daemonSetResource = schema.GroupVersionResource{Group: "apps", Version: "v1", Resource: "daemonsets"}
)

// annotationMirror is on the object that stands for a pod of the kubelet's own (a static
// pod): the UID by which kubelet and container runtime know it.
const annotationMirror = "kubernetes.io/config.mirror"

// Kubernetes is the Source of a cluster's node: the API server's pods of the node, and
// the labels of all namespaces.
type Kubernetes struct {
	log        *slog.Logger
	meta       metadata.Interface
	pods       cache.SharedIndexInformer
	namespaces cache.SharedIndexInformer
	dirty      chan struct{} // holds a token when there is something new
}

// KubeConfig says how to reach the API server: as the file says, or as a pod does when
// it is empty.
func KubeConfig(file string) (*rest.Config, error) {
	if file != "" {
		return clientcmd.BuildConfigFromFlags("", file)
	}
	return rest.InClusterConfig()
}

// NewKubernetes makes the source of a node. It does not talk to the API server yet.
func NewKubernetes(log *slog.Logger, node string, config *rest.Config) (*Kubernetes, error) {
	k := &Kubernetes{log: log, dirty: make(chan struct{}, 1)}
	config = rest.CopyConfig(config)
	config.QPS = -1 // no queue of our own: pods are few, and retries wait longer each time
	var err error
	if k.meta, err = metadata.NewForConfig(config); err != nil {
		return nil, fmt.Errorf("API client: %w", err)
	}
	pods, err := podClient(config)
	if err != nil {
		return nil, fmt.Errorf("API client: %w", err)
	}
	namespaces := k.meta.Resource(namespaceResource)
	k.pods = cache.NewSharedIndexInformer(
		cache.NewListWatchFromClient(pods, "pods", metav1.NamespaceAll, fields.OneTermEqualSelector("spec.nodeName", node)),
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
	return k, k.prepare()
}

// podClient knows pods and nothing else of the API, to keep the other types out of the
// program.
func podClient(config *rest.Config) (*rest.RESTClient, error) {
	scheme := runtime.NewScheme()
	if err := corev1.AddToScheme(scheme); err != nil {
		return nil, err
	}
	c := rest.CopyConfig(config)
	c.APIPath, c.GroupVersion = "/api", &corev1.SchemeGroupVersion
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
	for what, informer := range map[string]cache.SharedIndexInformer{"pods": k.pods, "namespaces": k.namespaces} {
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
		for _, key := range []string{mesh.AnnotationRedirection, mesh.AnnotationSidecarStatus, annotationMirror} {
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

// list joins the pods with the labels of their namespaces.
func (k *Kubernetes) list() []Pod {
	var pods []Pod
	for _, o := range k.pods.GetStore().List() {
		p := podFrom(o.(*corev1.Pod))
		if ns, ok, _ := k.namespaces.GetStore().GetByKey(p.Namespace); ok {
			p.NamespaceLabels = ns.(*metav1.PartialObjectMetadata).Labels
		}
		pods = append(pods, p)
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

// DaemonSet says whether the agent's DaemonSet is wanted: there, and neither being
// deleted nor in a namespace that is, where pods may go before what made them.
func (k *Kubernetes) DaemonSet(ctx context.Context, namespace, name string) (wanted bool, err error) {
	o, err := k.meta.Resource(daemonSetResource).Namespace(namespace).Get(ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if ns, ok, _ := k.namespaces.GetStore().GetByKey(namespace); ok && ns.(*metav1.PartialObjectMetadata).DeletionTimestamp != nil {
		return false, nil
	}
	return o.DeletionTimestamp == nil, nil
}
