package authn

// RememberMost is the bound of a TokenReview's memory.
const RememberMost = rememberMost

// Remembered is how many answers a TokenReview remembers.
func (t *TokenReview) Remembered() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.known)
}
