package codec

import (
	"bytes"
	"strings"
)

// parseRequest reads a request head, which ends with its empty line. Names in
// head are made lower case in place; the strings of the result share one copy
// of it. fields is reused.
func parseRequest(head []byte, fields []Field) (*Request, error) {
	end := bytes.IndexByte(head, '\r')
	line := head[:end]
	if head[end+1] != '\n' {
		return nil, bad("carriage return inside the request line")
	}
	sp1 := bytes.IndexByte(line, ' ')
	sp2 := bytes.LastIndexByte(line, ' ')
	if sp1 <= 0 || sp2 == sp1 {
		return nil, bad("request line is not method, target, version")
	}
	if !all(line[:sp1], charToken) {
		return nil, bad("method is not a token")
	}
	if err := requestVersion(line[sp2+1:]); err != nil {
		return nil, err
	}
	if target := line[sp1+1 : sp2]; len(target) == 0 || !all(target, charTarget) {
		return nil, bad("request target has a character that it must not have")
	}
	spans, err := lowerNames(head, end+2)
	if err != nil {
		return nil, err
	}
	text := string(head)
	req := &Request{Method: text[:sp1], Scheme: "http"}
	req.Fields = cut(text, spans, fields)
	if err := req.target(text[sp1+1 : sp2]); err != nil {
		return nil, err
	}
	if err := req.connectionFields(); err != nil {
		return nil, err
	}
	return req, nil
}

func requestVersion(v []byte) error {
	switch string(v) {
	case "HTTP/1.1":
		return nil
	case "HTTP/1.0":
		return &Error{Status: 426, Reason: "HTTP/1.0 is not served"}
	case "HTTP/2.0":
		return &Error{Status: 505, Reason: "HTTP/2 is not served on this port"}
	}
	return bad("version is not HTTP/1.1")
}

// target understands the forms of RFC 9112 §3.2.
func (r *Request) target(t string) error {
	host, found := "", 0
	for i := range r.Fields {
		if r.Fields[i].Name == "host" {
			host = r.Fields[i].Value
			found++
		}
	}
	if found != 1 {
		return bad("request has %d Host fields, want 1", found)
	}
	r.Fields = Remove(r.Fields, "host")
	switch {
	case r.Method == "CONNECT":
		return bad("CONNECT inside a tunnel is not served")
	case t[0] == '/':
		r.Path = t
	case t == "*" && r.Method == "OPTIONS":
		r.Path = t
	default:
		scheme, rest, ok := strings.Cut(t, "://")
		if !ok || !strings.EqualFold(scheme, "http") && !strings.EqualFold(scheme, "https") {
			return bad("request target is neither a path nor an absolute URI")
		}
		r.Scheme = strings.ToLower(scheme)
		// "A proxy MUST ignore the received Host header field and instead replace
		// it with the host information of the request-target", RFC 9112 §3.2.2.
		i := strings.IndexAny(rest, "/?")
		switch {
		case i < 0:
			host, r.Path = rest, "/"
		case rest[i] == '?':
			host, r.Path = rest[:i], "/"+rest[i:]
		default:
			host, r.Path = rest[:i], rest[i:]
		}
	}
	if host == "" || !all(host, charHost) {
		return bad("host %q is not valid", host)
	}
	r.Authority = host
	return nil
}

// parseResponse reads a response head to a request of the given method.
func parseResponse(head []byte, method string, fields []Field) (*Response, error) {
	end := bytes.IndexByte(head, '\r')
	if head[end+1] != '\n' {
		return nil, bad("carriage return inside the status line")
	}
	line := head[:end]
	if len(line) < 12 || string(line[:7]) != "HTTP/1." || line[7] != '0' && line[7] != '1' || line[8] != ' ' {
		return nil, bad("status line does not begin with HTTP/1.1")
	}
	status := 0
	for _, c := range line[9:12] {
		if c < '0' || c > '9' {
			return nil, bad("status is not a number")
		}
		status = 10*status + int(c-'0')
	}
	if status < 100 || status > 599 || len(line) > 12 && line[12] != ' ' || !all(line[12:], charValue) {
		return nil, bad("status line is not valid")
	}
	spans, err := lowerNames(head, end+2)
	if err != nil {
		return nil, err
	}
	text := string(head)
	res := &Response{Status: status, Close: line[7] == '0'}
	if end > 13 {
		res.Reason = text[13:end]
	}
	res.Fields = cut(text, spans, fields)
	if err := res.connectionFields(method); err != nil {
		return nil, err
	}
	return res, nil
}

type span struct{ name, nameEnd, value, valueEnd uint16 }

// lowerNames checks the field lines of a head from an offset on and lowers
// their names in place.
func lowerNames(head []byte, at int) ([]span, error) {
	var room [32]span
	spans := room[:0]
	for {
		line := head[at:]
		line = line[:bytes.IndexByte(line, '\n')-1]
		if len(line) == 0 {
			return spans, nil
		}
		if len(spans) == MaxFieldCount {
			return nil, &Error{Status: 431, Reason: "more than 100 fields"}
		}
		if line[0] == ' ' || line[0] == '\t' {
			return nil, bad("folded field line")
		}
		colon := bytes.IndexByte(line, ':')
		if colon <= 0 || !all(line[:colon], charToken) {
			return nil, bad("field name is not a token")
		}
		lower(line[:colon])
		value := trim(line[colon+1:])
		if !all(value, charValue) {
			return nil, bad("field %s has a control character", line[:colon])
		}
		start := at + colon + 1
		if len(value) > 0 {
			start += bytes.Index(line[colon+1:], value[:1])
		}
		//nolint:gosec // offsets into a head, which is at most MaxHeadBytes long
		spans = append(spans, span{uint16(at), uint16(at + colon), uint16(start), uint16(start + len(value))})
		at += len(line) + 2
	}
}

func cut(text string, spans []span, fields []Field) []Field {
	fields = fields[:0]
	for _, s := range spans {
		fields = append(fields, Field{text[s.name:s.nameEnd], text[s.value:s.valueEnd]})
	}
	return fields
}
