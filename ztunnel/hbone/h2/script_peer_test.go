package h2

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"io"
	"strconv"
	"strings"
	"testing/synctest"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// read collects what the endpoint sends.
func (r *rig) read() {
	add := func(s string) {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.got = append(r.got, s)
	}
	if r.c.cfg.Client {
		p := make([]byte, len(preface))
		if _, err := io.ReadFull(r.conn, p); err != nil || string(p) != preface {
			add(fmt.Sprintf("preface %q, %v", p, err))
			return
		}
		add("PREFACE")
	}
	dec := hpack.NewDecoder(defaultTable, nil)
	var block []byte
	for {
		f, err := r.fr.ReadFrame()
		if err != nil {
			add("EOF")
			return
		}
		switch f := f.(type) {
		case *http2.HeadersFrame:
			block = append(block[:0], f.HeaderBlockFragment()...)
			for end := f.HeadersEnded(); !end; {
				next, err := r.fr.ReadFrame()
				if err != nil {
					add("EOF in a header block")
					return
				}
				block = append(block, next.(*http2.ContinuationFrame).HeaderBlockFragment()...)
				end = next.(*http2.ContinuationFrame).HeadersEnded()
			}
			s := fmt.Sprintf("HEADERS %d", f.StreamID)
			fields, err := dec.DecodeFull(block)
			if err != nil {
				s += " " + err.Error()
			}
			for _, field := range fields {
				s += " " + field.Name + "=" + field.Value
			}
			if f.StreamEnded() {
				s += " END"
			}
			add(s)
		default:
			add(summary(f))
		}
	}
}

var settingNames = map[http2.SettingID]string{
	http2.SettingHeaderTableSize: "TABLE", http2.SettingEnablePush: "PUSH", http2.SettingMaxConcurrentStreams: "STREAMS",
	http2.SettingInitialWindowSize: "WINDOW", http2.SettingMaxFrameSize: "FRAME", http2.SettingMaxHeaderListSize: "HEADER",
}

// summary describes a frame, all but HEADERS, as a script writes it.
func summary(f http2.Frame) string {
	switch f := f.(type) {
	case *http2.SettingsFrame:
		if f.IsAck() {
			return "SETTINGS ACK"
		}
		s := "SETTINGS"
		_ = f.ForeachSetting(func(set http2.Setting) error {
			s += fmt.Sprintf(" %s=%d", settingNames[set.ID], set.Val)
			return nil
		})
		return s
	case *http2.DataFrame:
		s := fmt.Sprintf("DATA %d", f.StreamID)
		switch n := len(f.Data()); {
		case n > 40:
			s += fmt.Sprintf(" [%d]", n)
		case n > 0:
			s += " " + string(f.Data())
		}
		if f.StreamEnded() {
			s += " END"
		}
		return s
	case *http2.RSTStreamFrame:
		return fmt.Sprintf("RST %d %v", f.StreamID, f.ErrCode)
	case *http2.GoAwayFrame:
		return fmt.Sprintf("GOAWAY %d %v", f.LastStreamID, f.ErrCode)
	case *http2.PingFrame:
		if f.IsAck() {
			return fmt.Sprintf("PING ACK %x", f.Data)
		}
		return fmt.Sprintf("PING %x", f.Data)
	case *http2.WindowUpdateFrame:
		return fmt.Sprintf("WINDOW %d %d", f.StreamID, f.Increment)
	}
	return f.Header().Type.String()
}

// block encodes "name=value"s; a ":" at the beginning belongs to the name.
func (r *rig) block(args []string) []byte {
	r.buf.Reset()
	for _, a := range args {
		if a == "CONNECT" {
			args := []string{":method=CONNECT", ":authority=a:1"}
			for _, f := range args {
				name, value, _ := strings.Cut(f, "=")
				r.check(r.enc.WriteField(hpack.HeaderField{Name: name, Value: value}))
			}
			continue
		}
		name, value, _ := strings.Cut(a, "=")
		if strings.HasPrefix(value, "[") {
			value = string(r.text(value))
		}
		r.check(r.enc.WriteField(hpack.HeaderField{Name: name, Value: value}))
	}
	return bytes.Clone(r.buf.Bytes())
}

var codes = map[string]http2.ErrCode{
	"NO_ERROR": http2.ErrCodeNo, "CANCEL": http2.ErrCodeCancel, "REFUSED_STREAM": http2.ErrCodeRefusedStream, "INTERNAL_ERROR": http2.ErrCodeInternal,
}

