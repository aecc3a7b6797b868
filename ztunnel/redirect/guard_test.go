package redirect_test

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ambit-mesh/ambit/ztunnel/netns/netnstest"
)

// TestNobodyGetsPastZtunnel: a bare ACK, which a listener that checks signatures
// (RFC 2385) leaves without an answer, makes a flow that is not translated; a connection
// from the same port belongs to it.
func TestNobodyGetsPastZtunnel(t *testing.T) {
	b := newBed(t)
	b.ztunnel(b.server)
	b.apply(b.server)
	const port = 45678
	if err := b.client.NS.Do(func() error { return bareACK(b.client.Addr, b.server.Addr, port) }); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(10 * time.Second); !hasFlow(t, b.server, port); {
		if time.Now().After(deadline) {
			t.Fatal("the ACK makes no flow: the test shows nothing")
		}
	}
	if err := connectFrom(t, b.client, port, b.server.Addr); err == nil {
		t.Error("connected")
	}
	if n := guarded(t, b.server); n == 0 {
		t.Error("no packet was dropped")
	}
	b.dial(b.client, b.server.Addr).want("from another port", fmt.Sprintf("15006 %s", netip.AddrPortFrom(b.server.Addr, appPort)))
}

// connectFrom connects from a port, within a second.
func connectFrom(t *testing.T, p *netnstest.Pod, port int, to netip.Addr) error {
	t.Helper()
	return p.NS.Do(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Error(err)
			return nil
		}
		defer unix.Close(fd) //nolint:errcheck // it is only tried
		for _, err := range []error{
			unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &unix.Timeval{Sec: 1}),
			unix.Bind(fd, &unix.SockaddrInet4{Port: port, Addr: p.Addr.As4()}),
		} {
			if err != nil {
				t.Error(err)
			}
		}
		return unix.Connect(fd, &unix.SockaddrInet4{Port: appPort, Addr: to.As4()})
	})
}

func hasFlow(t *testing.T, p *netnstest.Pod, port uint16) (found bool) {
	t.Helper()
	if err := p.NS.Do(func() error {
		flows, err := netlink.ConntrackTableList(netlink.ConntrackTable, unix.AF_INET)
		for _, f := range flows {
			found = found || f.Forward.SrcPort == port
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return found
}

// guarded is how many packets the guard has dropped.
func guarded(t *testing.T, p *netnstest.Pod) (n uint64) {
	t.Helper()
	table := &nftables.Table{Family: nftables.TableFamilyINet, Name: "ambit"}
	rules, err := nft(t, p).GetRules(table, &nftables.Chain{Table: table, Name: "guard"})
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range rules {
		for _, e := range r.Exprs {
			if c, ok := e.(*expr.Counter); ok {
				n += c.Packets
			}
		}
	}
	return n
}

// bareACK sends an acknowledgement of nothing, with a TCP MD5 signature option.
func bareACK(from, to netip.Addr, port uint16) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
	if err != nil {
		return err
	}
	defer unix.Close(fd) //nolint:errcheck // sent or not
	const ack, md5Option = 0x10, 19
	h := make([]byte, 40)
	binary.BigEndian.PutUint16(h[0:], port)
	binary.BigEndian.PutUint16(h[2:], appPort)
	binary.BigEndian.PutUint32(h[4:], 1000)
	binary.BigEndian.PutUint32(h[8:], 2000)
	h[12], h[13] = byte(len(h)/4)<<4, ack
	binary.BigEndian.PutUint16(h[14:], 1000)
	h[20], h[21] = md5Option, 18
	h[38], h[39] = 1, 1 // padding
	pseudo := append(append(from.AsSlice(), to.AsSlice()...), 0, unix.IPPROTO_TCP, 0, byte(len(h)))
	binary.BigEndian.PutUint16(h[16:], ^onesComplementSum(append(pseudo, h...)))
	return unix.Sendto(fd, h, 0, &unix.SockaddrInet4{Addr: to.As4()})
}

// onesComplementSum is that of RFC 1071.
func onesComplementSum(b []byte) uint16 {
	var sum uint32
	for i := 0; i < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return uint16(sum)
}
