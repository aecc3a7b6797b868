package model

import (
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// L7Protocol is how the bytes on a port are read.
type L7Protocol string

// The protocols of a port. The zero value means that the user declared none,
// so that the waypoint has to look at the first bytes.
const (
	L7Undeclared L7Protocol = ""
	L7HTTP       L7Protocol = "HTTP"
	L7HTTP2      L7Protocol = "HTTP2"
	L7GRPC       L7Protocol = "GRPC"
	L7TLS        L7Protocol = "TLS"
	L7TCP        L7Protocol = "TCP"
	L7UDP        L7Protocol = "UDP"
)

// Routable reports whether requests are routed on the port: it is declared as
// one of the HTTP protocols in the clear, or not declared at all.
func (p L7Protocol) Routable() bool {
	return p == L7HTTP || p == L7HTTP2 || p == L7GRPC || p == L7Undeclared
}

// Opaque reports whether connections may pass as bytes: the port is TCP or
// TLS, or not declared.
func (p L7Protocol) Opaque() bool {
	return p == L7TCP || p == L7TLS || p == L7Undeclared
}

// protocolWords are the words of appProtocol and of port-name prefixes,
// spec/control-plane.md §2.4.
var protocolWords = map[string]L7Protocol{
	"http": L7HTTP, "http2": L7HTTP2, "https": L7TLS, "tcp": L7TCP, "tls": L7TLS,
	"grpc": L7GRPC, "grpc-web": L7GRPC, "mongo": L7TCP, "mysql": L7TCP, "redis": L7TCP,
	"kubernetes.io/h2c": L7HTTP2, "kubernetes.io/ws": L7HTTP, "kubernetes.io/wss": L7TLS,
	"udp": L7UDP,
}

// L7ProtocolOf returns the protocol of a Kubernetes Service port: appProtocol,
// else the prefix of the port's name, else TCP for ports on which the server
// speaks first, spec/control-plane.md §2.4 and §4.2.
func L7ProtocolOf(p corev1.ServicePort) L7Protocol {
	if p.Protocol == corev1.ProtocolUDP {
		return L7UDP
	}
	if p.AppProtocol != nil {
		if word, known := protocolWords[strings.ToLower(*p.AppProtocol)]; known {
			return word
		}
	}
	prefix, _, _ := strings.Cut(strings.ToLower(p.Name), "-")
	if word, known := protocolWords[prefix]; known {
		return word
	}
	switch p.Port {
	case 25, 53, 3306, 27017:
		return L7TCP
	}
	return L7Undeclared
}

// L7Hostname returns the name under which a Kubernetes Service is known in the
// mesh.
func L7Hostname(namespace, name, clusterDomain string) string {
	return name + "." + namespace + ".svc." + clusterDomain
}
