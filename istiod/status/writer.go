package status

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"maps"
	"reflect"
	"slices"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

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
// Forget, File and Synced never wait for the store. Safe for concurrent use.
type Writer struct {
	cfg  Config
	wake chan struct{} // holds one signal at most

	mu     sync.Mutex
	wanted map[manifest.Key]wanted
	dirty  map[manifest.Key]bool
	synced bool // everything that exists has been set once
}

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
	return &Writer{
		cfg:    cfg,
		wake:   make(chan struct{}, 1),
		wanted: map[manifest.Key]wanted{},
		dirty:  map[manifest.Key]bool{},
	}
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

// Forget removes the status of an object that is gone.
func (w *Writer) Forget(key manifest.Key) {
	w.change(key, func(wanted) wanted { return wanted{} })
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
	w.synced = true
	w.mu.Unlock()
	w.signal()
}

func (w *Writer) change(key manifest.Key, f func(wanted) wanted) {
	w.mu.Lock()
	next := f(w.wanted[key])
	if len(next.writers) == 0 && next.file == nil {
		delete(w.wanted, key)
	} else {
		w.wanted[key] = next
	}
	w.dirty[key] = true
	w.mu.Unlock()
	w.signal()
}

func (w *Writer) signal() {
	select {
	case w.wake <- struct{}{}:
	default: // a signal is there already
	}
}

// Run writes until ctx is done. A write that fails is tried again a few times,
// then given up until the object's status changes.
func (w *Writer) Run(ctx context.Context) error {
	attempts := map[manifest.Key]int{}
	var failed []manifest.Key // wait for the timer
	var timer <-chan time.Time
	for swept := false; ; {
		var batch []manifest.Key
		select {
		case <-ctx.Done():
			return nil
		case <-w.wake:
		case <-timer:
			timer, batch, failed = nil, failed, nil
		}
		taken, synced := w.take()
		batch = append(batch, taken...)
		if synced && !swept {
			swept = true
			batch = w.sweep(batch)
		}
		slices.SortFunc(batch, compareKeys)
		failed = append(failed, w.writeAll(ctx, slices.Compact(batch), attempts)...)
		if len(failed) > 0 && timer == nil {
			timer = time.After(backOff(attempts, failed))
		}
	}
}

// take returns the keys to write.
func (w *Writer) take() (batch []manifest.Key, synced bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	batch = slices.Collect(maps.Keys(w.dirty))
	clear(w.dirty)
	return batch, w.synced
}

func compareKeys(a, b manifest.Key) int {
	return cmp.Or(cmp.Compare(a.Group, b.Group), cmp.Compare(a.Kind, b.Kind),
		cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
}

// sweep adds the objects in the store that nobody speaks about.
func (w *Writer) sweep(batch []manifest.Key) []manifest.Key {
	stored, err := w.cfg.Store.List()
	if err != nil {
		w.cfg.Log.Warn("statuses cannot be listed", slog.Any("error", err))
		return batch
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, o := range stored {
		key := manifest.KeyOf(o)
		if _, known := w.wanted[key]; !known && !slices.Contains(batch, key) {
			batch = append(batch, key)
		}
	}
	return batch
}

// writeAll returns the keys that are to be tried again.
func (w *Writer) writeAll(ctx context.Context, batch []manifest.Key, attempts map[manifest.Key]int) []manifest.Key {
	var failed []manifest.Key
	for _, key := range batch {
		if ctx.Err() != nil {
			return nil
		}
		err := w.write(key)
		switch {
		case err == nil:
			delete(attempts, key)
		case attempts[key]+1 >= maxAttempts:
			delete(attempts, key)
			w.cfg.Log.Warn("status cannot be written", slog.String("object", key.String()), slog.Any("error", err))
		default:
			attempts[key]++
			failed = append(failed, key)
		}
	}
	return failed
}

// backOff waits as long as the least tried of the keys is due.
func backOff(attempts map[manifest.Key]int, failed []manifest.Key) time.Duration {
	least := maxAttempts
	for _, key := range failed {
		least = min(least, attempts[key])
	}
	return firstBackOff << max(0, least-1)
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
