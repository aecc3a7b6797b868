// Package codec turns bytes into request and response heads and bodies, and
// back. It is the only part of the waypoint that knows how HTTP looks on a
// connection; everything above it works on Request, Response and Body.
//
// HTTP/1.1 is our own: heads are parsed in place into one string, bodies are
// streamed and never held whole, connections are kept alive on both sides. The
// reader is strict. What two readers could understand differently (conflicting
// lengths, folded lines, bare line feeds, a length beside a transfer coding) is
// refused, not repaired, RFC 9112 §11.2. Field names are lower case, as in
// HTTP/2, so that nothing above asks how a peer spelled them.
//
// The package knows no routes, no clusters and no identities. A ServerConn or
// ClientConn belongs to one goroutine; only the body of the current request or
// response may be read by another one meanwhile, and deadlines are set on the
// connection underneath.
package codec

import (
	"fmt"
	"strings"

	"github.com/ambit-mesh/ambit/apis/spiffe"
)

// Limits of a head. Envoy's defaults, which applications are used to.
const (
	MaxHeadBytes  = 60 << 10
	MaxFieldCount = 100
)

// Lengths of a body other than a number of bytes.
const (
	Chunked    int64 = -1 // length known when it ends; trailers may follow
	UntilClose int64 = -2 // a response that ends with its connection
)

// Field is one header or trailer field. Name is lower case.
type Field struct{ Name, Value string }

// Request is the head of a request, without the fields that concern one
// connection only.
type Request struct {
	Method    string
	Scheme    string
	Authority string
	Path      string // with the query; "*" for OPTIONS *
	Fields    []Field
	Source    spiffe.ID // of the caller; zero when it is not known

	Length         int64  // of the body: bytes, or Chunked
	Upgrade        string // protocol that the client asks for, "" for none
	ExpectContinue bool
	Close          bool // the client sends nothing after this request
}

// Response is the head of a response, without the fields that concern one
// connection only.
type Response struct {
	Status   int
	Reason   string
	Fields   []Field
	Length   int64  // of the body: bytes, Chunked or UntilClose
	Bodyless bool   // no body follows whatever Length says: HEAD, 204, 304
	Upgrade  string // protocol that both ends switch to after this head
	Close    bool   // the sender closes after this response
}

// Error is a message that we refuse. Status is what a client is told; for a
// response it is always 502.
type Error struct {
	Status int
	Reason string
}

func (e *Error) Error() string { return fmt.Sprintf("%s (status %d)", e.Reason, e.Status) }

func bad(format string, args ...any) error {
	return &Error{Status: 400, Reason: fmt.Sprintf(format, args...)}
}

// Get returns the first value of a field; name is lower case.
func Get(fields []Field, name string) (value string, ok bool) {
	for i := range fields {
		if fields[i].Name == name {
			return fields[i].Value, true
		}
	}
	return "", false
}

// Join returns all values of a field, joined by commas as RFC 9110 §5.3 allows.
// The slice is not changed and a single value is not copied.
func Join(fields []Field, name string) (value string, ok bool) {
	for i := range fields {
		switch {
		case fields[i].Name != name:
		case ok:
			value += "," + fields[i].Value
		default:
			value, ok = fields[i].Value, true
		}
	}
	return value, ok
}

// Set replaces every occurrence of a field by one.
func Set(fields []Field, name, value string) []Field {
	return append(Remove(fields, name), Field{name, value})
}

// Remove takes every occurrence of a field away, in place.
func Remove(fields []Field, name string) []Field {
	kept := fields[:0]
	for _, f := range fields {
		if f.Name != name {
			kept = append(kept, f)
		}
	}
	return kept
}

// PathOnly returns the path without its query.
func (r *Request) PathOnly() string {
	if i := strings.IndexByte(r.Path, '?'); i >= 0 {
		return r.Path[:i]
	}
	return r.Path
}

// Query returns the query without its question mark.
func (r *Request) Query() string {
	if i := strings.IndexByte(r.Path, '?'); i >= 0 {
		return r.Path[i+1:]
	}
	return ""
}
