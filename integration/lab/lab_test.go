package lab_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/ambit-mesh/ambit/apis/manifest"
	"github.com/ambit-mesh/ambit/integration/lab"
)

func TestMain(m *testing.M) {
	code := m.Run()
	_ = os.RemoveAll(programs)
	os.Exit(code)
}

var programs string // set by build

// build builds what the tests run, once, when a test first wants it: the workers
// of a fuzz run, each of which starts with TestMain, do not.
var build = sync.OnceValue(func() error {
	var err error
	if programs, err = os.MkdirTemp("", "lab-test-"); err != nil {
		return err
	}
	build := exec.Command("go", "build", "-o", programs+"/", "./cmd/lab", "./testdata/echo", "./testdata/meshstub")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build: %w\n%s", err, out)
	}
	for _, name := range []string{"istiod", "ztunnel", "ambit-cni"} {
		if err := os.Link(filepath.Join(programs, "meshstub"), filepath.Join(programs, name)); err != nil {
			return err
		}
	}
	return nil
})

// binaries is the directory of what the tests run.
func binaries(t *testing.T) string {
	t.Helper()
	if err := build(); err != nil {
		t.Fatal(err)
	}
	return programs
}

// bed is a running lab with the manifests of testdata.
type bed struct {
	*lab.Lab
	t      *testing.T
	config string
}

func start(t *testing.T, change func(*lab.Options)) *bed {
	t.Helper()
	config := t.TempDir()
	copyFile(t, "testdata/manifests/apps.yaml", filepath.Join(config, "apps.yaml"))
	options := lab.Options{
		Binary: filepath.Join(binaries(t), "lab"), BinDir: binaries(t), ConfigDir: config, StateDir: t.TempDir(),
		Timeout: 20 * time.Second, NoMesh: true,
	}
	if change != nil {
		change(&options)
	}
	l, err := lab.Start(t.Context(), options)
	if err != nil {
		log, _ := os.ReadFile(filepath.Join(options.StateDir, "lab.log"))
		t.Fatalf("start: %v\n%s", err, log)
	}
	t.Cleanup(func() {
		if t.Failed() {
			log, _ := os.ReadFile(filepath.Join(l.StateDir(), "lab.log"))
			t.Logf("log of the lab:\n%s", log)
		}
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if _, err := lab.Open(l.StateDir()); err != nil {
			return // ended by the test
		}
		if err := l.Down(ctx); err != nil {
			t.Error(err)
		}
	})
	return &bed{Lab: l, t: t, config: config}
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	data, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(to, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

// edit replaces text in the manifests.
func (b *bed) edit(old, replacement string) {
	b.t.Helper()
	file := filepath.Join(b.config, "apps.yaml")
	data, err := os.ReadFile(file)
	if err != nil {
		b.t.Fatal(err)
	}
	if !bytes.Contains(data, []byte(old)) {
		b.t.Fatalf("manifests have no %q", old)
	}
	if err := os.WriteFile(file, bytes.ReplaceAll(data, []byte(old), []byte(replacement)), 0o600); err != nil {
		b.t.Fatal(err)
	}
}

// exec runs a command and returns its output and exit code.
func (b *bed) exec(target string, argv ...string) (string, int) {
	b.t.Helper()
	var out bytes.Buffer
	code, err := b.Exec(b.t.Context(), target, argv, lab.Stdio{Out: &out, Err: &out})
	if err != nil {
		b.t.Fatalf("exec in %s: %v", target, err)
	}
	return strings.TrimSpace(out.String()), code
}

func (b *bed) await(what string, condition func(lab.Status) bool) lab.Status {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.t.Context(), 10*time.Second)
	defer cancel()
	s, err := b.Wait(ctx, condition)
	if err != nil {
		var text strings.Builder
		_ = s.Write(&text)
		b.t.Fatalf("want: %s: %v\n%s", what, err, text.String())
	}
	return s
}

func (b *bed) ready(target string, count int) []lab.PodStatus {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.t.Context(), 10*time.Second)
	defer cancel()
	pods, err := b.WaitReady(ctx, target, count)
	if err != nil {
		b.t.Fatal(err)
	}
	return pods
}

