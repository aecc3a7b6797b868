package cluster

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"text/template"
	"time"

	"golang.org/x/sys/unix"
)

// The files that a node's programs read.
var (
	//go:embed config/containerd.toml
	containerdConfig string
	//go:embed config/kubelet.yaml
	kubeletConfig string
	//go:embed config/kube-proxy.yaml
	proxyConfig string
	//go:embed config/10-ptp.conflist
	networkConfig string
)

// containerdSocket is where containerd listens.
const containerdSocket = "/run/containerd/containerd.sock"

// nodeSettings are what the files differ in.
type nodeSettings struct {
	Name, PKI, Socket, DNS, Domain, ResolvConf string
	PodRange, AllPods                          string
	Runc, Pause                                string
	Limited                                    bool // without CAP_SYS_RESOURCE
}

func settingsOf(o orders) nodeSettings {
	node := o.machine()
	return nodeSettings{
		Name: node.name(), PKI: machineDir + "/pki", Socket: containerdSocket,
		DNS: dnsAddress.String(), Domain: ClusterDomain, ResolvConf: machineDir + "/config/resolv.conf",
		PodRange: node.pods().String(), AllPods: podRange,
		Runc: runtimeBinary(), Pause: pauseImage, Limited: o.Limited,
	}
}

// runtimeBinary is what containerd calls as runc.
func runtimeBinary() string {
	if _, err := os.Stat(filepath.Join(filepath.Dir(binary("runc")), seccompFile)); err == nil {
		return binary("runc")
	}
	return binary("noseccomp")
}

// hiddenSettings are those of the kernel that a kubelet would change for the
// whole host, with the values it wants; in the node they lie over the real ones.
var hiddenSettings = map[string]string{
	"vm/overcommit_memory":      "1",
	"vm/panic_on_oom":           "0",
	"kernel/panic":              "10",
	"kernel/panic_on_oops":      "1",
	"kernel/keys/root_maxkeys":  "1000000",
	"kernel/keys/root_maxbytes": "25000000",
}

// prepareNode writes what a node's programs want to find, in the node's mount
// namespace.
func prepareNode(o orders) error {
	settings := settingsOf(o)
	for path, text := range map[string]string{
		machineDir + "/config/containerd.toml": containerdConfig,
		machineDir + "/config/kubelet.yaml":    kubeletConfig,
		machineDir + "/config/kube-proxy.yaml": proxyConfig,
		"/etc/cni/net.d/10-ptp.conflist":       networkConfig,
		settings.ResolvConf:                    "nameserver " + controlPlaneAddress.String() + "\n",
		"/etc/resolv.conf":                     "nameserver " + controlPlaneAddress.String() + "\n",
		"/etc/hosts":                           hostsFile(o),
	} {
		content, err := render(path, text, settings)
		if err != nil {
			return err
		}
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		// The host's may be a link to a file that is not there any more.
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		if err := os.WriteFile(path, content, 0o644); err != nil {
			return err
		}
	}
	for _, dir := range []string{"/run/netns", "/run/containerd", "/var/lib/containerd", "/var/lib/kubelet", "/var/log/pods"} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	if err := copyPlugins(binariesDir+"/cni", "/opt/cni/bin"); err != nil {
		return err
	}
	if err := hideSettings(); err != nil {
		return err
	}
	// Some programs look for maps and programs there; a kernel may not have it.
	_ = unix.Mount("bpf", "/sys/fs/bpf", "bpf", 0, "")
	return nil
}

func render(name, text string, settings nodeSettings) ([]byte, error) {
	parsed, err := template.New(name).Option("missingkey=error").Parse(text)
	if err != nil {
		return nil, err
	}
	var out strings.Builder
	if err := parsed.Execute(&out, settings); err != nil {
		return nil, err
	}
	return []byte(out.String()), nil
}

// hostsFile names the machines.
func hostsFile(o orders) string {
	var out strings.Builder
	out.WriteString("127.0.0.1\tlocalhost\n")
	for _, m := range machines(o.Nodes) {
		fmt.Fprintf(&out, "%s\t%s\n", m.address(), m.name())
	}
	return out.String()
}

// copyPlugins copies the CNI plugins to where the mesh's plugin will be put
// beside them.
func copyPlugins(from, to string) error {
	entries, err := os.ReadDir(from)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(to, 0o755); err != nil {
		return err
	}
	for _, entry := range entries {
		if err := copyFile(filepath.Join(from, entry.Name()), filepath.Join(to, entry.Name())); err != nil {
			return err
		}
	}
	return nil
}

func copyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

// hideSettings lays files over the kernel's.
func hideSettings() error {
	for name, value := range hiddenSettings {
		target := "/proc/sys/" + name
		if _, err := os.Stat(target); errors.Is(err, os.ErrNotExist) {
			continue // a kernel without it
		}
		source := filepath.Join(machineDir, "config", strings.ReplaceAll(name, "/", "."))
		if err := os.WriteFile(source, []byte(value+"\n"), 0o644); err != nil {
			return err
		}
		if err := mount(source, target, "", unix.MS_BIND, ""); err != nil {
			return err
		}
	}
	return nil
}

// nodePrograms are what a node runs. No pod may start before the images are
// there, and a kubelet that does not find its API server waits for seconds.
func nodePrograms(o orders) []program {
	node, config, pki := o.machine(), machineDir+"/config", machineDir+"/pki"
	return []program{
		{name: "containerd", argv: []string{binary("containerd"), "--config=" + config + "/containerd.toml"}},
		{
			name: "images", once: true, after: []condition{fileExists(containerdSocket)},
			argv: []string{"/bin/sh", "-ec", `for f in ` + binariesDir + `/images/*.tar; do ` + strings.Join(importCommand(), " ") + ` "$f"; done`},
		},
		{
			name: "kubelet", after: []condition{programDone("images"), apiReady(pki)},
			argv: []string{
				binary("kubelet"), "--config=" + config + "/kubelet.yaml", "--kubeconfig=" + pki + "/kubelet.kubeconfig",
				"--hostname-override=" + node.name(), "--node-ip=" + node.address().String(), "--root-dir=/var/lib/kubelet",
			},
		},
		{
			name: "kube-proxy", after: []condition{apiReady(pki)},
			argv: []string{binary("kube-proxy"), "--config=" + config + "/kube-proxy.yaml"},
		},
	}
}

// importCommand puts images into a node's containerd; a file follows.
func importCommand() []string {
	return []string{binary("ctr"), "--namespace=k8s.io", "images", "import", "--local", "--snapshotter=overlayfs"}
}

// apiReady is met when the API server says that it is ready.
func apiReady(pki string) condition {
	return tried(func(ctx context.Context) error {
		ca, err := os.ReadFile(filepath.Join(pki, caFile))
		if err != nil {
			return err
		}
		roots := x509.NewCertPool()
		roots.AppendCertsFromPEM(ca)
		transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}}
		defer transport.CloseIdleConnections()
		client := &http.Client{Transport: transport, Timeout: 2 * time.Second}
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, apiURL()+"/readyz", nil)
		if err != nil {
			return err
		}
		response, err := client.Do(request)
		if err != nil {
			return err
		}
		defer response.Body.Close()
		if response.StatusCode != http.StatusOK {
			return fmt.Errorf("API server: %s", response.Status)
		}
		return nil
	})
}
