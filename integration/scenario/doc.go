// Package scenario runs what a mesh must do, and what must not be done to it,
// against real ztunnel processes on two nodes of a test bed: who reaches whom and
// how, waypoints, policies that change under live connections, calls made in bad
// faith, and ztunnels that end, die and follow each other. The scenarios are
// those of spec/ztunnel.md §11.1 and §11.2, and some of our own.
//
//	go test ./integration/scenario -run 'TestScenarios/handover'
//
// The package has tests only. They need CAP_SYS_ADMIN and CAP_NET_ADMIN in a
// user namespace of their own, which they make.
package scenario
