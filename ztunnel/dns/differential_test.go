package dns_test

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	miekg "github.com/miekg/dns"

	"github.com/ambit-mesh/ambit/ztunnel/netns/netnstest"
)

// plain answers like a resolver with a zone of many kinds of names. What it does not
// understand it refuses, as resolvers do.
func plain(msg []byte, tcp bool) [][]byte {
	m := new(miekg.Msg)
	if len(msg) < 12 {
		return nil
	}
	if err := m.Unpack(msg); err != nil || len(m.Question) != 1 {
		out := make([]byte, 12)
		copy(out, msg[:2])
		out[2], out[3] = 0x80|msg[2]&0x79, miekg.RcodeFormatError
		return [][]byte{out}
	}
	r := new(miekg.Msg).SetReply(m)
	r.RecursionAvailable, r.AuthenticatedData = true, m.AuthenticatedData
	q := m.Question[0]
	name := strings.ToLower(q.Name)
	header := miekg.RR_Header{Name: q.Name, Rrtype: q.Qtype, Class: q.Qclass, Ttl: 77}
	soa := &miekg.SOA{Hdr: miekg.RR_Header{Name: "example.com.", Rrtype: miekg.TypeSOA, Class: 1, Ttl: 60}, Ns: "ns.example.com.", Mbox: "root.example.com.", Serial: 1}
	limit := 512
	if o := m.IsEdns0(); o != nil {
		limit = max(limit, int(o.UDPSize()))
		r.SetEdns0(1400, o.Do())
		r.IsEdns0().Option = o.Option
	}
	switch {
	case m.Opcode != miekg.OpcodeQuery:
		r.Rcode = miekg.RcodeNotImplemented
	case strings.HasPrefix(name, "nxdomain."):
		r.Rcode, r.Ns = miekg.RcodeNameError, []miekg.RR{soa}
	case strings.HasPrefix(name, "nodata."):
		r.Ns = []miekg.RR{soa}
	case strings.HasPrefix(name, "servfail."):
		r.Rcode = miekg.RcodeServerFailure
	case strings.HasPrefix(name, "refused."):
		r.Rcode = miekg.RcodeRefused
	case q.Qtype == miekg.TypeAXFR:
		return transfer(r, soa)
	case strings.HasPrefix(name, "large."):
		for i := range 200 {
			r.Answer = append(r.Answer, &miekg.TXT{Hdr: header, Txt: []string{fmt.Sprintf("text %03d", i)}})
		}
	default:
		r.Answer = []miekg.RR{&miekg.RFC3597{Hdr: header, Rdata: fmt.Sprintf("%04x", q.Qtype)}}
		r.Extra = append(r.Extra, &miekg.A{Hdr: miekg.RR_Header{Name: "extra.example.com.", Rrtype: miekg.TypeA, Class: 1}, A: []byte{192, 0, 2, 9}})
	}
	if !tcp {
		r.Truncate(limit)
	}
	out, err := r.Pack()
	if err != nil {
		return nil
	}
	return [][]byte{out}
}

// transfer answers with several messages.
func transfer(r *miekg.Msg, soa miekg.RR) [][]byte {
	var all [][]byte
	for i := range 3 {
		part := r.Copy()
		part.Answer = []miekg.RR{soa, &miekg.A{Hdr: miekg.RR_Header{Name: fmt.Sprintf("host-%d.example.com.", i), Rrtype: miekg.TypeA, Class: 1}, A: []byte{192, 0, 2, byte(i)}}}
		out, err := part.Pack()
		if err != nil {
			return nil
		}
		all = append(all, out)
	}
	return all
}

