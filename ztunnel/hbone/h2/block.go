package h2

import (
	"errors"
	"fmt"
	"strconv"

	"golang.org/x/net/http/httpguts"
	"golang.org/x/net/http2/hpack"
)

// A block is a header block that is being received. It is always decoded to its
// end, because the decoder's table is shared with the blocks that follow.
type block struct {
	dec  *hpack.Decoder
	max  int    // of size
	id   uint32 // 0: there is none
	end  bool   // END_STREAM
	head Head
	// encoded counts bytes as sent, size as §6.5.2 counts the list.
	encoded, size int
	status        string
	seen          pseudo
	problem       string // why it is malformed; empty if it is not
}

// pseudo is a set of pseudo-header fields.
type pseudo uint8

const (
	hasMethod pseudo = 1 << iota
	hasScheme
	hasAuthority
	hasPath
	hasStatus
	hasRegular // any other field
)

func newBlock(maxBytes uint32) *block {
	b := &block{max: int(maxBytes)}
	b.dec = hpack.NewDecoder(defaultTable, b.field)
	b.dec.SetMaxStringLength(b.max)
	return b
}

// begin prepares for the fragments of a new block.
func (b *block) begin(id uint32, end bool) {
	b.id, b.end = id, end
	b.head, b.encoded, b.size, b.status, b.seen, b.problem = Head{}, 0, 0, "", 0, ""
	b.dec.SetEmitEnabled(true)
}

// fragment decodes a piece of the block. An error ends the connection.
func (b *block) fragment(p []byte, last bool) error {
	// Huffman coding may lengthen a string, up to 30 bits for an octet; who does
	// that, or sends fields after the limit, wants our time.
	if b.encoded += len(p); b.encoded > 2*b.max+minFrameSize {
		return &ConnError{EnhanceYourCalm, "header block too large"}
	}
	_, err := b.dec.Write(p)
	if last && err == nil {
		err = b.dec.Close()
	}
	if err != nil {
		// "A decoding error in a field block MUST be treated as a connection
		// error of type COMPRESSION_ERROR."
		// https://www.rfc-editor.org/rfc/rfc9113#section-4.3
		return &ConnError{Compression, err.Error()}
	}
	return nil
}

// field takes one decoded field.
func (b *block) field(f hpack.HeaderField) {
	if b.size += int(f.Size()); b.size > b.max {
		// What follows is decoded for the table only: an octet may stand for a
		// field of 4 KiB.
		b.head.TooLarge = true
		b.dec.SetEmitEnabled(false)
		return
	}
	if f.IsPseudo() {
		b.pseudo(f)
		return
	}
	b.seen |= hasRegular
	if problem := fieldProblem(f); problem != "" && b.problem == "" {
		b.problem = problem
	}
	if b.head.Fields == nil {
		b.head.Fields = make([]Field, 0, 4)
	}
	b.head.Fields = append(b.head.Fields, Field{f.Name, f.Value})
}

func (b *block) pseudo(f hpack.HeaderField) {
	bit, to := pseudo(0), (*string)(nil)
	switch f.Name {
	case ":method":
		bit, to = hasMethod, &b.head.Method
	case ":scheme":
		bit, to = hasScheme, &b.head.Scheme
	case ":authority":
		bit, to = hasAuthority, &b.head.Authority
	case ":path":
		bit, to = hasPath, &b.head.Path
	case ":status":
		bit, to = hasStatus, &b.status
	default:
		// "Endpoints MUST treat a request or response that contains undefined
		// or invalid pseudo-header fields as malformed"
		// https://www.rfc-editor.org/rfc/rfc9113#section-8.3
		b.problem = "undefined pseudo-header field"
		return
	}
	switch {
	case b.seen&bit != 0:
		b.problem = "duplicate pseudo-header field"
	// "All pseudo-header fields MUST appear in a field block before all regular
	// field lines." https://www.rfc-editor.org/rfc/rfc9113#section-8.3
	case b.seen&hasRegular != 0:
		b.problem = "pseudo-header field after a regular one"
	case !validValue(f.Value):
		b.problem = "invalid value of " + f.Name
	}
	b.seen |= bit
	*to = f.Value
}

// fieldProblem says why a regular field must not be there, empty if it may.
func fieldProblem(f hpack.HeaderField) string {
	if !validName(f.Name) {
		return "invalid field name"
	}
	if !validValue(f.Value) {
		return "invalid value of " + f.Name
	}
	// "Any message containing connection-specific header fields MUST be treated
	// as malformed" https://www.rfc-editor.org/rfc/rfc9113#section-8.2.2
	switch f.Name {
	case "connection", "proxy-connection", "keep-alive", "transfer-encoding", "upgrade":
		return "connection-specific header field"
	case "te":
		if f.Value != "trailers" {
			return "connection-specific header field"
		}
	}
	return ""
}

