package ztunnel

import (
	"math"
	"testing"
	"testing/fstest"
)

func TestMemoryLimit(t *testing.T) {
	file := func(text string) *fstest.MapFile { return &fstest.MapFile{Data: []byte(text)} }
	for what, c := range map[string]struct {
		root fstest.MapFS
		want int64
	}{
		"nothing to read": {nil, math.MaxInt64},
		"version 2 in a container": {fstest.MapFS{
			"proc/self/cgroup": file("0::/\n"), "sys/fs/cgroup/memory.max": file("536870912\n"),
		}, 536870912},
		"no limit": {fstest.MapFS{"proc/self/cgroup": file("0::/\n"), "sys/fs/cgroup/memory.max": file("max\n")}, math.MaxInt64},
		"the group above is narrower": {fstest.MapFS{
			"proc/self/cgroup": file("0::/a/b\n"), "sys/fs/cgroup/a/b/memory.max": file("300"), "sys/fs/cgroup/a/memory.max": file("200"),
		}, 200},
		"version 1": {fstest.MapFS{
			"proc/self/cgroup": file("12:cpu,cpuacct:/x\n9:memory:/x\n"),
			"sys/fs/cgroup/memory/x/memory.limit_in_bytes":      file("100\n"),
			"sys/fs/cgroup/memory/memory.limit_in_bytes":        file("9223372036854771712\n"),
			"sys/fs/cgroup/cpu,cpuacct/x/memory.limit_in_bytes": file("1\n"),
		}, 100},
		"garbage": {fstest.MapFS{"proc/self/cgroup": file("x\n0::..\n"), "sys/fs/cgroup/memory.max": file("-\n")}, math.MaxInt64},
	} {
		if got := memoryLimit(c.root); got != c.want {
			t.Errorf("%s: %d, want %d", what, got, c.want)
		}
	}
}
