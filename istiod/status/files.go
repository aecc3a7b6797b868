package status

import (
	"context"
	"reflect"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/ambit-mesh/ambit/apis/manifest"
)

// Objects are what Files stores: manifest.Store.
type Objects interface {
	Get(key manifest.Key) (*unstructured.Unstructured, error) // os.ErrNotExist
	Apply(o *unstructured.Unstructured) error
	Delete(key manifest.Key) error
	List() ([]*unstructured.Unstructured, error)
}

// Files is the Store without a cluster: the status of each object is an object
// of its own, in which all writers are merged.
func Files(objects Objects) Store { return files{objects} }

type files struct{ objects Objects }

// Write implements Store.
func (s files) Write(_ context.Context, key manifest.Key, w Wanted, now time.Time) error {
	if w.empty() {
		return s.objects.Delete(key)
	}
	old, err := s.objects.Get(key)
	if err != nil {
		old = nil // absent, or damaged: write it anew
	}
	o, err := w.object(key, old, now)
	if err != nil {
		return err
	}
	if old != nil && reflect.DeepEqual(old.Object, o.Object) {
		return nil
	}
	return s.objects.Apply(o)
}

// Stored implements Store.
func (s files) Stored() ([]manifest.Key, error) {
	stored, err := s.objects.List()
	if err != nil {
		return nil, err
	}
	out := make([]manifest.Key, len(stored))
	for i, o := range stored {
		out[i] = manifest.KeyOf(o)
	}
	return out, nil
}

// Watch implements Store: nobody else writes there.
func (s files) Watch(func(manifest.Key)) {}
