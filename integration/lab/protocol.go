package lab

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// The control protocol: pid 1 listens on lab.sock in the state directory. A
// message is four bytes of length, big-endian, and JSON. The client sends one
// request; with "exec", the standard input, output and error of the program
// travel as SCM_RIGHTS with the first byte. The server sends one reply for any
// other operation; for "exec" it replies once the program has ended, and a
// client that goes away takes the program with it.

const (
	socketName  = "lab.sock"
	maxMessage  = 16 << 20
	opExec      = "exec"
	opStatus    = "status"
	opDown      = "down"
	stdioNumber = 3
)

// ErrNotRunning says that there is no lab to talk to.
var ErrNotRunning = errors.New("no lab is running")

var errMessage = errors.New("malformed control message")

// request is what a client asks pid 1 for.
type request struct {
	Op     string   `json:"op"`
	Target string   `json:"target,omitempty"`
	Argv   []string `json:"argv,omitempty"`
	Env    []string `json:"env,omitempty"`
}

// reply answers a request.
type reply struct {
	Error  string  `json:"error,omitempty"`
	Code   int     `json:"code,omitempty"`
	Status *Status `json:"status,omitempty"`
}

// parseRequest reads a request out of a message's JSON and checks it.
func parseRequest(data []byte) (request, error) {
	var r request
	if err := json.Unmarshal(data, &r); err != nil {
		return request{}, fmt.Errorf("%w: %w", errMessage, err)
	}
	switch r.Op {
	case opStatus, opDown:
		return r, nil
	case opExec:
		if r.Target == "" || len(r.Argv) == 0 || r.Argv[0] == "" {
			return request{}, fmt.Errorf("%w: exec needs a target and a command", errMessage)
		}
		return r, nil
	default:
		return request{}, fmt.Errorf("%w: unknown operation %q", errMessage, r.Op)
	}
}

// writeMessage sends v, and the files with its first byte.
func writeMessage(c *net.UnixConn, v any, files ...*os.File) error {
	body, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if len(body) > maxMessage {
		return fmt.Errorf("%w: %d bytes", errMessage, len(body))
	}
	data := binary.BigEndian.AppendUint32(nil, uint32(len(body)))
	data = append(data, body...)
	var rights []byte
	if len(files) > 0 {
		numbers := make([]int, len(files))
		for i, file := range files {
			numbers[i] = int(file.Fd())
		}
		rights = syscall.UnixRights(numbers...)
	}
	n, _, err := c.WriteMsgUnix(data, rights, nil)
	if err != nil {
		return err
	}
	if n < len(data) { // the kernel takes what fits
		_, err = c.Write(data[n:])
	}
	return err
}

// readMessage reads one message and the files that came with it, which are the
// caller's to close, also when there is an error.
func readMessage(c *net.UnixConn) ([]byte, []*os.File, error) {
	header := make([]byte, 4)
	rights := make([]byte, syscall.CmsgSpace(4*stdioNumber))
	n, rn, _, _, err := c.ReadMsgUnix(header, rights)
	if err != nil {
		return nil, nil, err
	}
	if n == 0 {
		return nil, nil, io.EOF
	}
	files, err := parseRights(rights[:rn])
	if err != nil {
		return nil, files, err
	}
	if _, err := io.ReadFull(c, header[n:]); err != nil {
		return nil, files, err
	}
	body, err := readBody(c, header)
	return body, files, err
}

// readBody reads as much as the header announces, within bounds.
func readBody(r io.Reader, header []byte) ([]byte, error) {
	length := binary.BigEndian.Uint32(header)
	if length > maxMessage {
		return nil, fmt.Errorf("%w: %d bytes", errMessage, length)
	}
	body, err := io.ReadAll(io.LimitReader(r, int64(length)))
	if err != nil {
		return nil, err
	}
	if len(body) != int(length) {
		return nil, io.ErrUnexpectedEOF
	}
	return body, nil
}

// parseRights takes the files out of control messages.
func parseRights(data []byte) ([]*os.File, error) {
	if len(data) == 0 {
		return nil, nil
	}
	messages, err := syscall.ParseSocketControlMessage(data)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errMessage, err)
	}
	var files []*os.File
	for i := range messages {
		numbers, err := syscall.ParseUnixRights(&messages[i])
		if err != nil {
			return files, fmt.Errorf("%w: %w", errMessage, err)
		}
		for _, number := range numbers {
			syscall.CloseOnExec(number)
			files = append(files, os.NewFile(uintptr(number), "passed"))
		}
	}
	return files, nil
}

// withSocket calls f with a short name of the state directory's socket: the
// address of a unix socket has room for about 100 bytes.
func withSocket(stateDir string, f func(path string) error) error {
	dir, err := os.OpenFile(stateDir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer dir.Close()
	return f(filepath.Join("/proc/self/fd", fmt.Sprint(dir.Fd()), socketName))
}

// dialControl connects to the lab of the state directory.
func dialControl(stateDir string) (*net.UnixConn, error) {
	var conn net.Conn
	err := withSocket(stateDir, func(path string) error {
		var err error
		conn, err = net.DialTimeout("unix", path, 5*time.Second)
		return err
	})
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) {
		return nil, fmt.Errorf("%w in %s", ErrNotRunning, stateDir)
	}
	if err != nil {
		return nil, err
	}
	return conn.(*net.UnixConn), nil
}

// listenControl makes the socket, in the place of one that a killed lab left.
func listenControl(stateDir string) (*net.UnixListener, error) {
	var listener net.Listener
	err := withSocket(stateDir, func(path string) error {
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		var err error
		if listener, err = net.Listen("unix", path); err != nil {
			return err
		}
		listener.(*net.UnixListener).SetUnlinkOnClose(false) // the name will be another's by then
		return os.Chmod(path, 0o600)
	})
	if err != nil {
		return nil, fmt.Errorf("control socket: %w", err)
	}
	return listener.(*net.UnixListener), nil
}
