// Command bench measures ztunnel end to end: the real binary on two nodes of
// integration/bed, with policies, metrics and the access log on, between
// applications in network namespaces. Beside it, in the same run and by the same
// loads, it measures
//
//	direct    the same two pods without a mesh
//	baseline  CONNECT over net/http with mutual TLS (integration/bench/baseline)
//	peer      other ztunnel binaries: PEER=path, or -peer name=path, repeated
//
// Rounds are interleaved: in each round every load runs on every system in
// turn, and a ratio is the median of the rounds' ratios, so that a machine that
// is slower for a minute is slower for all. Absolute values are comparable
// within one run only.
//
//	make bench                # writes results, takes some 10 minutes
//	bin/bench -quick          # under a minute
//	bin/bench -only short     # rows by regular expression
//
// CPU is that of the proxies' processes as the kernel accounts it; packets that
// the kernel carries for them in interrupts count where they interrupt. The
// loads are goroutines of this process. A measurement during which other
// processes took more than a fifth of the machine is repeated, twice at most (not
// with -quick).
//
//	main.go      flags, and the order of a run
//	system.go    what is measured: namespaces, processes
//	load.go      what it is measured with     idle.go   memory and descriptors
//	usage.go     what the kernel accounts     stats.go  medians and percentiles
//	row.go       rows and their goals         report.go lines and files
//	micro.go     rows of go test -bench       machine.go
package main