// send is what the peer does.
func (r *rig) send(args []string) {
	r.t.Helper()
	verb, args := args[0], args[1:]
	args, end := cut(args, "END")
	args, ack := cut(args, "ACK")
	num := func(i int) uint32 { r.t.Helper(); return uint32(r.number(args[i])) }
	switch verb {
	case "PREFACE":
		_, err := io.WriteString(r.conn, preface)
		r.check(err)
	case "SETTINGS":
		if ack {
			r.check(r.fr.WriteSettingsAck())
			return
		}
		var settings []http2.Setting
		for _, a := range args {
			name, value, _ := strings.Cut(a, "=")
			for id, n := range settingNames {
				if n == name {
					settings = append(settings, http2.Setting{ID: id, Val: uint32(r.number(value))})
				}
			}
		}
		r.check(r.fr.WriteSettings(settings...))
	case "HEADERS":
		args, more := cut(args, "MORE")
		args, priority := cut(args, "PRIORITY")
		args, padded := cut(args, "PADDED")
		p := http2.HeadersFrameParam{StreamID: num(0), BlockFragment: r.block(args[1:]), EndHeaders: !more, EndStream: end}
		if priority {
			p.Priority = http2.PriorityParam{StreamDep: 1, Weight: 7, Exclusive: true}
		}
		if padded {
			p.PadLength = 100
		}
		r.check(r.fr.WriteHeaders(p))
	case "CONTINUATION":
		args, more := cut(args, "MORE")
		r.check(r.fr.WriteContinuation(num(0), !more, r.block(args[1:])))
	case "DATA":
		args, padded := cut(args, "PADDED")
		var data, pad []byte
		if len(args) > 1 {
			data = r.text(args[1])
		}
		if padded {
			pad = make([]byte, 100)
		}
		for max := 16 << 10; len(data) > max; data = data[max:] {
			r.check(r.fr.WriteData(num(0), false, data[:max]))
		}
		r.check(r.fr.WriteDataPadded(num(0), end, data, pad))
	case "RST":
		r.check(r.fr.WriteRSTStream(num(0), codes[args[1]]))
	case "GOAWAY":
		r.check(r.fr.WriteGoAway(num(0), codes[args[1]], []byte("debug data")))
	case "PING":
		var data [8]byte
		_, err := hex.Decode(data[:], []byte(args[0]))
		r.check(err)
		r.check(r.fr.WritePing(ack, data))
	case "WINDOW":
		r.check(r.fr.WriteWindowUpdate(num(0), num(1)))
	case "PRIORITY":
		r.check(r.fr.WritePriority(num(0), http2.PriorityParam{StreamDep: num(0)}))
	case "RAW": // type flags stream bytes
		r.check(r.fr.WriteRawFrame(http2.FrameType(num(0)), http2.Flags(num(1)), num(2), r.raw(args[3:])))
	case "BYTES":
		_, err := r.conn.Write(r.raw(args))
		r.check(err)
	case "CLOSE":
		r.check(r.conn.Close())
	case "FLOOD": // n frames; $ is a stream id that goes up. What comes back is thrown away, up to GOAWAY.
		r.flood(num(0), args[1:])
	default:
		r.t.Fatalf("%s: no such frame", r.line)
	}
}

// flood sends lines, separated by ";", over and over.
func (r *rig) flood(n uint32, args []string) {
	r.t.Helper()
	line := r.line
	for i := range n {
		for frame := range strings.SplitSeq(strings.Join(args, " "), ";") {
			select {
			case <-r.c.Done():
				return
			default:
			}
			r.line = line + " #" + strconv.Itoa(int(i))
			r.send(strings.Fields(strings.ReplaceAll(frame, "$", strconv.Itoa(int(2*i+1)))))
		}
		synctest.Wait()
		r.mu.Lock()
		over := false
		for _, f := range r.got {
			over = over || strings.HasPrefix(f, "GOAWAY")
		}
		if !over {
			r.got = nil
		} else {
			for !strings.HasPrefix(r.got[0], "GOAWAY") {
				r.got = r.got[1:]
			}
		}
		r.mu.Unlock()
		if over {
			return
		}
	}
}

func (r *rig) raw(args []string) []byte {
	r.t.Helper()
	text := strings.Join(args, "")
	if strings.HasPrefix(text, "[") {
		return r.text(text)
	}
	p, err := hex.DecodeString(text)
	r.check(err)
	return p
}
