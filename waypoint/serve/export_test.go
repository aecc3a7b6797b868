package serve

import "time"

// Limits for tests.
const (
	QuietLimit = quietLimit
	HeadLimit  = headLimit
)

// Sweep looks at all connections as if it were now.
func (s *Server) Sweep(now time.Time) { s.sweep(now) }

// Reading returns how many connections wait for the rest of a head, and Quiet
// for a first byte.
func (s *Server) Reading() int { return s.count(reading) }

// Quiet returns how many connections wait for the first byte of a request.
func (s *Server) Quiet() int { return s.count(quiet) }

func (s *Server) count(p phase) (n int) {
	s.idles.Range(func(i, _ any) bool {
		one := i.(*idle)
		one.mu.Lock()
		defer one.mu.Unlock()
		if one.phase == p {
			n++
		}
		return true
	})
	return n
}
