package xds

import (
	"cmp"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/cespare/xxhash/v2"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

// Resource is one message for some proxies. It must not change once it has been
// handed to a Store.
type Resource struct {
	TypeURL string
	Name    string
	// Version changes when Body does; "" lets the store compute it from Body.
	Version string
	// Aliases are other names by which a proxy may ask for it.
	Aliases []string
	// Scopes are the proxies that may see it: nil is everyone, empty nobody.
	Scopes []string
	Body   *anypb.Any
}

// Ref names a resource.
type Ref struct{ TypeURL, Name string }

// Store holds the resources that are true now and tells streams of changes.
type Store struct {
	mu      sync.RWMutex
	tables  map[string]*table // by type URL
	streams map[*stream]struct{}
	version uint64 // of the store as a whole: how many updates changed it
}

// table is the resources of one type.
type table struct {
	entries map[string]*entry
	aliases map[string][]string // alias → names
}

// entry is a resource with the messages that carry it; immutable.
type entry struct {
	Resource
	plain   *discoveryv3.Resource // without aliases, for those who take everything
	aliased *discoveryv3.Resource
	size    int // of aliased on the wire
}

// change is one resource before and after; either may be nil.
type change struct {
	typeURL, name string
	before, after *entry
}

// NewStore returns an empty store.
func NewStore() *Store {
	return &Store{tables: map[string]*table{}, streams: map[*stream]struct{}{}}
}

// Update changes the store in one step and wakes the streams that it concerns.
// A resource equal to the present one is no change; one that is both removed and
// set is set. Update never waits for a proxy.
func (s *Store) Update(set []Resource, removed []Ref) {
	entries := make([]*entry, len(set))
	for i, r := range set {
		entries[i] = newEntry(r)
	}
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	setNow := make(map[Ref]struct{}, len(set))
	for _, e := range entries {
		setNow[Ref{e.TypeURL, e.Name}] = struct{}{}
	}
	changes := make([]change, 0, len(set)+len(removed))
	for _, ref := range removed {
		if _, again := setNow[ref]; again {
			continue
		}
		if before := s.remove(ref); before != nil {
			changes = append(changes, change{ref.TypeURL, ref.Name, before, nil})
		}
	}
	for _, e := range entries {
		if before, changed := s.put(e); changed {
			changes = append(changes, change{e.TypeURL, e.Name, before, e})
		}
	}
	if len(changes) == 0 {
		return
	}
	s.version++
	for st := range s.streams {
		st.changed(changes, now)
	}
}

// Resources returns all resources of a type, by name.
func (s *Store) Resources(typeURL string) []Resource {
	s.mu.RLock()
	defer s.mu.RUnlock()
	t := s.tables[typeURL]
	if t == nil {
		return nil
	}
	all := make([]Resource, 0, len(t.entries))
	for _, e := range t.entries {
		all = append(all, e.Resource)
	}
	slices.SortFunc(all, func(a, b Resource) int { return cmp.Compare(a.Name, b.Name) })
	return all
}

func newEntry(r Resource) *entry {
	if r.Body == nil {
		r.Body = &anypb.Any{TypeUrl: r.TypeURL}
	}
	if r.Version == "" {
		// Istio's version of an Address is the same hash of the same bytes.
		r.Version = strconv.FormatUint(xxhash.Sum64(r.Body.GetValue()), 16)
	}
	e := &entry{
		Resource: r,
		plain:    &discoveryv3.Resource{Name: r.Name, Version: r.Version, Resource: r.Body},
		aliased:  &discoveryv3.Resource{Name: r.Name, Version: r.Version, Resource: r.Body, Aliases: r.Aliases},
	}
	const overhead = 8 // tag and length within the response
	e.size = proto.Size(e.aliased) + overhead
	return e
}

// put stores e; the caller holds mu.
func (s *Store) put(e *entry) (before *entry, changed bool) {
	t := s.tables[e.TypeURL]
	if t == nil {
		t = &table{entries: map[string]*entry{}, aliases: map[string][]string{}}
		s.tables[e.TypeURL] = t
	}
	before = t.entries[e.Name]
	if before != nil && before.Version == e.Version && slices.Equal(before.Aliases, e.Aliases) &&
		slices.Equal(before.Scopes, e.Scopes) && (before.Scopes == nil) == (e.Scopes == nil) {
		return before, false
	}
	t.unindex(before)
	t.entries[e.Name] = e
	for _, alias := range e.Aliases {
		if !slices.Contains(t.aliases[alias], e.Name) {
			t.aliases[alias] = append(t.aliases[alias], e.Name)
		}
	}
	return before, true
}

// remove returns what was there; the caller holds mu.
func (s *Store) remove(ref Ref) *entry {
	t := s.tables[ref.TypeURL]
	if t == nil {
		return nil
	}
	before := t.entries[ref.Name]
	t.unindex(before)
	delete(t.entries, ref.Name)
	return before
}

func (t *table) unindex(e *entry) {
	if e == nil {
		return
	}
	for _, alias := range e.Aliases {
		names := slices.DeleteFunc(slices.Clone(t.aliases[alias]), func(name string) bool { return name == e.Name })
		if len(names) == 0 {
			delete(t.aliases, alias)
		} else {
			t.aliases[alias] = names
		}
	}
}

// all yields every entry of a type; nil tables are empty.
func (t *table) all() map[string]*entry {
	if t == nil {
		return nil
	}
	return t.entries
}

func (t *table) get(name string) *entry {
	if t == nil {
		return nil
	}
	return t.entries[name]
}

// byAlias returns the entries that bear an alias. Several may: pods of the host
// network share an address.
func (t *table) byAlias(alias string) []*entry {
	if t == nil {
		return nil
	}
	entries := make([]*entry, 0, len(t.aliases[alias]))
	for _, name := range t.aliases[alias] {
		entries = append(entries, t.entries[name])
	}
	return entries
}

func (s *Store) join(st *stream) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.streams[st] = struct{}{}
}

func (s *Store) leave(st *stream) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.streams, st)
}
