package backend

import (
	"crypto/tls"
	"net"

	"github.com/ambit-mesh/ambit/apis/spiffe"
	"github.com/ambit-mesh/ambit/ztunnel/hbone"
	"github.com/ambit-mesh/ambit/ztunnel/mtls"
)

func newTLSClient(conn net.Conn, own *mtls.Certificate, peers []spiffe.ID) *tls.Conn {
	return tls.Client(hbone.Batched(conn), mtls.ClientConfig(own, peers))
}
