package lab

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// CheckCommand is the argument with which the lab's binary tries its operations
// in namespaces of its own. It is not for people.
const CheckCommand = "check-init"

// RefusedError says which operation the lab needs and does not get, and what can
// be done about it.
type RefusedError struct {
	Operation, Reason, Remedy string
}

func (e *RefusedError) Error() string {
	return fmt.Sprintf("this machine refuses the lab an operation that it needs: %s: %s. %s", e.Operation, e.Reason, e.Remedy)
}

// Operations as they are named to people.
const (
	opNamespaces = "make namespaces"
	opMounts     = "mount a tmpfs, /proc and /sys of its own"
	opNetNS      = "name a network namespace"
	opVeth       = "make veth pairs and a bridge"
	opNAT        = "translate addresses with nftables"
	opRedirect   = "redirect and TPROXY with nftables"
	opRule       = "add routing rules"
	opMark       = "mark sockets and bind them to foreign addresses"
	opPacket     = "capture packets"
	opPort       = "listen on port 53"
)

// checks are tried in this order; each one's remedy is for when it is refused.
var checks = []struct {
	operation, remedy string
	try               func() error
}{
	{opMounts, "In a container, unmask /proc and /sys (docker run --security-opt systempaths=unconfined --security-opt seccomp=unconfined), or run as root on the machine itself.", mountRoot},
	{opNetNS, "The kernel needs CONFIG_NET_NS; a container's seccomp profile must allow unshare, setns and mount.", checkNetNS},
	{opVeth, "Load the modules: modprobe veth bridge.", checkVeth},
	{opNAT, "Load the modules: modprobe nf_tables nft_chain_nat nft_numgen nft_reject_ipv4 nft_masq.", checkNAT},
	{opRedirect, "Load the modules: modprobe nft_redir nft_tproxy nft_ct nft_socket.", checkRedirect},
	{opRule, "The kernel needs CONFIG_IP_MULTIPLE_TABLES and CONFIG_IP_ADVANCED_ROUTER.", checkRule},
	{opMark, "A security module or seccomp profile must allow CAP_NET_ADMIN inside the user namespace.", checkMark},
	{opPacket, "Load the module: modprobe af_packet.", checkPacket},
	{opPort, "A security module must allow CAP_NET_BIND_SERVICE inside the user namespace.", checkPort},
}

// Check tries everything that the lab needs of the kernel in throw-away
// namespaces; the error is a *RefusedError for the first thing refused. binary
// is the lab's, "" for the running one.
func Check(binary string) error {
	if binary == "" {
		binary = "/proc/self/exe"
	}
	runtime.LockOSThread() // the death signal comes with the thread's end
	defer runtime.UnlockOSThread()
	cmd := exec.Command(binary, CheckCommand)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	cmd.SysProcAttr = namespaces()
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	if err := cmd.Run(); err != nil {
		if errors.As(err, new(*exec.ExitError)) {
			return fmt.Errorf("check: %w: %s", err, strings.TrimSpace(errs.String()))
		}
		if errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("check: %w", err)
		}
		return refused(opNamespaces, err, "Allow user namespaces, or run as root.")
	}
	lines := bufio.NewScanner(&out)
	for lines.Scan() {
		var r checkResult
		if err := json.Unmarshal(lines.Bytes(), &r); err != nil {
			return fmt.Errorf("check: %w", err)
		}
		for _, check := range checks {
			if check.operation == r.Operation && r.Error != "" {
				return refused(r.Operation, errors.New(r.Error), check.remedy)
			}
		}
	}
	return lines.Err()
}

// checkResult is a line of the checking process.
type checkResult struct {
	Operation string `json:"operation"`
	Error     string `json:"error,omitempty"`
}

// refused looks for a cause that is known to lie behind a refusal.
func refused(operation string, err error, remedy string) error {
	e := &RefusedError{Operation: operation, Reason: err.Error(), Remedy: remedy}
	if operation == opNamespaces && errors.Is(err, syscall.ENOSPC) {
		e.Remedy = "A limit on namespaces is reached: raise the one in /proc/sys/user/max_*_namespaces that is too low."
	}
	if os.Getuid() == 0 {
		if operation == opNamespaces && errors.Is(err, syscall.EPERM) {
			e.Remedy = "The caller is root but lacks CAP_SYS_ADMIN (a container?): run it privileged, or as an ordinary user."
		}
		return e
	}
	for _, sysctl := range []struct{ path, bad, remedy string }{
		{"kernel/apparmor_restrict_unprivileged_userns", "1", "AppArmor restricts user namespaces: sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0, or run as root."},
		{"kernel/unprivileged_userns_clone", "0", "User namespaces are for root only: sudo sysctl -w kernel.unprivileged_userns_clone=1, or run as root."},
		{"user/max_user_namespaces", "0", "User namespaces are switched off: sudo sysctl -w user.max_user_namespaces=15000, or run as root."},
	} {
		value, err := os.ReadFile("/proc/sys/" + sysctl.path)
		if err == nil && strings.TrimSpace(string(value)) == sysctl.bad {
			e.Remedy = sysctl.remedy
			return e
		}
	}
	return e
}

