package cluster

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const (
	mountinfoV1 = `22 27 0:21 / /proc rw,nosuid shared:13 - proc proc rw
32 24 0:27 / /sys/fs/cgroup ro,nosuid shared:9 - tmpfs tmpfs ro,mode=755
33 32 0:28 / /sys/fs/cgroup/systemd rw,nosuid shared:10 - cgroup cgroup rw,xattr,release_agent=/lib/systemd/systemd-cgroups-agent,name=systemd
36 32 0:31 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid shared:15 - cgroup cgroup rw,cpu,cpuacct
37 32 0:32 / /sys/fs/cgroup/cpuset rw,nosuid shared:16 - cgroup cgroup rw,cpuset
38 32 0:33 / /sys/fs/cgroup/memory rw,nosuid shared:17 - cgroup cgroup rw,memory
39 32 0:34 / /sys/fs/cgroup/pids rw,nosuid shared:18 - cgroup cgroup rw,pids
40 27 0:32 / /dev/cpuset rw shared:19 - cgroup none rw,cpuset,noprefix,release_agent=/sbin/cpuset_release_agent
`
	mountinfoHybrid = mountinfoV1 + "41 32 0:35 / /sys/fs/cgroup/unified rw,nosuid shared:20 - cgroup2 cgroup2 rw,nsdelegate\n"
	mountinfoV2     = "26 24 0:23 / /sys/fs/cgroup\\040two rw,nosuid - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot\n"
)

func TestParseHierarchies(t *testing.T) {
	v1 := []hierarchy{
		{"/sys/fs/cgroup/systemd", []string{"name=systemd"}},
		{"/sys/fs/cgroup/cpu,cpuacct", []string{"cpu", "cpuacct"}},
		{"/sys/fs/cgroup/cpuset", []string{"cpuset"}},
		{"/sys/fs/cgroup/memory", []string{"memory"}},
		{"/sys/fs/cgroup/pids", []string{"pids"}},
	}
	for _, c := range []struct {
		name, mountinfo string
		want            []hierarchy
		pure            bool
	}{
		{"version 1", mountinfoV1, v1, false},
		{"both", mountinfoHybrid, append(slices.Clip(v1), hierarchy{mount: "/sys/fs/cgroup/unified"}), false},
		{"version 2", mountinfoV2, []hierarchy{{mount: "/sys/fs/cgroup two"}}, true},
		{"none", "22 27 0:21 / /proc rw - proc proc rw\n", nil, false},
	} {
		got, err := parseHierarchies(strings.NewReader(c.mountinfo))
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
		if diff := cmp.Diff(c.want, got, cmp.AllowUnexported(hierarchy{})); diff != "" {
			t.Errorf("%s (-want +got):\n%s", c.name, diff)
		}
		if pureV2(got) != c.pure {
			t.Errorf("%s: pure version 2: %t, want %t", c.name, pureV2(got), c.pure)
		}
	}
	if _, err := parseHierarchies(strings.NewReader("nonsense\n")); err == nil {
		t.Error("nonsense is no error")
	}
}

func TestParseOwnCgroups(t *testing.T) {
	got := parseOwnCgroups("12:name=systemd:/\n4:cpu,cpuacct:/a:b\n3:memory:/\n2::/unmounted\n0::/\n")
	want := []hierarchy{{controllers: []string{"name=systemd"}}, {controllers: []string{"cpu", "cpuacct"}}, {controllers: []string{"memory"}}, {}}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(hierarchy{})); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if !pureV2(parseOwnCgroups("0::/\n")) {
		t.Error("a single 0:: is not pure version 2")
	}
}

// fakeCgroup is a directory with the files of a version 2 group.
func fakeCgroup(t *testing.T, dir, controllers, enabled string) {
	t.Helper()
	for name, content := range map[string]string{"cgroup.controllers": controllers, "cgroup.subtree_control": enabled, "cgroup.procs": ""} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func TestMissingControllers(t *testing.T) {
	dir := t.TempDir()
	fakeCgroup(t, dir, "cpuset cpu io pids\n", "")
	if got := missingControllers([]hierarchy{{mount: dir}}); !slices.Equal(got, []string{"memory"}) {
		t.Errorf("missing: %v, want memory", got)
	}
	v1, err := parseHierarchies(strings.NewReader(mountinfoV1))
	if err != nil {
		t.Fatal(err)
	}
	if got := missingControllers(v1); len(got) != 0 {
		t.Errorf("missing in version 1: %v, want none", got)
	}
}

func TestDelegate(t *testing.T) {
	for _, c := range []struct{ name, available, enabled, want string }{
		{"some are on", "cpuset cpu io memory pids\n", "cpu io\n", "+cpuset +memory +pids"},
		{"all are on", "cpu memory\n", "memory cpu\n", "memory cpu\n"}, // nothing is written
		{"none is on", "cpu\n", "\n", "+cpu"},
	} {
		dir := t.TempDir()
		fakeCgroup(t, dir, c.available, c.enabled)
		if err := delegate(dir); err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
		got, err := os.ReadFile(filepath.Join(dir, "cgroup.subtree_control"))
		if err != nil {
			t.Fatal(err)
		}
		if string(got) != c.want {
			t.Errorf("%s: wrote %q, want %q", c.name, got, c.want)
		}
	}
}

func TestMountsBelow(t *testing.T) {
	mountinfo := "1 0 0:1 / / rw - ext4 x rw\n2 1 0:2 / /run rw - tmpfs x rw\n3 2 0:3 / /run/netns rw - tmpfs x rw\n" +
		"4 3 0:4 net:[1] /run/netns/a\\040b rw - nsfs nsfs rw\n5 1 0:5 / /running rw - tmpfs x rw\n"
	got := mountsBelow(mountinfo, "/run")
	if want := []string{"/run/netns", "/run/netns/a b"}; !slices.Equal(got, want) {
		t.Errorf("mounts below /run: %q, want %q", got, want)
	}
}

func FuzzHierarchies(f *testing.F) {
	f.Add(mountinfoHybrid)
	f.Add(mountinfoV2)
	f.Fuzz(func(t *testing.T, mountinfo string) {
		all, err := parseHierarchies(strings.NewReader(mountinfo))
		if err != nil {
			return
		}
		seen := map[string]bool{}
		for _, h := range all {
			key := strings.Join(h.controllers, ",")
			if seen[key] {
				t.Errorf("%q twice", key)
			}
			seen[key] = true
		}
		_ = mountsBelow(mountinfo, "/run")
	})
}

func FuzzOwnCgroups(f *testing.F) {
	f.Add("12:name=systemd:/\n0::/\n")
	f.Fuzz(func(t *testing.T, content string) {
		for _, h := range parseOwnCgroups(content) {
			if h.controllers != nil && len(h.controllers) == 0 {
				t.Error("a version 1 hierarchy without controllers")
			}
		}
	})
}
