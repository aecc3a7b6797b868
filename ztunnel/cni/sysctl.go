package cni

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/ambit-mesh/ambit/ztunnel/netns"
)

// setMigrate changes net.ipv4.tcp_migrate_req in the namespace if it has the value from.
// With it the kernel hands connections that wait in a closed listener's queue to the
// other listener of the port: DESIGN.md §5. Kernels before 5.14 do not have it, and
// nothing but that hand-over depends on it, so that a failure is no error. In procDir,
// below which a container may write though its own /proc/sys is read-only, the thread's
// namespace is meant, too; empty = /proc.
func setMigrate(procDir string, ns *netns.NS, from, to string) (changed bool) {
	if procDir == "" {
		procDir = "/proc"
	}
	file := filepath.Join(procDir, "sys/net/ipv4/tcp_migrate_req")
	err := ns.Do(func() error {
		now, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		if got := strings.TrimSpace(string(now)); got != from {
			return fmt.Errorf("%s is %s", file, got)
		}
		return os.WriteFile(file, []byte(to), 0o644)
	})
	return err == nil
}
