package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"reflect"
	"sync"
)

// Stdio are the standard streams of a program that [Lab.Exec] runs. An *os.File
// is handed to the program itself; anything else is copied. nil is /dev/null.
type Stdio struct {
	In       io.Reader
	Out, Err io.Writer
}

// Exec runs a command in a pod ("ns/pod" or "ns/deployment", which is its first
// ready pod; "/container" may follow) or on a node ("node/n1") and returns its
// exit code. The command's first word is looked for among the lab's binaries
// and then in PATH. When ctx ends, the command is killed.
func (l *Lab) Exec(ctx context.Context, target string, argv []string, stdio Stdio) (int, error) {
	conn, err := dialControl(l.stateDir)
	if err != nil {
		return -1, err
	}
	defer conn.Close() //nolint:errcheck // nothing more is expected
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()

	streams, err := newStreams(stdio)
	if err != nil {
		return -1, err
	}
	err = writeMessage(conn, request{Op: opExec, Target: target, Argv: argv}, streams.remote[:]...)
	streams.closeRemote()
	var answer reply
	if err == nil {
		var body []byte
		if body, _, err = readMessage(conn); err == nil {
			err = json.Unmarshal(body, &answer)
		}
	}
	streams.finish()
	switch {
	case ctx.Err() != nil:
		return -1, ctx.Err()
	case err != nil:
		return -1, fmt.Errorf("exec in %s: %w", target, err)
	case answer.Error != "":
		return -1, fmt.Errorf("exec in %s: %s", target, answer.Error)
	}
	return answer.Code, nil
}

// Status asks the lab how it is.
func (l *Lab) Status(ctx context.Context) (Status, error) {
	conn, err := dialControl(l.stateDir)
	if err != nil {
		return Status{}, err
	}
	defer conn.Close() //nolint:errcheck // only read
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	if err := writeMessage(conn, request{Op: opStatus}); err != nil {
		return Status{}, fmt.Errorf("status: %w", err)
	}
	body, _, err := readMessage(conn)
	if err != nil {
		return Status{}, fmt.Errorf("status: %w", errors.Join(err, ctx.Err()))
	}
	var answer reply
	if err := json.Unmarshal(body, &answer); err != nil {
		return Status{}, fmt.Errorf("status: %w", err)
	}
	if answer.Status == nil {
		return Status{}, fmt.Errorf("status: %s", answer.Error)
	}
	return *answer.Status, nil
}

// streams hands standard streams over as files and copies what is no file.
type streams struct {
	remote [stdioNumber]*os.File
	own    []*os.File // of remote, those to close once they have been sent
	input  *os.File   // write end of a copied standard input
	copies sync.WaitGroup
}

func newStreams(stdio Stdio) (*streams, error) {
	s := &streams{}
	var err error
	if s.remote[0], err = s.reader(stdio.In); err == nil {
		if s.remote[1], err = s.writer(stdio.Out); err == nil {
			if s.remote[2] = s.remote[1]; !sameWriter(stdio.Out, stdio.Err) {
				s.remote[2], err = s.writer(stdio.Err)
			}
		}
	}
	if err != nil {
		s.closeRemote()
		s.finish()
	}
	return s, err
}

// sameWriter says whether both streams go to one writer, which then must not be
// written to by two goroutines.
func sameWriter(a, b io.Writer) bool {
	return a != nil && b != nil && reflect.TypeOf(a) == reflect.TypeOf(b) && reflect.TypeOf(a).Comparable() && a == b
}

func (s *streams) reader(r io.Reader) (*os.File, error) {
	if file, ok := r.(*os.File); ok {
		return file, nil
	}
	if r == nil {
		return s.null()
	}
	near, far, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	s.own, s.input = append(s.own, near), far
	go func() { // ends with the source or the program; a source that blocks for ever keeps it, as in os/exec
		_, _ = io.Copy(far, r)
		_ = far.Close()
	}()
	return near, nil
}

func (s *streams) writer(w io.Writer) (*os.File, error) {
	if file, ok := w.(*os.File); ok {
		return file, nil
	}
	if w == nil {
		return s.null()
	}
	near, far, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	s.own = append(s.own, far)
	s.copies.Go(func() {
		_, _ = io.Copy(w, near)
		_ = near.Close()
	})
	return far, nil
}

func (s *streams) null() (*os.File, error) {
	file, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err == nil {
		s.own = append(s.own, file)
	}
	return file, err
}

func (s *streams) closeRemote() {
	for _, file := range s.own {
		_ = file.Close()
	}
}

// finish waits until all output has been copied.
func (s *streams) finish() {
	if s.input != nil {
		_ = s.input.Close()
	}
	s.copies.Wait()
}
