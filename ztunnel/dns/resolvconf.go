package dns

import (
	"bufio"
	"fmt"
	"io"
	"net/netip"
	"strings"
)

// ResolvConf is what resolv.conf(5) says that matters to a proxy.
type ResolvConf struct {
	Servers []netip.AddrPort
	Search  []string // lower case, without dots around; nil when there is none
}

// ParseResolvConf reads the format of resolv.conf(5). Lines that it does not know are
// somebody else's; a server without an address that can be read is an error.
func ParseResolvConf(r io.Reader) (ResolvConf, error) {
	var c ResolvConf
	const port = 53
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 2 {
			continue
		}
		switch fields[0] {
		case "nameserver":
			a, err := netip.ParseAddr(fields[1])
			if err != nil {
				return ResolvConf{}, fmt.Errorf("nameserver: %w", err)
			}
			c.Servers = append(c.Servers, netip.AddrPortFrom(a.Unmap(), port))
		case "search", "domain": // the last one counts
			c.Search = nil
			for _, d := range fields[1:] {
				if d = strings.ToLower(strings.Trim(d, ".")); d != "" {
					c.Search = append(c.Search, d)
				}
			}
		}
	}
	return c, lines.Err()
}