func TestPlaintext(t *testing.T) {
	b := start(t, nil)
	pods := b.ready("shop/web", 4)
	client := b.ready("shop/client", 1)[0]

	t.Run("pods are spread over the nodes", func(t *testing.T) {
		count := map[string]int{}
		for _, p := range pods {
			count[p.Node]++
		}
		if count["n1"] != 2 || count["n2"] != 2 {
			t.Errorf("pods by node: %v", count)
		}
	})
	t.Run("a cluster IP reaches every pod as often, and the source stays", func(t *testing.T) {
		out, _ := b.exec("shop/client", "echo", "get", "http://web", "400")
		count := map[string]int{}
		for line := range strings.Lines(out) {
			fields := strings.Fields(line)
			if fields[1] != client.Address {
				t.Fatalf("answer %q: want source %s", line, client.Address)
			}
			count[fields[0]]++
		}
		for _, p := range pods { // 100 each; six standard deviations are 52
			if n := count[p.Name]; n < 48 || n > 152 {
				t.Errorf("pod %s answered %d of 400", p.Name, n)
			}
		}
	})
	t.Run("a pod reaches itself through its Service", func(t *testing.T) {
		out, _ := b.exec("shop/"+pods[0].Name, "echo", "get", "http://web", "40")
		if strings.Contains(out, "error") || !strings.Contains(out, pods[0].Name) {
			t.Errorf("answers:\n%s", out)
		}
	})
	t.Run("a node reaches Services by name", func(t *testing.T) {
		out, _ := b.exec("node/n2", "echo", "get", "http://web.shop.svc")
		if fields := strings.Fields(out); len(fields) != 3 || fields[1] != "10.89.0.12" {
			t.Errorf("answer %q", out)
		}
	})
	t.Run("a Service without endpoints refuses", func(t *testing.T) {
		if out, _ := b.exec("shop/client", "echo", "get", "http://nobody"); !strings.Contains(out, "refused") {
			t.Errorf("answer %q", out)
		}
	})
	t.Run("a headless Service has its pods' addresses", func(t *testing.T) {
		out, _ := b.exec("shop/client", "echo", "lookup", "headless")
		got := strings.Fields(out)
		var want []string
		for _, p := range pods {
			want = append(want, p.Address)
		}
		slices.Sort(got)
		slices.Sort(want)
		if !slices.Equal(got, want) {
			t.Errorf("addresses %v, want %v", got, want)
		}
	})
	t.Run("probes come from the pod's gateway", func(t *testing.T) {
		log, err := os.ReadFile(b.LogFile("shop", pods[0].Name, "web"))
		gateway := pods[0].Address[:strings.LastIndexByte(pods[0].Address, '.')] + ".1:"
		if err != nil || !strings.Contains(string(log), "probed by "+gateway) {
			t.Errorf("log %q, %v; want probes by %s", log, err, gateway)
		}
	})
	t.Run("exec", func(t *testing.T) { testExec(t, b) })
	t.Run("capture", func(t *testing.T) { testCapture(t, b) })
	t.Run("objects", func(t *testing.T) { testObjects(t, b, client) })
	t.Run("changes", func(t *testing.T) { testChanges(t, b) })
	t.Run("nothing is left behind", func(t *testing.T) { testKill(t, b) })
}

