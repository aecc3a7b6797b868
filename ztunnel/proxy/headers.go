package proxy

import (
	"encoding/binary"
	"encoding/hex"
	"math/rand/v2"
	"net/netip"
	"strings"

	"github.com/ambit-mesh/ambit/apis/mesh"
	"github.com/ambit-mesh/ambit/ztunnel/hbone"
	"github.com/ambit-mesh/ambit/ztunnel/telemetry"
	"github.com/ambit-mesh/ambit/ztunnel/workload"
)

// headerNetwork names the network that a tunnel comes from, when it crossed one.
const headerNetwork = "x-forwarded-network"

// requestHeader is what a CONNECT carries, spec/ztunnel.md §2.9. All of it is
// for telemetry; no decision rests on it.
func requestHeader(source *workload.Workload, client netip.AddrPort, svc *workload.Service) []hbone.Field {
	host := ""
	if svc != nil {
		host = svc.Key.Hostname
	}
	return []hbone.Field{
		{Name: mesh.HeaderBaggage, Value: baggage(source)},
		{Name: mesh.HeaderForwarded, Value: forwarded(client, host)},
		{Name: mesh.HeaderTraceparent, Value: traceparent()},
	}
}

func header(fields []hbone.Field, name string) string {
	for _, f := range fields {
		if f.Name == name {
			return f.Value
		}
	}
	return ""
}

// baggage describes a workload. Values are not percent-encoded.
func baggage(w *workload.Workload) string {
	var b strings.Builder
	add := func(key, value string) {
		if value == "" {
			return
		}
		if b.Len() > 0 {
			b.WriteByte(',')
		}
		b.WriteString(key)
		b.WriteByte('=')
		b.WriteString(value)
	}
	add("k8s.cluster.name", w.ClusterID)
	add("k8s.namespace.name", w.Namespace)
	add("k8s."+w.WorkloadType+".name", w.WorkloadName)
	add("service.name", w.CanonicalName)
	add("service.version", w.CanonicalRevision)
	add("cloud.region", w.Locality.Region)
	add("cloud.availability_zone", w.Locality.Zone)
	return b.String()
}

// parseBaggage reads a peer's description of itself. Unknown keys are ignored,
// and so is what cannot be the name of an object.
func parseBaggage(text string) telemetry.Peer {
	var p telemetry.Peer
	for member := range strings.SplitSeq(text, ",") {
		key, value, _ := strings.Cut(strings.TrimSpace(member), "=")
		if len(value) > maxName || !plainASCII(value) {
			continue
		}
		switch key {
		case "k8s.cluster.name":
			p.Cluster = value
		case "k8s.namespace.name":
			p.Namespace = value
		case "k8s.deployment.name", "k8s.cronjob.name", "k8s.pod.name", "k8s.job.name":
			p.Workload, p.App = value, value
		case "service.name":
			p.CanonicalService = value
		case "service.version":
			p.CanonicalRev, p.Version = value, value
		case "cloud.region":
			p.Region = value
		case "cloud.availability_zone":
			p.Zone = value
		}
	}
	return p
}

func forwarded(client netip.AddrPort, host string) string {
	v := `for="` + client.String() + `"`
	if host != "" {
		v += ";host=" + host
	}
	return v
}

// forwardedHost returns the parameter "host" of a forwarded header, "" when it
// has none that is plain ASCII.
func forwardedHost(text string) string {
	for part := range strings.SplitSeq(text, ";") {
		key, value, _ := strings.Cut(strings.TrimSpace(part), "=")
		if !strings.EqualFold(key, "host") {
			continue
		}
		value = strings.Trim(value, `"`)
		if !plainASCII(value) {
			return ""
		}
		return value
	}
	return ""
}

// maxName is how long the name of a Kubernetes object may be.
const maxName = 253

// plainASCII reports whether text is printable and without spaces.
func plainASCII(text string) bool {
	for i := range len(text) {
		if text[i] <= ' ' || text[i] > '~' {
			return false
		}
	}
	return true
}

// traceparent returns the header of a new trace, not sampled.
func traceparent() string {
	var id [24]byte
	for i := 0; i < len(id); i += 8 {
		binary.NativeEndian.PutUint64(id[i:], rand.Uint64())
	}
	return "00-" + hex.EncodeToString(id[:16]) + "-" + hex.EncodeToString(id[16:]) + "-00"
}
