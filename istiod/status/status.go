// Package status writes back what istiod made of the user's objects: the
// conditions, parents, listeners and addresses of their status.
//
// Several writers may speak about one object, each under its own name (a field
// manager in Kubernetes); what one of them no longer says disappears, what the
// others say stays. Writer takes statements from any goroutine without waiting
// for the store, keeps the last one of each, and writes objects one after the
// other in Run, only when they differ from what is stored. It decides nothing:
// the statements come from istiod/gateway, istiod/translate, istiod/model and
// the source. Shapes and names are those of spec/control-plane.md §1.4.
package status

import (
	"crypto/sha256"
	"encoding/hex"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/ambit-mesh/ambit/apis/manifest"
	"github.com/ambit-mesh/ambit/apis/mesh"
	"github.com/ambit-mesh/ambit/istiod/model"
)

// The writers, spec/control-plane.md §1.4. WriterValidation and WriterFields
// are ours.
const (
	WriterService        = "istio-ambient-service"
	WriterZtunnelPolicy  = "istio-ambient-ztunnel-policy"
	WriterWaypointPolicy = "istio-ambient-waypoint-policy"
	WriterGateway        = "istio.io/gateway-controller"
	WriterValidation     = "ambit-validation"
	WriterFields         = "ambit-fields"
)

// Types and reasons of conditions.
const (
	ConditionWaypointBound    = "istio.io/WaypointBound"
	ConditionZtunnelAccepted  = "ZtunnelAccepted"
	ConditionWaypointAccepted = "WaypointAccepted"
	ConditionReconciled       = "Reconciled"
	ReasonInvalid             = "Invalid"
)

// Group and Kind of the object that stands for a file that cannot be read.
const (
	FileGroup = "ambit-mesh.io"
	FileKind  = "ManifestFile"
)

// Status is what one writer says about an object. The zero Status says nothing.
type Status struct {
	// Generation is of the object that was looked at. It is put into every
	// condition that has no generation of its own.
	Generation int64

	Conditions []metav1.Condition               // times are ignored: the writer keeps them
	Parents    []gatewayv1.RouteParentStatus    // of a route
	Listeners  []gatewayv1.ListenerStatus       // of a Gateway
	Addresses  []gatewayv1.GatewayStatusAddress // of a Gateway

	SupportedFeatures []gatewayv1.SupportedFeature // of a GatewayClass
}

func (s Status) empty() bool {
	return len(s.Conditions)+len(s.Parents)+len(s.Listeners)+len(s.Addresses)+len(s.SupportedFeatures) == 0
}

// longestName keeps the name of a status file below what file systems take.
const longestName = 180

// escape makes a path the name of an object.
var escape = strings.NewReplacer("~", "~7E", "/", "~2F", "%", "~25")

// FileKey returns the key of the status of a file.
func FileKey(file string) manifest.Key {
	name := escape.Replace(file)
	if len(name) > longestName {
		sum := sha256.Sum256([]byte(file))
		name = hex.EncodeToString(sum[:8]) + "~" + strings.ToValidUTF8(name[len(name)-longestName:], "~")
	}
	return manifest.Key{Group: FileGroup, Kind: FileKind, Namespace: mesh.DefaultSystemNamespace, Name: name}
}

// Condition returns a condition.
func Condition(kind string, is bool, reason, message string) metav1.Condition {
	status := metav1.ConditionFalse
	if is {
		status = metav1.ConditionTrue
	}
	return metav1.Condition{Type: kind, Status: status, Reason: reason, Message: message}
}

// Invalid returns the status of an object that istiod does not take: its last
// good version stays in force. The message names file, line, field and reason.
func Invalid(generation int64, message string) Status {
	return Status{
		Generation: generation,
		Conditions: []metav1.Condition{Condition(ConditionReconciled, false, ReasonInvalid, message)},
	}
}

// Fields returns the status that names the fields of an object that have no
// effect; it says nothing when all have.
func Fields(generation int64, notices []model.Notice) Status {
	return Status{Generation: generation, Conditions: model.FieldsHonoured(notices, generation)}
}

// WaypointBound returns the status of a Service that asks for a waypoint; it
// says nothing about one that does not.
func WaypointBound(generation int64, binding model.Binding) Status {
	if binding.Reason == "" {
		return Status{}
	}
	bound := binding.Reason == model.ReasonWaypointAccepted
	return Status{
		Generation: generation,
		Conditions: []metav1.Condition{Condition(ConditionWaypointBound, bound, binding.Reason, binding.Message)},
	}
}

// Gateway returns the status of a Gateway.
func Gateway(generation int64, s gatewayv1.GatewayStatus) Status {
	return Status{Generation: generation, Conditions: s.Conditions, Listeners: s.Listeners, Addresses: s.Addresses}
}

// GatewayClass returns the status of a GatewayClass.
func GatewayClass(generation int64, s gatewayv1.GatewayClassStatus) Status {
	return Status{Generation: generation, Conditions: s.Conditions, SupportedFeatures: s.SupportedFeatures}
}
