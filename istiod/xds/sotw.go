package xds

import (
	"slices"
	"strconv"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/anypb"
)

// sotwWire speaks the state-of-the-world protocol: each request names all that
// the proxy wants, each response holds all that it gets. Nothing can be split.
type sotwWire struct {
	stream discoveryv3.AggregatedDiscoveryService_StreamAggregatedResourcesServer
}

func (w sotwWire) receive() (request, error) {
	m, err := w.stream.Recv()
	if err != nil {
		return request{}, err
	}
	return request{
		node: m.GetNode(), typeURL: m.GetTypeUrl(), names: m.GetResourceNames(), nonce: m.GetResponseNonce(),
		rejected: m.GetErrorDetail() != nil, rejection: m.GetErrorDetail().GetMessage(),
	}, nil
}

func (w sotwWire) send(m message) error {
	response := &discoveryv3.DiscoveryResponse{
		TypeUrl: m.typeURL, Nonce: m.nonce, VersionInfo: strconv.FormatUint(m.version, 10),
		Resources: make([]*anypb.Any, len(m.add)),
	}
	for i, e := range m.add {
		response.Resources[i] = e.Body
	}
	return w.stream.Send(response)
}

// replace applies the names of a state-of-the-world request. Without names the
// first request for a type means everything, except for routes and endpoints,
// which are always asked for by name.
func (st *stream) replace(s *Store, r request) error {
	s.mu.RLock()
	defer s.mu.RUnlock()
	st.mu.Lock()
	defer st.mu.Unlock()
	sub, first, err := st.subscription(r.typeURL)
	if err != nil {
		return err
	}
	if len(r.names) > maxNames {
		return status.Errorf(codes.ResourceExhausted, "more than %d names of one type", maxNames)
	}
	wildcard := slices.Contains(r.names, wildcardName)
	if len(r.names) == 0 {
		byName := r.typeURL == typeRoute || r.typeURL == typeEndpoint
		wildcard = sub.wildcard || (first && !byName)
	}
	more := first || (wildcard && !sub.wildcard)
	names := make(map[string]struct{}, len(r.names))
	for _, name := range r.names {
		names[name] = struct{}{}
		if _, had := sub.names[name]; !had {
			more = true
		}
	}
	sub.wildcard, sub.names = wildcard, names
	if more && (wildcard || len(names) > 0) {
		sub.owes = true
		if sub.since.IsZero() {
			sub.since = time.Now()
		}
		st.signal()
	}
	return nil
}

// complete turns a part into the whole of what is subscribed to. It reports
// whether the part brings something new; if not, it only removes.
func (st *stream) complete(s *Store, p *part) (adds bool) {
	adds = len(p.add) > 0 || p.owes
	s.mu.RLock()
	defer s.mu.RUnlock()
	st.mu.Lock()
	defer st.mu.Unlock()
	p.add, p.remove, p.version = nil, nil, s.version
	for _, e := range s.tables[p.sub.typeURL].all() {
		if st.sees(p.sub, e) {
			p.add = append(p.add, e)
		}
	}
	slices.SortFunc(p.add, compareNames)
	return adds
}
