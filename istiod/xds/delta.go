package xds

import (
	"strconv"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// deltaWire speaks the incremental protocol.
type deltaWire struct {
	stream discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesServer
}

func (w deltaWire) receive() (request, error) {
	m, err := w.stream.Recv()
	if err != nil {
		return request{}, err
	}
	return request{
		node: m.GetNode(), typeURL: m.GetTypeUrl(),
		subscribe: m.GetResourceNamesSubscribe(), unsubscribe: m.GetResourceNamesUnsubscribe(),
		versions: m.GetInitialResourceVersions(), nonce: m.GetResponseNonce(),
		rejected: m.GetErrorDetail() != nil, rejection: m.GetErrorDetail().GetMessage(),
	}, nil
}

func (w deltaWire) send(m message) error {
	response := &discoveryv3.DeltaDiscoveryResponse{
		TypeUrl: m.typeURL, Nonce: m.nonce, SystemVersionInfo: strconv.FormatUint(m.version, 10),
		RemovedResources: m.remove, Resources: make([]*discoveryv3.Resource, len(m.add)),
	}
	for i, e := range m.add {
		response.Resources[i] = e.plain
		if m.aliases {
			response.Resources[i] = e.aliased
		}
	}
	return w.stream.Send(response)
}

// update applies the subscription of a delta request. It counts even beside a
// stale nonce: each request tells only what changed, so what is dropped here
// would never be told again.
func (st *stream) update(s *Store, r request) error {
	now := time.Now()
	s.mu.RLock()
	defer s.mu.RUnlock()
	st.mu.Lock()
	defer st.mu.Unlock()
	sub, first, err := st.subscription(r.typeURL)
	if err != nil {
		return err
	}
	// A first request without names asks for everything, spec/ztunnel.md App. A.5.
	everything := first && len(r.subscribe) == 0
	asked := make([]string, 0, len(r.subscribe))
	for _, name := range r.subscribe {
		if name == wildcardName {
			everything = true
		} else {
			asked = append(asked, name)
		}
	}
	versions := r.versions
	if !first {
		versions = nil // they mean something in the first request only
	}
	sub.wildcard = sub.wildcard || everything
	for _, name := range asked {
		sub.names[name] = struct{}{}
	}
	sub.unsubscribe(r.unsubscribe)
	if !sub.wildcard {
		// What an on-demand proxy kept from an earlier stream it still wants.
		for name := range versions {
			sub.names[name] = struct{}{}
			asked = append(asked, name)
		}
		for _, name := range r.unsubscribe {
			delete(sub.names, name)
		}
	}
	if len(sub.names) > maxNames {
		return status.Errorf(codes.ResourceExhausted, "more than %d names of one type", maxNames)
	}
	t := s.tables[r.typeURL]
	if everything && sub.wildcard {
		st.queueAll(t, sub, first, versions, now)
	}
	for _, name := range asked {
		if _, still := sub.names[name]; still {
			st.lookup(t, sub, name, versions, now)
		}
	}
	if first || len(r.subscribe) > 0 {
		sub.owes = true
		if sub.since.IsZero() {
			sub.since = now
		}
		st.signal()
	}
	return nil
}

// queueAll queues what a wildcard proxy does not have in the present version,
// and what it has that is no more; the caller holds both locks.
func (st *stream) queueAll(t *table, sub *subscription, first bool, versions map[string]string, now time.Time) {
	for name, e := range t.all() {
		if !st.visible(e) {
			continue
		}
		held, ok := versions[name]
		switch {
		case !ok && first:
			sub.note(name, false, now)
		case held != e.Version || !ok:
			sub.insist(name, now)
		}
	}
	for name := range versions {
		if !st.visible(t.get(name)) {
			sub.insist(name, now)
		}
	}
}
