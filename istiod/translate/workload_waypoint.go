package translate

import (
	"fmt"

	"github.com/ambit-mesh/ambit/apis/mesh"
	"github.com/ambit-mesh/ambit/istiod/model"
)

// Bind finds the waypoint of an object, spec/control-plane.md §1.3: the label
// of the object itself counts, or else that of its namespace. kind is what the
// object needs, mesh.WaypointForService or mesh.WaypointForWorkload. Whatever
// was wanted and cannot be had is a Reason; it does not fall back.
func Bind(labels map[string]string, namespace model.Namespace, kind string, lookup func(model.Name) (model.Waypoint, bool)) model.Binding {
	wanted, own := waypointWanted(labels, namespace.Name), true
	if _, said := labels[mesh.LabelUseWaypoint]; !said {
		wanted, own = waypointWanted(namespace.Labels, namespace.Name), false
	}
	if wanted.Name == "" {
		return model.Binding{}
	}
	out := model.Binding{Wanted: wanted}
	waypoint, ok := lookup(wanted)
	switch {
	case !ok || !waypoint.Ready():
		out.Reason = model.ReasonWaypointNotReady
		out.Message = fmt.Sprintf("waypoint %q is not ready", wanted)
	case !waypoint.Admits(namespace):
		out.Reason = model.ReasonAttachmentDenied
		out.Message = fmt.Sprintf("we are not permitted to attach to waypoint %q (missing allowedRoutes?)", wanted)
	case !waypoint.Serves(kind):
		if kind == mesh.WaypointForWorkload && !own {
			// A namespace's label usually means the waypoint of its services.
			return model.Binding{}
		}
		out.Reason = model.ReasonUnsupportedTrafficType
		out.Message = fmt.Sprintf("attempting to bind to traffic type %q which the waypoint %q does not support", kind, wanted)
	default:
		out.Waypoint = &waypoint
		out.Reason = model.ReasonWaypointAccepted
		out.Message = fmt.Sprintf("Successfully attached to waypoint %s", wanted)
	}
	return out
}

// waypointWanted reads the labels that name a waypoint; the zero Name is none.
func waypointWanted(labels map[string]string, namespace string) model.Name {
	name := labels[mesh.LabelUseWaypoint]
	if name == "" || name == mesh.WaypointNone {
		return model.Name{}
	}
	if other := labels[mesh.LabelUseWaypointNamespace]; other != "" {
		namespace = other
	}
	return model.Name{Namespace: namespace, Name: name}
}
