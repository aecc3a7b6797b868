package cluster

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"sigs.k8s.io/yaml"
)

func TestCompleted(t *testing.T) {
	tool := filepath.Join(t.TempDir(), "cluster")
	if err := os.WriteFile(tool, nil, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name   string
		config Config
		nodes  int
		want   string // in the error; "" is none
	}{
		{"nothing said", Config{Tool: tool}, 2, ""},
		{"one node", Config{Tool: tool, Nodes: 1}, 1, ""},
		{"control plane", Config{Tool: tool, ControlPlaneOnly: true}, 0, ""},
		{"both", Config{Tool: tool, ControlPlaneOnly: true, Nodes: 1}, 0, "no nodes"},
		{"too many", Config{Tool: tool, Nodes: 10}, 0, "1 to 9"},
		{"a name for a path", Config{Tool: tool, Name: "../x"}, 0, "cluster name"},
		{"an upper-case name", Config{Tool: tool, Name: "X"}, 0, "cluster name"},
		{"no tool", Config{Tool: "/nowhere/cluster"}, 0, "make build"},
	} {
		got, err := c.config.completed()
		if c.want != "" {
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%s: error %v, want %q in it", c.name, err, c.want)
			}
			continue
		}
		if err != nil || got.Nodes != c.nodes || got.Name == "" || !filepath.IsAbs(got.CacheDir) || !filepath.IsAbs(got.SourceDir) {
			t.Errorf("%s: %+v, %v", c.name, got, err)
		}
	}
}

// TestNodeFiles renders the files and reads them in their formats.
func TestNodeFiles(t *testing.T) {
	for _, limited := range []bool{false, true} {
		settings := settingsOf(orders{Cluster: "c", Node: 2, Nodes: 2, Limited: limited})
		content := func(text string) []byte {
			out, err := render("file", text, settings)
			if err != nil {
				t.Fatal(err)
			}
			return out
		}
		var kubelet struct {
			Kind         string          `json:"kind"`
			ClusterDNS   []string        `json:"clusterDNS"`
			FeatureGates map[string]bool `json:"featureGates"`
		}
		if err := yaml.UnmarshalStrict(content(kubeletConfig), &map[string]any{}); err != nil {
			t.Errorf("kubelet.yaml: %v", err)
		}
		if err := yaml.Unmarshal(content(kubeletConfig), &kubelet); err != nil {
			t.Errorf("kubelet.yaml: %v", err)
		}
		if kubelet.Kind != "KubeletConfiguration" || !slices.Equal(kubelet.ClusterDNS, []string{"10.96.0.10"}) || kubelet.FeatureGates["KubeletInUserNamespace"] != limited {
			t.Errorf("kubelet.yaml with limited=%t: %+v", limited, kubelet)
		}
		var proxy struct {
			Mode, HostnameOverride string
		}
		if err := yaml.Unmarshal(content(proxyConfig), &proxy); err != nil || proxy.Mode != "nftables" || proxy.HostnameOverride != "n2" {
			t.Errorf("kube-proxy.yaml: %+v, %v", proxy, err)
		}
		var network struct {
			Plugins []struct {
				Type string `json:"type"`
				IPAM struct {
					Ranges [][]struct {
						Subnet netip.Prefix `json:"subnet"`
					} `json:"ranges"`
				} `json:"ipam"`
			} `json:"plugins"`
		}
		if err := json.Unmarshal(content(networkConfig), &network); err != nil || network.Plugins[0].IPAM.Ranges[0][0].Subnet != netip.MustParsePrefix("10.244.2.0/24") {
			t.Errorf("10-ptp.conflist: %+v, %v", network, err)
		}
		runtime := string(content(containerdConfig))
		for _, want := range []string{`sandbox = "` + pauseImage + `"`, map[bool]string{true: "restrict_oom_score_adj = true", false: "restrict_oom_score_adj = false"}[limited]} {
			if !strings.Contains(runtime, want) {
				t.Errorf("containerd.toml with limited=%t lacks %s", limited, want)
			}
		}
	}
}

// TestManifest: the Deployment's image is the one that nodes have.
func TestManifest(t *testing.T) {
	if !bytes.Contains(corednsManifest, []byte("image: "+strings.TrimPrefix(corednsImage, "docker.io/")+"\n")) {
		t.Errorf("the manifest of CoreDNS does not use %s", corednsImage)
	}
	if !bytes.Contains(corednsManifest, []byte("clusterIP: "+dnsAddress.String()+"\n")) {
		t.Errorf("the manifest of CoreDNS has not the address %s", dnsAddress)
	}
}