// questions are what a resolver may be asked and the mesh does not answer.
func questions() map[string][]byte {
	edns := func(size uint16, do bool, options ...miekg.EDNS0) func(*miekg.Msg) {
		return func(m *miekg.Msg) {
			m.SetEdns0(size, do)
			m.IsEdns0().Option = options
		}
	}
	all := map[string][]byte{
		"EDNS":              question("www.example.com", miekg.TypeA, edns(1232, true)),
		"EDNS options":      question("www.example.com", miekg.TypeA, edns(1232, false, &miekg.EDNS0_COOKIE{Code: 10, Cookie: "24a5ac1223344556"}, &miekg.EDNS0_LOCAL{Code: 65001, Data: []byte("x")})),
		"EDNS version 1":    question("www.example.com", miekg.TypeA, edns(1232, false), func(m *miekg.Msg) { m.IsEdns0().SetVersion(1) }),
		"NXDOMAIN":          question("nxdomain.example.com", miekg.TypeA),
		"no data":           question("nodata.example.com", miekg.TypeAAAA),
		"SERVFAIL":          question("servfail.example.com", miekg.TypeA),
		"REFUSED":           question("refused.example.com", miekg.TypeA),
		"truncated":         question("large.example.com", miekg.TypeTXT),
		"large":             question("large.example.com", miekg.TypeTXT, edns(65000, false)),
		"spelling":          question("wWw.ExAmPlE.cOm", miekg.TypeA),
		"root":              question(".", miekg.TypeNS),
		"longest name":      question(strings.Repeat("abcdefg.", 31)+"abcde", miekg.TypeA),
		"odd bytes":         question(`a\000b\.c\255.example.com`, miekg.TypeA),
		"class CH":          question("version.bind", miekg.TypeTXT, func(m *miekg.Msg) { m.Question[0].Qclass = miekg.ClassCHAOS }),
		"flags":             question("www.example.com", miekg.TypeA, func(m *miekg.Msg) { m.CheckingDisabled, m.AuthenticatedData, m.RecursionDesired = true, true, false }),
		"NOTIFY":            question("example.com", miekg.TypeSOA, func(m *miekg.Msg) { m.Opcode = miekg.OpcodeNotify }),
		"UPDATE":            question("example.com", miekg.TypeSOA, func(m *miekg.Msg) { m.Opcode = miekg.OpcodeUpdate }),
		"two questions":     question("a.example.com", miekg.TypeA, func(m *miekg.Msg) { m.Question = append(m.Question, m.Question[0]) }),
		"no question":       question("a.example.com", miekg.TypeA, func(m *miekg.Msg) { m.Question = nil }),
		"header only":       question("a.example.com", miekg.TypeA)[:12],
		"cut off":           question("a.example.com", miekg.TypeA)[:20],
		"bytes behind":      append(question("a.example.com", miekg.TypeA), "more"...),
		"mesh, other type":  question("cart.shop.svc.cluster.local", miekg.TypeTXT),
		"mesh, other class": question("cart.shop.svc.cluster.local", miekg.TypeA, func(m *miekg.Msg) { m.Question[0].Qclass = miekg.ClassCHAOS }),
		"mesh, NOTIFY":      question("cart.shop.svc.cluster.local", miekg.TypeA, func(m *miekg.Msg) { m.Opcode = miekg.OpcodeNotify }),
		"mesh, signed":      question("cart.shop.svc.cluster.local", miekg.TypeA, func(m *miekg.Msg) { m.SetTsig("key.", miekg.HmacSHA256, 300, 1) }),
		"mesh, two":         question("cart.shop", miekg.TypeA, func(m *miekg.Msg) { m.Question = append(m.Question, m.Question[0]) }),
	}
	for kind := range uint16(270) {
		if kind != miekg.TypeAXFR && kind != miekg.TypeOPT {
			all[fmt.Sprintf("type %d", kind)] = question("www.example.com", kind)
		}
	}
	random := rand.New(rand.NewPCG(1, 2))
	for i := range 100 {
		msg := question("www.example.com", miekg.TypeMX, edns(1232, true))
		for range 1 + i%8 {
			msg[random.IntN(len(msg))] ^= byte(1 << random.IntN(8))
		}
		msg[2] &= 0x7f // else it is an answer
		all[fmt.Sprintf("damaged %d", i)] = msg
	}
	return all
}

