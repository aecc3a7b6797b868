package workload

import (
	"encoding/binary"
	"strings"
	"sync"

	"github.com/ambit-mesh/ambit/apis/spiffe"
)

// sharing keeps what many workloads have in common once in memory: the names of
// namespaces, nodes, accounts, services, and the lists of pods of one
// Deployment. Every message brings copies of its own. It forgets what no
// workload has any more when it has grown to twice what was in use.
type sharing struct {
	mu          sync.Mutex
	texts       map[string]string
	lists       map[string][]string
	memberships map[string][]Membership
	identities  map[spiffe.ID]*[1]spiffe.ID
	limit       int // of entries, before those not in use are looked for
	key         []byte
}

const sharingFloor = 4096

func (s *sharing) clear() {
	s.texts, s.lists, s.memberships = map[string]string{}, map[string][]string{}, map[string][]Membership{}
	s.identities = map[spiffe.ID]*[1]spiffe.ID{}
}

func (s *sharing) size() int {
	return len(s.texts) + len(s.lists) + len(s.memberships) + len(s.identities)
}

// trim forgets what from does not use, if there may be much of it.
func (s *sharing) trim(from *Snapshot) {
	if s.texts == nil {
		s.clear()
	}
	if s.size() <= max(s.limit, sharingFloor) {
		return
	}
	s.clear()
	for _, w := range from.workloads.all() {
		s.remember(w)
	}
	s.limit = 2 * s.size()
}

// remember notes what a workload has that others read meanwhile.
func (s *sharing) remember(w *Workload) {
	for _, t := range w.texts() {
		s.texts[*t] = *t
	}
	for _, t := range [...]string{w.Identity.TrustDomain(), w.Identity.ServiceAccount()} {
		s.texts[t] = t
	}
	s.identities[w.Identity] = w.self
	for _, t := range w.Policies {
		s.texts[t] = t
	}
	if len(w.Policies) > 0 {
		s.lists[string(s.listKey(w.Policies))] = w.Policies
	}
	for _, m := range w.Services {
		s.texts[m.Service.Namespace], s.texts[m.Service.Hostname] = m.Service.Namespace, m.Service.Hostname
	}
	if len(w.Services) > 0 {
		s.memberships[string(s.membershipKey(w.Services))] = w.Services
	}
}

// texts returns the texts of a workload that others are likely to have, besides
// its lists and its identity.
func (w *Workload) texts() [10]*string {
	return [...]*string{
		&w.Namespace, &w.Network, &w.Node, &w.CanonicalName, &w.CanonicalRevision, &w.WorkloadName, &w.ClusterID,
		&w.Locality.Region, &w.Locality.Zone, &w.Locality.Subzone,
	}
}

// share replaces what a workload that nobody else has yet has in common with
// others. Its identity is made of shared texts by the one who makes it.
func (s *sharing) share(w *Workload) {
	if strings.HasSuffix(w.UID, w.Name) { // as a pod's does
		w.Name = w.UID[len(w.UID)-len(w.Name):]
	}
	for _, t := range w.texts() {
		*t = s.text(*t)
	}
	if w.self = s.identities[w.Identity]; w.self == nil {
		w.self = &[1]spiffe.ID{w.Identity}
		s.identities[w.Identity] = w.self
	}
	w.Policies = s.list(w.Policies)
	w.Services = s.services(w.Services)
}

func (s *sharing) text(t string) string {
	if t == "" {
		return ""
	}
	if known, ok := s.texts[t]; ok {
		return known
	}
	t = strings.Clone(t) // it may be a part of something larger
	s.texts[t] = t
	return t
}

func (s *sharing) list(l []string) []string {
	if len(l) == 0 {
		return nil
	}
	key := s.listKey(l)
	if known, ok := s.lists[string(key)]; ok {
		return known
	}
	for i := range l {
		l[i] = s.text(l[i])
	}
	s.lists[string(key)] = l
	return l
}

func (s *sharing) services(l []Membership) []Membership {
	if len(l) == 0 {
		return nil
	}
	key := s.membershipKey(l)
	if known, ok := s.memberships[string(key)]; ok {
		return known
	}
	for i := range l {
		l[i].Service = ServiceKey{s.text(l[i].Service.Namespace), s.text(l[i].Service.Hostname)}
	}
	s.memberships[string(key)] = l
	return l
}

// listKey and membershipKey return what is equal for equal lists only, until the
// next call.
func (s *sharing) listKey(l []string) []byte {
	key := s.key[:0]
	for _, t := range l {
		key = appendText(key, t)
	}
	s.key = key
	return key
}

func (s *sharing) membershipKey(l []Membership) []byte {
	key := s.key[:0]
	for _, m := range l {
		key = appendText(appendText(key, m.Service.Namespace), m.Service.Hostname)
		key = binary.AppendUvarint(key, uint64(len(m.Ports)))
		for _, p := range m.Ports {
			key = binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(key, p.Service), p.Target)
		}
	}
	s.key = key
	return key
}

// appendText appends a text so that no two lists of texts look the same.
func appendText(b []byte, t string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(t))), t...)
}
