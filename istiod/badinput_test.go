package istiod

import (
	"context"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/ambit-mesh/ambit/apis/manifest"
	"github.com/ambit-mesh/ambit/apis/mesh"
	"github.com/ambit-mesh/ambit/istiod/status"
)

func TestBrokenFileKeepsTheLastGood(t *testing.T) {
	files := shop()
	files["deny.yaml"] = denyYAML
	c := start(t, files)
	z := c.ztunnel()
	z.await("policy", z.has(mesh.TypeAuthorization, "shop/deny-all"))

	c.overwrite("deny.yaml", "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n  metadata: [\n")
	path := filepath.Join(c.config, "deny.yaml")
	c.status(status.FileKey(path), path+":")
	if !strings.Contains(c.logged(), path+":") {
		t.Errorf("the log does not name file and line:\n%s", c.logged())
	}
	c.write("strict.yaml", strictYAML) // comes after it
	z.await("a later change", z.has(mesh.TypeAuthorization, "istio-system/istio_converted_static_strict"))
	if z.policy("shop/deny-all") == nil {
		t.Error("the policy is gone because its file does not parse")
	}

	c.overwrite("deny.yaml", denyYAML)
	c.eventually("the file's status", func() string {
		if _, err := manifest.NewStore(filepath.Join(c.state, "status")).Get(status.FileKey(path)); err == nil {
			return "it is still there"
		}
		return ""
	})
	c.remove("deny.yaml")
	z.await("policy deleted", z.lacks(mesh.TypeAuthorization, "shop/deny-all"))
}

func TestInvalidObjectDoesNotTouchItsNeighbours(t *testing.T) {
	files := shop()
	files["policies.yaml"] = denyYAML + "---\n" + strictYAML
	c := start(t, files)
	z := c.ztunnel()
	z.await("policy", z.has(mesh.TypeAuthorization, "shop/deny-all"))

	// The policy is now invalid; its neighbour in the file turns permissive.
	bad := strings.Replace(denyYAML, "principals", "principles", 1)
	c.write("policies.yaml", bad+"---\n"+strings.Replace(strictYAML, "STRICT", "PERMISSIVE", 1))
	z.await("neighbour", func() string {
		for _, name := range z.workload(client).GetAuthorizationPolicies() {
			return "still " + name
		}
		return ""
	})
	if z.policy("shop/deny-all") == nil {
		t.Error("the last good version of the policy is gone")
	}
	c.status(policyKey("deny-all"), "spec.rules[0].from[0].source.principles", "unknown field", "policies.yaml:1")

	c.write("policies.yaml", strings.Replace(denyYAML, `["*"]`, `["cluster.local/ns/shop/sa/client"]`, 1))
	z.await("new version", func() string {
		if got := z.policy("shop/deny-all").GetRules()[0].GetClauses()[0].GetMatches()[0].GetPrincipals()[0].GetExact(); got != "cluster.local/ns/shop/sa/client" {
			return "principal is " + got
		}
		return ""
	})
}

// A manifest that is truncated and written again, over and over, never takes
// the policy away, not even for a moment.
func TestRewritingAPolicyNeverDropsIt(t *testing.T) {
	files := shop()
	files["deny.yaml"] = denyYAML
	c := start(t, files)
	z := c.ztunnel()
	z.await("policy", z.has(mesh.TypeAuthorization, "shop/deny-all"))

	ctx, stop := context.WithCancel(t.Context())
	var wait sync.WaitGroup
	wait.Go(func() {
		for ctx.Err() == nil {
			if _, ok := c.i.views.policies.Get("shop/deny-all"); !ok {
				t.Error("the policy is not there while its file is being written")
				return
			}
		}
	})
	for n := range 300 {
		contents := strings.Replace(denyYAML, "spec:", "spec: # "+strings.Repeat("x", n), 1)
		c.overwrite("deny.yaml", "")
		c.overwrite("deny.yaml", contents[:len(contents)/2])
		c.overwrite("deny.yaml", contents)
	}
	c.write("strict.yaml", strictYAML) // comes after it
	z.await("a later change", func() string {
		if missing := z.lacks(mesh.TypeAuthorization, "shop/deny-all")(); missing == "" {
			t.Fatal("the policy was removed from the proxy")
		}
		return z.has(mesh.TypeAuthorization, "istio-system/istio_converted_static_strict")()
	})
	stop()
	wait.Wait()
}

func TestMeshConfigKeepsTheLastGood(t *testing.T) {
	config := func(mesh string) string {
		return "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: istio, namespace: istio-system}\ndata:\n  mesh: |\n    " +
			strings.ReplaceAll(mesh, "\n", "\n    ") + "\n"
	}
	files := shop()
	files["mesh.yaml"] = config("trustDomain: example.org\naccessLogFile: /dev/stdout")
	c := start(t, files)
	z := c.ztunnel()
	domain := func(want string) func() string {
		return func() string {
			if got := z.workload(client).GetTrustDomain(); got != want {
				return "trust domain is " + got
			}
			return ""
		}
	}
	z.await("trust domain", domain("example.org"))
	key := manifest.Key{Kind: "ConfigMap", Namespace: "istio-system", Name: "istio"}
	c.status(key, "data.mesh.accessLogFile")

	c.write("mesh.yaml", config("trustDomain: [not, a, string]"))
	c.status(key, "data.mesh.trustDomain", "mesh.yaml:1")
	if missing := domain("example.org")(); missing != "" {
		t.Error(missing)
	}
	c.write("mesh.yaml", config("trustDomain: example.net"))
	z.await("trust domain", domain("example.net"))
	c.eventually("the ConfigMap's status", func() string {
		if _, err := manifest.NewStore(filepath.Join(c.state, "status")).Get(key); err == nil {
			return "it is still there although every key is read"
		}
		return ""
	})
}

func TestKindsThatNobodyReadsAreNamed(t *testing.T) {
	files := shop()
	files["telemetry.yaml"] = "apiVersion: telemetry.istio.io/v1\nkind: Telemetry\nmetadata: {name: t, namespace: shop}\nspec: {}\n"
	files["entry.yaml"] = `apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: ext, namespace: shop}
spec: {hosts: [example.com], ports: [{number: 443, name: tls, protocol: TLS}], resolution: DNS}
`
	c := start(t, files)
	c.status(manifest.Key{Group: "telemetry.istio.io", Kind: "Telemetry", Namespace: "shop", Name: "t"}, "not read by istiod")
	c.status(manifest.Key{Group: "networking.istio.io", Kind: "ServiceEntry", Namespace: "shop", Name: "ext"}, "not supported yet")
	if !strings.Contains(c.logged(), "kind=Telemetry") {
		t.Error("the log does not name the kind")
	}
}