func testExec(t *testing.T, b *bed) {
	t.Helper()
	var out bytes.Buffer
	code, err := b.Exec(t.Context(), "shop/client", []string{"echo", "exit", "7"}, lab.Stdio{In: strings.NewReader("over"), Out: &out})
	if err != nil || code != 7 || out.String() != "over" {
		t.Errorf("code %d, output %q, %v; want 7, over", code, out.String(), err)
	}
	if out, _ := b.exec("shop/client", "sh", "-c", "hostname; cat /var/run/settings/colour; echo $GREETING"); out != "client\ngreenhello client" {
		t.Errorf("inside the pod: %q", out)
	}
	for _, target := range []string{"shop/nobody", "node/n9", "shop", "shop/client/other"} {
		if _, err := b.Exec(t.Context(), target, []string{"true"}, lab.Stdio{}); err == nil {
			t.Errorf("target %s: no error", target)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := b.Exec(ctx, "shop/web", []string{"echo", "hang"}, lab.Stdio{}); err == nil {
		t.Error("a command outlived its context")
	}
}

func testCapture(t *testing.T, b *bed) {
	t.Helper()
	capture, err := b.Capture(t.Context(), "shop/client", "eth0", 8080)
	if err != nil {
		t.Fatal(err)
	}
	b.exec("shop/client", "echo", "get", "http://headless:8080/")
	packets, err := capture.Stop()
	if err != nil {
		t.Fatal(err)
	}
	seen := func(want string) bool {
		return slices.ContainsFunc(packets, func(p lab.Packet) bool { return p.HTTP == want })
	}
	if !seen("GET / HTTP/1.1") || !seen("HTTP/1.1 200 OK") || packets[0].Flags != "SYN" {
		t.Errorf("packets: %+v", packets)
	}
}

func testObjects(t *testing.T, b *bed, client lab.PodStatus) {
	t.Helper()
	store := b.Objects()
	pod, err := store.Get(manifest.Key{Kind: "Pod", Namespace: "shop", Name: client.Name})
	if err != nil {
		t.Fatal(err)
	}
	address, _, _ := unstructured.NestedString(pod.Object, "status", "podIP")
	node, _, _ := unstructured.NestedString(pod.Object, "spec", "nodeName")
	if string(pod.GetUID()) != client.UID || address != client.Address || node != "n1" {
		t.Errorf("pod object: %v", pod.Object)
	}
	service, err := store.Get(manifest.Key{Kind: "Service", Namespace: "shop", Name: "nobody"})
	if err != nil {
		t.Fatal(err)
	}
	if ip, _, _ := unstructured.NestedString(service.Object, "spec", "clusterIP"); !strings.HasPrefix(ip, "10.96.") {
		t.Errorf("cluster IP %q", ip)
	}
	if _, err := store.Get(manifest.Key{Kind: "Service", Namespace: "shop", Name: "web"}); err == nil {
		t.Error("a Service with an address was written again")
	}
	if _, err := store.Get(manifest.Key{Kind: "Node", Name: "n2"}); err != nil {
		t.Error(err)
	}
}

func testChanges(t *testing.T, b *bed) {
	t.Helper()
	client := func() string {
		out, _ := b.exec("shop/client", "echo", "get", "http://web")
		return out
	}
	// A new revision: old pods go when new ones are ready, and nothing fails.
	b.edit("value: v1", "value: v2")
	b.await("only v2 is there", func(s lab.Status) bool {
		if out := client(); !strings.HasSuffix(out, " v1") && !strings.HasSuffix(out, " v2") {
			t.Errorf("during the rollout: %q", out)
		}
		pods := s.Of("shop/web")
		return len(pods) == 4 && !slices.ContainsFunc(pods, func(p lab.PodStatus) bool { return !p.Ready }) && strings.HasSuffix(client(), " v2")
	})
	// A pod that is not ready is not sent anything.
	b.edit("replicas: 4", "replicas: 1")
	pod := b.ready("shop/web", 1)[0]
	b.exec("shop/client", "echo", "get", "http://"+pod.Address+":8080/die")
	b.await("the container was started again", func(s lab.Status) bool {
		p := s.Of("shop/" + pod.Name)
		return len(p) == 1 && p[0].Ready && p[0].Restarts == 1 && p[0].UID == pod.UID
	})
	b.edit("value: v2\n", "value: v3\n            - {name: START_UNREADY, value: \"1\"}\n")
	s := b.await("the new pod runs", func(s lab.Status) bool {
		return slices.ContainsFunc(s.Of("shop/web"), func(p lab.PodStatus) bool { return p.Name != pod.Name && p.Phase == "Running" })
	})
	for _, p := range s.Of("shop/web") {
		if p.Name != pod.Name {
			if out := client(); !strings.HasSuffix(out, " v2") {
				t.Errorf("with the new pod unready: %q", out)
			}
			b.exec("shop/client", "echo", "get", "http://"+p.Address+":8080/be-ready")
		}
	}
	b.await("the new pod took over", func(s lab.Status) bool {
		pods := s.Of("shop/web")
		return len(pods) == 1 && pods[0].Name != pod.Name && pods[0].Ready
	})
	b.edit("colour: green", "colour: blue")
	b.await("the config map's volume follows", func(lab.Status) bool {
		out, _ := b.exec("shop/client", "cat", "/var/run/settings/colour")
		return out == "blue"
	})
	if err := os.Remove(filepath.Join(b.config, "apps.yaml")); err != nil {
		t.Fatal(err)
	}
	b.await("everything is gone", func(s lab.Status) bool { return len(s.Pods) == 0 && len(s.Services) == 0 })
}

// testKill kills pid 1 and looks for what is left.
func testKill(t *testing.T, b *bed) {
	t.Helper()
	namespaces := func() []string {
		var found []string
		links, _ := filepath.Glob("/proc/[0-9]*/ns/net")
		for _, link := range links {
			if ns, err := os.Readlink(link); err == nil && !slices.Contains(found, ns) {
				found = append(found, ns)
			}
		}
		return found
	}
	own, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", b.PID()))
	if err != nil {
		t.Fatal(err)
	}
	mountsBefore, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	running := make(chan error, 1)
	go func() {
		_, err := b.Exec(t.Context(), "node/n1", []string{"echo", "hang"}, lab.Stdio{})
		running <- err
	}()
	process, err := os.FindProcess(b.PID())
	if err != nil {
		t.Fatal(err)
	}
	if err := process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := <-running; err == nil { // the connection ends with pid 1
		t.Error("exec outlived pid 1")
	}
	deadline := time.Now().Add(5 * time.Second)
	for slices.Contains(namespaces(), own) || processesOf(binaries(t)) > 0 {
		if time.Now().After(deadline) {
			t.Fatalf("left: namespace %t, %d processes", slices.Contains(namespaces(), own), processesOf(binaries(t)))
		}
	}
	if mountsAfter, err := os.ReadFile("/proc/self/mountinfo"); err != nil || !bytes.Equal(mountsBefore, mountsAfter) {
		t.Errorf("mounts changed (%v):\n%s", err, mountsAfter)
	}
	// And the directory can be used again.
	again, err := lab.Start(t.Context(), lab.Options{
		Binary: filepath.Join(binaries(t), "lab"), BinDir: binaries(t), ConfigDir: b.config, StateDir: b.StateDir(), NoMesh: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := again.Down(t.Context()); err != nil {
		t.Error(err)
	}
}

// processesOf counts the processes whose program is in the directory.
func processesOf(dir string) int {
	links, _ := filepath.Glob("/proc/[0-9]*/exe")
	count := 0
	for _, link := range links {
		if path, err := os.Readlink(link); err == nil && strings.HasPrefix(path, dir+"/") {
			count++
		}
	}
	return count
}

func TestRefusesDirectoriesThatItHides(t *testing.T) {
	_, err := lab.Start(t.Context(), lab.Options{ConfigDir: "/run", StateDir: t.TempDir(), BinDir: binaries(t)})
	if err == nil || !strings.Contains(err.Error(), "use another directory") {
		t.Errorf("error %v", err)
	}
}

func TestStartNamesWhatItWaitsFor(t *testing.T) {
	config := t.TempDir()
	pod := `{apiVersion: v1, kind: Pod, metadata: {name: a, namespace: b}, spec: {containers: [{name: c, image: no-such-program}]}}`
	if err := os.WriteFile(filepath.Join(config, "a.yaml"), []byte(pod), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := lab.Start(t.Context(), lab.Options{
		Binary: filepath.Join(binaries(t), "lab"), BinDir: binaries(t), ConfigDir: config, StateDir: t.TempDir(),
		Timeout: 500 * time.Millisecond, NoMesh: true,
	})
	if err == nil || !strings.Contains(err.Error(), "no-such-program") {
		t.Errorf("error %v", err)
	}
}

func TestCheck(t *testing.T) {
	if err := lab.Check(filepath.Join(binaries(t), "lab")); err != nil {
		t.Error(err)
	}
}
