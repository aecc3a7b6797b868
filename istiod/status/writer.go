package status

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"sync"
	"time"

	"k8s.io/client-go/util/workqueue"

	"github.com/ambit-mesh/ambit/apis/manifest"
)

const (
	maxAttempts  = 5
	firstBackOff = time.Second

	// lookAfter is how long a status that somebody else has changed stays: two
	// who want different things must not write as fast as they can.
	lookAfter = time.Second
)

// errUnanswered is the error of a store that says nothing about what was to be
// written: it is away, or busy.
var errUnanswered = errors.New("not answered")

// Store keeps the statuses: Files without a cluster, Kubernetes with one.
type Store interface {
	// Write makes the object's status say what is wanted, as far as it is ours
	// to say. Nothing is wanted of an object that nobody speaks about. An
	// object that is gone is no error.
	Write(ctx context.Context, key manifest.Key, w Wanted, now time.Time) error
	// Stored returns the objects of which something of ours may be stored.
	Stored() ([]manifest.Key, error)
	// Watch has changed called, from any goroutine, when what is stored about an
	// object may have changed; changed does not wait. It is called once, before
	// anything else.
	Watch(changed func(key manifest.Key))
}

// Config of a Writer.
type Config struct {
	Store Store
	Log   *slog.Logger
	Now   func() time.Time // nil = time.Now
}

// Writer writes statuses to a store. What it holds is bounded by the number of
// objects and writers: statements about one object replace each other. Set,
// File and Synced never wait for the store. Safe for concurrent use.
type Writer struct {
	cfg Config

	mu     sync.Mutex
	wanted map[manifest.Key]Wanted
	synced bool  // what is stored and not wanted is from before a restart
	queue  queue // what is to be looked at; nil while Run does not run
}

// queue holds each object once, and those whose writing failed for a while.
type queue = workqueue.TypedRateLimitingInterface[manifest.Key]

// everything, the key of no object, is queued for a sweep.
var everything manifest.Key

// Wanted is what is to be stored for one object.
type Wanted struct {
	Writers map[string]Status // by the writer's name
	File    *FileError        // of the object that stands for a file
}

// FileError is the status of a file that cannot be read.
type FileError struct{ File, Message string }

func (w Wanted) empty() bool { return len(w.Writers) == 0 && w.File == nil }

// NewWriter returns a writer; Run does the work.
func NewWriter(cfg Config) *Writer {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	w := &Writer{cfg: cfg, wanted: map[manifest.Key]Wanted{}}
	cfg.Store.Watch(w.look)
	return w
}

// look has an object looked at again about which we have something to say.
func (w *Writer) look(key manifest.Key) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if _, ours := w.wanted[key]; ours && w.queue != nil {
		w.queue.AddAfter(key, lookAfter)
	}
}

// Set replaces what the writer of that name says about the object. A zero
// Status withdraws it. The Status must not change afterwards.
func (w *Writer) Set(writer string, key manifest.Key, s Status) {
	w.change(key, func(old Wanted) Wanted {
		if s.empty() {
			delete(old.Writers, writer)
			return old
		}
		if old.Writers == nil {
			old.Writers = map[string]Status{}
		}
		old.Writers[writer] = s
		return old
	})
}

// File says that a file cannot be read, and why; nil says that it can.
func (w *Writer) File(file string, reason error) {
	w.change(FileKey(file), func(Wanted) Wanted {
		if reason == nil {
			return Wanted{}
		}
		return Wanted{File: &FileError{File: file, Message: reason.Error()}}
	})
}

// Synced says that every object that exists has been set: what the store holds
// about any other is from before a restart, and is removed.
func (w *Writer) Synced() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.synced = true
	w.enqueue(everything)
}

func (w *Writer) change(key manifest.Key, f func(Wanted) Wanted) {
	w.mu.Lock()
	defer w.mu.Unlock()
	next := f(w.wanted[key])
	if next.empty() {
		delete(w.wanted, key)
	} else {
		w.wanted[key] = next
	}
	w.enqueue(key)
}

// enqueue has the object looked at by Run, now or when it starts; the caller
// holds mu.
func (w *Writer) enqueue(key manifest.Key) {
	if w.queue != nil {
		w.queue.Add(key)
	}
}

// Run writes until ctx is done. It may be called again when it has returned:
// then it looks at everything anew. Meanwhile another replica may have written.
// A write that the store refuses is tried again a few times, then given up until
// the object's status changes; one that it cannot answer is tried until it can.
func (w *Writer) Run(ctx context.Context) error {
	q := w.start()
	defer w.stop(q)
	defer context.AfterFunc(ctx, q.ShutDown)()
	for {
		key, closed := q.Get()
		if closed || ctx.Err() != nil {
			return nil
		}
		w.attempt(ctx, q, key)
		q.Done(key)
	}
}

// start makes the queue here and not in NewWriter because it runs a goroutine.
func (w *Writer) start() queue {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.queue = workqueue.NewTypedRateLimitingQueue(
		workqueue.NewTypedItemExponentialFailureRateLimiter[manifest.Key](firstBackOff, firstBackOff<<maxAttempts))
	for key := range w.wanted {
		w.queue.Add(key)
	}
	if w.synced {
		w.queue.Add(everything)
	}
	return w.queue
}

// stop ends the queue's own goroutine.
func (w *Writer) stop(q queue) {
	w.mu.Lock()
	w.queue = nil
	w.mu.Unlock()
	q.ShutDown()
}

func (w *Writer) attempt(ctx context.Context, q queue, key manifest.Key) {
	work := w.write
	if key == everything {
		work = w.sweep
	}
	err := work(ctx, key)
	attempts := q.NumRequeues(key) + 1
	switch {
	case err == nil:
		q.Forget(key)
		return
	case ctx.Err() != nil:
		return
	case attempts >= maxAttempts && !errors.Is(err, errUnanswered):
		q.Forget(key)
	default:
		q.AddRateLimited(key)
	}
	if attempts == maxAttempts {
		w.cfg.Log.Warn("status cannot be written", slog.String("object", key.String()), slog.Any("error", err))
	}
}

// sweep queues the objects in the store that nobody speaks about.
func (w *Writer) sweep(context.Context, manifest.Key) error {
	stored, err := w.cfg.Store.Stored()
	if err != nil {
		return fmt.Errorf("old statuses: %w", err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, key := range stored {
		if _, known := w.wanted[key]; !known {
			w.enqueue(key)
		}
	}
	return nil
}

func (w *Writer) write(ctx context.Context, key manifest.Key) error {
	if err := w.cfg.Store.Write(ctx, key, w.get(key), w.cfg.Now()); err != nil {
		return fmt.Errorf("status of %s: %w", key, err)
	}
	return nil
}

// get returns a copy that does not change while it is written.
func (w *Writer) get(key manifest.Key) Wanted {
	w.mu.Lock()
	defer w.mu.Unlock()
	next := w.wanted[key]
	next.Writers = maps.Clone(next.Writers)
	return next
}
