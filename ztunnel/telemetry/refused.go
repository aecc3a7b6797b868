package telemetry

import (
	"errors"
	"slices"
	"sync"
	"time"
)

// Refused is one connection that was refused or has failed, for tools that
// explain: what the access line says, in parts.
type Refused struct {
	Time        time.Time  `json:"time"`
	Direction   string     `json:"direction"`
	Src         string     `json:"src"`
	SrcIdentity string     `json:"srcIdentity,omitempty"`
	Dst         string     `json:"dst"`
	Authority   string     `json:"authority,omitempty"`
	Service     string     `json:"service,omitempty"`
	Reason      string     `json:"reason"`
	Detail      string     `json:"detail,omitempty"`
	Policy      *PolicyRef `json:"policy,omitempty"`
}

// Refusals remembers the last connections that were refused or have failed. The
// zero Refusals is empty; it is safe for concurrent use.
type Refusals struct {
	mu   sync.Mutex
	last [32]Refused
	next int // how many there were
}

// Add notes what a line says, if its connection did not end well.
func (r *Refusals) Add(l *AccessLine) {
	refusal, ok := errors.AsType[*Refusal](l.Err)
	if !ok {
		return
	}
	one := Refused{
		Time: l.Time, Direction: l.Direction.String(), Src: l.SrcAddr.String(), SrcIdentity: l.SrcIdentity, Dst: l.DstAddr.String(),
		Authority: l.DstHBONEAddr, Service: l.DstService, Reason: refusal.Reason.String(), Policy: refusal.Policy,
	}
	if refusal.Err != nil {
		one.Detail = refusal.Err.Error()
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.last[r.next%len(r.last)] = one
	r.next++
}

// List returns them, the oldest first.
func (r *Refusals) List() []Refused {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.next <= len(r.last) {
		return slices.Clone(r.last[:r.next])
	}
	at := r.next % len(r.last)
	return slices.Concat(r.last[at:], r.last[:at])
}
