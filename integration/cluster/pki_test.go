package cluster

import (
	"crypto/tls"
	"crypto/x509"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestCredentials(t *testing.T) {
	s := state{root: t.TempDir(), cluster: "c"}
	all := machines(2)
	admin, err := writeCredentials(s, all, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(admin.ca)
	for _, c := range []struct {
		m                        machine
		file, host, name, oneOrg string
	}{
		{all[0], "apiserver", "10.89.0.1", "kube-apiserver", ""},
		{all[0], "apiserver", "127.0.0.1", "kube-apiserver", ""},
		{all[0], "apiserver", "10.96.0.1", "kube-apiserver", ""},
		{all[0], "apiserver", "kubernetes.default.svc", "kube-apiserver", ""},
		{all[0], "apiserver-kubelet", "", "kube-apiserver-kubelet-client", "system:masters"},
		{all[1], "kubelet", "10.89.0.11", "n1", ""},
		{all[2], "kubelet", "10.89.0.12", "n2", ""},
	} {
		pair, err := tls.LoadX509KeyPair(filepath.Join(s.pki(c.m), c.file+".crt"), filepath.Join(s.pki(c.m), c.file+".key"))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := pair.Leaf.Verify(x509.VerifyOptions{Roots: roots, DNSName: c.host, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}); err != nil {
			t.Errorf("%s for %s: %v", c.file, c.host, err)
		}
		if got := pair.Leaf.Subject.CommonName; got != c.name {
			t.Errorf("%s: common name %q, want %q", c.file, got, c.name)
		}
		if got := strings.Join(pair.Leaf.Subject.Organization, ","); got != c.oneOrg {
			t.Errorf("%s: organization %q, want %q", c.file, got, c.oneOrg)
		}
	}
	// A client of the one authority must not pass for the other's.
	front, err := tls.LoadX509KeyPair(filepath.Join(s.pki(all[0]), "front-proxy.crt"), filepath.Join(s.pki(all[0]), "front-proxy.key"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := front.Leaf.Verify(x509.VerifyOptions{Roots: roots, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}); err == nil {
		t.Error("the front proxy's certificate is signed by the cluster's authority")
	}
	for _, m := range all[1:] {
		if _, err := os.Stat(filepath.Join(s.pki(m), caKeyFile)); err == nil {
			t.Errorf("%s has the authority's key", m.name())
		}
	}
	info, err := os.Stat(s.pki(all[0]))
	if err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("pki directory: mode %v, %v; want 0700", info.Mode(), err)
	}
}

// TestAPI writes a kubeconfig, reads it as the tool does, and uses it.
func TestAPI(t *testing.T) {
	var applied []string
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case len(r.TLS.PeerCertificates) == 0 || r.TLS.PeerCertificates[0].Subject.CommonName != "admin":
			http.Error(w, "who are you", http.StatusUnauthorized)
		case r.Method == http.MethodPatch:
			applied = append(applied, r.URL.Path)
		case r.URL.Path == "/readyz":
		case r.URL.Path == "/api/v1/nodes":
			_, _ = w.Write([]byte(`{"items":[{"metadata":{"name":"n1"},"status":{"conditions":[{"type":"Ready","status":"True"}]}}]}`))
		default:
			http.NotFound(w, r)
		}
	}))
	ca, err := newAuthority("ca", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	serving, err := ca.issue(subject{name: "server", addresses: []netip.Addr{netip.MustParseAddr("127.0.0.1")}}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	client, err := ca.issue(subject{name: "admin", group: "system:masters"}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.X509KeyPair(serving.cert, serving.key)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca.cert)
	server.TLS = &tls.Config{Certificates: []tls.Certificate{pair}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: roots}
	server.StartTLS()
	defer server.Close()

	path := filepath.Join(t.TempDir(), "kubeconfig")
	if err := os.WriteFile(path, credentials{ca: ca.cert, client: client}.kubeconfig("c", server.URL), 0o600); err != nil {
		t.Fatal(err)
	}
	a, err := newAPI(path)
	if err != nil {
		t.Fatal(err)
	}
	defer a.close()
	if err := a.ready(t.Context()); err != nil {
		t.Errorf("ready: %v", err)
	}
	nodes, err := a.nodes(t.Context())
	if err != nil || len(nodes) != 1 || conditionOf(nodes[0].Status.Conditions, "Ready").Status != "True" {
		t.Errorf("nodes: %+v, %v", nodes, err)
	}
	if err := a.get(t.Context(), "/nothing", &struct{}{}); err == nil || !strings.Contains(err.Error(), "404") {
		t.Errorf("get what is not there: error %v, want 404", err)
	}
	if err := a.apply(t.Context(), corednsManifest); err != nil {
		t.Fatal(err)
	}
	want := []string{
		"/api/v1/namespaces/kube-system/serviceaccounts/coredns",
		"/apis/rbac.authorization.k8s.io/v1/clusterroles/system:coredns",
		"/apis/rbac.authorization.k8s.io/v1/clusterrolebindings/system:coredns",
		"/api/v1/namespaces/kube-system/configmaps/coredns",
		"/api/v1/namespaces/kube-system/services/kube-dns",
		"/apis/apps/v1/namespaces/kube-system/deployments/coredns",
	}
	if strings.Join(applied, "\n") != strings.Join(want, "\n") {
		t.Errorf("applied:\n%s\nwant:\n%s", strings.Join(applied, "\n"), strings.Join(want, "\n"))
	}
}
