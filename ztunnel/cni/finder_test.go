package cni

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ambit-mesh/ambit/ztunnel/netns/netnstest"
)

// fakeNode is a /proc with processes of pods, and named namespaces.
type fakeNode struct {
	t           *testing.T
	proc, netns string
	next        int
}

func newFakeNode(t *testing.T) *fakeNode {
	t.Helper()
	n := &fakeNode{t: t, proc: t.TempDir(), netns: t.TempDir(), next: 1}
	n.process("/", "/proc/self/ns/net") // the host's init
	must(t, os.Mkdir(filepath.Join(n.proc, "sys"), 0o755))
	return n
}

// process adds one and returns how to end it.
func (n *fakeNode) process(group, ns string) (end func()) {
	n.t.Helper()
	dir := filepath.Join(n.proc, fmt.Sprint(n.next))
	n.next++
	must(n.t, os.MkdirAll(filepath.Join(dir, "ns"), 0o755))
	text := "12:pids:" + group + "\n1:name=systemd:" + group + "\n0::/\n"
	must(n.t, os.WriteFile(filepath.Join(dir, "cgroup"), []byte(text), 0o600))
	must(n.t, os.Symlink(ns, filepath.Join(dir, "ns/net")))
	return func() { must(n.t, os.RemoveAll(dir)) }
}

// name gives a namespace a name, as the container runtime does.
func (n *fakeNode) name(name string, p *netnstest.Pod) string {
	n.t.Helper()
	path := filepath.Join(n.netns, name)
	must(n.t, os.Symlink(p.Path, path))
	return path
}

func (n *fakeNode) finder() Finder {
	return Finder{ProcDir: n.proc, NetNSDir: n.netns, Log: testLog(n.t)}
}

func (n *fakeNode) find(pods ...Pod) map[string]Found {
	n.t.Helper()
	found := n.finder().Find(n.t.Context(), pods)
	n.t.Cleanup(func() {
		for _, f := range found {
			_ = f.NS.Close()
		}
	})
	return found
}

func uuid(i int) string { return fmt.Sprintf("3f2b8a10-0c1d-4e5f-8a9b-00000000000%d", i) }

func podWith(uid string, p *netnstest.Pod) Pod {
	return Pod{UID: uid, Name: uid, Namespace: "shop", IPs: []netip.Addr{p.Addr}}
}

func TestFindByProcess(t *testing.T) {
	n := newFakeNode(t)
	var pods []Pod
	var spaces []*netnstest.Pod
	for i, group := range []string{
		"/kubepods/besteffort/pod" + uuid(0) + "/c0ffee",
		"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod" + strings.ReplaceAll(uuid(1), "-", "_") + ".slice/cri-containerd-c0ffee.scope",
		"/kubepods.slice/kubepods-pod" + strings.ReplaceAll(uuid(2), "-", "_") + ".slice/crio-c0ffee.scope",
		"/../../burstable/pod" + uuid(3) + "/c0ffee",
	} {
		p := netnstest.NewPod(t)
		pods, spaces = append(pods, podWith(uuid(i), p)), append(spaces, p)
		n.process(group, "/proc/self/ns/net") // joined the host's namespace
		n.process(group, filepath.Join(n.proc, "ended"))
		n.process(group, p.Path)
	}
	path := n.name("cni-1", spaces[1])
	found := n.find(pods...)
	for i, p := range pods {
		f, ok := found[p.UID]
		if !ok || !f.NS.Same(spaces[i].NS) {
			t.Errorf("pod %d: got %v, want its namespace", i, f.NS)
		}
		if want := map[bool]string{true: path}[i == 1]; f.Path != want {
			t.Errorf("pod %d: got path %q, want %q", i, f.Path, want)
		}
	}
}

func TestFindIsNotMisled(t *testing.T) {
	n := newFakeNode(t)
	mine, other := netnstest.NewPod(t), netnstest.NewPod(t)
	pod := podWith(uuid(0), mine)
	group := "/kubepods/pod" + pod.UID + "/c"
	end := n.process(group, mine.Path)
	end() // between listing and reading, or before
	n.process(group, other.Path)
	n.process("/user.slice/session-1.scope", mine.Path)
	n.name("cni-other", other)
	if found := n.find(pod); len(found) != 0 {
		t.Errorf("found %v, want nothing: no process of the pod is in a namespace with its address", found)
	}
	path := n.name("cni-mine", mine)
	must(t, os.WriteFile(filepath.Join(n.netns, "plain-file"), nil, 0o600))
	found := n.find(pod)
	if f := found[pod.UID]; f.Path != path || !f.NS.Same(mine.NS) {
		t.Errorf("found %v, want the named namespace that has the address", found)
	}
	n.name("cni-mine-too", mine)
	if found := n.find(pod); len(found) != 0 {
		t.Errorf("found %v, though two names have the address", found)
	}
	hostPod := Pod{UID: uuid(5), IPs: []netip.Addr{netnstest.NodeAddr}}
	n.process("/kubepods/pod"+uuid(5)+"/c", "/proc/self/ns/net")
	must(t, os.Symlink("/proc/self/ns/net", filepath.Join(n.netns, "host")))
	if found := n.find(hostPod); len(found) != 0 {
		t.Errorf("found %v for a pod in the host's namespace", found)
	}
	if found := (Finder{ProcDir: t.TempDir(), Log: testLog(t)}).Find(t.Context(), []Pod{pod}); len(found) != 0 {
		t.Errorf("found %v without a /proc", found)
	}
}

func FuzzPodOfGroups(f *testing.F) {
	f.Add("0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod3f2b8a10_0c1d.slice/cri-containerd-1.scope\n")
	f.Add("4:memory:/kubepods/besteffort/pod3f2b8a10-0c1d/c0ffee\n0::/\n")
	f.Add("0::/pod../../etc\n:::::/pod\n\x00")
	f.Fuzz(func(t *testing.T, groups string) {
		if uid := podOfGroups(groups); uid != "" && validUID(uid) != nil {
			t.Errorf("%q names the pod %q", groups, uid)
		}
	})
}

// TestFindDoesNotLeak holds the finder to what it returns: files are counted at the end
// of all tests, so that many namespaces would show.
func TestFindDoesNotLeak(t *testing.T) {
	n := newFakeNode(t)
	p := netnstest.NewPod(t)
	pod := podWith(uuid(0), p)
	n.process("/kubepods/pod"+pod.UID+"/c", p.Path)
	for i := range 5 {
		n.name(fmt.Sprintf("cni-%d", i), p)
	}
	for range 20 {
		for _, f := range n.finder().Find(t.Context(), []Pod{pod}) {
			must(t, f.NS.Close())
		}
	}
}