// What passes through the proxy is what the resolver says to somebody who asks it
// directly, and what the resolver hears is what was asked, byte for byte; over UDP but
// for the id.
func TestPassedThroughUnchanged(t *testing.T) {
	b := newBed(t, own, service("cart.shop.svc.cluster.local", "10.96.0.1"))
	r := b.resolver(plain)
	outside := netnstest.NewPod(t)
	b.capture()
	direct, captured := b.client(outside.NS, v4), b.client(b.pod.NS, v4)
	to := at53(r.Addr)
	for what, msg := range questions() {
		want, got := direct.ask(to, msg), captured.ask(to, msg)
		same(t, what+" over UDP", want, got)
		if heard := r.heard(); len(heard) != 2 || !bytes.Equal(heard[0][2:], heard[1][2:]) {
			t.Errorf("%s over UDP: the resolver heard %x", what, heard)
		}
		wantTCP, gotTCP := b.askTCP(outside.NS, to, 1, msg), b.askTCP(b.pod.NS, to, 1, msg)
		if d := cmp.Diff(wantTCP, gotTCP); d != "" {
			t.Errorf("%s over TCP (-direct +captured):\n%s", what, d)
		}
		if heard := r.heard(); len(heard) != 2 || !bytes.Equal(heard[0], heard[1]) {
			t.Errorf("%s over TCP: the resolver heard %x", what, heard)
		}
	}
}

func same(t *testing.T, what string, want, got []byte) {
	t.Helper()
	if !bytes.Equal(want, got) {
		t.Errorf("%s: the resolver says\n%x, through the proxy\n%x", what, want, got)
	}
}

// One connection: questions of all kinds at once, a zone in several messages, and the
// mesh's own answers between them.
func TestConnectionPipelined(t *testing.T) {
	b := newBed(t, own, service("cart.shop.svc.cluster.local", "10.96.0.1"))
	r := b.resolver(plain)
	b.capture()
	numbered := func(id uint16, name string, kind uint16) []byte {
		return question(name, kind, func(m *miekg.Msg) { m.Id = id })
	}
	got := b.askTCP(b.pod.NS, at53(r.Addr), 7,
		numbered(1, "example.com", miekg.TypeAXFR), numbered(2, "cart.shop", miekg.TypeA), numbered(3, "nxdomain.example.com", miekg.TypeA),
		numbered(4, "cart.shop", miekg.TypeAAAA), numbered(5, "large.example.com", miekg.TypeTXT))
	count := map[uint16]int{}
	for _, b := range got {
		m := new(miekg.Msg)
		if err := m.Unpack(b); err != nil {
			t.Fatal(err)
		}
		count[m.Id]++
		if m.Id == 2 && said(t, b) != "NOERROR A 10.96.0.1" {
			t.Errorf("the mesh's name: got %q", said(t, b))
		}
	}
	if d := cmp.Diff(map[uint16]int{1: 3, 2: 1, 3: 1, 4: 1, 5: 1}, count); d != "" {
		t.Errorf("answers by id (-want +got):\n%s", d)
	}
	if n := len(r.heard()); n != 3 {
		t.Errorf("the resolver heard %d questions, want 3", n)
	}
}

// A resolver that closes its connections does not end the client's.
func TestHastyResolver(t *testing.T) {
	b := newBed(t, own)
	r := b.resolver(plain)
	r.hasty = make(chan struct{}, 1)
	b.capture()
	c := b.dial(b.pod.NS, at53(r.Addr))
	_ = c.SetDeadline(time.Now().Add(patience))
	for i := range 5 {
		if err := writeTCP(c, question("nxdomain.example.com", miekg.TypeA)); err != nil {
			t.Fatalf("question %d: %v", i, err)
		}
		if answer, err := readTCP(c); err != nil || said(t, answer) != "NXDOMAIN" {
			t.Fatalf("question %d: got %x, %v", i, answer, err)
		}
		<-r.hasty
	}
}

