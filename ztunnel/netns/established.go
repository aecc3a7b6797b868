package netns

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"strconv"
)

// TCPConn is one connection as the kernel lists it; IPv4 addresses are never mapped.
type TCPConn struct{ Local, Remote netip.AddrPort }

// stateEstablished is TCP_ESTABLISHED in /proc/net/tcp.
const stateEstablished = "01"

// Established lists the namespace's established TCP connections, IPv4 and IPv6.
func (ns *NS) Established() ([]TCPConn, error) {
	var conns []TCPConn
	err := ns.Do(func() error {
		for _, file := range []string{"/proc/thread-self/net/tcp", "/proc/thread-self/net/tcp6"} {
			table, err := os.ReadFile(file)
			if errors.Is(err, fs.ErrNotExist) {
				continue // a kernel without IPv6
			}
			if err != nil {
				return err
			}
			listed, err := parseTCPTable(table)
			if err != nil {
				return fmt.Errorf("%s: %w", file, err)
			}
			conns = append(conns, listed...)
		}
		return nil
	})
	return conns, err
}

// parseTCPTable reads the established connections from the text of /proc/net/tcp or
// /proc/net/tcp6: a heading, then one line per socket that starts with
// "slot: local remote state".
func parseTCPTable(table []byte) ([]TCPConn, error) {
	var conns []TCPConn
	_, table, _ = bytes.Cut(table, []byte{'\n'})
	for line := range bytes.Lines(table) {
		fields := bytes.Fields(line)
		if len(fields) == 0 {
			continue
		}
		if len(fields) < 4 {
			return nil, fmt.Errorf("line %q: too few fields", line)
		}
		if string(fields[3]) != stateEstablished {
			continue
		}
		local, err := parseTCPAddr(fields[1])
		if err != nil {
			return nil, err
		}
		remote, err := parseTCPAddr(fields[2])
		if err != nil {
			return nil, err
		}
		conns = append(conns, TCPConn{Local: local, Remote: remote})
	}
	return conns, nil
}

// parseTCPAddr reads "0100007F:3A99": the address as 32-bit words in the machine's
// byte order, the port as a number.
func parseTCPAddr(field []byte) (netip.AddrPort, error) {
	host, port, ok := bytes.Cut(field, []byte{':'})
	n, err := strconv.ParseUint(string(port), 16, 16)
	if !ok || err != nil || len(port) != 4 {
		return netip.AddrPort{}, fmt.Errorf("address %q: no port", field)
	}
	raw := make([]byte, hex.DecodedLen(len(host)))
	if _, err := hex.Decode(raw, host); err != nil || (len(raw) != 4 && len(raw) != 16) {
		return netip.AddrPort{}, fmt.Errorf("address %q: no address", field)
	}
	for word := raw; len(word) > 0; word = word[4:] {
		binary.NativeEndian.PutUint32(word, binary.BigEndian.Uint32(word))
	}
	addr, _ := netip.AddrFromSlice(raw)
	return netip.AddrPortFrom(addr.Unmap(), uint16(n)), nil
}
