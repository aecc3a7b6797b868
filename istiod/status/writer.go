package status

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"reflect"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/util/workqueue"

	"github.com/ambit-mesh/ambit/apis/manifest"
)

const (
	maxAttempts  = 5
	firstBackOff = time.Second
)

// Store keeps the statuses: manifest.Store without a cluster.
type Store interface {
	Get(key manifest.Key) (*unstructured.Unstructured, error) // os.ErrNotExist
	Apply(o *unstructured.Unstructured) error
	Delete(key manifest.Key) error
	List() ([]*unstructured.Unstructured, error)
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
	wanted map[manifest.Key]wanted
	queue  queue                 // what is to be written; nil before Run
	early  map[manifest.Key]bool // what will be in queue, until then
}

// queue holds each object once, and those whose writing failed for a while.
type queue = workqueue.TypedRateLimitingInterface[manifest.Key]

// everything, the key of no object, is queued for a sweep.
var everything manifest.Key

// wanted is what is to be stored for one object.
type wanted struct {
	writers map[string]Status
	file    *fileError
}

// fileError is the status of a file that cannot be read.
type fileError struct{ file, message string }

// NewWriter returns a writer; Run does the work.
func NewWriter(cfg Config) *Writer {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &Writer{cfg: cfg, wanted: map[manifest.Key]wanted{}, early: map[manifest.Key]bool{}}
}

// Set replaces what the writer of that name says about the object. A zero
// Status withdraws it. The Status must not change afterwards.
func (w *Writer) Set(writer string, key manifest.Key, s Status) {
	w.change(key, func(old wanted) wanted {
		if s.empty() {
			delete(old.writers, writer)
			return old
		}
		if old.writers == nil {
			old.writers = map[string]Status{}
		}
		old.writers[writer] = s
		return old
	})
}

// File says that a file cannot be read, and why; nil says that it can.
func (w *Writer) File(file string, reason error) {
	w.change(FileKey(file), func(wanted) wanted {
		if reason == nil {
			return wanted{}
		}
		return wanted{file: &fileError{file: file, message: reason.Error()}}
	})
}

// Synced says that every object that exists has been set: what the store holds
// about any other is from before a restart, and is removed.
func (w *Writer) Synced() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.enqueue(everything)
}

func (w *Writer) change(key manifest.Key, f func(wanted) wanted) {
	w.mu.Lock()
	defer w.mu.Unlock()
	next := f(w.wanted[key])
	if len(next.writers) == 0 && next.file == nil {
		delete(w.wanted, key)
	} else {
		w.wanted[key] = next
	}
	w.enqueue(key)
}

// enqueue has the object looked at by Run; the caller holds mu.
func (w *Writer) enqueue(key manifest.Key) {
	if w.queue == nil {
		w.early[key] = true
		return
	}
	w.queue.Add(key)
}

// Run writes until ctx is done; it is called once. A write that fails is tried
// again a few times, then given up until the object's status changes.
func (w *Writer) Run(ctx context.Context) error {
	q := w.start()
	defer q.ShutDown() // ends the queue's own goroutine
	defer context.AfterFunc(ctx, q.ShutDown)()
	for {
		key, closed := q.Get()
		if closed || ctx.Err() != nil {
			return nil
		}
		w.attempt(q, key)
		q.Done(key)
	}
}

// start makes the queue here and not in NewWriter because it runs a goroutine.
func (w *Writer) start() queue {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.queue = workqueue.NewTypedRateLimitingQueue(
		workqueue.NewTypedItemExponentialFailureRateLimiter[manifest.Key](firstBackOff, firstBackOff<<maxAttempts))
	for key := range w.early {
		w.queue.Add(key)
	}
	w.early = nil
	return w.queue
}

func (w *Writer) attempt(q queue, key manifest.Key) {
	work := w.write
	if key == everything {
		work = w.sweep
	}
	switch err := work(key); {
	case err == nil:
		q.Forget(key)
	case q.NumRequeues(key)+1 >= maxAttempts:
		q.Forget(key)
		w.cfg.Log.Warn("status cannot be written", slog.String("object", key.String()), slog.Any("error", err))
	default:
		q.AddRateLimited(key)
	}
}

// sweep queues the objects in the store that nobody speaks about.
func (w *Writer) sweep(manifest.Key) error {
	stored, err := w.cfg.Store.List()
	if err != nil {
		return fmt.Errorf("old statuses: %w", err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, o := range stored {
		key := manifest.KeyOf(o)
		if _, known := w.wanted[key]; !known {
			w.enqueue(key)
		}
	}
	return nil
}

func (w *Writer) write(key manifest.Key) error {
	next, present := w.get(key)
	if !present {
		return w.cfg.Store.Delete(key)
	}
	old, err := w.cfg.Store.Get(key)
	if err != nil {
		old = nil // absent, or damaged: write it anew
	}
	o, err := next.object(key, old, w.cfg.Now())
	if err != nil {
		return fmt.Errorf("status of %s: %w", key, err)
	}
	if old != nil && reflect.DeepEqual(old.Object, o.Object) {
		return nil
	}
	return w.cfg.Store.Apply(o)
}

// get returns a copy that does not change while it is written.
func (w *Writer) get(key manifest.Key) (wanted, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	next, present := w.wanted[key]
	next.writers = maps.Clone(next.writers)
	return next, present
}
