package lab

import (
	"bytes"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

func FuzzParseRequest(f *testing.F) {
	f.Add([]byte(`{"op":"exec","target":"a/b","argv":["x"]}`))
	f.Add([]byte(`{"op":"status"}`))
	f.Add([]byte(`{"op":"exec"}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := parseRequest(data)
		if err == nil && r.Op == opExec && (r.Target == "" || len(r.Argv) == 0) {
			t.Errorf("taken: %+v", r)
		}
	})
}

func FuzzReadBody(f *testing.F) {
	f.Add([]byte{0, 0, 0, 2}, []byte("{}"))
	f.Add([]byte{0xff, 0xff, 0xff, 0xff}, []byte("{}"))
	f.Fuzz(func(t *testing.T, header, data []byte) {
		if len(header) != 4 {
			return
		}
		body, err := readBody(bytes.NewReader(data), header)
		if err == nil && !bytes.HasPrefix(data, body) {
			t.Errorf("body %q of %q", body, data)
		}
	})
}

func FuzzParseRights(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte("not a control message, but long enough for one"))
	f.Fuzz(func(t *testing.T, data []byte) {
		// Never with real rights in it: the numbers would be closed.
		if messages, err := syscall.ParseSocketControlMessage(data); err == nil {
			for _, m := range messages {
				if m.Header.Level == unix.SOL_SOCKET && m.Header.Type == unix.SCM_RIGHTS {
					return
				}
			}
		}
		if files, _ := parseRights(data); len(files) > 0 {
			t.Errorf("%d files", len(files))
		}
	})
}

func FuzzParsePacket(f *testing.F) {
	packet := append([]byte{
		0x45, 0, 0, 56, 0, 0, 0, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2,
		0x1f, 0x90, 0, 80, 0, 0, 0, 1, 0, 0, 0, 2, 0x50, 0x18, 0, 0, 0, 0, 0, 0,
	}, "GET / HTTP/1.1\r\n"...)
	f.Add(packet)
	if p, ok := parsePacket(packet); !ok || p.HTTP != "GET / HTTP/1.1" || p.Flags != "ACK PSH" || p.Source.String() != "10.0.0.1:8080" || p.Length != 16 {
		f.Errorf("packet %+v", p)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if p, ok := parsePacket(data); ok && p.Length > len(data)-40 {
			t.Errorf("%+v out of %d bytes", p, len(data))
		}
	})
}
