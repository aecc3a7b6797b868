package xds

import (
	"strconv"
	"strings"
	"time"
)

// subscription is what one stream wants of one type, and what it has yet to be
// told. It is guarded by its stream's mu.
type subscription struct {
	typeURL  string
	wildcard bool
	names    map[string]struct{} // asked for explicitly: names and aliases

	// pending are the names to be looked at in the sender's next turn. The value
	// tells whether the proxy has to hear of a removal: it holds the resource, or
	// has asked for it.
	pending map[string]bool
	owes    bool      // a reply is due, even an empty one
	since   time.Time // when the oldest of pending was noted

	noncePrefix string
	sent, acked uint64 // sequence numbers of responses
	rejected    uint64 // how many responses were rejected
	rejection   *Rejection
}

// Rejection is a proxy's refusal of a response.
type Rejection struct {
	Nonce   string    `json:"nonce"`
	Message string    `json:"message"`
	Time    time.Time `json:"time"`
}

// wants reports whether e is subscribed to, scopes aside.
func (sub *subscription) wants(e *entry) bool {
	if sub.wildcard {
		return true
	}
	if len(sub.names) == 0 {
		return false
	}
	if _, ok := sub.names[e.Name]; ok {
		return true
	}
	for _, alias := range e.Aliases {
		if _, ok := sub.names[alias]; ok {
			return true
		}
	}
	return false
}

// note queues a name. The first note since the last turn knows best whether the
// proxy holds the resource; later ones happened without it.
func (sub *subscription) note(name string, held bool, now time.Time) {
	if sub.pending == nil {
		sub.pending = map[string]bool{}
	}
	if _, noted := sub.pending[name]; noted {
		return
	}
	if len(sub.pending) == 0 {
		sub.since = now
	}
	sub.pending[name] = held
}

// insist queues a name that the proxy itself has mentioned: it hears the answer
// whatever it is.
func (sub *subscription) insist(name string, now time.Time) {
	sub.note(name, true, now)
	sub.pending[name] = true
}

// unsubscribe forgets names and what was queued for them.
func (sub *subscription) unsubscribe(names []string) {
	for _, name := range names {
		if name != wildcardName {
			delete(sub.names, name)
			if !sub.wildcard {
				delete(sub.pending, name)
			}
			continue
		}
		sub.wildcard = false
		for queued := range sub.pending {
			if _, explicit := sub.names[queued]; !explicit {
				delete(sub.pending, queued)
			}
		}
	}
}

// next returns the nonce of the next response.
func (sub *subscription) next() string {
	sub.sent++
	return sub.noncePrefix + strconv.FormatUint(sub.sent, 10)
}

// answer takes the nonce of a request: it is fresh when it belongs to a response
// of this type on this stream that has not been answered. A response may be one
// of several under way, so the last nonce is not the only fresh one.
func (sub *subscription) answer(nonce string) (fresh bool) {
	digits, ok := strings.CutPrefix(nonce, sub.noncePrefix)
	if !ok {
		return false
	}
	seq, err := strconv.ParseUint(digits, 10, 64)
	if err != nil || seq <= sub.acked || seq > sub.sent {
		return false
	}
	sub.acked = seq
	return true
}
