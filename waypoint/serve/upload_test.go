package serve

import (
	"errors"
	"io"
	"net"
	"syscall"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/waypoint/codec"
)

type deadlines func(time.Time) error

func (f deadlines) SetReadDeadline(t time.Time) error { return f(t) }

// TestClientThatBreaksOffIsToBlame: also when its upload has not quite ended
// as it is stopped. What the stopping itself causes is nobody's fault.
func TestClientThatBreaksOffIsToBlame(t *testing.T) {
	for _, c := range []struct {
		err  error
		want Flags
	}{
		{io.ErrUnexpectedEOF, FlagDC}, {&codec.Error{Status: 400, Reason: "bad chunk"}, FlagDPE}, {timeoutError{}, 0}, {nil, 0},
	} {
		ours, theirs := net.Pipe()
		u := &upload{done: make(chan struct{})}
		f := u.stop(deadlines(func(at time.Time) error {
			if !at.IsZero() {
				u.readErr = c.err
				close(u.done)
			}
			return nil
		}), codec.NewClientConn(ours))
		var got Flags
		if f != nil {
			got = f.flags
		}
		if got != c.want {
			t.Errorf("%v: blamed %v, want %v", c.err, got, c.want)
		}
		_, _ = ours.Close(), theirs.Close()
	}
}

type timeoutError struct{}

func (timeoutError) Timeout() bool   { return true }
func (timeoutError) Temporary() bool { return true }
func (timeoutError) Error() string   { return "timeout" }

func TestLackOfFilesIsSurvived(t *testing.T) {
	for err, want := range map[error]bool{
		&net.OpError{Op: "accept", Err: syscall.EMFILE}: true, &net.OpError{Op: "accept", Err: syscall.ENFILE}: true,
		&net.OpError{Op: "accept", Err: syscall.ECONNABORTED}: true, &net.OpError{Op: "accept", Err: syscall.EBADF}: false,
		errors.New("other"): false,
	} {
		if got := passing(err); got != want {
			t.Errorf("%v: passing %v, want %v", err, got, want)
		}
	}
}
