package translate

import (
	"maps"
	"slices"

	"google.golang.org/protobuf/types/known/emptypb"

	securityapi "github.com/ambit-mesh/ambit/apis/security"

	"github.com/ambit-mesh/ambit/istiod/model"
)

// How PeerAuthentication becomes policies, spec/control-plane.md §2.7: no
// object turns into a policy of a namespace. Each workload is told by name
// either the one static policy, when its mode is STRICT, or the policy made
// from the object that selects it, when ports have modes of their own; never
// both, because any DENY that matches denies.
const (
	staticStrictName   = "istio_converted_static_strict"
	convertedPeerStart = "converted_peer_authentication_"
)

// StaticStrict is the policy that denies every peer without an identity.
func StaticStrict(rootNamespace string) *securityapi.Authorization {
	return &securityapi.Authorization{
		Name:      staticStrictName,
		Namespace: rootNamespace,
		Scope:     securityapi.Scope_WORKLOAD_SELECTOR,
		Action:    securityapi.Action_DENY,
		Rules:     []*securityapi.Rule{{Clauses: []*securityapi.Clause{clause(noIdentity())}}},
	}
}

// PeerPolicy returns the policy of an object with modes per port, or nil when
// the static policy or none does the same. others are the PeerAuthentications
// of its and of the root namespace, from which it inherits.
func PeerPolicy(p model.PeerAuthentication, others []model.PeerAuthentication, rootNamespace string) *securityapi.Authorization {
	if len(p.Selector) == 0 || len(p.Ports) == 0 || p.Name.Namespace == rootNamespace {
		return nil
	}
	mode := p.Mode
	if mode == model.MutualTLSUnset {
		mode = inheritedMode(p.Name.Namespace, others, rootNamespace)
	}
	strict, permissive := portsByMode(p.Ports)
	var rules []*securityapi.Rule
	if mode == model.MutualTLSStrict {
		if len(permissive) == 0 {
			return nil
		}
		clauses := []*securityapi.Clause{clause(noIdentity())}
		for _, port := range permissive {
			clauses = append(clauses, clause(&securityapi.Match{NotDestinationPorts: []uint32{port}}))
		}
		rules = append(rules, &securityapi.Rule{Clauses: clauses})
	} else {
		if len(strict) == 0 {
			return nil
		}
		for _, port := range strict {
			match := noIdentity()
			match.DestinationPorts = []uint32{port}
			rules = append(rules, &securityapi.Rule{Clauses: []*securityapi.Clause{clause(match)}})
		}
	}
	return &securityapi.Authorization{
		Name:      convertedPeerStart + p.Name.Name,
		Namespace: p.Name.Namespace,
		Scope:     securityapi.Scope_WORKLOAD_SELECTOR,
		Action:    securityapi.Action_DENY,
		Rules:     rules,
	}
}

// mutualTLSPolicy names the policy that a workload must be told, "" for none.
func mutualTLSPolicy(namespace string, labels map[string]string, all []model.PeerAuthentication, rootNamespace string) string {
	var selecting []model.PeerAuthentication
	for _, p := range all {
		if p.Name.Namespace == namespace && namespace != rootNamespace && len(p.Selector) > 0 && model.Selects(p.Selector, labels) {
			selecting = append(selecting, p)
		}
	}
	mode := inheritedMode(namespace, all, rootNamespace)
	if own, ok := oldest(selecting); ok {
		if PeerPolicy(own, all, rootNamespace) != nil {
			return namespace + "/" + convertedPeerStart + own.Name.Name
		}
		if own.Mode != model.MutualTLSUnset {
			mode = own.Mode
		}
	}
	if mode == model.MutualTLSStrict {
		return rootNamespace + "/" + staticStrictName
	}
	return ""
}

// inheritedMode is that of the oldest object without selector in the
// namespace, else in the root namespace, else permissive.
func inheritedMode(namespace string, all []model.PeerAuthentication, rootNamespace string) model.MutualTLS {
	for _, place := range []string{namespace, rootNamespace} {
		var wide []model.PeerAuthentication
		for _, p := range all {
			if p.Name.Namespace == place && len(p.Selector) == 0 {
				wide = append(wide, p)
			}
		}
		if first, ok := oldest(wide); ok && first.Mode != model.MutualTLSUnset {
			return first.Mode
		}
	}
	return model.MutualTLSPermissive
}

func portsByMode(ports map[uint32]model.MutualTLS) (strict, permissive []uint32) {
	for _, port := range slices.Sorted(maps.Keys(ports)) {
		switch ports[port] {
		case model.MutualTLSStrict:
			strict = append(strict, port)
		case model.MutualTLSPermissive:
			permissive = append(permissive, port)
		case model.MutualTLSUnset: // as the object itself
		}
	}
	return strict, permissive
}

func clause(matches ...*securityapi.Match) *securityapi.Clause {
	return &securityapi.Clause{Matches: matches}
}

// noIdentity matches a peer without an identity: "not any".
func noIdentity() *securityapi.Match {
	return &securityapi.Match{NotPrincipals: []*securityapi.StringMatch{anyString()}}
}

func anyString() *securityapi.StringMatch {
	return &securityapi.StringMatch{MatchType: &securityapi.StringMatch_Presence{Presence: &emptypb.Empty{}}}
}
