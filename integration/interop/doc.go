// Command interop shows that our ztunnel works with parts that others wrote,
// and theirs with ours. Every part is a process: upstream's protobuf
// definitions and ours cannot be linked into one program.
//
//	ztunnel/ztunnel          ours on both nodes: what the scenarios ask is fair
//	ztunnel/peer, peer/…     Istio's ztunnel (PEER=path) on one node or both, under our
//	                         xDS, certificate authority and ZDS (integration/bed)
//	istio-echo/ztunnel       Istio's echo client as an HBONE client of ours
//	ztunnel/istio-echo       ours as a client of Istio's echo server, HBONE and double HBONE
//	nghttp2/ztunnel          nghttp2's client at our port 15008
//
// It writes one line for each scenario
//
//	interop <pair> <scenario> ok|FAIL|not run
//
// with the reason after a FAIL or a "not run". A part that is not there is never
// ok. The upstream programs are built from the Go module in ./upstream:
//
//	go -C integration/interop/upstream build -o ../../../bin/upstream/ \
//	   istio.io/istio/pkg/test/echo/cmd/client istio.io/istio/pkg/test/echo/cmd/server
//
// Not there yet: ours under Istio's pilot-discovery, which that module can build, too.
package main
