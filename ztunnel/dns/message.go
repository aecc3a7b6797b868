package dns

import (
	"encoding/binary"
	"net/netip"
	"strings"
)

// The wire format of RFC 1035 §4, as far as it is needed: one question with nothing
// around it but EDNS is understood, and may be answered here. Everything else is somebody
// else's to understand and goes on byte for byte, so that what is not understood cannot
// be answered wrongly.

// Bits of the second word of the header.
const (
	bitResponse  = 1 << 15
	maskOpcode   = 15 << 11
	bitAuthority = 1 << 10 // AA
	bitTruncated = 1 << 9  // TC
	bitDesired   = 1 << 8  // RD
	bitAvailable = 1 << 7  // RA
	maskRcode    = 15
)

const (
	typeA     = 1
	typeCNAME = 5
	typeAAAA  = 28
	typeOPT   = 41
	classIN   = 1

	rcodeServerFailure = 2

	headerSize   = 12
	minDatagram  = 512   // what everyone takes, RFC 1035 §2.3.4
	maxMessage   = 65535 // with the length of TCP in front
	maxDatagram  = 65507 // of IPv4
	maxName      = 255   // RFC 1035 §2.3.4
	answerTTL    = 30    // seconds
	questionName = headerSize
)

// header is what every message begins with.
type header struct {
	id, flags                               uint16
	questions, answers, authorities, extras uint16
}

// readHeader reports false for what is no message.
func readHeader(b []byte) (header, bool) {
	if len(b) < headerSize {
		return header{}, false
	}
	u := func(i int) uint16 { return binary.BigEndian.Uint16(b[i:]) }
	return header{u(0), u(2), u(4), u(6), u(8), u(10)}, true
}

// query is a question that is understood.
type query struct {
	header
	name     string // lower case, without the dot at the end
	kind     uint16
	class    uint16
	question []byte // as it was sent: name, type, class; a part of the message
	plain    bool   // there is nothing else in the message but EDNS of version 0
	edns     bool
	size     uint16 // of datagrams that the client takes, from EDNS
	dnssec   bool   // the bit DO of EDNS
}

// readQuery reads a message with one question. It reports false, and returns the header
// alone, when there is none, or another number of them, or one not written plainly.
func readQuery(b []byte) (query, bool) {
	h, ok := readHeader(b)
	q := query{header: h}
	if !ok || h.questions != 1 {
		return q, false
	}
	end, ok := q.readName(b)
	if !ok || len(b) < end+4 {
		q.name = ""
		return q, false
	}
	q.kind, q.class = binary.BigEndian.Uint16(b[end:]), binary.BigEndian.Uint16(b[end+2:])
	q.question = b[questionName : end+4]
	rest := b[end+4:]
	if h.answers == 0 && h.authorities == 0 {
		switch h.extras {
		case 0:
			q.plain = len(rest) == 0
		case 1:
			q.plain = q.readEDNS(rest)
		}
	}
	return q, true
}

// readName reads the labels of the question and returns where they end. A label with a
// dot in it would read like two; a pointer has nowhere to point from here.
func (q *query) readName(b []byte) (end int, ok bool) {
	const maxLabel = 63
	name := make([]byte, 0, 64)
	for i := questionName; i < len(b) && i < questionName+maxName; {
		n := int(b[i])
		i++
		if n == 0 {
			q.name = strings.TrimSuffix(string(name), ".")
			return i, true
		}
		if n > maxLabel || i+n > len(b) {
			return 0, false
		}
		for _, c := range b[i : i+n] {
			switch {
			case c == '.':
				return 0, false
			case 'A' <= c && c <= 'Z':
				c += 'a' - 'A'
			}
			name = append(name, c)
		}
		name = append(name, '.')
		i += n
	}
	return 0, false
}

// readEDNS reads the only record that may follow the question, RFC 6891 §6.1.2.
func (q *query) readEDNS(b []byte) bool {
	const fixed = 11 // root, type, class, TTL, length
	if len(b) < fixed || b[0] != 0 || binary.BigEndian.Uint16(b[1:]) != typeOPT || len(b) != fixed+int(binary.BigEndian.Uint16(b[9:])) {
		return false
	}
	const version, do = 6, 7
	if b[version] != 0 {
		return false // the resolver says which versions it knows
	}
	q.edns, q.size, q.dnssec = true, binary.BigEndian.Uint16(b[3:]), b[do]&0x80 != 0
	return true
}

