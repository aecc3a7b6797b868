// Package contract holds tests of what two parts that never import each other
// agree on.
package contract

import (
	"encoding/json"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"sigs.k8s.io/yaml"

	"github.com/ambit-mesh/ambit/waypoint/backend"
	"github.com/ambit-mesh/ambit/waypoint/config"
)

// TestWaypointTakesWhatIstiodSends feeds every message of istiod's L7 goldens
// to the waypoint, which refuses what it cannot honour.
func TestWaypointTakesWhatIstiodSends(t *testing.T) {
	goldens, err := filepath.Glob("../../istiod/translate/testdata/l7/*.yaml")
	if err != nil || len(goldens) == 0 {
		t.Fatalf("goldens: %v, %v", goldens, err)
	}
	for _, golden := range goldens {
		t.Run(filepath.Base(golden), func(t *testing.T) {
			for _, port := range ports(t, golden) {
				feed(t, config.TypeListener, port.Listener, &listenerv3.Listener{})
				feed(t, config.TypeRoute, port.Routes, &routev3.RouteConfiguration{})
				for _, message := range port.Clusters {
					feed(t, config.TypeCluster, message, &clusterv3.Cluster{})
				}
				for _, message := range port.Endpoints {
					feed(t, config.TypeEndpoint, message, &endpointv3.ClusterLoadAssignment{})
				}
			}
		})
	}
}

// port is what a golden holds for one port of a service.
type port struct {
	Listener  json.RawMessage
	Routes    json.RawMessage
	Clusters  []json.RawMessage
	Endpoints []json.RawMessage
}

func ports(t *testing.T, golden string) []port {
	t.Helper()
	data, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	_, output, found := strings.Cut(string(data), "# Output\n")
	var result struct{ Ports []port }
	if err := yaml.Unmarshal([]byte(output), &result); err != nil || !found {
		t.Fatalf("output: %v", err)
	}
	return result.Ports
}

func feed(t *testing.T, typeURL string, text json.RawMessage, message proto.Message) {
	t.Helper()
	if text == nil || string(text) == "null" {
		return
	}
	if err := protojson.Unmarshal(text, message); err != nil {
		t.Fatal(err)
	}
	body, err := anypb.New(message)
	if err != nil {
		t.Fatal(err)
	}
	var named struct{ Name, ClusterName string }
	if err := json.Unmarshal(text, &named); err != nil {
		t.Fatal(err)
	}
	nothing := func(string, ...string) {}
	builder := config.New(config.Config{
		Subscribe: nothing, Unsubscribe: nothing,
		Log: slog.New(slog.DiscardHandler), Pool: backend.NewPool(backend.Config{}),
	})
	resource := &discoveryv3.Resource{Name: named.Name + named.ClusterName, Resource: body}
	if refused := builder.Apply(typeURL, []*discoveryv3.Resource{resource}, nil); len(refused) > 0 {
		t.Errorf("refused: %v", refused)
	}
}
