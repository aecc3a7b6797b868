// Package kube is istiod's dealings with an API server besides reading: who a
// token belongs to (Reviewer), the objects that istiod generates (Objects), the
// Secrets of its certificate authority (Secrets), and which replica of istiod
// may write (Lease). Objects are read by istiod/source, statuses are written by
// istiod/status.
//
// It decides nothing about the mesh: what a review means is istiod/authn's,
// what is generated istiod/deploy's. Each part has a client of its own, so that
// a burst of one kind of request does not hold up another. All are safe for
// concurrent use.
//
// Spec: spec/control-plane.md §6.2, §7.1, §7.6.
package kube

import (
	"errors"
	"fmt"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/ambit-mesh/ambit/apis/mesh"
)

// userAgent is what the API server's audit log and metrics know istiod by, and
// the manager of the fields that it writes where nothing else is said:
// install/installer tells by it what is istiod's.
const userAgent = mesh.ServiceIstiod

// Requests per second of one client, in the long run and at once. The API
// server's own priority and fairness protects it; these keep a fault of ours
// from being a flood.
const (
	requestRate  = 80
	requestBurst = 160
)

// requestTimeout ends a request that the API server does not answer.
const requestTimeout = 15 * time.Second

// Config returns how to reach the API server: as the kubeconfig says, or, when
// its name is empty, that of the cluster in which istiod is a pod.
func Config(kubeconfig string) (*rest.Config, error) {
	cfg, err := load(kubeconfig)
	if err != nil {
		return nil, err
	}
	cfg.UserAgent = userAgent
	cfg.QPS, cfg.Burst = requestRate, requestBurst
	return cfg, nil
}

func load(kubeconfig string) (*rest.Config, error) {
	if kubeconfig != "" {
		cfg, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
		if err != nil {
			return nil, fmt.Errorf("kubeconfig %s: %w", kubeconfig, err)
		}
		return cfg, nil
	}
	cfg, err := rest.InClusterConfig()
	if errors.Is(err, rest.ErrNotInCluster) {
		return nil, errors.New("this is no pod of a cluster: give --kubeconfig, or --config-dir to read manifests from a directory")
	}
	if err != nil {
		return nil, fmt.Errorf("configuration of a pod: %w", err)
	}
	return cfg, nil
}

// timed is cfg with an end to every request: for clients that do not watch.
func timed(cfg *rest.Config) *rest.Config {
	out := rest.CopyConfig(cfg)
	out.Timeout = requestTimeout
	return out
}
