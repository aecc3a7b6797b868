package netns

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// ErrTruncated says that a packet or its descriptors did not fit the receiver.
var ErrTruncated = errors.New("packet truncated")

// maxFiles is how many descriptors of one packet can be received; more are
// ErrTruncated.
const maxFiles = 8

// Packet is one packet of a SOCK_SEQPACKET socket.
type Packet struct {
	Body  []byte
	Files []*os.File // owned by whoever has the packet
}

// Close closes the packet's files.
func (p *Packet) Close() {
	for _, f := range p.Files {
		_ = f.Close()
	}
	p.Files = nil
}

// ListenSeqpacket listens on a Unix socket of type SOCK_SEQPACKET at path; a socket
// that an earlier process left there is replaced.
func ListenSeqpacket(path string) (*net.UnixListener, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	ln, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: path, Net: "unixpacket"})
	if err != nil {
		return nil, err
	}
	ln.SetUnlinkOnClose(false) // by then the path may be a successor's
	return ln, nil
}

// DialSeqpacket connects to such a socket.
func DialSeqpacket(ctx context.Context, path string) (*net.UnixConn, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, "unixpacket", path)
	if err != nil {
		return nil, err
	}
	return c.(*net.UnixConn), nil
}

// SendPacket sends one packet, with a descriptor when f is not nil; f stays the
// caller's. An empty body is refused: the receiver would take it for the end.
func SendPacket(c *net.UnixConn, body []byte, f *os.File) error {
	if len(body) == 0 {
		return errors.New("send: empty packet")
	}
	if f == nil {
		_, _, err := c.WriteMsgUnix(body, nil, nil)
		return err
	}
	return control(f, func(fd int) error {
		_, _, err := c.WriteMsgUnix(body, unix.UnixRights(fd), nil)
		return err
	})
}

// ReceivePacket receives one packet into buf, of which Body is a part. The end of the
// connection is io.EOF; a packet that does not fit is ErrTruncated, its files closed.
func ReceivePacket(c *net.UnixConn, buf []byte) (Packet, error) {
	oob := make([]byte, unix.CmsgSpace(maxFiles*4))
	n, oobn, flags, _, err := c.ReadMsgUnix(buf, oob)
	if err != nil {
		return Packet{}, err
	}
	files, err := parseFiles(oob[:oobn])
	p := Packet{Body: buf[:n], Files: files}
	switch {
	case flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0:
		err = ErrTruncated
	case err == nil && n == 0:
		err = io.EOF
	}
	if err != nil {
		p.Close()
		return Packet{}, err
	}
	return p, nil
}

// parseFiles takes every descriptor out of the control messages, also when one of
// them is malformed, so that none leaks.
func parseFiles(oob []byte) ([]*os.File, error) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, fmt.Errorf("control message: %w", err)
	}
	var files []*os.File
	for _, m := range messages {
		if m.Header.Level != unix.SOL_SOCKET || m.Header.Type != unix.SCM_RIGHTS {
			continue
		}
		fds, err := unix.ParseUnixRights(&m)
		if err != nil {
			return files, fmt.Errorf("passed descriptors: %w", err)
		}
		for _, fd := range fds {
			files = append(files, os.NewFile(uintptr(fd), "received"))
		}
	}
	return files, nil
}

// Received is one packet of a connection, or why there are no more.
type Received struct {
	Packet Packet
	Err    error
}

// ReadPackets delivers conn's packets, each of at most size bytes, until one has an
// error. stop closes conn and must be called; it returns when nothing of it is left.
func ReadPackets(conn *net.UnixConn, size int) (packets <-chan Received, stop func()) {
	ch := make(chan Received)
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			p, err := ReceivePacket(conn, make([]byte, size))
			select {
			case ch <- Received{Packet: p, Err: err}:
			case <-done:
				p.Close()
				return
			}
			if err != nil {
				return
			}
		}
	})
	return ch, func() {
		close(done)
		_ = conn.Close()
		wg.Wait()
	}
}
