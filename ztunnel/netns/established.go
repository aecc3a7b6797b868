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

// States of a socket in /proc/net/tcp, from the kernel's tcp_states.h.
const (
	stateEstablished = "01"
	stateListen      = "0A"
)

// Established lists the namespace's established TCP connections, IPv4 and IPv6.
func (ns *NS) Established() ([]TCPConn, error) {
	var conns []TCPConn
	err := ns.eachTCP(func(s tcpSocket) {
		if s.state == stateEstablished {
			conns = append(conns, s.TCPConn)
		}
	})
	return conns, err
}

// tcpSocket is one line of the kernel's tables.
type tcpSocket struct {
	TCPConn
	state string
	owned bool // by a process
}

// eachTCP calls f for every TCP socket of ns.
func (ns *NS) eachTCP(f func(tcpSocket)) error {
	return ns.Do(func() error {
		for _, file := range []string{"/proc/thread-self/net/tcp", "/proc/thread-self/net/tcp6"} {
			table, err := os.ReadFile(file)
			if errors.Is(err, fs.ErrNotExist) {
				continue // a kernel without IPv6
			}
			if err != nil {
				return err
			}
			if err := parseTCPTable(table, f); err != nil {
				return fmt.Errorf("%s: %w", file, err)
			}
		}
		return nil
	})
}

// parseTCPTable reads the text of /proc/net/tcp or /proc/net/tcp6: a heading, then one
// line per socket that starts with "slot: local remote state"; the tenth field is the
// inode of its descriptor, 0 without one.
func parseTCPTable(table []byte, f func(tcpSocket)) error {
	const inode = 9
	_, table, _ = bytes.Cut(table, []byte{'\n'})
	for line := range bytes.Lines(table) {
		fields := bytes.Fields(line)
		if len(fields) == 0 {
			continue
		}
		if len(fields) < 4 {
			return fmt.Errorf("line %q: too few fields", line)
		}
		s := tcpSocket{state: string(fields[3])}
		s.owned = len(fields) > inode && string(fields[inode]) != "0"
		var err error
		if s.Local, err = parseTCPAddr(fields[1]); err != nil {
			return err
		}
		if s.Remote, err = parseTCPAddr(fields[2]); err != nil {
			return err
		}
		f(s)
	}
	return nil
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
