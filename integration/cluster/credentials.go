package cluster

import (
	"encoding/base64"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"time"
)

// Names of the files in a machine's pki directory.
const (
	caFile           = "ca.crt"
	caKeyFile        = "ca.key"
	frontProxyCAFile = "front-proxy-ca.crt"
	tokenKeyFile     = "token.key"
	tokenPublicFile  = "token.pub"
)

// writeCredentials makes the keys and certificates of all machines, puts into
// each one's directory what it needs, and returns those of the administrator.
func writeCredentials(s state, all []machine, now time.Time) (admin credentials, err error) {
	ca, err := newAuthority("ambit-cluster", now)
	if err != nil {
		return admin, err
	}
	if err := controlPlaneCredentials(s.pki(all[0]), ca, now); err != nil {
		return admin, err
	}
	for _, node := range all[1:] {
		if err := nodeCredentials(s.pki(node), node, ca, now); err != nil {
			return admin, err
		}
	}
	pair, err := ca.issue(subject{name: "admin", group: "system:masters"}, now)
	return credentials{ca: ca.cert, client: pair}, err
}

// controlPlaneCredentials writes what the control plane's programs read.
func controlPlaneCredentials(dir string, ca *authority, now time.Time) error {
	frontProxyCA, err := newAuthority("ambit-cluster-front-proxy", now)
	if err != nil {
		return err
	}
	token, err := newSigningKey()
	if err != nil {
		return err
	}
	files := map[string][]byte{
		caFile: ca.cert, caKeyFile: ca.key,
		frontProxyCAFile: frontProxyCA.cert,
		tokenKeyFile:     token.key, tokenPublicFile: token.cert,
	}
	for name, issued := range map[string]struct {
		by *authority
		to subject
	}{
		"apiserver": {ca, subject{
			name:      "kube-apiserver",
			addresses: []netip.Addr{controlPlaneAddress, netip.MustParseAddr("127.0.0.1"), apiServiceAddress},
			dns:       []string{"localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc." + ClusterDomain},
		}},
		"apiserver-kubelet": {ca, subject{name: "kube-apiserver-kubelet-client", group: "system:masters"}},
		"front-proxy":       {frontProxyCA, subject{name: "front-proxy-client"}},
	} {
		pair, err := issued.by.issue(issued.to, now)
		if err != nil {
			return err
		}
		files[name+".crt"], files[name+".key"] = pair.cert, pair.key
	}
	for name, user := range map[string]string{
		"controller-manager": "system:kube-controller-manager",
		"scheduler":          "system:kube-scheduler",
	} {
		pair, err := ca.issue(subject{name: user}, now)
		if err != nil {
			return err
		}
		files[name+".kubeconfig"] = credentials{ca: ca.cert, client: pair}.kubeconfig("ambit", apiURL())
	}
	return writeFiles(dir, files)
}

// nodeCredentials writes what a node's programs read.
func nodeCredentials(dir string, node machine, ca *authority, now time.Time) error {
	client, err := ca.issue(subject{name: "system:node:" + node.name(), group: "system:nodes"}, now)
	if err != nil {
		return err
	}
	server, err := ca.issue(subject{name: node.name(), dns: []string{node.name()}, addresses: []netip.Addr{node.address()}}, now)
	if err != nil {
		return err
	}
	proxy, err := ca.issue(subject{name: "system:kube-proxy"}, now)
	if err != nil {
		return err
	}
	return writeFiles(dir, map[string][]byte{
		caFile:                  ca.cert,
		"kubelet.crt":           server.cert,
		"kubelet.key":           server.key,
		"kubelet.kubeconfig":    credentials{ca: ca.cert, client: client}.kubeconfig("ambit", apiURL()),
		"kube-proxy.kubeconfig": credentials{ca: ca.cert, client: proxy}.kubeconfig("ambit", apiURL()),
	})
}

// credentials are what a client of the API server needs.
type credentials struct {
	ca     []byte
	client keyPair
}

// kubeconfig is a file for kubectl and its like that needs no other file.
func (c credentials) kubeconfig(cluster, server string) []byte {
	encode := base64.StdEncoding.EncodeToString
	return fmt.Appendf(nil, `apiVersion: v1
kind: Config
clusters:
- name: %[1]s
  cluster:
    server: %[2]s
    certificate-authority-data: %[3]s
users:
- name: %[1]s
  user:
    client-certificate-data: %[4]s
    client-key-data: %[5]s
contexts:
- name: %[1]s
  context: {cluster: %[1]s, user: %[1]s}
current-context: %[1]s
`, cluster, server, encode(c.ca), encode(c.client.cert), encode(c.client.key))
}

func writeFiles(dir string, files map[string][]byte) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			return err
		}
	}
	return nil
}
