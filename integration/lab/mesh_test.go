package lab_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/ambit-mesh/ambit/apis/manifest"
	"github.com/ambit-mesh/ambit/integration/lab"
)

// The mesh's manifests, with programs that only look around.
func TestMeshManifests(t *testing.T) {
	b := start(t, func(o *lab.Options) {
		o.NoMesh, o.MeshEnv, o.TokenLifetime = false, map[string]string{"SECRET_TTL": "10s"}, 2*time.Second
	})
	for _, target := range []string{"istio-system/ztunnel", "istio-system/ambit-cni"} {
		b.ready(target, 2)
	}
	b.ready("istio-system/istiod", 1)
	client := b.ready("shop/client", 1)[0]
	for i, node := range []string{"n1", "n2"} {
		want := fmt.Sprintf("%s 10s 10.89.0.1%d", node, i+1)
		if out, _ := b.exec("node/"+node, "cat", "/run/ztunnel/started-on"); out != want {
			t.Errorf("node %s's own directory: %q, want %q", node, out, want)
		}
	}
	if out, _ := b.exec("node/n1", "cat", "/run/ambit-cni/agent"); !strings.Contains(out, "--state-dir=/") || strings.Contains(out, "$(") {
		t.Errorf("arguments of ambit-cni: %q", out)
	}
	out, _ := b.exec("node/n1", "cat", "/run/ambit-cni/ADD-"+client.UID)
	args, config, _ := strings.Cut(out, "\n")
	var network struct {
		PrevResult struct {
			IPs []struct{ Address, Gateway string } `json:"ips"`
		} `json:"prevResult"`
	}
	if err := json.Unmarshal([]byte(config), &network); err != nil || len(network.PrevResult.IPs) != 1 {
		t.Fatalf("network configuration %q: %v", config, err)
	}
	if got := network.PrevResult.IPs[0]; got.Address != client.Address+"/32" || got.Gateway != "10.244.1.1" {
		t.Errorf("previous result: %+v", got)
	}
	if !strings.Contains(args, "K8S_POD_NAMESPACE=shop;K8S_POD_NAME=client;") || !strings.Contains(args, "K8S_POD_UID="+client.UID) {
		t.Errorf("CNI_ARGS %q", args)
	}

	token := func() string {
		out, _ := b.exec("shop/client", "cat", "/var/run/secrets/tokens/istio-token")
		return out
	}
	first := token()
	b.await("the token was replaced", func(lab.Status) bool { return token() != first })

	// An annotation of ambit-cni's stays when the pod's object is written anew.
	key := manifest.Key{Kind: "Pod", Namespace: "shop", Name: "client"}
	err := b.Objects().Update(key, func(o *unstructured.Unstructured) error {
		o.SetAnnotations(map[string]string{"ambient.istio.io/redirection": "enabled"})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(b.config, "apps.yaml")); err != nil {
		t.Fatal(err)
	}
	b.await("the pod is leaving", func(s lab.Status) bool {
		pod, err := b.Objects().Get(key)
		if err == nil && pod.GetAnnotations()["ambient.istio.io/redirection"] != "enabled" {
			t.Error("the annotation was lost")
		}
		return len(s.Of("shop/client")) == 0
	})
	if _, code := b.exec("node/n1", "test", "-e", "/run/ambit-cni/DEL-"+client.UID); code != 0 {
		t.Error("no DEL for the pod")
	}
}