func TestAddresses(t *testing.T) {
	all := machines(9)
	if len(all) != 10 || all[0].name() != "cp" || all[9].name() != "n9" {
		t.Errorf("machines(9) = %v", all)
	}
	for _, m := range all[1:] {
		if !netip.MustParsePrefix(nodeRange).Contains(m.address()) || !netip.MustParsePrefix(podRange).Overlaps(m.pods()) {
			t.Errorf("%s: address %s, pods %s", m.name(), m.address(), m.pods())
		}
	}
	if got := hostsFile(orders{Nodes: 1}); got != "127.0.0.1\tlocalhost\n10.89.0.1\tcp\n10.89.0.11\tn1\n" {
		t.Errorf("hosts: %q", got)
	}
}

func TestParseStat(t *testing.T) {
	fields := " S 1 1 1 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 12345 99 1\n"
	for _, name := range []string{"bash", "a b", "x) S 1 (y", "(", ")"} {
		got, err := parseStat([]byte("42 (" + name + ")" + fields))
		if err != nil || got != (stat{started: 12345}) {
			t.Errorf("name %q: %+v, %v", name, got, err)
		}
	}
	for start, ended := range map[string]bool{"S 1": false, "Z 1": true, "X 1": true, "Z 2": false} { // state, threads
		state, threads, _ := strings.Cut(start, " ")
		got, err := parseStat([]byte("42 (x) " + state + " 1 1 1 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 " + threads + " 0 12345 99 1\n"))
		if err != nil || got.ended != ended {
			t.Errorf("state and threads %s: ended %v, %v", start, got.ended, err)
		}
	}
	for _, bad := range []string{"", "42 bash S", "42 (bash) S 1", "42 (bash) SS" + fields, "42 (bash) S 1 1 1 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 x 99\n"} {
		if got, err := parseStat([]byte(bad)); err == nil {
			t.Errorf("%q: %+v, want an error", bad, got)
		}
	}
}

func FuzzStat(f *testing.F) {
	f.Add([]byte("42 (bash) S 1 1 1 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 12345 99 1\n"), []byte("NSpid:\t42\t1\n"))
	f.Fuzz(func(_ *testing.T, stat, status []byte) {
		_, _ = parseStat(stat)
		_, _, _ = parseNSPid(status)
	})
}

func TestParseNSPid(t *testing.T) {
	outer, inner, ok := parseNSPid([]byte("Name:\tx\nNSpid:\t4711\t12\t1\nThreads:\t1\n"))
	if outer != 4711 || inner != 1 || !ok {
		t.Errorf("got %d, %d, %t", outer, inner, ok)
	}
	if _, _, ok := parseNSPid([]byte("Name:\tx\n")); ok {
		t.Error("no line NSpid is fine")
	}
}

