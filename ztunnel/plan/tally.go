package plan

import (
	"sync"
	"sync/atomic"
	"time"
)

// Tally is what has been seen of endpoints: how many connections are open to
// each, and which have just refused one. Its methods Load and Refused are what
// Request asks. Safe for concurrent use; it must not be copied.
//
// It holds no more than one entry per endpoint with an open connection, and
// maxRefusals refusals.
type Tally struct {
	now func() time.Time

	live [16]struct {
		mu     sync.Mutex
		counts map[string]int // by uid, none of them 0
	}

	refusing atomic.Int64 // len(refusals), to be asked without a lock
	mu       sync.Mutex
	refusals map[endpoint]refusal
	swept    time.Time // when those that are over were last looked for
}

// endpoint is one port of a workload: another may be served well.
type endpoint struct {
	uid  string
	port uint16
}

// refusal is that an endpoint is to be avoided.
type refusal struct {
	until time.Time
	times int // in a row
}

// For how long an endpoint is avoided after its first refusal; each further one
// doubles that. Long enough for others to be tried, short enough that nobody
// notices one who is back.
const (
	firstAvoidance = 2 * time.Second
	maxAvoidance   = time.Minute
	maxRefusals    = 4096
)

// NewTally returns an empty record. now is the clock.
func NewTally(now func() time.Time) *Tally {
	return &Tally{now: now, refusals: map[endpoint]refusal{}}
}

// shard spreads uids, whose ends differ.
func shard(uid string) int {
	h := uint32(2166136261)
	for i := max(0, len(uid)-8); i < len(uid); i++ {
		h = (h ^ uint32(uid[i])) * 16777619
	}
	return int(h>>8) & 15
}

// Opened counts a connection to a workload, Closed its end.
func (t *Tally) Opened(uid string) { t.count(uid, 1) }

// Closed is described at Opened.
func (t *Tally) Closed(uid string) { t.count(uid, -1) }

func (t *Tally) count(uid string, by int) {
	if uid == "" {
		return // unknown to the mesh: there is no choice
	}
	s := &t.live[shard(uid)]
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.counts == nil {
		s.counts = map[string]int{}
	}
	if n := s.counts[uid] + by; n > 0 {
		s.counts[uid] = n
	} else {
		delete(s.counts, uid)
	}
}

// Load returns how many connections are open to a workload.
func (t *Tally) Load(uid string) int {
	s := &t.live[shard(uid)]
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.counts[uid]
}

// Failed notes that an endpoint could not be connected to, Worked that it could.
func (t *Tally) Failed(uid string, port uint16) {
	if uid == "" {
		return
	}
	now := t.now()
	key := endpoint{uid, port}
	t.mu.Lock()
	defer t.mu.Unlock()
	r, known := t.refusals[key]
	switch {
	case known && now.Before(r.until):
		return // one of several that were under way
	case known:
		r.times++
	default:
		t.sweep(now)
		if len(t.refusals) >= maxRefusals {
			return
		}
	}
	r.until = now.Add(min(maxAvoidance, firstAvoidance<<min(r.times, 8)))
	t.refusals[key] = r
	t.refusing.Store(int64(len(t.refusals)))
}

// Worked is described at Failed.
func (t *Tally) Worked(uid string, port uint16) {
	if t.refusing.Load() == 0 {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.refusals, endpoint{uid, port})
	t.refusing.Store(int64(len(t.refusals)))
}

// sweep forgets, once a second at most, endpoints that have not refused anything
// for long.
func (t *Tally) sweep(now time.Time) {
	if now.Sub(t.swept) < time.Second {
		return
	}
	t.swept = now
	for key, r := range t.refusals {
		if now.Sub(r.until) >= maxAvoidance {
			delete(t.refusals, key)
		}
	}
	t.refusing.Store(int64(len(t.refusals)))
}

// Refused reports whether an endpoint is to be avoided.
func (t *Tally) Refused(uid string, port uint16) bool {
	if t.refusing.Load() == 0 {
		return false
	}
	now := t.now()
	t.mu.Lock()
	defer t.mu.Unlock()
	t.sweep(now)
	r, ok := t.refusals[endpoint{uid, port}]
	return ok && now.Before(r.until)
}
