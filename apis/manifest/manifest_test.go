package manifest

import (
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

func TestParse(t *testing.T) {
	const text = `# a comment
---
apiVersion: v1
kind: Namespace
metadata: {name: shop, namespace: ignored}
---

---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: cart}
spec: &spec {hosts: [cart], n: 1, f: 1.5, b: true, s: "1", t: 2026-01-02, z: null}
copy: *spec
merged: {<<: *spec, n: 2}
---
apiVersion: v1
kind: List
items:
- {apiVersion: v1, kind: Pod, metadata: {name: a, namespace: shop}}
- {apiVersion: v1, kind: Pod, metadata: {name: b, namespace: shop}}
`
	objects, err := Parse("f.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, o := range objects {
		got = append(got, o.Key.String())
	}
	want := []string{"Namespace shop", "VirtualService.networking.istio.io default/cart", "Pod shop/a", "Pod shop/b"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("keys (-want +got):\n%s", diff)
	}
	if objects[1].Line != 9 {
		t.Errorf("line of the second object: got %d, want 9", objects[1].Line)
	}
	spec := map[string]any{"hosts": []any{"cart"}, "n": int64(1), "f": 1.5, "b": true, "s": "1", "t": "2026-01-02", "z": nil}
	if diff := cmp.Diff(spec, objects[1].Body.Object["copy"]); diff != "" {
		t.Errorf("values (-want +got):\n%s", diff)
	}
	if n, _, _ := unstructured.NestedInt64(objects[1].Body.Object, "merged", "n"); n != 2 {
		t.Errorf("a key beside << must win, got %d", n)
	}
}

func TestParseErrors(t *testing.T) {
	bomb := "a: &a [x,x,x,x,x,x,x,x,x,x]\n"
	for c := 'b'; c < 'j'; c++ {
		p := string(c - 1)
		bomb += string(c) + ": &" + string(c) + " [" + strings.TrimSuffix(strings.Repeat("*"+p+",", 10), ",") + "]\n"
	}
	for name, test := range map[string]struct{ text, want string }{
		"syntax in the second document": {"apiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n---\na: b\n c: d\n", "f.yaml:6: "},
		"no kind":                       {"\napiVersion: v1\nmetadata: {name: a}\n", "f.yaml:2: apiVersion and kind must be set"},
		"no metadata":                   {"apiVersion: v1\nkind: Pod\n", "f.yaml:1: Pod: metadata must be set"},
		"no name":                       {"apiVersion: v1\nkind: Pod\nmetadata: {}\n", "f.yaml:1: Pod: metadata.name must be set"},
		"name with a slash":             {"apiVersion: v1\nkind: Pod\nmetadata: {name: ../x}\n", "f.yaml:1: Pod: metadata.name"},
		"repeated key":                  {"apiVersion: v1\nkind: Pod\nkind: Pod\n", `f.yaml:3: key "kind" is repeated`},
		"not an object":                 {"- a\n", "f.yaml:1: the document is not an object"},
		"alias bomb":                    {bomb, "aliases expand to too much"},
		"not a number in JSON":          {"a: .nan\n", "f.yaml:1: "},
	} {
		t.Run(name, func(t *testing.T) {
			objects, err := Parse("f.yaml", []byte(test.text))
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, %v; want an error with %q", objects, err, test.want)
			}
			if _, ok := errors.AsType[*Error](err); !ok {
				t.Errorf("got %T, want *Error", err)
			}
		})
	}
}

func TestDecodeIsStrict(t *testing.T) {
	const text = "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {nodename: x}\n"
	objects, err := Parse("f.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	err = Decode(objects[0], &corev1.Pod{})
	if err == nil || !strings.Contains(err.Error(), "f.yaml:1") || !strings.Contains(err.Error(), "spec.nodename") {
		t.Errorf("got %v, want an error that names file, line and field", err)
	}
}

func TestStore(t *testing.T) {
	store := NewStore(t.TempDir() + "/objects")
	secret := &corev1.Secret{APIVersion: "v1", Kind: "Secret", Name: "s", Namespace: "n"}
	object, err := ToUnstructured(secret)
	if err != nil {
		t.Fatal(err)
	}
	key := KeyOf(object)
	if _, err := store.Get(key); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("get before apply: got %v, want not exist", err)
	}
	if err := store.Apply(object); err != nil {
		t.Fatal(err)
	}
	err = store.Update(key, func(o *unstructured.Unstructured) error {
		o.SetAnnotations(map[string]string{"a": "b"})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	list, err := store.List()
	if err != nil || len(list) != 1 || list[0].GetAnnotations()["a"] != "b" {
		t.Errorf("list: got %v, %v", list, err)
	}
	if info, err := os.Stat(store.path(key)); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode of a Secret: got %v, %v; want 0600", info, err)
	}
	for range 2 {
		if err := store.Delete(key); err != nil {
			t.Errorf("delete: %v", err)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("apiVersion: v1\nkind: Pod\nmetadata: {name: a}\n---\nb: [*a, &a 1]\n"))
	f.Add([]byte(`{"apiVersion":"v1","kind":"PodList","items":[{"kind":"Pod"}]}`))
	f.Add([]byte("<<: {a: b}\n? [x]\n: y\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		objects, err := Parse("f", data)
		if err != nil && objects != nil {
			t.Error("objects beside an error")
		}
		for _, o := range objects {
			if o.Key.Kind == "" || o.Key.Name == "" || o.Body == nil {
				t.Errorf("incomplete object %v", o)
			}
			if _, err := o.Body.MarshalJSON(); err != nil {
				t.Errorf("%s does not marshal: %v", o.Key, err)
			}
		}
	})
}