func TestProcess(t *testing.T) {
	command := exec.Command("sleep", "1000")
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	p, err := processOf(command.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	if !p.alive() {
		t.Error("a running process is not alive")
	}
	for name, other := range map[string]process{
		"one that started at another time": {PID: p.PID, Started: p.Started + 1, Boot: p.Boot},
		"one of another boot":              {PID: p.PID, Started: p.Started, Boot: "x"},
		"none":                             {},
	} {
		if other.alive() {
			t.Errorf("%s is alive", name)
		}
		if err := other.kill(time.Second); err != nil {
			t.Errorf("kill %s: %v", name, err)
		}
	}
	if !p.alive() {
		t.Fatal("killing others with the same number has killed it")
	}
	// A zombie, as nobody has waited for it, is not alive.
	if err := p.kill(10 * time.Second); err != nil {
		t.Error(err)
	}
	if err := command.Wait(); err == nil {
		t.Error("it was not killed")
	}
}

func TestLock(t *testing.T) {
	s := state{root: t.TempDir(), cluster: "c"}
	first, err := s.lock(t.Context(), func() { t.Error("the first waits") })
	if err != nil {
		t.Fatal(err)
	}
	waiting := make(chan struct{})
	second := make(chan error, 1)
	go func() {
		file, err := s.lock(t.Context(), func() { close(waiting) })
		if err == nil {
			_, err = os.Stat(s.dir() + ".lock") // the lock of a file that has a name
			err = errors.Join(err, file.Close())
		}
		second <- err
	}()
	<-waiting
	if err := s.remove(); err != nil { // as Down does
		t.Fatal(err)
	}
	_ = first.Close()
	if err := <-second; err != nil {
		t.Error(err)
	}
}

func TestLockIsGivenUp(t *testing.T) {
	s := state{root: t.TempDir(), cluster: "c"}
	first, err := s.lock(t.Context(), func() { t.Error("the first waits") })
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	ctx, cancel := context.WithCancel(t.Context())
	if _, err := s.lock(ctx, cancel); !errors.Is(err, context.Canceled) {
		t.Errorf("interrupted while it waited: %v", err)
	}
}

func TestRelay(t *testing.T) {
	server, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	go func() { // answers when the other has said everything
		for {
			conn, err := server.Accept()
			if err != nil {
				return
			}
			said, _ := io.ReadAll(conn)
			_, _ = conn.Write(bytes.ToUpper(said))
			_ = conn.Close()
		}
	}()
	front, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		serveRelay(front, netip.MustParseAddrPort(server.Addr().String()), slog.New(slog.DiscardHandler))
		close(ended)
	}()
	conn, err := net.Dial("tcp4", front.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	_, _ = conn.Write([]byte("hello"))
	_ = conn.(*net.TCPConn).CloseWrite()
	answer, err := io.ReadAll(conn)
	if err != nil || string(answer) != "HELLO" {
		t.Errorf("answer %q, %v", answer, err)
	}
	_ = front.Close()
	<-ended
}

func TestLastLines(t *testing.T) {
	got := lastLines([]byte("1\n2\n\n3\n"+strings.Repeat("x", 1000)+"\n"), 3)
	if len(got) != 2 || got[0] != "3" || len(got[1]) > 410 {
		t.Errorf("last lines: %q", got)
	}
	if got := lastLines(nil, 3); got != nil {
		t.Errorf("last lines of nothing: %q", got)
	}
}

func TestTail(t *testing.T) {
	var said tail
	for range 1000 {
		_, _ = said.Write([]byte("0123456789"))
	}
	if len(said.kept) != tailSize {
		t.Errorf("%d bytes kept, want %d", len(said.kept), tailSize)
	}
	if said.explain(nil) != nil {
		t.Error("no error has become one")
	}
}

func TestProgress(t *testing.T) {
	p := newProgress(io.Discard, "building x")
	for line, isError := range map[string]bool{
		"go: downloading example.com/a v1.0.0": false,
		"example.com/a/b":                      false,
		"# example.com/a":                      true,
		"a.go:1:2: undefined: b":               true,
	} {
		if got := p.line(line); got != isError {
			t.Errorf("line %q: an error's: %t, want %t", line, got, isError)
		}
	}
	if p.compiled != 1 {
		t.Errorf("%d packages compiled, want 1", p.compiled)
	}
	p.end(nil)
}

func TestMakeImages(t *testing.T) {
	cache := t.TempDir()
	dirs := map[string]string{}
	for _, name := range []string{"pause", "coredns"} {
		dirs[name] = filepath.Join(cache, name+"-0123")
		if err := os.Mkdir(dirs[name], 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dirs[name], name), []byte(name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	first, err := makeImages(t.Context(), cache, "amd64", dirs)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"pause", "coredns"} {
		content, err := os.ReadFile(filepath.Join(first, name+".tar"))
		if err != nil || !bytes.Contains(content, []byte("docker.io/ambit-cluster/"+name+":1")) {
			t.Errorf("archive of %s: %d bytes, %v", name, len(content), err)
		}
	}
	if again, err := makeImages(t.Context(), cache, "amd64", dirs); err != nil || again != first {
		t.Errorf("again: %s, %v", again, err)
	}
	left, _ := filepath.Glob(filepath.Join(cache, unfinished+"*"))
	if len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	if err := os.Mkdir(filepath.Join(cache, unfinished+"kube-1"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := removeAbandoned(cache); err != nil {
		t.Fatal(err)
	}
	entries, _ := os.ReadDir(cache)
	if len(entries) != 3 {
		t.Errorf("after removing what was abandoned: %v", entries)
	}
}

func TestExecEnvironment(t *testing.T) {
	got := execEnvironment([]string{"PATH=/host", "TERM=x", "KUBECONFIG=/y", "HOMES=z"}, []string{"PATH=/machine", "HOME=/root"})
	if want := []string{"TERM=x", "HOMES=z", "PATH=/machine", "HOME=/root"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestNetNSNames(t *testing.T) {
	// "a" and "a-n1" are two clusters.
	if netNSName("a", "n1") == netNSName("a-n1", "cp") {
		t.Error("two machines have one name")
	}
}
