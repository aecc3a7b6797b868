package rbac

import "encoding/json"

// MarshalJSON writes the policy as the config dump shows it, spec/ztunnel.md
// App. B.1.
func (p *Policy) MarshalJSON() ([]byte, error) {
	rules := make([][][]matchJSON, 0, len(p.Rules))
	for _, r := range p.Rules {
		clauses := make([][]matchJSON, 0, len(r))
		for _, cl := range r {
			matches := make([]matchJSON, 0, len(cl))
			for i := range cl {
				matches = append(matches, cl[i].dump())
			}
			clauses = append(clauses, matches)
		}
		rules = append(rules, clauses)
	}
	return json.Marshal(struct {
		Name      string          `json:"name"`
		Namespace string          `json:"namespace"`
		Scope     string          `json:"scope"`
		Action    string          `json:"action"`
		Rules     [][][]matchJSON `json:"rules"`
		DryRun    bool            `json:"dryRun"`
		Invalid   string          `json:"invalid,omitempty"`
	}{p.Name, p.Namespace, p.Scope.String(), p.Action.String(), rules, p.DryRun, p.Invalid})
}

type matchJSON struct {
	Namespaces          []StringMatch    `json:"namespaces,omitempty"`
	NotNamespaces       []StringMatch    `json:"notNamespaces,omitempty"`
	Principals          []StringMatch    `json:"principals,omitempty"`
	NotPrincipals       []StringMatch    `json:"notPrincipals,omitempty"`
	ServiceAccounts     []ServiceAccount `json:"serviceAccounts,omitempty"`
	NotServiceAccounts  []ServiceAccount `json:"notServiceAccounts,omitempty"`
	SourceIPs           []string         `json:"sourceIps,omitempty"`
	NotSourceIPs        []string         `json:"notSourceIps,omitempty"`
	DestinationIPs      []string         `json:"destinationIps,omitempty"`
	NotDestinationIPs   []string         `json:"notDestinationIps,omitempty"`
	DestinationPorts    []uint16         `json:"destinationPorts,omitempty"`
	NotDestinationPorts []uint16         `json:"notDestinationPorts,omitempty"`
}

func (m *Match) dump() matchJSON {
	return matchJSON{
		Namespaces: m.Namespaces, NotNamespaces: m.NotNamespaces,
		Principals: m.Principals, NotPrincipals: m.NotPrincipals,
		ServiceAccounts: m.ServiceAccounts, NotServiceAccounts: m.NotServiceAccounts,
		SourceIPs: strs(m.SourceIPs), NotSourceIPs: strs(m.NotSourceIPs),
		DestinationIPs: strs(m.DestinationIPs), NotDestinationIPs: strs(m.NotDestinationIPs),
		DestinationPorts: m.DestinationPorts, NotDestinationPorts: m.NotDestinationPorts,
	}
}

func strs[T interface{ String() string }](in []T) []string {
	var out []string
	for _, v := range in {
		out = append(out, v.String())
	}
	return out
}

// MarshalJSON writes {"Exact":"x"} and the like.
func (m StringMatch) MarshalJSON() ([]byte, error) {
	switch m.Kind {
	case Prefix:
		return json.Marshal(map[string]string{"Prefix": m.Value})
	case Suffix:
		return json.Marshal(map[string]string{"Suffix": m.Value})
	case Presence:
		return json.Marshal(map[string][]string{"Presence": {}})
	case Exact:
	}
	return json.Marshal(map[string]string{"Exact": m.Value})
}

// MarshalJSON writes {"namespace":"x","serviceAccount":"y"}.
func (s ServiceAccount) MarshalJSON() ([]byte, error) {
	return json.Marshal(struct {
		Namespace      string `json:"namespace"`
		ServiceAccount string `json:"serviceAccount"`
	}{s.Namespace, s.Name})
}
