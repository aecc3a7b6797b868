package codec

import (
	"slices"
	"strings"
)

// framing is what the fields that concern one connection said.
type framing struct {
	length   int64 // Chunked, bytes, or -3 when nothing was said
	close    bool
	keep     bool
	upgrade  bool // Connection names it
	protocol string
	expect   string
}

const unsaid int64 = -3

// takeFraming reads and removes the fields that concern one connection only,
// RFC 9110 §7.6.1, and those that say how long the body is. The latter are
// written anew for the next connection.
func takeFraming(fields []Field) ([]Field, framing, error) {
	f := framing{length: unsaid}
	var nominated []string
	for i := range fields {
		var err error
		switch fields[i].Name {
		case "content-length":
			err = f.contentLength(fields[i].Value)
		case "transfer-encoding":
			err = f.transferEncoding(fields[i].Value)
		case "connection":
			nominated, err = f.connection(fields[i].Value, nominated)
		case "upgrade":
			f.protocol = fields[i].Value
		case "expect":
			f.expect = fields[i].Value
		}
		if err != nil {
			return nil, f, err
		}
	}
	kept := fields[:0]
	for _, field := range fields {
		if !perConnection(field.Name) && !slices.Contains(nominated, field.Name) {
			kept = append(kept, field)
		}
	}
	return kept, f, nil
}

func perConnection(name string) bool {
	switch name {
	case "connection", "keep-alive", "proxy-connection", "te", "transfer-encoding", "upgrade", "content-length", "expect":
		return true
	}
	return false
}

func (f *framing) contentLength(v string) error {
	if f.length != unsaid {
		return bad("more than one Content-Length, or one beside Transfer-Encoding")
	}
	if v == "" || len(v) > 18 {
		return bad("content-length is not a number")
	}
	n := int64(0)
	for i := range len(v) {
		if v[i] < '0' || v[i] > '9' {
			return bad("content-length is not a number")
		}
		n = 10*n + int64(v[i]-'0')
	}
	f.length = n
	return nil
}

func (f *framing) transferEncoding(v string) error {
	if f.length != unsaid {
		return bad("more than one Transfer-Encoding, or one beside Content-Length")
	}
	if !strings.EqualFold(v, "chunked") {
		return &Error{Status: 501, Reason: "transfer coding other than chunked"}
	}
	f.length = Chunked
	return nil
}

func (f *framing) connection(v string, nominated []string) ([]string, error) {
	for v != "" {
		var name string
		name, v, _ = strings.Cut(v, ",")
		name = strings.ToLower(strings.Trim(name, " \t"))
		switch name {
		case "":
		case "close":
			f.close = true
		case "keep-alive":
			f.keep = true
		case "upgrade":
			f.upgrade = true
		case "content-length", "transfer-encoding", "host":
			return nil, bad("connection names %s, which is not its to remove", name)
		default:
			nominated = append(nominated, name)
		}
	}
	return nominated, nil
}

// connectionFields takes from the fields what concerns this connection only.
func (r *Request) connectionFields() error {
	fields, f, err := takeFraming(r.Fields)
	if err != nil {
		return err
	}
	r.Fields, r.Close = fields, f.close
	r.Length = max(f.length, Chunked)
	if f.length == unsaid {
		r.Length = 0
	}
	switch {
	case f.expect == "":
	case strings.EqualFold(f.expect, "100-continue"):
		r.ExpectContinue = r.Length != 0
	default:
		return &Error{Status: 417, Reason: "expectation other than 100-continue"}
	}
	// Only WebSocket is passed on; any other offer is one that we ignore, as
	// RFC 9110 §7.8 allows, which also disarms an upgrade to h2c.
	if f.upgrade && strings.EqualFold(f.protocol, "websocket") {
		if r.Length != 0 {
			return bad("upgrade with a body")
		}
		r.Upgrade = "websocket"
	}
	return nil
}

func (r *Response) connectionFields(method string) error {
	said := r.Fields
	fields, f, err := takeFraming(said)
	if err != nil {
		return err
	}
	r.Fields = fields
	r.Close = f.close || r.Close && !f.keep
	r.Bodyless = method == "HEAD" || r.Status < 200 || r.Status == 204 || r.Status == 304
	r.Length = f.length
	if r.Status < 200 || r.Status == 204 {
		// "A server MUST NOT send a Content-Length header field in any response
		// with a status code of 1xx (Informational) or 204 (No Content)", RFC 9110
		// §8.6; a reader that trusted one would wait for a body.
		if f.length > 0 || f.length == Chunked {
			return bad("status %d with a body", r.Status)
		}
		r.Length = 0
	}
	if f.length == unsaid && !r.Bodyless {
		r.Length, r.Close = UntilClose, true
	}
	if r.Status == 101 {
		if !f.upgrade || f.protocol == "" {
			return bad("status 101 without an upgrade")
		}
		r.Upgrade = f.protocol
	}
	return nil
}
