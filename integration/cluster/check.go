package cluster

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

var errNotRoot = errors.New("a cluster makes network namespaces, mounts and cgroups for containers: run it as root (the lab, make demo, needs no root)")

// Check says in one line what of the machine, or of the caller's rights, a
// cluster would miss. It tries, in namespaces of its own.
func Check() error {
	if os.Getuid() != 0 {
		return errNotRoot
	}
	for _, name := range []string{"mount", "umount"} {
		if _, err := exec.LookPath(name); err != nil {
			return fmt.Errorf("a kubelet calls %s, and it is not on the PATH (Debian's package is mount)", name)
		}
	}
	groups, err := hierarchies()
	if err != nil {
		return err
	}
	if len(groups) == 0 {
		return errors.New("no cgroup file system is mounted; containers need one: mount -t cgroup2 none /sys/fs/cgroup")
	}
	if missing := missingControllers(groups); len(missing) > 0 {
		return fmt.Errorf("containers need the cgroup controllers %s, which are not to be had here; the kernel's command line may have switched them off", strings.Join(missing, ", "))
	}
	for _, check := range []struct {
		what, remedy string
		try          func() error
	}{
		{"make namespaces", "CAP_SYS_ADMIN is missing, or the kernel's CONFIG_NAMESPACES; in a container, run it privileged", checkNamespaces},
		{"lay one directory over another (overlayfs)", "modprobe overlay; where " + stateRoot + " is an overlay itself, as in a container, mount a volume there", checkOverlay},
		{"make a bridge and veth pairs", "modprobe bridge veth", checkLinks},
		{"set nftables' rules", "modprobe nf_tables", checkNFTables},
	} {
		if err := onThread(check.try); err != nil {
			return fmt.Errorf("this machine refuses to %s: %w (%s)", check.what, err, check.remedy)
		}
	}
	return nil
}

// The checks run on threads that end with them, and their namespaces too.

func checkNamespaces() error {
	return unix.Unshare(unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC | unix.CLONE_NEWCGROUP)
}

func checkOverlay() error {
	if err := os.MkdirAll(stateRoot, 0o755); err != nil {
		return err
	}
	defer os.Remove(stateRoot) //nolint:errcheck // stays where there is a cluster
	dir, err := os.MkdirTemp(stateRoot, ".check-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir) //nolint:errcheck // empty directories in a place of ours
	for _, d := range []string{"/upper", "/work", "/merged"} {
		if err := os.Mkdir(dir+d, 0o755); err != nil {
			return err
		}
	}
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return err
	}
	if err := mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	if err := mount("overlay", dir+"/merged", "overlay", 0, "lowerdir=/etc,upperdir="+dir+"/upper,workdir="+dir+"/work"); err != nil {
		return err
	}
	return unix.Unmount(dir+"/merged", unix.MNT_DETACH)
}

func checkLinks() error {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return err
	}
	bridge := &netlink.Bridge{Name: bridgeName}
	if err := netlink.LinkAdd(bridge); err != nil {
		return err
	}
	return netlink.LinkAdd(&netlink.Veth{Name: "n1", MasterIndex: bridge.Index, PeerName: nodeLink})
}

func checkNFTables() error {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return err
	}
	c, err := nftables.New()
	if err != nil {
		return err
	}
	table := c.AddTable(&nftables.Table{Family: nftables.TableFamilyIPv4, Name: "check"})
	c.AddChain(&nftables.Chain{Name: "nat", Table: table, Type: nftables.ChainTypeNAT, Hooknum: nftables.ChainHookOutput, Priority: nftables.ChainPriorityNATDest})
	return c.Flush()
}