// CheckInit is the life of the checking process: it tries everything and says
// how it went on the standard output.
func CheckInit() error {
	runtime.LockOSThread()
	out := json.NewEncoder(os.Stdout)
	for _, check := range checks {
		r := checkResult{Operation: check.operation}
		err := check.try()
		if err != nil {
			r.Error = err.Error()
		}
		if err := out.Encode(r); err != nil {
			return err
		}
		if err != nil {
			return nil // what follows needs this
		}
	}
	return nil
}

func checkNetNS() error {
	ns, err := newNetNS("check")
	if err != nil {
		return err
	}
	return errors.Join(inNet(ns, func() error { return nil }), ns.Close())
}

func checkVeth() error {
	own, err := openOwn("net")
	if err != nil {
		return err
	}
	defer own.Close()
	_, err = setUpNodes(1)
	return err
}

func checkNAT() error {
	own, err := openOwn("net")
	if err != nil {
		return err
	}
	defer own.Close()
	address := netip.AddrPortFrom(dnsAddress, 80)
	return (&nat{ns: own}).set(natRules([]vip{
		{address: address, protocol: unix.IPPROTO_TCP, endpoints: []netip.AddrPort{address, address}},
		{address: address, protocol: unix.IPPROTO_UDP},
	}))
}

// checkRedirect programs what ambit-cni programs in a pod.
func checkRedirect() error {
	c, err := nftables.New()
	if err != nil {
		return err
	}
	table := c.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: "check"})
	out := c.AddChain(&nftables.Chain{Name: "out", Table: table, Type: nftables.ChainTypeNAT, Hooknum: nftables.ChainHookOutput, Priority: nftables.ChainPriorityNATDest})
	in := c.AddChain(&nftables.Chain{Name: "in", Table: table, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityMangle})
	tcp := []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.NFPROTO_IPV4}},
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_TCP}},
		&expr.Immediate{Register: 1, Data: binaryutil.BigEndian.PutUint16(15001)},
	}
	c.AddRule(&nftables.Rule{Table: table, Chain: out, Exprs: append(slices.Clip(tcp), &expr.Redir{RegisterProtoMin: 1})})
	c.AddRule(&nftables.Rule{Table: table, Chain: in, Exprs: append(slices.Clip(tcp),
		&expr.TProxy{Family: unix.NFPROTO_IPV4, TableFamily: unix.NFPROTO_IPV4, RegPort: 1})})
	c.AddRule(&nftables.Rule{Table: table, Chain: in, Exprs: []expr.Any{
		&expr.Immediate{Register: 1, Data: binaryutil.NativeEndian.PutUint32(1)},
		&expr.Ct{Key: expr.CtKeyMARK, Register: 1, SourceRegister: true},
	}})
	if err := c.Flush(); err != nil {
		return err
	}
	c.DelTable(table)
	return c.Flush()
}

func checkRule() error {
	rule := netlink.NewRule()
	rule.Mark, rule.Table, rule.Priority, rule.Mask = 1, 100, 32764, new(uint32(0xfff))
	if err := netlink.RuleAdd(rule); err != nil {
		return err
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	return netlink.RouteAdd(&netlink.Route{
		Dst: ipNet(everywhere), LinkIndex: lo.Attrs().Index, Table: 100, Type: unix.RTN_LOCAL, Scope: netlink.SCOPE_HOST,
	})
}

func checkMark() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd) //nolint:errcheck // only tried
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, 0x539); err != nil {
		return fmt.Errorf("SO_MARK: %w", err)
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_TRANSPARENT, 1); err != nil {
		return fmt.Errorf("IP_TRANSPARENT: %w", err)
	}
	return unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{192, 0, 2, 1}})
}

func checkPacket() error {
	fd, err := packetSocket("lo")
	if err != nil {
		return err
	}
	return unix.Close(fd)
}

func checkPort() error {
	listener, err := net.Listen("tcp4", net.JoinHostPort(dnsAddress.String(), strconv.Itoa(int(dnsEndpoint.Port()))))
	if err != nil {
		return err
	}
	return listener.Close()
}
