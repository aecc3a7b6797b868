package telemetry

import (
	"context"
	"io"
	"slices"
	"sync"
)

// The bounds of the queue and of one write to the output.
const (
	queuedLines = 10_000
	batchLines  = 64
)

// Writer takes log lines from the data path and writes them to an output on a
// goroutine of its own, several at once. Its queue is bounded; a full queue
// makes callers wait, so that no line is lost. After Run has ended, and before
// it begins when the queue is full, a line is written by its caller.
type Writer struct {
	out    io.Writer
	format Format
	queue  chan queued

	mu     sync.Mutex // guards out once done
	done   chan struct{}
	closed sync.Once
}

// queued is a line in one of two states: formatted, or an access line to be.
type queued struct {
	line   []byte
	access *AccessLine
}

// NewWriter returns a writer to out.
func NewWriter(out io.Writer, format Format) *Writer {
	return &Writer{out: out, format: format, queue: make(chan queued, queuedLines), done: make(chan struct{})}
}

// Run writes lines until ctx is done, then what is queued.
func (w *Writer) Run(ctx context.Context) error {
	defer w.closed.Do(func() { close(w.done) })
	buf := make([]byte, 0, 16<<10)
	for {
		select {
		case q := <-w.queue:
			buf = w.batch(buf[:0], q)
		case <-ctx.Done():
			w.closed.Do(func() { close(w.done) })
			return w.flush()
		}
		if err := w.write(buf); err != nil {
			return err
		}
	}
}

// batch formats a line and what else is waiting.
func (w *Writer) batch(buf []byte, q queued) []byte {
	buf = w.append(buf, q)
	for range batchLines - 1 {
		select {
		case q := <-w.queue:
			buf = w.append(buf, q)
		default:
			return buf
		}
	}
	return buf
}

func (w *Writer) append(buf []byte, q queued) []byte {
	if q.access != nil {
		return q.access.append(buf, w.format)
	}
	return append(buf, q.line...)
}

func (w *Writer) flush() error {
	for {
		select {
		case q := <-w.queue:
			if err := w.write(w.batch(nil, q)); err != nil {
				return err
			}
		default:
			return nil
		}
	}
}

func (w *Writer) write(b []byte) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	_, err := w.out.Write(b)
	return err
}

// Write queues one formatted line.
func (w *Writer) Write(line []byte) (int, error) {
	return len(line), w.put(queued{line: slices.Clone(line)})
}

// Access queues an access line, which must not be changed any more.
func (w *Writer) Access(l *AccessLine) { _ = w.put(queued{access: l}) }

func (w *Writer) put(q queued) error {
	select {
	case <-w.done: // Run has ended
		return w.write(w.append(nil, q))
	default:
	}
	select {
	case w.queue <- q:
		return nil
	case <-w.done:
		return w.write(w.append(nil, q))
	}
}
