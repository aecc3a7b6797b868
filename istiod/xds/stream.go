package xds

import (
	"cmp"
	"crypto/rand"
	"slices"
	"strconv"
	"sync"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// stream is one connected proxy. Its receiver changes subscriptions, the store
// notes changes in them, its sender takes what was noted.
type stream struct {
	id     string
	node   *corev3.Node
	peer   string
	opened time.Time
	scopes map[string]struct{}
	full   bool          // state of the world: each response carries all that is subscribed to
	wake   chan struct{} // holds one token when there may be something to send

	mu   sync.Mutex
	subs map[string]*subscription // by type URL
}

// request is a message of a proxy in either protocol.
type request struct {
	node        *corev3.Node
	typeURL     string
	subscribe   []string
	unsubscribe []string
	versions    map[string]string // held by the proxy when it connects
	nonce       string
	rejection   string // "" = none
	rejected    bool
	names       []string // state of the world: all that is subscribed to
}

// part is what one turn sends of one type.
type part struct {
	sub     *subscription
	add     []*entry
	remove  []string
	owes    bool
	since   time.Time
	version uint64
}

func newStream(node *corev3.Node, scopes []string, full bool) *stream {
	st := &stream{
		id: rand.Text(), node: node, opened: time.Now(), full: full,
		scopes: make(map[string]struct{}, len(scopes)), wake: make(chan struct{}, 1), subs: map[string]*subscription{},
	}
	for _, scope := range scopes {
		st.scopes[scope] = struct{}{}
	}
	return st
}

// visible reports whether e exists for this proxy.
func (st *stream) visible(e *entry) bool {
	if e == nil {
		return false
	}
	if e.Scopes == nil {
		return true
	}
	for _, scope := range e.Scopes {
		if _, ok := st.scopes[scope]; ok {
			return true
		}
	}
	return false
}

func (st *stream) sees(sub *subscription, e *entry) bool { return st.visible(e) && sub.wants(e) }

// changed notes what concerns this stream. The store calls it with its lock held.
func (st *stream) changed(changes []change, now time.Time) {
	st.mu.Lock()
	defer st.mu.Unlock()
	noted := false
	for _, c := range changes {
		sub := st.subs[c.typeURL]
		if sub == nil {
			continue
		}
		before, after := st.sees(sub, c.before), st.sees(sub, c.after)
		if before && after && c.before.Version == c.after.Version &&
			(sub.wildcard || slices.Equal(c.before.Aliases, c.after.Aliases)) {
			continue // only who else may see it has changed
		}
		if before || after {
			sub.note(c.name, before, now)
			noted = true
		}
		if before && len(sub.names) > 0 {
			// An alias that was asked for may lead nowhere now.
			for _, alias := range c.before.Aliases {
				if _, asked := sub.names[alias]; asked {
					sub.note(alias, true, now)
				}
			}
		}
	}
	if noted {
		st.signal()
	}
}

func (st *stream) signal() {
	select {
	case st.wake <- struct{}{}:
	default: // there is a token already
	}
}

// subscription returns the state of a type, new if this is its first request;
// the caller holds mu.
func (st *stream) subscription(typeURL string) (sub *subscription, first bool, err error) {
	if typeURL == "" {
		return nil, false, status.Error(codes.InvalidArgument, "type_url is empty")
	}
	if sub = st.subs[typeURL]; sub != nil {
		return sub, false, nil
	}
	if len(st.subs) >= maxTypes {
		return nil, false, status.Errorf(codes.ResourceExhausted, "more than %d types on one stream", maxTypes)
	}
	sub = &subscription{
		typeURL: typeURL, names: map[string]struct{}{},
		noncePrefix: st.id + "." + strconv.Itoa(len(st.subs)) + ".",
	}
	st.subs[typeURL] = sub
	return sub, true, nil
}

// lookup queues the answer to one name that the proxy asks for; the caller holds
// both locks. held is the version that it says it has.
func (st *stream) lookup(t *table, sub *subscription, name string, versions map[string]string, now time.Time) {
	if e := t.get(name); st.visible(e) {
		if held, ok := versions[name]; !ok || held != e.Version {
			sub.insist(name, now)
		}
		return
	}
	found := false
	for _, e := range t.byAlias(name) {
		if st.visible(e) {
			// Sent even when held: the proxy waits for an answer to this alias.
			found = true
			sub.insist(e.Name, now)
		}
	}
	if !found {
		sub.insist(name, now)
	}
}

// take removes everything that is queued and looks it up in one consistent view
// of the store, in the order in which it is to be sent.
func (st *stream) take(s *Store) []part {
	parts := st.collect(s)
	slices.SortFunc(parts, func(a, b part) int {
		return cmp.Or(cmp.Compare(rank(a.sub.typeURL), rank(b.sub.typeURL)), cmp.Compare(a.sub.typeURL, b.sub.typeURL))
	})
	for _, p := range parts {
		slices.SortFunc(p.add, compareNames)
		slices.Sort(p.remove)
	}
	return parts
}

func (st *stream) collect(s *Store) []part {
	s.mu.RLock()
	defer s.mu.RUnlock()
	st.mu.Lock()
	defer st.mu.Unlock()
	var parts []part
	for _, sub := range st.subs {
		if len(sub.pending) == 0 && !sub.owes {
			continue
		}
		p := part{sub: sub, owes: sub.owes, since: sub.since, version: s.version}
		st.resolve(s.tables[sub.typeURL], sub, &p)
		sub.pending, sub.owes, sub.since = nil, false, time.Time{}
		if len(p.add)+len(p.remove) > 0 || p.owes {
			parts = append(parts, p)
		}
	}
	return parts
}

// resolve fills p from what is queued; the caller holds both locks.
func (st *stream) resolve(t *table, sub *subscription, p *part) {
	for name, held := range sub.pending {
		if e := t.get(name); e != nil && st.sees(sub, e) {
			p.add = append(p.add, e)
			continue
		}
		_, asked := sub.names[name]
		leads := asked && slices.ContainsFunc(t.byAlias(name), st.visible)
		if held && !leads { // an alias that leads somewhere is not gone
			p.remove = append(p.remove, name)
		}
	}
}
