package telemetry

import (
	"log/slog"
	"net/netip"
	"strconv"
	"time"
)

// Direction is which side of a connection reports.
type Direction uint8

// The directions.
const (
	Inbound Direction = iota
	Outbound
)

// String returns the value of the field "direction".
func (d Direction) String() string {
	if d == Outbound {
		return "outbound"
	}
	return "inbound"
}

// Reporter returns the value of the metric label "reporter".
func (d Direction) Reporter() string {
	if d == Outbound {
		return "source"
	}
	return "destination"
}

// AccessLine is the one line that a connection leaves when it ends, however it
// ends. Fields that are empty are left out. spec/ztunnel.md §8.2.
type AccessLine struct {
	Time time.Time

	// Early marks a connection that was refused before anything was known of its
	// other end; only addresses, direction and error are written.
	Early bool
	// Opened marks the line that is written, at level debug, when both ends have been
	// joined; it has no bytes and no duration.
	Opened bool

	SrcAddr      netip.AddrPort
	SrcWorkload  string // pod name, else canonical service
	SrcNamespace string
	SrcIdentity  string // of real mTLS only
	SrcCluster   string

	DstAddr      netip.AddrPort // outbound: the next hop; inbound HBONE: pod:15008
	DstHBONEAddr string         // the authority
	DstService   string         // hostname
	DstWorkload  string
	DstNamespace string
	DstIdentity  string // of real mTLS only
	DstCluster   string

	Direction Direction
	Sent      uint64 // from the reporting proxy's side
	Received  uint64
	Duration  time.Duration
	Err       error // nil: the connection ended well
}

// ScopeAccess is the scope of access lines in a filter of log levels.
const ScopeAccess = "access"

// Level is how much the line matters.
func (l *AccessLine) Level() slog.Level {
	switch {
	case l.Opened:
		return slog.LevelDebug
	case l.Early:
		return slog.LevelWarn
	case l.Err != nil:
		return slog.LevelError
	}
	return slog.LevelInfo
}

// append formats the line with its line end.
func (l *AccessLine) append(b []byte, f Format) []byte {
	message := "connection complete"
	switch {
	case l.Opened:
		message = "connection opened"
	case l.Early:
		message = "connection failed"
	}
	head := len(b)
	b = f.head(b, l.Time, l.Level(), ScopeAccess, message)
	b = f.address(b, "src.addr", l.SrcAddr)
	if !l.Early {
		b = f.optional(b, "src.workload", l.SrcWorkload)
		b = f.optional(b, "src.namespace", l.SrcNamespace)
		b = f.optional(b, "src.identity", l.SrcIdentity)
		b = f.optional(b, "src.cluster", l.SrcCluster)
	}
	b = f.address(b, "dst.addr", l.DstAddr)
	if !l.Early {
		b = l.appendDestination(b, f)
	}
	b = f.quoted(b, "direction", l.Direction.String())
	if !l.Early && !l.Opened {
		b = f.bare(b, "bytes_sent", strconv.FormatUint(l.Sent, 10))
		b = f.bare(b, "bytes_recv", strconv.FormatUint(l.Received, 10))
		b = f.quoted(b, "duration", strconv.FormatInt(l.Duration.Milliseconds(), 10)+"ms")
	}
	if l.Err != nil {
		b = f.quoted(b, "error", l.Err.Error())
	}
	return append(b[:head], f.tail(b[head:])...)
}

func (l *AccessLine) appendDestination(b []byte, f Format) []byte {
	if l.DstHBONEAddr != "" {
		if _, err := netip.ParseAddrPort(l.DstHBONEAddr); err == nil && f == Text {
			b = f.bare(b, "dst.hbone_addr", l.DstHBONEAddr)
		} else {
			b = f.quoted(b, "dst.hbone_addr", l.DstHBONEAddr)
		}
	}
	b = f.optional(b, "dst.service", l.DstService)
	b = f.optional(b, "dst.workload", l.DstWorkload)
	b = f.optional(b, "dst.namespace", l.DstNamespace)
	b = f.optional(b, "dst.identity", l.DstIdentity)
	return f.optional(b, "dst.cluster", l.DstCluster)
}

func (f Format) optional(b []byte, key, value string) []byte {
	if value == "" {
		return b
	}
	return f.quoted(b, key, value)
}

// address appends an address: bare in text, a string in JSON.
func (f Format) address(b []byte, key string, a netip.AddrPort) []byte {
	switch {
	case !a.IsValid():
		return b
	case f == JSON:
		return f.quoted(b, key, a.String())
	}
	return f.bare(b, key, a.String())
}
