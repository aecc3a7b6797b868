package installer

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

const flannel = `{
  "name": "cbr0", "cniVersion": "0.3.1", "disableCheck": true,
  "plugins": [
    {"type": "flannel", "delegate": {"hairpinMode": true, "mtu": 12345678901234567890, "note": "<&>"}},
    {"type": "portmap", "capabilities": {"portMappings": true}}
  ]
}`

const ptp = `{"cniVersion": "1.0.0", "name": "lab", "type": "ptp", "ipam": {"type": "host-local"}}`

// node is the two directories of a container runtime.
type node struct {
	t         *testing.T
	bin, conf string
	program   string
}

func newNode(t *testing.T) *node {
	t.Helper()
	dir := t.TempDir()
	n := &node{t: t, bin: filepath.Join(dir, "opt/cni/bin"), conf: filepath.Join(dir, "etc/cni/net.d"), program: filepath.Join(dir, "program")}
	for _, d := range []string{n.bin, n.conf} {
		must(t, os.MkdirAll(d, 0o755))
	}
	must(t, os.WriteFile(n.program, []byte("one"), 0o600))
	return n
}

func (n *node) installer() *Installer {
	return New(Config{
		BinDir: n.bin, ConfDir: n.conf, Program: n.program,
		Entry: Entry{RunDir: "/run/agent", Excluded: []string{"kube-system"}},
		Log:   slog.New(slog.DiscardHandler),
	})
}

func (n *node) write(name, text string) {
	n.t.Helper()
	path := filepath.Join(n.conf, name)
	must(n.t, os.WriteFile(path+".part", []byte(text), 0o640))
	must(n.t, os.Rename(path+".part", path))
}

func (n *node) read(name string) string {
	n.t.Helper()
	data, err := os.ReadFile(filepath.Join(n.conf, name))
	must(n.t, err)
	return string(data)
}

func (n *node) names(dir string) string {
	n.t.Helper()
	entries, err := os.ReadDir(dir)
	must(n.t, err)
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return strings.Join(names, " ")
}

// plugins lists the types in a list, in order.
func (n *node) plugins(name string) string {
	n.t.Helper()
	l, err := parseList([]byte(n.read(name)))
	must(n.t, err)
	var types []string
	for _, p := range l.plugins {
		o, err := parseObject(p)
		must(n.t, err)
		types = append(types, o.text("type"))
	}
	return strings.Join(types, " ")
}

func (n *node) install() {
	n.t.Helper()
	i := n.installer()
	i.attempt()
	if !i.Installed() {
		n.t.Fatalf("not installed: %s", i.told)
	}
}

func (n *node) uninstall() {
	n.t.Helper()
	must(n.t, n.installer().Uninstall())
}

func TestListIsChainedAndRestored(t *testing.T) {
	n := newNode(t)
	n.write("10-flannel.conflist", flannel)
	n.write("99-other.conflist", flannel)
	n.write("00-readme.txt", "no configuration")
	n.write("05-broken.conflist", "{")
	before := n.names(n.conf)
	n.install()
	if got := n.plugins("10-flannel.conflist"); got != "flannel portmap ambit-cni" {
		t.Errorf("plugins: got %q", got)
	}
	if n.read("99-other.conflist") != flannel {
		t.Error("a file that the runtime does not use was changed")
	}
	l, err := parseList([]byte(n.read("10-flannel.conflist")))
	must(t, err)
	var entry map[string]any
	must(t, json.Unmarshal(l.plugins[2], &entry))
	want := map[string]any{"type": "ambit-cni", "name": "ambit-cni", "cni_agent_run_dir": "/run/agent", "exclude_namespaces": []any{"kube-system"}}
	if !reflect.DeepEqual(entry, want) {
		t.Errorf("entry: got %v, want %v", entry, want)
	}
	if stat, err := os.Stat(filepath.Join(n.conf, "10-flannel.conflist")); err != nil || stat.Mode().Perm() != 0o640 {
		t.Errorf("mode: got %v, %v, want that of the file before", stat.Mode(), err)
	}
	once := n.read("10-flannel.conflist")
	stat, err := os.Stat(filepath.Join(n.conf, "10-flannel.conflist"))
	must(t, err)
	n.install()
	if again, err := os.Stat(filepath.Join(n.conf, "10-flannel.conflist")); err != nil || !os.SameFile(stat, again) || n.read("10-flannel.conflist") != once {
		t.Error("second installation wrote the file again")
	}
	if stat, err := os.Stat(filepath.Join(n.bin, PluginName)); err != nil || stat.Mode().Perm() != 0o755 {
		t.Errorf("program: %v, %v", stat, err)
	}
	n.uninstall()
	if n.read("10-flannel.conflist") != flannel {
		t.Errorf("restored: got %s, want %s", n.read("10-flannel.conflist"), flannel)
	}
	if n.names(n.conf) != before || n.names(n.bin) != "" {
		t.Errorf("left behind: %q, %q, want %q", n.names(n.conf), n.names(n.bin), before)
	}
	n.uninstall() // nothing left to do
}

