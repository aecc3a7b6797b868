package ztunnel

import (
	"io/fs"
	"math"
	"os"
	"path"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"

	"github.com/ambit-mesh/ambit/ztunnel/config"
)

// Tune sets the Go runtime up for the whole process: how many threads carry
// traffic, how eagerly garbage is collected, and how much memory there is.
func Tune(cfg *config.Config) {
	runtime.GOMAXPROCS(cfg.Threads)
	if cfg.GC {
		// PERFORMANCE.md, point 9: the heap is small, its collection is not.
		debug.SetGCPercent(200)
	}
	if limit := memoryLimit(os.DirFS("/")); cfg.Memory && limit < math.MaxInt64 {
		debug.SetMemoryLimit(limit / 10 * 9) // the rest is stacks of threads and the kernel's buffers
	}
}

// memoryLimit returns how many bytes the control groups of this process allow;
// the largest number if there is no limit, or none that can be read.
func memoryLimit(root fs.FS) int64 {
	limit := int64(math.MaxInt64)
	groups, err := fs.ReadFile(root, "proc/self/cgroup")
	if err != nil {
		return limit
	}
	for line := range strings.Lines(string(groups)) {
		// "0::/path" in version 2, "9:memory:/path" in version 1.
		parts := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(parts) != 3 {
			continue
		}
		dir, file := "sys/fs/cgroup", "memory.max"
		switch parts[1] {
		case "":
		case "memory":
			dir, file = "sys/fs/cgroup/memory", "memory.limit_in_bytes"
		default:
			continue
		}
		// Every group above limits, too. In a container the path may be the host's,
		// of which only the end is mounted; what is not there does not limit.
		for group := path.Clean("/" + parts[2]); ; group = path.Dir(group) {
			text, err := fs.ReadFile(root, path.Join(dir, group, file))
			if n, bad := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64); err == nil && bad == nil {
				limit = min(limit, n)
			}
			if group == "/" {
				break
			}
		}
	}
	return limit
}
