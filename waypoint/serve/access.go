package serve

import (
	"context"
	"encoding/json"
	"io"
	"net/netip"
	"strconv"
	"sync/atomic"
	"time"
)

// AccessLog writes one line per request or byte stream, in the format of
// spec/control-plane.md §10.5, and at its end the identities of both sides.
// Lines are formatted and written off the data path; when the reader of the log
// is slower than the traffic, lines are dropped and counted rather than
// requests delayed.
type AccessLog struct {
	w       io.Writer
	json    bool
	entries chan *Entry
	dropped atomic.Uint64
}

// Entry is what a line says.
type Entry struct {
	Start                                 time.Time
	Method, Path, Protocol                string
	Code                                  int
	Flags                                 Flags
	Details, Failure                      string
	BytesIn, BytesOut                     uint64
	Duration                              time.Duration
	Waited                                time.Duration // until the endpoint's head; negative when there was none
	ForwardedFor, UserAgent, RequestID    string
	Authority, Endpoint, Cluster          string
	LocalAddr, ServerAddr, Route          string
	ClientAddr                            netip.AddrPort
	SourcePrincipal, DestinationPrincipal string
}

// NewAccessLog writes to w, as JSON objects when asJSON.
func NewAccessLog(w io.Writer, asJSON bool) *AccessLog {
	return &AccessLog{w: w, json: asJSON, entries: make(chan *Entry, 8192)}
}

// Dropped returns how many lines were dropped.
func (a *AccessLog) Dropped() uint64 { return a.dropped.Load() }

// Add takes an entry, which the caller must not use any more.
func (a *AccessLog) Add(e *Entry) {
	select {
	case a.entries <- e:
	default:
		a.dropped.Add(1)
	}
}

// Run writes until ctx ends, then what is left.
func (a *AccessLog) Run(ctx context.Context) error {
	buf := make([]byte, 0, 64<<10)
	for {
		select {
		case e := <-a.entries:
			buf = a.batch(buf[:0], e)
		case <-ctx.Done():
			for {
				select {
				case e := <-a.entries:
					buf = a.batch(buf[:0], e)
				default:
					return nil
				}
			}
		}
	}
}

// batch writes an entry and those that wait behind it, as far as they fit.
func (a *AccessLog) batch(buf []byte, e *Entry) []byte {
	for {
		if a.json {
			buf = e.appendJSON(buf)
		} else {
			buf = e.appendText(buf)
		}
		if len(buf) < 32<<10 {
			select {
			case e = <-a.entries:
				continue
			default:
			}
		}
		_, _ = a.w.Write(buf) // there is nobody to tell
		return buf
	}
}

const startFormat = "2006-01-02T15:04:05.000Z"

func (e *Entry) appendText(b []byte) []byte {
	word := func(s string) {
		b = append(append(b, ' '), orDash(s)...)
	}
	quoted := func(s string) {
		b = append(b, ' ', '"')
		b = append(appendSafe(b, orDash(s)), '"')
	}
	number := func(n int64) {
		b = strconv.AppendInt(append(b, ' '), n, 10)
	}
	b = append(e.Start.UTC().AppendFormat(append(b, '['), startFormat), `] "`...)
	b = append(appendSafe(b, orDash(e.Method)), ' ')
	b = append(appendSafe(b, orDash(e.Path)), ' ')
	b = append(append(b, orDash(e.Protocol)...), '"')
	number(int64(e.Code))
	word(e.Flags.String())
	word(e.Details)
	word("") // details of how the client's connection ended
	quoted(e.Failure)
	number(int64(e.BytesIn))
	number(int64(e.BytesOut))
	number(e.Duration.Milliseconds())
	if e.Waited < 0 {
		word("")
	} else {
		number(e.Waited.Milliseconds())
	}
	quoted(e.ForwardedFor)
	quoted(e.UserAgent)
	quoted(e.RequestID)
	quoted(e.Authority)
	quoted(e.Endpoint)
	word(e.Cluster)
	word(e.LocalAddr)
	word(e.ServerAddr)
	word(e.ClientAddr.String())
	word("") // requested server name: HBONE has none
	word(e.Route)
	word(e.SourcePrincipal)
	word(e.DestinationPrincipal)
	return append(b, '\n')
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// appendSafe keeps a value that a client chose inside its quotes and line.
func appendSafe(b []byte, s string) []byte {
	for i := range len(s) {
		switch c := s[i]; {
		case c == '"' || c == '\\':
			b = append(b, '\\', c)
		case c < 0x20 || c == 0x7f:
			const digits = "0123456789abcdef"
			b = append(b, '\\', 'x', digits[c>>4], digits[c&15])
		default:
			b = append(b, c)
		}
	}
	return b
}

// line is the JSON form. Absent values are null, as with Envoy.
type line struct {
	StartTime             string  `json:"start_time"`
	RouteName             *string `json:"route_name"`
	Method                *string `json:"method"`
	Path                  *string `json:"path"`
	Protocol              *string `json:"protocol"`
	ResponseCode          int     `json:"response_code"`
	ResponseFlags         string  `json:"response_flags"`
	ResponseCodeDetails   *string `json:"response_code_details"`
	ConnectionTermination *string `json:"connection_termination_details"`
	BytesReceived         uint64  `json:"bytes_received"`
	BytesSent             uint64  `json:"bytes_sent"`
	Duration              int64   `json:"duration"`
	ServiceTime           *string `json:"upstream_service_time"`
	ForwardedFor          *string `json:"x_forwarded_for"`
	UserAgent             *string `json:"user_agent"`
	RequestID             *string `json:"request_id"`
	Authority             *string `json:"authority"`
	Endpoint              *string `json:"upstream_host"`
	Cluster               *string `json:"upstream_cluster"`
	LocalAddr             *string `json:"upstream_local_address"`
	ServerAddr            *string `json:"downstream_local_address"`
	ClientAddr            *string `json:"downstream_remote_address"`
	ServerName            *string `json:"requested_server_name"`
	Failure               *string `json:"upstream_transport_failure_reason"`
	SourcePrincipal       *string `json:"source_principal"`
	DestinationPrincipal  *string `json:"destination_principal"`
}

func (e *Entry) appendJSON(b []byte) []byte {
	text := func(s string) *string {
		if s == "" {
			return nil
		}
		return &s
	}
	waited := ""
	if e.Waited >= 0 {
		waited = strconv.FormatInt(e.Waited.Milliseconds(), 10)
	}
	data, err := json.Marshal(line{
		StartTime: e.Start.UTC().Format(startFormat), RouteName: text(e.Route), Method: text(e.Method), Path: text(e.Path),
		Protocol: text(e.Protocol), ResponseCode: e.Code, ResponseFlags: e.Flags.String(), ResponseCodeDetails: text(e.Details),
		BytesReceived: e.BytesIn, BytesSent: e.BytesOut, Duration: e.Duration.Milliseconds(), ServiceTime: text(waited),
		ForwardedFor: text(e.ForwardedFor), UserAgent: text(e.UserAgent), RequestID: text(e.RequestID), Authority: text(e.Authority),
		Endpoint: text(e.Endpoint), Cluster: text(e.Cluster), LocalAddr: text(e.LocalAddr), ServerAddr: text(e.ServerAddr),
		ClientAddr: text(e.ClientAddr.String()), Failure: text(e.Failure),
		SourcePrincipal: text(e.SourcePrincipal), DestinationPrincipal: text(e.DestinationPrincipal),
	})
	if err != nil {
		return b
	}
	return append(append(b, data...), '\n')
}
