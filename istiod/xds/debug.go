package xds

import (
	"cmp"
	"slices"
	"time"
)

// StreamStatus is one connected proxy, as /debug/syncz shows it.
type StreamStatus struct {
	Node      string       `json:"node"`
	Peer      string       `json:"peer"`
	Connected time.Time    `json:"connected"`
	Scopes    []string     `json:"scopes,omitempty"`
	Protocol  string       `json:"protocol"`
	Types     []TypeStatus `json:"types"`
}

// TypeStatus is what one proxy has been sent of one type.
type TypeStatus struct {
	Type       string     `json:"type"`
	Wildcard   bool       `json:"wildcard"`
	Names      int        `json:"names"`
	Pending    int        `json:"pending"`
	Sent       uint64     `json:"sent"`     // responses
	Answered   uint64     `json:"answered"` // of them, the last that was accepted or rejected
	Synced     bool       `json:"synced"`   // nothing is pending and everything sent was answered
	Rejected   uint64     `json:"rejected"`
	LastReject *Rejection `json:"lastReject,omitempty"`
}

// Debug returns a []StreamStatus by node.
func (s *Server) Debug() any {
	s.mu.Lock()
	streams := make([]*stream, 0, len(s.streams))
	for st := range s.streams {
		streams = append(streams, st)
	}
	s.mu.Unlock()
	all := make([]StreamStatus, 0, len(streams))
	for _, st := range streams {
		all = append(all, st.status())
	}
	slices.SortFunc(all, func(a, b StreamStatus) int {
		return cmp.Or(cmp.Compare(a.Node, b.Node), cmp.Compare(a.Peer, b.Peer))
	})
	return all
}

func (st *stream) status() StreamStatus {
	st.mu.Lock()
	defer st.mu.Unlock()
	status := StreamStatus{Node: st.node.GetId(), Peer: st.peer, Connected: st.opened, Protocol: "delta"}
	if st.full {
		status.Protocol = "sotw"
	}
	for scope := range st.scopes {
		status.Scopes = append(status.Scopes, scope)
	}
	slices.Sort(status.Scopes)
	for _, sub := range st.subs {
		status.Types = append(status.Types, TypeStatus{
			Type: sub.typeURL, Wildcard: sub.wildcard, Names: len(sub.names), Pending: len(sub.pending),
			Sent: sub.sent, Answered: sub.acked, Synced: len(sub.pending) == 0 && !sub.owes && sub.acked == sub.sent,
			Rejected: sub.rejected, LastReject: sub.rejection,
		})
	}
	slices.SortFunc(status.Types, func(a, b TypeStatus) int {
		return cmp.Or(cmp.Compare(rank(a.Type), rank(b.Type)), cmp.Compare(a.Type, b.Type))
	})
	return status
}
