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
	findable   bool // it is not, and looking for it may help
	exposed    bool // some present address of the pod is not exempt from capture of the node's probes
	exempted   bool // some address of the pod, maybe a former one, is exempt
	stage      stage
	verified   bool // the rules were seen or made by this process
	connected  bool // some ztunnel is, and has its snapshot
	acked      bool // by the newest ztunnel
	served     bool // by any ztunnel
	annotation string
}

// action is the next step for a pod.
type action int

const (
	actNone     action = iota
	actFind            // look for the namespace
	actSend            // hand the namespace to the newest ztunnel
	actExempt          // let the node's probes pass
	actUnexempt        // treat the node's probes like anyone's connections
	actProgram         // make the rules
	actEnable          // annotate: captured and known to ztunnel
	actClear           // remove the annotation
	actRelease         // let new connections go directly
	actDrain           // remove rules and tell ztunnel, if nothing is redirected any more
	actForget          // tell ztunnel only
)

// decide is level-triggered: it looks at how things are, whatever led there.
//
// No connection of a running pod may fail on the way in or out. So a pod's rules are made
// when ztunnel listens in the pod, and its annotation, on which peers make tunnels to it,
// comes after the rules; a pod that leaves the mesh loses its annotation and its
// redirection first, and ztunnel when nothing goes through it any more. The node's
// probes are exempted as long as there are rules, and a little longer.
func decide(f facts) action {
	switch {
	case f.gone && (f.stage != stageNone || f.served):
		return actForget
	case f.wanted && f.reachable:
		return decideWanted(f)
	case f.findable && (f.wanted || f.stage != stageNone):
		return actFind
	case f.wanted && f.exempted && f.stage == stageNone:
		return actUnexempt // its namespace is gone
	case f.wanted:
		return actNone
	case f.stage == stageProgrammed && f.reachable:
		return actRelease
	case f.stage == stageProgrammed:
		return actForget
	case f.exempted:
		return actUnexempt
	case f.annotation != "":
		return actClear
	case f.stage == stageReleased:
		return actDrain
	case f.served:
		return actForget
	}
	return actNone
}

func decideWanted(f facts) action {
	switch {
	case f.stage == stageProgrammed && f.exposed:
		return actExempt // an earlier agent's, or it has another address
	case f.stage == stageProgrammed && !f.verified:
		return actProgram // an earlier agent's
	case !f.acked && f.connected:
		return actSend
	case !f.acked:
		return actNone
	case f.exposed:
		return actExempt
	case f.stage != stageProgrammed:
		return actProgram
	case f.annotation != mesh.RedirectionEnabled:
		return actEnable
	}
	return actNone
}
