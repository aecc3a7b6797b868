// Package arch holds the rules of the architecture as tests: who may import
// whom, and that the documents name only what exists. Changing the
// architecture means changing a line here in the same commit.
package arch