func TestSingleIsConvertedAndRestored(t *testing.T) {
	for name, want := range map[string]string{
		"10-lab.conf": "10-lab.conf" + keptSuffix + " 10-lab.conflist",
		"10-lab.json": "10-lab.conflist 10-lab.json" + keptSuffix,
	} {
		n := newNode(t)
		n.write(name, ptp)
		n.install()
		n.install()
		if got := n.names(n.conf); got != want {
			t.Errorf("%s: files %q, want %q", name, got, want)
		}
		if got := n.plugins("10-lab.conflist"); got != "ptp ambit-cni" {
			t.Errorf("%s: plugins %q", name, got)
		}
		l, err := parseList([]byte(n.read("10-lab.conflist")))
		must(t, err)
		if l.fields.text("cniVersion") != "1.0.0" || l.fields.text("name") != "lab" || !sameJSON(l.plugins[0], []byte(ptp)) {
			t.Errorf("%s: list is %v", name, l)
		}
		n.uninstall()
		if n.names(n.conf) != name || n.read(name) != ptp {
			t.Errorf("%s: restored %q: %s", name, n.names(n.conf), n.read(name))
		}
	}
}

func TestSingleIsWrittenAnew(t *testing.T) {
	n := newNode(t)
	n.write("10-lab.conf", ptp)
	n.install()
	other := strings.Replace(ptp, "host-local", "static", 1)
	n.write("10-lab.conf", other) // its owner starts again
	n.install()
	if l, err := parseList([]byte(n.read("10-lab.conflist"))); err != nil || !sameJSON(l.plugins[0], []byte(other)) {
		t.Errorf("list after its owner wrote the file again: %v, %v", l, err)
	}
	n.write("10-lab.conf", ptp)
	n.uninstall() // before it was seen
	if n.names(n.conf) != "10-lab.conf" || n.read("10-lab.conf") != ptp {
		t.Errorf("restored %q", n.names(n.conf))
	}
}

func TestOthersChangesSurvive(t *testing.T) {
	n := newNode(t)
	n.write("10-lab.conf", ptp)
	n.install()
	l, err := parseList([]byte(n.read("10-lab.conflist")))
	must(t, err)
	l.plugins = append(l.plugins, json.RawMessage(`{"type":"tuning"}`))
	data, err := l.marshal()
	must(t, err)
	n.write("10-lab.conflist", string(data))
	n.install()
	if got := n.plugins("10-lab.conflist"); got != "ptp ambit-cni tuning" {
		t.Errorf("plugins: got %q", got)
	}
	n.uninstall()
	if got := n.plugins("10-lab.conflist"); got != "ptp tuning" || n.names(n.conf) != "10-lab.conflist" {
		t.Errorf("after uninstallation: plugins %q in %q", got, n.names(n.conf))
	}
}

func TestListNextToSingle(t *testing.T) {
	n := newNode(t)
	n.write("10-lab.conf", ptp)
	n.write("10-lab.conflist", flannel)
	n.install()
	if got := n.plugins("10-lab-ambit.conflist"); got != "ptp ambit-cni" || n.read("10-lab.conflist") != flannel {
		t.Errorf("plugins: got %q in the place of 10-lab.conf, files %q", got, n.names(n.conf))
	}
	n.uninstall()
	if n.names(n.conf) != "10-lab.conf 10-lab.conflist" {
		t.Errorf("files %q", n.names(n.conf))
	}
}

// TestListIsWrittenAnew: what is restored is what its owner wrote last.
func TestListIsWrittenAnew(t *testing.T) {
	n := newNode(t)
	n.write("10.conflist", flannel)
	n.install()
	other := strings.Replace(flannel, "portmap", "bandwidth", 1)
	n.write("10.conflist", other)
	n.install()
	n.uninstall()
	if n.names(n.conf) != "10.conflist" || n.read("10.conflist") != other {
		t.Errorf("chained again: restored %q: %s", n.names(n.conf), n.read("10.conflist"))
	}
	n.install()
	n.write("10.conflist", flannel)
	n.uninstall() // before it was seen
	if n.names(n.conf) != "10.conflist" || n.read("10.conflist") != flannel {
		t.Errorf("restored %q: %s", n.names(n.conf), n.read("10.conflist"))
	}
}

// TestEntryIsRepaired: an older version's entry, or a doubled one.
func TestEntryIsRepaired(t *testing.T) {
	n := newNode(t)
	n.write("10.conflist", `{"plugins":[{"type":"ptp"},{"type":"ambit-cni","old":1},{"type":"portmap"},{"type":"ambit-cni"}]}`)
	n.install()
	if got := n.plugins("10.conflist"); got != "ptp ambit-cni portmap" || strings.Contains(n.read("10.conflist"), "old") {
		t.Errorf("got %s", n.read("10.conflist"))
	}
}

