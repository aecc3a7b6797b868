package codec

import (
	"bytes"
	"strings"
)

// parseRequest reads a request head, which ends with its empty line. Names in
// head are made lower case in place; the strings of the result share one copy
// of it. The fields are valid until reuse is used again.
func parseRequest(head []byte, reuse *scratch) (*Request, error) {
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
	if err := reuse.lowerNames(head, end+2); err != nil {
		return nil, err
	}
	text := string(head)
	req := &Request{Method: text[:sp1], Scheme: "http"}
	req.Fields = reuse.cut(text)
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
func parseResponse(head []byte, method string, reuse *scratch) (*Response, error) {
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
	if err := reuse.lowerNames(head, end+2); err != nil {
		return nil, err
	}
	text := string(head)
	res := &Response{Status: status, Close: line[7] == '0'}
	if end > 13 {
		res.Reason = text[13:end]
	}
	res.Fields = reuse.cut(text)
	if err := res.connectionFields(method); err != nil {
		return nil, err
	}
	return res, nil
}

// scratch is what parsing one head after another reuses.
type scratch struct {
	fields []Field
	spans  []span
}

// span is where in a head a field is; a head is at most MaxHeadBytes long.
type span struct{ name, nameEnd, value, valueEnd uint16 }

// lowerNames checks the field lines of a head from an offset on and lowers
// their names in place.
func (s *scratch) lowerNames(head []byte, at int) error {
	spans := s.spans[:0]
	for {
		line := head[at:]
		line = line[:bytes.IndexByte(line, '\n')-1]
		if len(line) == 0 {
			s.spans = spans
			return nil
		}
		if len(spans) == MaxFieldCount {
			return &Error{Status: 431, Reason: "more than 100 fields"}
		}
		if line[0] == ' ' || line[0] == '\t' {
			return bad("folded field line")
		}
		colon := bytes.IndexByte(line, ':')
		if colon <= 0 || !all(line[:colon], charToken) {
			return bad("field name is not a token")
		}
		lower(line[:colon])
		value := trim(line[colon+1:])
		if !all(value, charValue) {
			return bad("field %s has a control character", line[:colon])
		}
		start := at + colon + 1
		if len(value) > 0 {
			start += bytes.Index(line[colon+1:], value[:1])
		}
		spans = append(spans, span{uint16(at), uint16(at + colon), uint16(start), uint16(start + len(value))})
		at += len(line) + 2
	}
}

// cut takes the fields out of the text of the head that lowerNames saw.
func (s *scratch) cut(text string) []Field {
	fields := s.fields[:0]
	for _, at := range s.spans {
		fields = append(fields, Field{text[at.name:at.nameEnd], text[at.value:at.valueEnd]})
	}
	s.fields = fields
	return fields
}
