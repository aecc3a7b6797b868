package model

import (
	"cmp"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ambit-mesh/ambit/apis/manifest"
)

// Notice tells the owner of an object that a field of it has no effect, or not
// the effect that they expect. It belongs into the object's status: to ignore a
// field silently is a defect (DESIGN.md §6).
type Notice struct {
	Object  manifest.Key
	Field   string // path as in the manifest: spec.http[0].fault
	Message string
}

// MergeNotices returns the notices of all lists in order of object, field and
// message, each once.
func MergeNotices(lists ...[]Notice) []Notice {
	all := slices.Concat(lists...)
	slices.SortFunc(all, compareNotices)
	return slices.Compact(all)
}

func compareNotices(a, b Notice) int {
	return cmp.Or(
		cmp.Compare(a.Object.Group, b.Object.Group), cmp.Compare(a.Object.Kind, b.Object.Kind),
		cmp.Compare(a.Object.Namespace, b.Object.Namespace), cmp.Compare(a.Object.Name, b.Object.Name),
		cmp.Compare(a.Field, b.Field), cmp.Compare(a.Message, b.Message))
}

// ConditionFieldsHonoured is False on an object of which some field has no
// effect; objects that are honoured in full do not have it.
const (
	ConditionFieldsHonoured = "istio.io/FieldsHonoured"
	ReasonUnsupportedFields = "UnsupportedFields"
)

// maxConditionMessage is the longest message that the API server stores.
const maxConditionMessage = 32768

// FieldsHonoured returns the condition that lists the notices, which are about
// one object; none when there are none.
func FieldsHonoured(notices []Notice, generation int64) []metav1.Condition {
	notices = MergeNotices(notices)
	if len(notices) == 0 {
		return nil
	}
	texts := make([]string, len(notices))
	for i, n := range notices {
		texts[i] = n.Field + ": " + n.Message
	}
	message := strings.Join(texts, "; ")
	if len(message) > maxConditionMessage {
		message = strings.ToValidUTF8(message[:maxConditionMessage-len("…")], "") + "…"
	}
	return []metav1.Condition{{
		Type:               ConditionFieldsHonoured,
		Status:             metav1.ConditionFalse,
		Reason:             ReasonUnsupportedFields,
		Message:            message,
		ObservedGeneration: generation,
	}}
}
