package cni

import "github.com/ambit-mesh/ambit/apis/mesh"

// stage is what the agent has done in a pod's namespace.
type stage int

const (
	stageNone       stage = iota // no rules of ours
	stageProgrammed              // new connections are redirected
	stageReleased                // only those redirected earlier still are
)

// facts are everything on which the next step for a pod depends.
type facts struct {
	wanted     bool // by its labels, and alive
	gone       bool // deleted or ended: its namespace is going away
	reachable  bool // the namespace is known
	stage      stage
	verified   bool // the rules were seen or made by this process
	connected  bool // some ztunnel is
	acked      bool // by the newest ztunnel
	failed     bool // the last attempt at anything
	annotation string
}

// action is the next step for a pod.
type action int

const (
	actNone action = iota
	actProgram
	actSend    // hand the namespace to the newest ztunnel
	actEnable  // annotate: captured and known to ztunnel
	actPending // annotate: captured, unknown to ztunnel
	actClear   // remove the annotation
	actRelease
	actDrain  // remove rules and tell ztunnel, if nothing is redirected any more
	actForget // tell ztunnel only
)

// decide is level-triggered: it looks at how things are, whatever led there. A pod that
// leaves the mesh loses its annotation before its rules, so that peers stop making new
// tunnels to it while those that exist can end.
func decide(f facts) action {
	switch {
	case f.gone && f.stage != stageNone:
		return actForget
	case f.wanted && f.reachable:
		return decideWanted(f)
	case f.wanted:
		return actNone
	case f.stage == stageProgrammed && f.reachable:
		return actRelease
	case f.stage == stageProgrammed:
		return actForget
	case f.annotation != "":
		return actClear
	case f.stage == stageReleased:
		return actDrain
	}
	return actNone
}

func decideWanted(f facts) action {
	switch {
	case f.stage != stageProgrammed || !f.verified:
		return actProgram
	case f.acked && f.annotation != mesh.RedirectionEnabled:
		return actEnable
	case f.acked:
		return actNone
	case f.failed && f.annotation == "":
		return actPending
	case f.connected:
		return actSend
	}
	return actNone
}
