package lab

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Packet is one TCP packet on a wire.
type Packet struct {
	Time   time.Time      `json:"time"`
	Source netip.AddrPort `json:"src"`
	Target netip.AddrPort `json:"dst"`
	Flags  string         `json:"flags"` // of "SYN ACK FIN RST PSH", with a blank between
	Length int            `json:"len"`   // of the payload
	Seq    uint32         `json:"seq"`
	HTTP   string         `json:"http,omitempty"` // first line of a payload that begins a request or response
	TLS    bool           `json:"tls,omitempty"`  // the payload begins with a TLS record
}

// captureHeader is the first line of a capture's output.
type captureHeader struct {
	Capturing bool `json:"capturing"`
}

// packetSocket opens a socket that gets every packet of the interface, both
// ways, from the IP header on.
func packetSocket(name string) (int, error) {
	network := func(v uint16) uint16 { return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, v)) }
	link, err := net.InterfaceByName(name)
	if err != nil {
		return -1, fmt.Errorf("interface %s: %w", name, err)
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("packet socket: %w", err)
	}
	// Only ETH_P_ALL sees what is sent.
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: network(unix.ETH_P_ALL), Ifindex: link.Index}); err != nil {
		return -1, errors.Join(fmt.Errorf("bind packet socket: %w", err), unix.Close(fd))
	}
	return fd, nil
}

// CaptureHere prints a line of JSON for each TCP packet on the interface, until
// ctx ends; with a port other than 0, only for packets from or to it. The first
// line says that nothing is missed from now on.
func CaptureHere(ctx context.Context, out io.Writer, name string, port uint16) error {
	fd, err := packetSocket(name)
	if err != nil {
		return err
	}
	defer unix.Close(fd) //nolint:errcheck // only read
	// So that ctx is looked at.
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 50_000}); err != nil {
		return err
	}
	lines := json.NewEncoder(out)
	if err := lines.Encode(captureHeader{Capturing: true}); err != nil {
		return err
	}
	buffer := make([]byte, 1<<16)
	for {
		var flags int
		ended := ctx.Err() != nil
		if ended {
			flags = unix.MSG_DONTWAIT // what is in the socket by now still counts
		}
		n, _, err := unix.Recvfrom(fd, buffer, flags)
		switch {
		case errors.Is(err, unix.EAGAIN):
			if ended {
				return nil
			}
			continue
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return fmt.Errorf("capture: %w", err)
		}
		p, ok := parsePacket(buffer[:n])
		if !ok || (port != 0 && p.Source.Port() != port && p.Target.Port() != port) {
			continue
		}
		p.Time = time.Now()
		if err := lines.Encode(p); err != nil {
			return err
		}
	}
}

// parsePacket reads an IPv4 packet; ok is false if it is not TCP, or malformed.
func parsePacket(data []byte) (p Packet, ok bool) {
	if len(data) < 20 || data[0]>>4 != 4 || data[9] != unix.IPPROTO_TCP {
		return Packet{}, false
	}
	header, total := int(data[0]&0xf)*4, int(binary.BigEndian.Uint16(data[2:]))
	if total == 0 { // a packet that the interface will segment
		total = len(data)
	}
	fragment := binary.BigEndian.Uint16(data[6:]) & 0x1fff
	if header < 20 || total > len(data) || total < header+20 || fragment != 0 {
		return Packet{}, false
	}
	tcp := data[header:total]
	offset := int(tcp[12]>>4) * 4
	if offset < 20 || offset > len(tcp) {
		return Packet{}, false
	}
	payload := tcp[offset:]
	return Packet{
		Source: netip.AddrPortFrom(netip.AddrFrom4([4]byte(data[12:16])), binary.BigEndian.Uint16(tcp)),
		Target: netip.AddrPortFrom(netip.AddrFrom4([4]byte(data[16:20])), binary.BigEndian.Uint16(tcp[2:])),
		Flags:  flagNames(tcp[13]), Length: len(payload), Seq: binary.BigEndian.Uint32(tcp[4:]),
		HTTP: httpLine(payload), TLS: isTLS(payload),
	}, true
}

func flagNames(flags byte) string {
	var names []string
	for _, f := range []struct {
		bit  byte
		name string
	}{{0x02, "SYN"}, {0x10, "ACK"}, {0x01, "FIN"}, {0x04, "RST"}, {0x08, "PSH"}} {
		if flags&f.bit != 0 {
			names = append(names, f.name)
		}
	}
	return strings.Join(names, " ")
}

// httpLine is the first line of a payload that begins an HTTP/1 message.
func httpLine(payload []byte) string {
	line, _, ok := bytes.Cut(payload, []byte("\r\n"))
	if !ok || len(line) > 2048 {
		return ""
	}
	text := string(line)
	if strings.HasPrefix(text, "HTTP/1.") || strings.HasSuffix(text, " HTTP/1.1") || strings.HasSuffix(text, " HTTP/1.0") || text == "PRI * HTTP/2.0" {
		return text
	}
	return ""
}

// isTLS recognises the header of a TLS record: RFC 8446 section 5.1.
func isTLS(payload []byte) bool {
	return len(payload) >= 5 && payload[0] >= 20 && payload[0] <= 23 && payload[1] == 3 && payload[2] <= 4
}

// Capture is a running capture in a pod or on a node.
type Capture struct {
	packets []Packet
	input   *io.PipeWriter
	ended   chan error
}

// Capture starts to capture TCP packets of an interface of the target; it
// returns when nothing is missed any more. Port 0 means all.
func (l *Lab) Capture(ctx context.Context, target, name string, port uint16) (*Capture, error) {
	stdin, input := io.Pipe()
	stdout, output := io.Pipe()
	c := &Capture{input: input, ended: make(chan error, 1)}
	ran := make(chan error, 1)
	var errs bytes.Buffer
	go func() {
		argv := []string{"lab", "capture", "-i", name, "--port", strconv.Itoa(int(port))}
		code, err := l.Exec(ctx, target, argv, Stdio{In: stdin, Out: output, Err: &errs})
		if err == nil && code != 0 {
			err = fmt.Errorf("capture in %s: exit code %d: %s", target, code, strings.TrimSpace(errs.String()))
		}
		ran <- err
		_ = output.Close()
	}()
	lines := bufio.NewScanner(stdout)
	if !lines.Scan() {
		_ = input.Close()
		return nil, errors.Join(errors.New("capture did not start"), <-ran)
	}
	go func() { // ends with the program
		var err error
		for lines.Scan() {
			var p Packet
			if err = json.Unmarshal(lines.Bytes(), &p); err != nil {
				break
			}
			c.packets = append(c.packets, p)
		}
		_ = stdout.CloseWithError(io.ErrClosedPipe)
		c.ended <- errors.Join(err, lines.Err(), <-ran)
	}()
	return c, nil
}

// Stop ends the capture and returns what was seen.
func (c *Capture) Stop() ([]Packet, error) {
	_ = c.input.Close()
	err := <-c.ended
	return c.packets, err
}
