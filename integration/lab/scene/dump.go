package scene

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// ZtunnelDump is what the checks read of ztunnel's /config_dump
// (spec/ztunnel.md App. B.1).
type ZtunnelDump struct {
	Workloads []struct {
		Name                  string   `json:"name"`
		Namespace             string   `json:"namespace"`
		Protocol              string   `json:"protocol"`
		AuthorizationPolicies []string `json:"authorizationPolicies"`
		Status                string   `json:"status"`
	} `json:"workloads"`
	Services []struct {
		Name      string `json:"name"`
		Namespace string `json:"namespace"`
		Waypoint  *struct {
			Destination string `json:"destination"`
		} `json:"waypoint"`
	} `json:"services"`
	Policies []struct {
		Name      string `json:"name"`
		Namespace string `json:"namespace"`
	} `json:"policies"`
	Certificates  []Certificate            `json:"certificates"`
	WorkloadState map[string]WorkloadState `json:"workloadState"`
}

// Certificate is one identity's entry in a proxy's dump.
type Certificate struct {
	Identity  string `json:"identity"`
	State     string `json:"state"`
	CertChain []struct {
		SerialNumber string `json:"serialNumber"`
	} `json:"certChain"`
}

// WorkloadState is an enrolled pod in a ztunnel's dump.
type WorkloadState struct {
	State string `json:"state"`
	Info  struct {
		Name      string `json:"name"`
		Namespace string `json:"namespace"`
	} `json:"info"`
	Connections struct {
		NotYetMeshed []struct {
			Local  string `json:"local"`
			Remote string `json:"remote"`
		} `json:"notYetMeshed"`
	} `json:"connections"`
}

// WaypointDump is what the checks read of a waypoint's /config_dump.
type WaypointDump struct {
	Listeners    []json.RawMessage `json:"listeners"`
	Routes       []json.RawMessage `json:"routes"`
	Clusters     []json.RawMessage `json:"clusters"`
	Endpoints    []json.RawMessage `json:"endpoints"`
	Certificates []Certificate     `json:"certificates"`
}

const dumpURL = "http://localhost:15000/config_dump"

// Nodes returns the names of the nodes.
func (s *Scene) Nodes(ctx context.Context) ([]string, error) {
	status, err := s.Lab.Status(ctx)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, node := range status.Nodes {
		names = append(names, node.Name)
	}
	return names, nil
}

// Ztunnel returns the dump of a node's ztunnel.
func (s *Scene) Ztunnel(ctx context.Context, node string) (ZtunnelDump, error) {
	var dump ZtunnelDump
	err := s.get(ctx, "node/"+node, dumpURL, &dump)
	return dump, err
}

// Waypoint returns the dump of a waypoint, named "namespace/gateway".
func (s *Scene) Waypoint(ctx context.Context, name string) (WaypointDump, error) {
	var dump WaypointDump
	err := s.get(ctx, name, dumpURL, &dump)
	return dump, err
}

// AwaitZtunnels waits until check succeeds on the dumps of all nodes.
func (s *Scene) AwaitZtunnels(ctx context.Context, what string, check func(node string, d ZtunnelDump) error) error {
	nodes, err := s.Nodes(ctx)
	if err != nil {
		return err
	}
	for _, node := range nodes {
		err := Await(ctx, what+" on "+node, func(ctx context.Context) error {
			dump, err := s.Ztunnel(ctx, node)
			if err != nil {
				return err
			}
			return check(node, dump)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// AwaitEnrolled waits until every pod of the namespace is known to every
// ztunnel as one that speaks HBONE, and has its proxy on its own node.
func (s *Scene) AwaitEnrolled(ctx context.Context, namespace string) error {
	pods, err := s.Pods(ctx, namespace)
	if err != nil {
		return err
	}
	return s.AwaitZtunnels(ctx, "the pods of "+namespace+" are in the mesh", func(node string, d ZtunnelDump) error {
		for _, pod := range pods {
			if !d.hasWorkload(namespace, pod.Name, "HBONE") {
				return fmt.Errorf("workload %s is not HBONE", pod.Name)
			}
			if pod.Node == node && !d.hasProxy(namespace, pod.Name) {
				return fmt.Errorf("pod %s has no proxy", pod.Name)
			}
		}
		return nil
	})
}

func (d ZtunnelDump) hasWorkload(namespace, name, protocol string) bool {
	for _, w := range d.Workloads {
		if w.Namespace == namespace && w.Name == name {
			return w.Protocol == protocol
		}
	}
	return false
}

func (d ZtunnelDump) hasProxy(namespace, name string) bool {
	for _, state := range d.WorkloadState {
		if state.Info.Namespace == namespace && state.Info.Name == name {
			return state.State == "Up"
		}
	}
	return false
}

// AwaitPolicy waits until every ztunnel has the policy "namespace/name" and,
// for each pod of the workload, lists it there.
func (s *Scene) AwaitPolicy(ctx context.Context, policy, namespace, workload string) error {
	return s.AwaitZtunnels(ctx, "policy "+policy+" applies to "+workload, func(_ string, d ZtunnelDump) error {
		known := false
		for _, p := range d.Policies {
			known = known || p.Namespace+"/"+p.Name == policy
		}
		if !known {
			return errors.New("the policy is not there")
		}
		for _, w := range d.Workloads {
			if w.Namespace == namespace && strings.HasPrefix(w.Name, workload+"-") && !slices.Contains(w.AuthorizationPolicies, policy) {
				return fmt.Errorf("workload %s does not list it", w.Name)
			}
		}
		return nil
	})
}

// AwaitServiceWaypoint waits until every ztunnel sends the service's traffic
// to a waypoint.
func (s *Scene) AwaitServiceWaypoint(ctx context.Context, namespace, service string) error {
	return s.AwaitZtunnels(ctx, "service "+service+" has its waypoint", func(_ string, d ZtunnelDump) error {
		for _, known := range d.Services {
			if known.Namespace == namespace && known.Name == service && known.Waypoint != nil {
				return nil
			}
		}
		return errors.New("it has none")
	})
}

// AwaitRoutes waits until the waypoint's route configuration of the service
// ("<hostname>:<port>") contains all of the texts and none that begin with "!".
func (s *Scene) AwaitRoutes(ctx context.Context, waypoint, service string, texts ...string) error {
	return Await(ctx, "the waypoint has the routes of "+service, func(ctx context.Context) error {
		dump, err := s.Waypoint(ctx, waypoint)
		if err != nil {
			return err
		}
		for _, route := range dump.Routes {
			var named struct {
				Name string `json:"name"`
			}
			if err := json.Unmarshal(route, &named); err != nil {
				return err
			}
			if named.Name == service {
				return containsRoutes(string(route), texts)
			}
		}
		return errors.New("no such route configuration")
	})
}

func containsRoutes(route string, texts []string) error {
	for _, text := range texts {
		unwanted, negative := strings.CutPrefix(text, "!")
		if strings.Contains(route, unwanted) == negative {
			return fmt.Errorf("want %q in %s", text, route)
		}
	}
	return nil
}

// Serials returns the serial number of every identity's certificate.
func Serials(certificates []Certificate) map[string]string {
	serials := map[string]string{}
	for _, c := range certificates {
		if len(c.CertChain) > 0 {
			serials[c.Identity] = c.CertChain[0].SerialNumber
		}
	}
	return serials
}
