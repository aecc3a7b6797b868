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
		if s.established {
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
