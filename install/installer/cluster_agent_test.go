//go:build cluster

package installer

import (
	"context"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	authv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"

	"github.com/ambit-mesh/ambit/ztunnel/cni"
)

// agent asks, as the node agent's pod does, whether its node is to have an agent.
type agent struct {
	*cni.Kubernetes
	pod corev1.Pod
}

// agent starts one with the token of the DaemonSet's pod, and returns when it watches.
func (b *bed) agent() agent {
	b.t.Helper()
	var a agent
	b.eventually("an agent's pod runs", func(ctx context.Context) bool {
		pods, err := b.kube.CoreV1().Pods(system).List(ctx, metav1.ListOptions{LabelSelector: "app=ambit-cni"})
		for _, p := range pods.Items {
			if a.pod = p; p.DeletionTimestamp == nil && p.Status.Phase == corev1.PodRunning {
				return err == nil
			}
		}
		return false
	})
	seconds := int64(600)
	token, err := b.kube.CoreV1().ServiceAccounts(system).CreateToken(b.t.Context(), "ambit-cni", &authv1.TokenRequest{Spec: authv1.TokenRequestSpec{
		ExpirationSeconds: &seconds,
		BoundObjectRef:    &authv1.BoundObjectReference{Kind: "Pod", APIVersion: "v1", Name: a.pod.Name, UID: a.pod.UID},
	}}, metav1.CreateOptions{})
	if err != nil {
		b.t.Fatal(err)
	}
	config, err := b.cfg.Cluster.ToRESTConfig()
	if err != nil {
		b.t.Fatal(err)
	}
	config = rest.AnonymousClientConfig(config)
	config.BearerToken = token.Status.Token
	watches := make(chan struct{})
	var once sync.Once
	config.Wrap(func(next http.RoundTripper) http.RoundTripper {
		return roundTrip(func(r *http.Request) (*http.Response, error) {
			resp, err := next.RoundTrip(r)
			if err == nil && resp.StatusCode == http.StatusOK && strings.HasSuffix(r.URL.Path, "/daemonsets") && r.URL.Query().Get("watch") != "" {
				once.Do(func() { close(watches) })
			}
			return resp, err
		})
	})
	a.Kubernetes, err = cni.NewKubernetes(slog.New(slog.NewTextHandler(b.t.Output(), nil)), a.pod.Spec.NodeName,
		types.NamespacedName{Namespace: system, Name: "ambit-cni"}, config)
	if err != nil {
		b.t.Fatal(err)
	}
	ctx, stop := context.WithCancel(b.t.Context())
	knows := make(chan struct{})
	tell := sync.OnceFunc(func() { close(knows) })
	var ended sync.WaitGroup
	ended.Go(func() { _ = a.Run(ctx, func([]cni.Pod) { tell() }) })
	b.t.Cleanup(func() { stop(); ended.Wait() })
	for _, c := range []<-chan struct{}{knows, watches} {
		select {
		case <-c:
		case <-time.After(time.Minute):
			b.t.Fatal("the agent does not know its pods and its DaemonSet")
		}
	}
	if wanted, err := a.Wanted(ctx); !wanted || err != nil {
		b.t.Fatalf("an agent that is installed: wanted %v, %v", wanted, err)
	}
	return a
}

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func (b *bed) eventually(what string, cond func(context.Context) bool) {
	b.t.Helper()
	err := b.wait(b.t.Context(), what, func(ctx context.Context) (bool, []string, error) { return cond(ctx), nil, nil })
	if err != nil {
		b.t.Fatal(err)
	}
}

// An agent's permissions are gone in both cases, and only in the second does it leave
// its node.
func TestClusterAgentKnowsItsEnd(t *testing.T) {
	playNode(t, nil)
	b := newBed(t, nil)
	t.Cleanup(func() {
		purge := newBed(t, nil)
		if err := purge.Uninstall(context.WithoutCancel(t.Context()), UninstallOptions{Purge: true}); err != nil {
			t.Error(err)
		}
	})
	b.install()
	refused := func(err error) bool { return apierrors.IsUnauthorized(err) || apierrors.IsForbidden(err) }

	t.Run("deleted by force", func(t *testing.T) {
		a := b.agent()
		now := int64(0)
		if err := b.kube.CoreV1().Pods(system).Delete(t.Context(), a.pod.Name, metav1.DeleteOptions{GracePeriodSeconds: &now}); err != nil {
			t.Fatal(err)
		}
		b.eventually("the pod's token is refused", func(ctx context.Context) bool {
			wanted, err := a.Wanted(ctx)
			if err == nil && !wanted {
				t.Error("not wanted any more")
			}
			return refused(err)
		})
	})
	t.Run("helm uninstall", func(t *testing.T) {
		a := b.agent()
		releases, err := b.installed(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, part := range []string{"cni", "ztunnel", "istiod", "base"} { // as README says
			if err := b.removeRelease(releases[part]); err != nil {
				t.Fatal(err)
			}
		}
		b.eventually("its permissions are gone", func(ctx context.Context) bool {
			return refused(a.Annotate(ctx, cni.Pod{UID: string(a.pod.UID), Name: a.pod.Name, Namespace: system}, ""))
		})
		if wanted, err := a.Wanted(t.Context()); wanted || err != nil {
			t.Errorf("wanted %v, %v; want it to know from its watch that it is not", wanted, err)
		}
	})
}
