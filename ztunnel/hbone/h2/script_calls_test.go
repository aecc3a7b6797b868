package h2

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"
)

// call is what the endpoint's user does.
func (r *rig) call(args []string) string {
	verb, args := args[0], args[1:]
	var s *Stream
	if len(args) > 0 && verb != "open" && verb != "sink" {
		r.mu.Lock()
		s = r.streams[uint32(r.number(args[0]))]
		r.mu.Unlock()
		if s == nil {
			return "no such stream"
		}
		args = args[1:]
	}
	switch verb {
	case "open":
		h := Head{Method: methodConnect, Authority: "a:1"}
		if args[0] != methodConnect {
			h = Head{Method: args[0], Scheme: "https", Authority: "a:1", Path: "/"}
		}
		var early []byte
		if len(args) > 1 {
			early = r.text(args[1])
		}
		s, err := r.c.Open(h, early, false)
		if err != nil {
			return err.Error()
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		r.streams[s.id] = s
		return fmt.Sprintf("stream %d early %d", s.id, s.Early())
	case "answer":
		h, err := s.Answer()
		if err != nil {
			return err.Error()
		}
		return fmt.Sprint(h.Status, h.Fields)
	case "head":
		h := s.Head()
		return fmt.Sprint(h.Method, " ", h.Authority, " ", h.Path, " ", h.Fields)
	case "respond":
		args, end := cut(args, "END")
		return outcome(s.Respond(Head{Status: r.number(args[0]), Fields: pairs(args[1:])}, end))
	case "trail":
		return outcome(s.Trail(pairs(args)))
	case "trailer":
		return fmt.Sprint(s.Trailer())
	case "return":
		r.mu.Lock()
		defer r.mu.Unlock()
		close(r.release[s.id])
		delete(r.release, s.id)
		return "ok"
	case "read":
		p := make([]byte, r.number(args[0]))
		n, err := io.ReadFull(s, p)
		if n > 40 {
			return fmt.Sprintf("[%d] %v", n, outcome(err))
		}
		return strings.TrimSpace(string(p[:n]) + " " + strings.TrimPrefix(outcome(err), "ok"))
	case "write":
		n, err := s.Write(r.text(args[0]))
		if err != nil {
			return fmt.Sprintf("%d %v", n, outcome(err))
		}
		return fmt.Sprint(n)
	case "closewrite":
		return outcome(s.CloseWrite())
	case "close":
		return outcome(s.Close())
	case "reset":
		s.Reset()
		return "ok"
	case "forward": // to a sink that takes n bytes without waiting
		sink := &slowSink{room: r.number(args[0]), more: make(chan int)}
		r.mu.Lock()
		r.sink = sink
		r.mu.Unlock()
		done := make(chan error, 1)
		s.Forward(sink, func(err error) { done <- err })
		return outcome(<-done)
	case "window":
		s.mu.Lock()
		defer s.mu.Unlock()
		return fmt.Sprint(s.window)
	case "unread":
		return fmt.Sprint(s.Unread())
	case "context":
		return fmt.Sprint(s.Context().Err())
	case "sink": // takes n more
		r.sink.more <- r.number(args[0])
		return "ok"
	case "sunk":
		r.sink.mu.Lock()
		defer r.sink.mu.Unlock()
		return fmt.Sprint(r.sink.got)
	case "breaksink":
		r.sink.stop.Do(func() { close(r.sink.more) })
		return "ok"
	case "deadline":
		_ = s.SetDeadline(time.Now().Add(time.Second))
		return "ok"
	case "abort":
		r.c.Abort(NoError, ErrShutDown)
		return "ok"
	case "drain":
		r.c.Drain()
		return "ok"
	case "run":
		return <-r.ended
	case "handlers": // that have begun and not returned
		r.mu.Lock()
		defer r.mu.Unlock()
		return fmt.Sprint(len(r.release))
	case "streams":
		return fmt.Sprint(r.c.Streams())
	}
	return "no such call"
}

// A slowSink takes room bytes at once, and more when it is told.
type slowSink struct {
	mu   sync.Mutex
	room int
	got  int
	more chan int // closed by stop: broken
	stop sync.Once
}

func (s *slowSink) TryWrite(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := min(len(p), s.room)
	s.room -= n
	s.got += n
	return n, nil
}

func (s *slowSink) Write(p []byte) (int, error) {
	sent := 0
	for {
		n, _ := s.TryWrite(p[sent:])
		if sent += n; sent == len(p) {
			return sent, nil
		}
		more, ok := <-s.more
		if !ok {
			return sent, errors.New("sink is broken")
		}
		s.mu.Lock()
		s.room += more
		s.mu.Unlock()
	}
}

func outcome(err error) string {
	switch {
	case err == nil:
		return "ok"
	case errors.Is(err, os.ErrDeadlineExceeded):
		return "timeout"
	case errors.Is(err, context.Canceled):
		return "canceled"
	}
	return err.Error()
}

func pairs(args []string) (fields []Field) {
	for _, a := range args {
		name, value, _ := strings.Cut(a, "=")
		fields = append(fields, Field{name, value})
	}
	return fields
}
