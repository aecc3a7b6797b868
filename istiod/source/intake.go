package source

import (
	"encoding/json"
	"errors"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	kjson "sigs.k8s.io/json"

	"github.com/ambit-mesh/ambit/apis/manifest"
	"github.com/ambit-mesh/ambit/apis/mesh"
	"github.com/ambit-mesh/ambit/install/crds"
)

// intake is what every Source knows of the objects that it has seen. It belongs
// to the goroutine that changes the collections.
type intake struct {
	kinds   map[groupKind]kind
	schemas *schemas

	taken  map[manifest.Key]bool // in a collection
	bad    map[manifest.Key]bool // their newest version is refused
	unread map[manifest.Key]bool // of a kind that is not read
	warned map[manifest.Key]bool // a part of them has no effect
	// undecided is why there is a MeshConfig and nothing is known of it; "" when
	// it is known, or absent. What goes by it would go by another trust domain.
	undecided string
}

func newIntake(o *Objects) (intake, error) {
	s, err := newSchemas(crds.Istio)
	if err != nil {
		return intake{}, err
	}
	return intake{
		kinds: kinds(o), schemas: s,
		taken: map[manifest.Key]bool{}, bad: map[manifest.Key]bool{},
		unread: map[manifest.Key]bool{}, warned: map[manifest.Key]bool{},
	}, nil
}

// meshKey is that of the MeshConfig.
var meshKey = manifest.Key{Kind: "ConfigMap", Namespace: mesh.DefaultSystemNamespace, Name: mesh.MeshConfigName}

// refuse notes that the newest version of an object is not taken.
func (in *intake) refuse(at Invalid, err error, report *Report) {
	in.bad[at.Key] = true
	at.Field, at.Reason = splitField(err)
	report.Invalid = append(report.Invalid, at)
	if at.Key == meshKey && !in.taken[meshKey] {
		in.undecided = "ConfigMap " + MeshConfigKey + " has the trust domain and cannot be read: " + err.Error()
	}
}

// checkTyped validates what neither a schema nor a Go type says.
func checkTyped(o any) error {
	if err := checkCore(o); err != nil {
		return err
	}
	if config, ok := o.(*corev1.ConfigMap); ok && keyOf(config) == MeshConfigKey {
		if _, _, err := ParseMeshConfig(config); err != nil {
			return err
		}
	}
	return nil
}

// warn reports the parts of an accepted object that nobody reads: the fields of
// unknown, and those of MeshConfig.
func (in *intake) warn(typed any, unknown []string, at Invalid, report *Report) {
	say := func(field, reason string) {
		in.warned[at.Key] = true
		at.Field, at.Reason = field, reason
		report.Warnings = append(report.Warnings, at)
	}
	for _, field := range unknown {
		say(field, "unknown field, which has no effect")
	}
	config, ok := typed.(*corev1.ConfigMap)
	if !ok || keyOf(config) != MeshConfigKey {
		return
	}
	_, unread, err := ParseMeshConfig(config)
	if err != nil {
		return // checkTyped has seen this
	}
	for _, name := range unread {
		say("data.mesh."+name, "key is not read and has no effect")
	}
}

func (in *intake) unwarn(key manifest.Key, report *Report) {
	if in.warned[key] {
		delete(in.warned, key)
		report.Unwarned = append(report.Unwarned, key)
	}
}

func (in *intake) mend(key manifest.Key, report *Report) {
	if key == meshKey {
		in.undecided = ""
	}
	if in.bad[key] {
		delete(in.bad, key)
		report.Valid = append(report.Valid, key)
	}
}

// decodeServed decodes an object that an API server has accepted, by a schema
// that may be newer or older than the Go type. unknown are the fields that the
// type does not have.
func decodeServed(body *unstructured.Unstructured, into any) (unknown []string, err error) {
	data, err := json.Marshal(body.Object)
	if err != nil {
		return nil, err
	}
	strict, err := kjson.UnmarshalStrict(data, into)
	if err != nil {
		return nil, err
	}
	for _, problem := range strict {
		if field, _ := splitField(problem); field != "" && userWrites(field) {
			unknown = append(unknown, field)
		}
	}
	return unknown, nil
}

// userWrites reports whether a field is one that a user expects an effect of.
func userWrites(field string) bool {
	return field != "status" && !strings.HasPrefix(field, "status.") && !strings.HasPrefix(field, "metadata.")
}

// errNoMetadata is an object that is none.
var errNoMetadata = errors.New("object has no metadata")

func generationOf(o any) int64 {
	if meta, ok := o.(metav1.Object); ok {
		return meta.GetGeneration()
	}
	return 0
}
