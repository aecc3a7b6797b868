// Package gatewayapi runs the Gateway API conformance suite against the mesh of
// a cluster, as the suite's own test does, with everything declared that a mesh
// can be tested for. A test of the suite that the mesh does not pass fails here;
// what of that is expected is for cmd/conformance to say, which runs this.
//
//	go test ./gatewayapi -timeout 40m -args -kubeconfig FILE [-report-output FILE] [-debug]
package gatewayapi

import (
	"context"
	"flag"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	"sigs.k8s.io/controller-runtime/pkg/client"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
	gatewayapi "sigs.k8s.io/gateway-api/conformance"
	confv1 "sigs.k8s.io/gateway-api/conformance/apis/v1"
	"sigs.k8s.io/gateway-api/conformance/utils/config"

	"github.com/ambit-mesh/ambit/integration/conformance"
)

// TestGatewayAPI has one subtest for each test of the suite. Those that are not
// about a mesh are skipped by the suite.
func TestGatewayAPI(t *testing.T) {
	// Without the flag, the suite would take the cluster that kubectl is set to.
	if kubeconfig := flag.Lookup("kubeconfig"); kubeconfig == nil || kubeconfig.Value.String() == "" {
		t.Fatal("which cluster? Run make conformance, or pass -args -kubeconfig FILE of a cluster with the mesh")
	}
	opts := gatewayapi.DefaultOptions(t)
	opts.SupportedFeatures = conformance.Features()
	for _, profile := range conformance.Profiles() {
		opts.ConformanceProfiles = append(opts.ConformanceProfiles, profile.Name)
	}
	opts.NamespaceLabels = conformance.NamespaceLabels
	opts.TimeoutConfig = timeouts()
	opts.Implementation = confv1.Implementation{
		Organization: "ambit-mesh", Project: "ambit", URL: "https://github.com/ambit-mesh/ambit",
		Version: opts.Implementation.Version, Contact: []string{"https://github.com/ambit-mesh/ambit/issues"},
	}
	deployWaypoints(t, opts.Client)
	gatewayapi.RunConformanceWithOptions(t, opts)
}

// timeouts are shorter than the suite allows an implementation, so that a mesh
// that fails every test is through in a quarter of an hour. Most is spent in
// MaxTimeToConsistency: each case that fails lasts that long.
func timeouts() config.TimeoutConfig {
	timeouts := config.DefaultTimeoutConfig()
	timeouts.MaxTimeToConsistency = 20 * time.Second
	timeouts.NamespacesMustBeReady = 180 * time.Second
	// Each try is a process in a pod: with the suite's 100 ms, those of a few
	// failing cases leave a small machine no time to serve requests.
	timeouts.DefaultPollInterval = 500 * time.Millisecond
	// A namespace is gone when its pods are, each of which has 30 s to end.
	timeouts.DeleteTimeout = 120 * time.Second
	return timeouts
}

// waypointWait bounds the wait for a waypoint to be programmed.
const waypointWait = 60 * time.Second

// deployWaypoints makes the suite's namespaces and in each the waypoint that
// its Services use, as the user of an ambient mesh would; the suite finds the
// namespaces there and keeps them. A waypoint that does not come up ends
// nothing: the tests show what does not work without it.
func deployWaypoints(t *testing.T, c client.Client) {
	t.Helper()
	for _, name := range conformance.Namespaces {
		namespace := &corev1.Namespace{Name: name, Labels: conformance.NamespaceLabels}
		if err := c.Create(t.Context(), namespace); err != nil {
			t.Fatalf("namespace %s, which a run makes and deletes: %v", name, err)
		}
		t.Cleanup(func() {
			// The test's own context has ended by now.
			if err := client.IgnoreNotFound(c.Delete(context.Background(), namespace)); err != nil {
				t.Errorf("namespace %s: %v", name, err)
			}
		})
		if err := c.Create(t.Context(), waypoint(name)); err != nil {
			t.Fatalf("waypoint of %s: %v", name, err)
		}
	}
	for _, name := range conformance.Namespaces {
		began := time.Now()
		if why := waitProgrammed(t.Context(), c, client.ObjectKey{Namespace: name, Name: conformance.WaypointName}); why != "" {
			t.Errorf("%swaypoint %s/%s is not programmed after %v: %s",
				conformance.NoticePrefix, name, conformance.WaypointName, waypointWait, why)
			continue
		}
		t.Logf("%swaypoint %s/%s is programmed after %.0f s",
			conformance.NoticePrefix, name, conformance.WaypointName, time.Since(began).Seconds())
	}
}

func waypoint(namespace string) *gatewayv1.Gateway {
	return &gatewayv1.Gateway{
		Namespace: namespace, Name: conformance.WaypointName,
		Labels: map[string]string{"istio.io/waypoint-for": "service"},
		Spec: gatewayv1.GatewaySpec{
			GatewayClassName: "istio-waypoint",
			Listeners:        []gatewayv1.Listener{{Name: "mesh", Port: 15008, Protocol: "HBONE"}},
		},
	}
}

// waitProgrammed says why the Gateway is not programmed when the time is over;
// an empty string means that it is.
func waitProgrammed(ctx context.Context, c client.Client, key client.ObjectKey) (why string) {
	err := wait.PollUntilContextTimeout(ctx, 500*time.Millisecond, waypointWait, true, func(ctx context.Context) (bool, error) {
		var gateway gatewayv1.Gateway
		if err := c.Get(ctx, key, &gateway); err != nil {
			return false, err
		}
		condition := meta.FindStatusCondition(gateway.Status.Conditions, string(gatewayv1.GatewayConditionProgrammed))
		if condition == nil {
			why = "nobody has set the condition"
			return false, nil
		}
		why = condition.Reason + ": " + condition.Message
		return condition.Status == metav1.ConditionTrue, nil
	})
	switch {
	case err == nil:
		return ""
	case why == "" || !wait.Interrupted(err):
		return err.Error()
	}
	return why
}