// A pod that opens connections without end has those above its share closed, and its
// others work.
func TestConnectionsBounded(t *testing.T) {
	b := newBed(t, own, service("cart.shop.svc.cluster.local", "10.96.0.1"))
	r := b.resolver(silent)
	b.capture()
	const share = 128
	var conns []*net.TCPConn
	for range share {
		conns = append(conns, b.dial(b.pod.NS, at53(r.Addr)))
		if err := writeTCP(conns[len(conns)-1], question("cart", miekg.TypeA)); err != nil {
			t.Fatal(err)
		}
		if _, err := readTCP(conns[len(conns)-1]); err != nil { // it is served
			t.Fatal(err)
		}
	}
	over := b.dial(b.pod.NS, at53(r.Addr))
	_ = over.SetDeadline(time.Now().Add(patience))
	if _, err := over.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("one more: got %v, want closed", err)
	}
}

// A client that has nothing more to ask gets its answer.
func TestConnectionHalfClosed(t *testing.T) {
	b := newBed(t, own)
	r := b.resolver(plain)
	b.capture()
	c := b.dial(b.pod.NS, at53(r.Addr))
	if err := writeTCP(c, question("nxdomain.example.com", miekg.TypeA)); err != nil {
		t.Fatal(err)
	}
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	_ = c.SetReadDeadline(time.Now().Add(patience))
	answer, err := readTCP(c)
	if err != nil || said(t, answer) != "NXDOMAIN" {
		t.Errorf("got %x, %v", answer, err)
	}
	if _, err := readTCP(c); err == nil {
		t.Error("the connection goes on")
	}
}

// Nobody answers an answer, nor what is no message: it could go back and forth for ever.
func TestAnswersAreNotAnswered(t *testing.T) {
	b := newBed(t, own, service("cart.shop.svc.cluster.local", "10.96.0.1"))
	r := b.resolver(plain)
	b.capture()
	c := b.client(b.pod.NS, v4)
	response := question("cart.shop", miekg.TypeA, func(m *miekg.Msg) { m.Response = true })
	for _, msg := range [][]byte{{}, {1}, response, response[:11], question("cart.shop", miekg.TypeA)} {
		if _, err := c.WriteToUDPAddrPort(msg, at53(r.Addr)); err != nil {
			t.Fatal(err)
		}
	}
	got := make([]byte, 512)
	_ = c.SetReadDeadline(time.Now().Add(patience))
	n, _, err := c.ReadFromUDPAddrPort(got)
	if err != nil || said(t, got[:n]) != "NOERROR A 10.96.0.1" {
		t.Errorf("got %x, %v, want the answer to the last one only", got[:n], err)
	}
	if heard := r.heard(); len(heard) != 0 {
		t.Errorf("the resolver heard %x", heard)
	}
}

// Large answers of the mesh: cut in a datagram, whole in a connection.
func TestManyAddresses(t *testing.T) {
	svc := service("large.shop.svc.cluster.local")
	for i := range 256 {
		svc.Addresses = append(svc.Addresses, service("", netip.AddrFrom4([4]byte{10, 97, 0, byte(i)}).String()).GetAddresses()...)
	}
	b := newBed(t, own, svc)
	r := b.resolver(silent)
	b.capture()
	c := b.client(b.pod.NS, v4)
	for _, test := range []struct {
		what  string
		got   []byte
		count int
		cut   bool
	}{
		{"UDP", c.ask(at53(r.Addr), question("large", miekg.TypeA)), 30, true},
		{"UDP with EDNS", c.ask(at53(r.Addr), question("large", miekg.TypeA, func(m *miekg.Msg) { m.SetEdns0(1232, false) })), 74, true},
		{"UDP with all that fits", c.ask(at53(r.Addr), question("large", miekg.TypeA, func(m *miekg.Msg) { m.SetEdns0(65535, false) })), 256, false},
		{"TCP", b.askTCP(b.pod.NS, at53(r.Addr), 1, question("large", miekg.TypeA))[0], 256, false},
	} {
		m := new(miekg.Msg)
		if err := m.Unpack(test.got); err != nil || len(m.Answer) != test.count || m.Truncated != test.cut {
			t.Errorf("%s: %d addresses, truncated %v, %v; want %d, %v", test.what, len(m.Answer), m.Truncated, err, test.count, test.cut)
		}
	}
}