// ours says whether the question is of a kind that the mesh answers.
func (q *query) ours() bool {
	return q.plain && q.flags&(bitResponse|maskOpcode) == 0 && q.class == classIN && (q.kind == typeA || q.kind == typeAAAA)
}

// limit is how long an answer in one datagram may be.
func (q *query) limit() int { return min(max(minDatagram, int(q.size)), maxDatagram) }

// answer is what the mesh says to a question.
type answer struct {
	alias int // length of the part of the name that a CNAME leads to; 0 = none
	addrs []netip.Addr
}

// reply writes an answer of at most limit bytes. What does not fit is left out, and said
// to be.
func (q *query) reply(a answer, limit int) []byte {
	flags := bitResponse | bitAuthority | q.flags&bitDesired | bitAvailable
	b := make([]byte, headerSize, headerSize+len(q.question)+len(a.addrs)*28+maxName+32)
	b = append(b, q.question...)
	room := limit - len(b)
	if q.edns {
		room -= ednsSize
	}
	const pointer = 0xC000
	owner := uint16(pointer | questionName)
	records := 0
	if a.alias > 0 {
		b = appendRecordHead(b, owner, typeCNAME, a.alias+2)
		owner = pointer | uint16(len(b))
		// As long as the text: each dot stands where the next label's length does.
		b = append(append(b, q.question[:a.alias+1]...), 0)
		room -= recordHead + a.alias + 2
		records++
	}
	for _, addr := range a.addrs {
		data := addr.AsSlice()
		if room -= recordHead + len(data); room < 0 {
			flags |= bitTruncated
			break
		}
		b = append(appendRecordHead(b, owner, q.kind, len(data)), data...)
		records++
	}
	return q.finish(b, flags, records)
}

// fail writes the answer that the question could not be answered.
func (q *query) fail() []byte {
	b := append(make([]byte, headerSize), q.question...)
	return q.finish(b, bitResponse|q.flags&(maskOpcode|bitDesired)|bitAvailable|rcodeServerFailure, 0)
}

const (
	recordHead = 12 // pointer to the owner's name, type, class, TTL, length
	ednsSize   = 11
)

func appendRecordHead(b []byte, owner, kind uint16, length int) []byte {
	b = binary.BigEndian.AppendUint16(b, owner)
	b = binary.BigEndian.AppendUint16(b, kind)
	b = binary.BigEndian.AppendUint16(b, classIN)
	b = binary.BigEndian.AppendUint32(b, answerTTL)
	return binary.BigEndian.AppendUint16(b, uint16(length))
}

// finish writes the header and EDNS, which says to the client what it said to us.
func (q *query) finish(b []byte, flags uint16, records int) []byte {
	counts := header{id: q.id, flags: flags, answers: uint16(records)}
	if len(q.question) > 0 {
		counts.questions = 1
	}
	if q.edns {
		counts.extras = 1
		b = append(b, 0)
		b = binary.BigEndian.AppendUint16(b, typeOPT)
		b = binary.BigEndian.AppendUint16(b, uint16(max(minDatagram, int(q.size))))
		var do byte
		if q.dnssec {
			do = 0x80
		}
		b = append(b, 0, 0, do, 0, 0, 0)
	}
	counts.write(b)
	return b
}

func (h *header) write(b []byte) {
	for i, v := range []uint16{h.id, h.flags, h.questions, h.answers, h.authorities, h.extras} {
		binary.BigEndian.PutUint16(b[2*i:], v)
	}
}

// answers says whether a message of a resolver belongs to a question that was sent with
// an id. A resolver that did not understand the question may leave it out.
func (q *query) answeredBy(b []byte, id uint16) bool {
	h, ok := readHeader(b)
	if !ok || h.id != id || h.flags&bitResponse == 0 {
		return false
	}
	if len(q.question) == 0 {
		return true // we could not read it either
	}
	if h.questions == 0 {
		return h.flags&maskRcode != 0
	}
	r, ok := readQuery(b)
	return ok && r.name == q.name && r.kind == q.kind && r.class == q.class
}
