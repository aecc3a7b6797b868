package netns

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const tcpTable = `  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000:3A99 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1 0 100 0 0 10 0
   1: 0200F40A:1F90 0300F40A:D431 01 00000000:00000000 00:00000000 00000000     0        0 2 1 0 20 4 30 10 -1
   2: 0200F40A:1F90 0300F40A:D432 06 00000000:00000000 00:00000000 00000000     0        0 0 3 0 20 4 30 10 -1
`

const tcp6Table = `  sl  local_address                         remote_address                        st tx_queue rx_queue tr
   0: 0000000000000000FFFF00000200F40A:1F90 0000000000000000FFFF00000300F40A:D431 01 0:0 00:0 0
`

func established(table string) ([]TCPConn, error) {
	var conns []TCPConn
	err := parseTCPTable([]byte(table), func(s tcpSocket) {
		if s.state == stateEstablished {
			conns = append(conns, s.TCPConn)
		}
	})
	return conns, err
}

func TestParseTCPTable(t *testing.T) {
	want := []TCPConn{{Local: netip.MustParseAddrPort("10.244.0.2:8080"), Remote: netip.MustParseAddrPort("10.244.0.3:54321")}}
	got, err := established(tcpTable)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })); d != "" {
		t.Errorf("IPv4 table (-want +got):\n%s", d)
	}
	got, err = established(tcp6Table)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })); d != "" {
		t.Errorf("IPv6 table with mapped addresses (-want +got):\n%s", d)
	}
	for _, bad := range []string{"h\n1: 0\n", "h\n0: 00:0050 00:0050 01\n", "h\n0: 0100007F 0100007F:0050 01\n", "h\n0: 0100007F:00500 0100007F:0050 01\n"} {
		if got, err := established(bad); err == nil {
			t.Errorf("%q: got %v, want an error", bad, got)
		}
	}
}

func FuzzParseTCPTable(f *testing.F) {
	f.Add([]byte(tcpTable))
	f.Add([]byte(tcp6Table))
	f.Fuzz(func(t *testing.T, table []byte) {
		conns, err := established(string(table))
		for _, c := range conns {
			if !c.Local.IsValid() || !c.Remote.IsValid() || c.Local.Addr().Is4In6() || c.Remote.Addr().Is4In6() {
				t.Errorf("%v, %v: invalid or mapped address", c, err)
			}
		}
	})
}

// HalfOpen counts connections that the namespace has begun and nobody has answered.
func (ns *NS) HalfOpen() (n int, err error) {
	err = ns.eachTCP(func(s tcpSocket) {
		if s.state == "02" {
			n++
		}
	})
	return n, err
}

// Listeners and ListenersFromTable count listening sockets.
func (ns *NS) Listeners() (map[netip.AddrPort]int, error) { return diagnosed(ns) }

// ListenersFromTable is described at Listeners.
func (ns *NS) ListenersFromTable() (map[netip.AddrPort]int, error) { return ns.listenersFromTable() }

// diagnosed is listeners without its other way.
func diagnosed(ns *NS) (map[netip.AddrPort]int, error) {
	count := map[netip.AddrPort]int{}
	err := ns.Do(func() error {
		for _, family := range []uint8{2, 10} {
			if err := diagnose(family, func(a netip.AddrPort) { count[a]++ }); err != nil {
				return err
			}
		}
		return nil
	})
	return count, err
}

func FuzzDiagnosis(f *testing.F) {
	f.Add([]byte{20, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0})
	f.Fuzz(func(_ *testing.T, data []byte) {
		_, _ = parseDiagnosis(data, func(netip.AddrPort) {})
	})
}
