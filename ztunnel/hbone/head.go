package hbone

import (
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/net/http/httpguts"
	"golang.org/x/net/http2"
)

// requestFields returns the header block of a CONNECT.
//
// "The :scheme and :path pseudo-header fields MUST be omitted."
// https://www.rfc-editor.org/rfc/rfc9113#section-8.5
func requestFields(r Request) ([]Field, error) {
	if r.Authority == "" || !httpguts.ValidHeaderFieldValue(r.Authority) {
		return nil, fmt.Errorf("connect: authority %q is not valid", r.Authority)
	}
	fields := make([]Field, 0, 2+len(r.Header))
	fields = append(fields, Field{":method", "CONNECT"}, Field{":authority", r.Authority})
	return appendFields(fields, r.Header)
}

func responseFields(status int, header []Field) ([]Field, error) {
	if status < 200 || status > 999 {
		return nil, fmt.Errorf("status %d is not final", status)
	}
	fields := make([]Field, 0, 1+len(header))
	return appendFields(append(fields, Field{":status", strconv.Itoa(status)}), header)
}

func appendFields(to, header []Field) ([]Field, error) {
	for _, f := range header {
		if !validName(f.Name) || !httpguts.ValidHeaderFieldValue(f.Value) {
			return nil, fmt.Errorf("header field %q is not valid", f.Name)
		}
		to = append(to, f)
	}
	return to, nil
}

func validName(name string) bool {
	return httpguts.ValidHeaderFieldName(name) && strings.ToLower(name) == name
}

// regularFields copies what is not a pseudo-header field. It reports whether
// all may be there.
//
// "An endpoint MUST NOT generate an HTTP/2 message containing connection-
// specific header fields ... Any message containing connection-specific header
// fields MUST be treated as malformed"
// https://www.rfc-editor.org/rfc/rfc9113#section-8.2.2
func regularFields(f *http2.MetaHeadersFrame) ([]Field, bool) {
	regular := f.RegularFields()
	if len(regular) == 0 {
		return nil, true
	}
	fields := make([]Field, 0, len(regular))
	for _, hf := range regular {
		switch hf.Name {
		case "connection", "proxy-connection", "keep-alive", "transfer-encoding", "upgrade":
			return nil, false
		case "te":
			if hf.Value != "trailers" {
				return nil, false
			}
		}
		fields = append(fields, Field{hf.Name, hf.Value})
	}
	return fields, true
}

// readRequest turns a header block into a request. problem says why it is
// malformed.
func readRequest(f *http2.MetaHeadersFrame) (r Request, method, problem string) {
	method, r.Authority = f.PseudoValue("method"), f.PseudoValue("authority")
	header, ok := regularFields(f)
	r.Header = header
	has := func(name string) bool {
		for _, hf := range f.PseudoFields() {
			if hf.Name == name {
				return true
			}
		}
		return false
	}
	switch {
	case !ok:
		problem = "connection-specific header field"
	case method == "" || has(":status"):
		problem = "not a request"
	// "A CONNECT request that does not conform to these restrictions is
	// malformed" https://www.rfc-editor.org/rfc/rfc9113#section-8.5
	case method == "CONNECT" && (has(":scheme") || has(":path") || has(":protocol")):
		problem = "CONNECT with a scheme, path or protocol"
	case method == "CONNECT" && r.Authority == "":
		problem = "CONNECT without an authority"
	case method != "CONNECT" && (f.PseudoValue("scheme") == "" || f.PseudoValue("path") == ""):
		problem = "request without scheme or path"
	}
	return r, method, problem
}

// response is the answer to a CONNECT of ours.
func (r *reader) response(s *Stream, f *http2.MetaHeadersFrame) {
	status, err := strconv.Atoi(f.PseudoValue("status"))
	header, ok := regularFields(f)
	switch {
	case err != nil || status < 100 || status > 999 || !ok:
		r.c.streamError(s.id, http2.ErrCodeProtocol, "malformed answer")
		return
	case f.Truncated:
		r.c.streamError(s.id, http2.ErrCodeEnhanceYourCalm, "header of the answer too large")
		return
	case status < 200:
		if f.StreamEnded() {
			r.c.streamError(s.id, http2.ErrCodeProtocol, "interim answer ends the stream")
		}
		return
	}
	s.mu.Lock()
	s.isHead, s.status, s.header = true, status, header
	s.mu.Unlock()
	if f.StreamEnded() {
		s.remoteEnded()
	}
	s.mu.Lock()
	s.answer1()
	s.mu.Unlock()
}

// answer returns what the answered channel has told about.
func (s *Stream) answer() (status int, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.isHead {
		return s.status, nil
	}
	if reset, ok := (*s.sendErr.Load()).(*ResetError); ok { //nolint:errorlint // set by us, bare
		// "Any request that was sent on the reset stream can be safely
		// retried." https://www.rfc-editor.org/rfc/rfc9113#section-8.7
		if reset.Code == http2.ErrCodeRefusedStream {
			return 0, errUnprocessed
		}
		return 0, fmt.Errorf("connect: %w", reset)
	}
	return 0, *s.sendErr.Load()
}
