package config

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"
)

// env reads typed values and collects what is wrong with them.
type env struct {
	values map[string]string
	looked map[string]bool // names that were looked up
	errs   []error
	exists func(path string) bool
}

func newEnv(environ []string) *env {
	e := &env{values: map[string]string{}, looked: map[string]bool{}, exists: func(path string) bool {
		_, err := os.Stat(path)
		return err == nil
	}}
	for _, entry := range environ {
		name, value, _ := strings.Cut(entry, "=")
		e.values[name] = value
	}
	return e
}

// get returns a variable, empty if it is not set.
func (e *env) get(name string) string {
	v, _ := e.lookup(name)
	return v
}

func (e *env) lookup(name string) (value string, set bool) {
	e.looked[name] = true
	value, set = e.values[name]
	return value, set
}

func (e *env) fail(name string, err error) { e.errs = append(e.errs, fmt.Errorf("%s: %w", name, err)) }

// on reads a switch that is on unless it is turned off, off one that is off.
func (e *env) on(name string) bool  { return e.boolean(name, true) }
func (e *env) off(name string) bool { return e.boolean(name, false) }

func (e *env) boolean(name string, preset bool) bool {
	switch v := e.get(name); v {
	case "":
		return preset
	case "true":
		return true
	case "false":
		return false
	default:
		e.fail(name, fmt.Errorf("%q is neither true nor false", v))
		return preset
	}
}

// number reads a decimal, 0x or 0o number of at most so many bits.
func (e *env) number(name string, preset uint64, bits int) uint64 {
	v := e.get(name)
	if v == "" {
		return preset
	}
	n, err := strconv.ParseUint(v, 0, bits)
	if err != nil {
		e.fail(name, fmt.Errorf("%q is not a number of at most %d bits", v, bits))
	}
	return n
}

func (e *env) duration(name string, preset time.Duration) time.Duration {
	v := e.get(name)
	if v == "" {
		return preset
	}
	d, err := time.ParseDuration(v)
	if err != nil || d <= 0 {
		e.fail(name, fmt.Errorf("%q is not a duration such as 5s or 1m30s", v))
	}
	return d
}

// address reads an address of istiod; one that is set to nothing is none.
func (e *env) address(name, preset string) string {
	v, set := e.lookup(name)
	switch {
	case !set:
		v = preset
	case v == "":
		return ""
	case strings.HasPrefix(v, "http://"):
		e.fail(name, fmt.Errorf("%q is plaintext", v))
	}
	if !strings.Contains(v, "://") {
		v = "https://" + v
	}
	return v
}

// headers reads the variables whose names begin so: the rest is a header's name.
func (e *env) headers(prefix string) map[string]Secret {
	out := map[string]Secret{}
	e.looked[prefix+"*"] = true
	for name, value := range e.values {
		header, ok := strings.CutPrefix(name, prefix)
		if !ok {
			continue
		}
		header = strings.ToLower(header)
		if !validHeader(header, value) {
			e.fail(name, errors.New("not a header"))
			continue
		}
		out[header] = Secret(value)
	}
	return out
}

// validHeader reports whether gRPC would send the header as it is.
func validHeader(name, value string) bool {
	if name == "" || strings.HasPrefix(name, "grpc-") {
		return false
	}
	for _, r := range name {
		if !strings.ContainsRune("abcdefghijklmnopqrstuvwxyz0123456789-_.", r) {
			return false
		}
	}
	for _, r := range value {
		if r < ' ' || r > '~' {
			return false
		}
	}
	return true
}

// dnsAddresses reads "localhost:port", which is both loopback addresses, or
// "ip:port".
func (e *env) dnsAddresses(name, value string, ipv6 bool) []netip.AddrPort {
	host, port, ok := strings.Cut(value, ":")
	if host == "localhost" && ok {
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil {
			e.fail(name, fmt.Errorf("%q has no port", value))
		}
		out := []netip.AddrPort{netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), uint16(n))}
		if ipv6 {
			out = append(out, netip.AddrPortFrom(netip.IPv6Loopback(), uint16(n)))
		}
		return out
	}
	ap, err := netip.ParseAddrPort(value)
	if err != nil {
		e.fail(name, fmt.Errorf("%q is neither localhost:port nor ip:port", value))
	}
	return []netip.AddrPort{ap}
}

// drainTimeout follows spec/ztunnel.md §1.9.
func (e *env) drainTimeout() time.Duration {
	seconds := e.number("TERMINATION_GRACE_PERIOD_SECONDS", 0, 31)
	if d := e.duration("CONNECTION_TERMINATION_DEADLINE", 0); d != 0 {
		return d
	}
	if e.get("TERMINATION_GRACE_PERIOD_SECONDS") == "" {
		return 5 * time.Second
	}
	s := time.Duration(seconds) * time.Second
	if s > 10*time.Second {
		return s - 5*time.Second
	}
	return max(s-time.Second, time.Second)
}