func TestRunFollows(t *testing.T) {
	n := newNode(t)
	synctest.Test(t, func(t *testing.T) {
		i := n.installer()
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- i.Run(ctx) }()
		follows := func(what string, cond func() bool) {
			t.Helper()
			time.Sleep(every + 2*quiet)
			synctest.Wait()
			if !cond() {
				t.Errorf("%s: not followed; there are %q and %q", what, n.names(n.bin), n.names(n.conf))
			}
		}
		chained := func() bool { return n.plugins("50-net.conflist") == "flannel portmap ambit-cni" }
		follows("nothing to install into yet", func() bool { return n.names(n.bin) == PluginName && !i.Installed() })
		n.write("50-net.conflist", flannel)
		follows("the network comes", chained)
		n.write("50-net.conflist", flannel)
		follows("its owner writes it again", chained)
		n.write("10-net.conf", ptp)
		follows("another comes first", func() bool {
			return n.names(n.conf) == "10-net.conf"+keptSuffix+" 10-net.conflist 50-net.conflist 50-net.conflist"+keptSuffix
		})
		must(t, os.Remove(filepath.Join(n.bin, PluginName)))
		follows("the program is removed", func() bool { return n.names(n.bin) == PluginName })
		must(t, os.RemoveAll(filepath.Dir(n.conf)))
		follows("the configurations are removed", func() bool { return !i.Installed() && n.names(n.conf) == "" })
		n.write("50-net.conflist", flannel)
		n.write("10-net.conf", ptp)
		follows("they are made anew", func() bool { return i.Installed() && n.plugins("10-net.conflist") == "ptp ambit-cni" })
		cancel()
		must(t, <-done)
	})

	must(t, os.WriteFile(n.program, []byte("two, an upgrade"), 0o600))
	n.install()
	if data, err := os.ReadFile(filepath.Join(n.bin, PluginName)); err != nil || string(data) != "two, an upgrade" {
		t.Errorf("program after an upgrade: %q, %v", data, err)
	}
	n.uninstall()
	if n.names(n.conf) != "10-net.conf 50-net.conflist" || n.read("50-net.conflist") != flannel {
		t.Errorf("after uninstallation: %q", n.names(n.conf))
	}
}

// TestRunUnderAMount: a directory that was removed stays empty where it is mounted,
// whatever takes its place. An open file stands for the mount.
func TestRunUnderAMount(t *testing.T) {
	n := newNode(t)
	n.write("10-net.conf", ptp)
	mount, err := os.Open(n.conf)
	must(t, err)
	defer mount.Close()
	path := n.conf
	n.conf = fmt.Sprintf("/proc/self/fd/%d", mount.Fd())
	synctest.Test(t, func(t *testing.T) {
		i := n.installer()
		done := make(chan error, 1)
		go func() { done <- i.Run(t.Context()) }()
		synctest.Wait()
		if !i.Installed() {
			t.Error("not installed")
		}
		must(t, os.RemoveAll(path))
		must(t, os.Mkdir(path, 0o755))
		if err := <-done; err == nil || !strings.Contains(err.Error(), "a new container is needed") {
			t.Errorf("got %v, want that a new container is needed", err)
		}
	})
}

// TestKilledAttempts: what they left half written goes at the next, or at the end.
func TestKilledAttempts(t *testing.T) {
	n := newNode(t)
	n.write("10-net.conf", ptp)
	for _, next := range []func(){n.install, n.uninstall} {
		for _, dir := range []string{n.bin, n.conf} {
			part, err := os.CreateTemp(dir, partPattern)
			must(t, err)
			must(t, part.Close())
		}
		next()
		if names := n.names(n.bin) + n.names(n.conf); strings.Contains(names, ".part") {
			t.Errorf("left: %q", names)
		}
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// FuzzChain: whatever a list holds, chaining and unchaining keeps its meaning.
func FuzzChain(f *testing.F) {
	f.Add([]byte(flannel))
	f.Add([]byte(ptp))
	f.Add([]byte(`{"plugins":[{"type":"a"},{"type":"ambit-cni"}],"x":1e400}`))
	f.Add([]byte(`{"plugins":[null]}`))
	entry, err := Entry{RunDir: "/run/agent"}.marshal()
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, parse := range []func([]byte) (networkList, error){parseList, parseSingle} {
			l, err := parse(data)
			if err != nil {
				continue
			}
			l.unchain()
			before, err := l.marshal()
			must(t, err)
			if !l.chain(entry) || l.chain(entry) {
				t.Fatal("chaining changes nothing, or twice")
			}
			chained, err := l.marshal()
			must(t, err)
			again, err := parseList(chained)
			must(t, err)
			if again.chain(entry) || !again.unchain() {
				t.Fatalf("our entry is not found again in %s", chained)
			}
			after, err := again.marshal()
			must(t, err)
			if !sameJSON(before, after) {
				t.Fatalf("got %s, want %s", after, before)
			}
		}
	})
}
