package lab

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"
)

// Status is the lab at one moment.
type Status struct {
	Nodes    []NodeStatus    `json:"nodes"`
	Pods     []PodStatus     `json:"pods"`
	Services []ServiceStatus `json:"services"`
	Waiting  []string        `json:"waiting,omitempty"` // until the lab is up
}

// NodeStatus is one node.
type NodeStatus struct {
	Name    string `json:"name"`
	Address string `json:"address"`
	Gateway string `json:"gateway"` // of its pods
}

// PodStatus is one pod.
type PodStatus struct {
	Namespace      string `json:"namespace"`
	Name           string `json:"name"`
	UID            string `json:"uid"`
	Workload       string `json:"workload"` // "Deployment ns/name"
	ServiceAccount string `json:"serviceAccount"`
	Node           string `json:"node"`
	Address        string `json:"address,omitempty"`
	Phase          string `json:"phase"`
	Ready          bool   `json:"ready"`
	Terminating    bool   `json:"terminating,omitempty"`
	Restarts       int    `json:"restarts"`
	Message        string `json:"message,omitempty"`
}

// ServiceStatus is one Service.
type ServiceStatus struct {
	Namespace string   `json:"namespace"`
	Name      string   `json:"name"`
	ClusterIP string   `json:"clusterIP"` // "None" for a headless one
	Ports     []string `json:"ports"`
	Ready     []string `json:"ready"` // addresses of ready endpoints
}

// status describes the cluster; run calls it.
func (c *cluster) status() *Status {
	s := &Status{}
	if !c.up {
		s.Waiting = c.waiting
	}
	for _, n := range c.nodes {
		s.Nodes = append(s.Nodes, NodeStatus{Name: n.name, Address: n.address.String(), Gateway: n.gateway.String()})
	}
	for _, p := range c.sortedPods() {
		ps := PodStatus{
			Namespace: p.namespace, Name: p.name, UID: p.uid, Workload: p.workload, ServiceAccount: p.account(), Node: p.node.name,
			Phase: string(p.phase), Ready: p.ready(), Terminating: p.terminating, Message: p.message,
		}
		if p.hasAddress {
			ps.Address = p.address.String()
		}
		for _, container := range p.containers {
			ps.Restarts += int(container.restarts)
		}
		s.Pods = append(s.Pods, ps)
	}
	for _, b := range c.backends {
		ss := ServiceStatus{Namespace: b.name().Namespace, Name: b.name().Name, ClusterIP: cmp.Or(b.service.Spec.ClusterIP, "None")}
		if b.address.IsValid() {
			ss.ClusterIP = b.address.String()
		}
		for _, p := range b.service.Spec.Ports {
			ss.Ports = append(ss.Ports, fmt.Sprintf("%d/%s", p.Port, cmp.Or(p.Protocol, "TCP")))
		}
		for _, e := range b.endpoints {
			if e.ready {
				ss.Ready = append(ss.Ready, e.address.String())
			}
		}
		s.Services = append(s.Services, ss)
	}
	return s
}

// Write prints the status as tables for people.
func (s Status) Write(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	line := func(columns ...string) { _, _ = fmt.Fprintln(t, strings.Join(columns, "\t")) } // Flush says it
	line("NODE", "ADDRESS", "POD GATEWAY")
	for _, n := range s.Nodes {
		line(n.Name, n.Address, n.Gateway)
	}
	line()
	line("NAMESPACE", "POD", "READY", "STATUS", "RESTARTS", "ADDRESS", "NODE")
	for _, p := range s.Pods {
		state := p.Phase
		if p.Terminating {
			state = "Terminating"
		}
		if p.Message != "" && !p.Ready {
			state += " (" + p.Message + ")"
		}
		line(p.Namespace, p.Name, fmt.Sprint(p.Ready), state, fmt.Sprint(p.Restarts), cmp.Or(p.Address, "-"), p.Node)
	}
	line()
	line("NAMESPACE", "SERVICE", "CLUSTER IP", "PORTS", "READY ENDPOINTS")
	for _, x := range s.Services {
		line(x.Namespace, x.Name, x.ClusterIP, cmp.Or(strings.Join(x.Ports, ","), "-"), cmp.Or(strings.Join(x.Ready, ","), "-"))
	}
	for _, waiting := range s.Waiting {
		line()
		line("waits for " + waiting)
	}
	return t.Flush()
}

// Of returns the pods of a workload: "ns/name" is a pod or the name of a
// Deployment or DaemonSet.
func (s Status) Of(target string) []PodStatus {
	var found []PodStatus
	for _, p := range s.Pods {
		_, workload, _ := strings.Cut(p.Workload, " ")
		if p.Namespace+"/"+p.Name == target || workload == target {
			found = append(found, p)
		}
	}
	return found
}

// waitInterval is how often Wait looks.
const waitInterval = 20 * time.Millisecond

// Wait asks for the status until the condition holds and returns it.
func (l *Lab) Wait(ctx context.Context, condition func(Status) bool) (Status, error) {
	for {
		s, err := l.Status(ctx)
		if err != nil {
			return s, err
		}
		if condition(s) {
			return s, nil
		}
		select {
		case <-ctx.Done():
			return s, fmt.Errorf("lab: condition not met: %w", ctx.Err())
		case <-time.After(waitInterval):
		}
	}
}

// WaitReady waits until the pod or workload has the number of ready pods, and
// no other.
func (l *Lab) WaitReady(ctx context.Context, target string, count int) ([]PodStatus, error) {
	s, err := l.Wait(ctx, func(s Status) bool {
		pods := s.Of(target)
		for _, p := range pods {
			if !p.Ready {
				return false
			}
		}
		return len(pods) == count
	})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", target, err)
	}
	return s.Of(target), nil
}