// validName: "A field name MUST NOT contain characters in the ranges 0x00-0x20,
// 0x41-0x5a, or 0x7f-0xff" https://www.rfc-editor.org/rfc/rfc9113#section-8.2.1
func validName(name string) bool {
	for i := range len(name) {
		if 'A' <= name[i] && name[i] <= 'Z' {
			return false
		}
	}
	return httpguts.ValidHeaderFieldName(name)
}

// validValue: "A field value MUST NOT start or end with an ASCII whitespace
// character" https://www.rfc-editor.org/rfc/rfc9113#section-8.2.1
func validValue(v string) bool {
	space := func(c byte) bool { return c == ' ' || c == '\t' }
	if v != "" && (space(v[0]) || space(v[len(v)-1])) {
		return false
	}
	return httpguts.ValidHeaderFieldValue(v)
}

// request checks that the block is a request's.
func (b *block) request() (problem string) {
	const named = hasMethod | hasScheme | hasAuthority | hasPath | hasStatus
	h := &b.head
	switch got := b.seen & named; {
	case b.problem != "":
		return b.problem
	case h.TooLarge:
		return "" // not complete; the answer is the same for all
	case got&hasStatus != 0 || h.Method == "":
		return "not a request"
	// "The :scheme and :path pseudo-header fields MUST be omitted. ... A CONNECT
	// request that does not conform to these restrictions is malformed"
	// https://www.rfc-editor.org/rfc/rfc9113#section-8.5
	case h.Method == methodConnect && got != hasMethod|hasAuthority:
		return "CONNECT with a scheme or path, or without an authority"
	case h.Method == methodConnect && h.Authority == "":
		return "CONNECT without an authority"
	// "All HTTP/2 requests MUST include exactly one valid value for the :method,
	// :scheme, and :path pseudo-header fields, unless they are CONNECT requests"
	// https://www.rfc-editor.org/rfc/rfc9113#section-8.3.1
	case h.Method != methodConnect && (h.Scheme == "" || h.Path == ""):
		return "request without scheme or path"
	}
	return ""
}

// response checks that the block is a response's, and fills in its status.
func (b *block) response() (problem string) {
	status, err := strconv.Atoi(b.status)
	switch {
	case b.problem != "":
		return b.problem
	case b.head.TooLarge:
		return "" // the caller gives the stream up
	case b.seen&^hasRegular != hasStatus || err != nil || len(b.status) != 3 || status < 100:
		return "malformed answer"
	case status < 200 && b.end:
		// "an endpoint that receives a HEADERS frame with the END_STREAM flag
		// set ... as an informational response ... MUST treat ... as malformed"
		// https://www.rfc-editor.org/rfc/rfc9113#section-8.1
		return "interim answer ends the stream"
	}
	b.head.Status = status
	return ""
}

// trailers checks that the block is what may follow a body.
//
// "Trailers MUST NOT include pseudo-header fields"
// https://www.rfc-editor.org/rfc/rfc9113#section-8.1
func (b *block) trailers() (problem string) {
	switch {
	case b.problem != "":
		return b.problem
	case b.seen&^hasRegular != 0:
		return "pseudo-header field in trailers"
	case !b.end:
		return "trailers that do not end the stream"
	case b.head.TooLarge:
		return "trailers too large"
	}
	return ""
}

const methodConnect = "CONNECT"

// encode appends a head to an encoder's output.
func (h *Head) encode(enc *hpack.Encoder) error {
	for _, f := range [...]Field{
		{":method", h.Method},
		{":scheme", h.Scheme},
		{":authority", h.Authority},
		{":path", h.Path},
	} {
		if f.Value == "" {
			continue
		}
		if err := enc.WriteField(hpack.HeaderField{Name: f.Name, Value: f.Value}); err != nil {
			return err
		}
	}
	if h.Status != 0 {
		if err := enc.WriteField(hpack.HeaderField{Name: ":status", Value: strconv.Itoa(h.Status)}); err != nil {
			return err
		}
	}
	for _, f := range h.Fields {
		if err := enc.WriteField(hpack.HeaderField{Name: f.Name, Value: f.Value}); err != nil {
			return err
		}
	}
	return nil
}

// validate reports why a head of ours must not be sent.
func (h *Head) validate() error {
	switch {
	case h.Status != 0 && (h.Status < 100 || h.Status > 999):
		return fmt.Errorf("status %d is not valid", h.Status)
	case h.Method == methodConnect && (h.Authority == "" || !validValue(h.Authority)):
		return fmt.Errorf("connect: authority %q is not valid", h.Authority)
	case h.Method == methodConnect && (h.Scheme != "" || h.Path != ""):
		return errors.New("connect: with a scheme or path")
	case !validValue(h.Method) || !validValue(h.Scheme) || !validValue(h.Authority) || !validValue(h.Path):
		return errors.New("pseudo-header field is not valid")
	}
	for _, f := range h.Fields {
		if problem := fieldProblem(hpack.HeaderField{Name: f.Name, Value: f.Value}); problem != "" {
			return fmt.Errorf("header field %q is not valid: %s", f.Name, problem)
		}
	}
	return nil
}
