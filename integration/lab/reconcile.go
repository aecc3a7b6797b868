package lab

import (
	"context"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
)

func equalBodies(a, b *unstructured.Unstructured) bool { return reflect.DeepEqual(a.Object, b.Object) }

// workloads lists everything that wants pods.
func (c *cluster) workloads() []workload {
	var all []workload
	c.objects.daemonSets.each(func(_ types.NamespacedName, d *appsv1.DaemonSet) { all = append(all, daemonSetWorkload(d)) })
	c.objects.deployments.each(func(_ types.NamespacedName, d *appsv1.Deployment) { all = append(all, deploymentWorkload(d)) })
	c.objects.pods.each(func(_ types.NamespacedName, p *corev1.Pod) { all = append(all, podWorkload(p)) })
	return all
}

// reconcilePods starts and stops pods.
func (c *cluster) reconcilePods(ctx context.Context) {
	byWorkload := map[string][]*pod{}
	for _, p := range c.sortedPods() {
		byWorkload[p.workload] = append(byWorkload[p.workload], p)
	}
	for _, w := range c.workloads() {
		pods := byWorkload[w.key()]
		delete(byWorkload, w.key())
		c.step(ctx, w, pods)
	}
	for _, pods := range byWorkload { // of workloads that are no more
		for _, p := range pods {
			c.remove(p)
		}
	}
}

// step does the next steps for one workload.
func (c *cluster) step(ctx context.Context, w workload, pods []*pod) {
	standings := make([]standing, len(pods))
	for i, p := range pods {
		standings[i] = p.standing()
	}
	var s steps
	if w.kind == "DaemonSet" {
		s = planDaemons(w, standings, c.nodeNames())
	} else {
		s = planReplicas(w, standings)
	}
	for _, name := range s.remove {
		c.remove(c.pods[w.name.Namespace+"/"+name])
	}
	if len(s.create) > 0 && !c.accountExists(w) {
		c.warn(fmt.Errorf("%s: service account %s does not exist", w.key(), w.account()))
		return
	}
	for _, node := range s.create {
		p, err := c.create(ctx, w, node)
		if err != nil {
			c.warn(fmt.Errorf("%s: %w", w.key(), err))
			return
		}
		c.pods[p.key()] = p
	}
}

func (w workload) account() string {
	return (&pod{spec: w.template.Spec}).account()
}

func (c *cluster) accountExists(w workload) bool {
	if w.account() == "default" {
		return true // made with the namespace
	}
	_, ok := c.objects.accounts.get(types.NamespacedName{Namespace: w.name.Namespace, Name: w.account()})
	return ok
}

// create makes a pod, on the node that has the fewest of its workload and the
// fewest in all where none is asked for, and starts its keeper.
func (c *cluster) create(ctx context.Context, w workload, nodeName string) (*pod, error) {
	n := c.leastLoaded(w.key())
	if nodeName != "" {
		at := slices.IndexFunc(c.nodes, func(n *node) bool { return n.name == nodeName })
		if at < 0 {
			return nil, fmt.Errorf("there is no node %s", nodeName)
		}
		n = c.nodes[at]
	}
	address, err := n.newAddress(c.addressUsed)
	if err != nil {
		return nil, err
	}
	p := newPod(w, n, address, time.Now())
	own, cancel := context.WithCancel(ctx)
	p.stop = cancel
	k := &keeper{c: c, pod: p, log: c.log.With("pod", p.key(), "node", n.name)}
	// The object exists before anything of the pod does: who is asked about the
	// pod (ambit-cni, istiod) must be able to know it.
	c.warn(c.writePod(p))
	p.dirty = false
	c.workers.Go(func() { k.run(own) })
	return p, nil
}

func (c *cluster) addressUsed(a netip.Addr) bool {
	for _, p := range c.pods {
		if p.address == a {
			return true
		}
	}
	return false
}

func (c *cluster) leastLoaded(workload string) *node {
	load := map[*node]int{}
	for _, p := range c.pods {
		if !p.spec.HostNetwork {
			load[p.node]++
		}
		if p.workload == workload && !p.terminating {
			load[p.node] += 1 << 16
		}
	}
	return slices.MinFunc(c.nodes, func(a, b *node) int { return load[a] - load[b] })
}

func (c *cluster) nodeNames() []string {
	names := make([]string, len(c.nodes))
	for i, n := range c.nodes {
		names[i] = n.name
	}
	return names
}

// remove takes a pod out of service; its keeper is told once the endpoints
// have been published without it, at the end of this reconciliation.
func (c *cluster) remove(p *pod) {
	if p == nil || p.terminating {
		return
	}
	grace := 30 * time.Second
	if seconds := p.spec.TerminationGracePeriodSeconds; seconds != nil {
		grace = time.Duration(*seconds) * time.Second
	}
	p.terminating, p.deletedAt, p.dirty = true, time.Now().Add(grace), true
	c.workers.Go(func() {
		c.ask(func() {}) // after this reconciliation
		p.stop()
	})
}

// checkReady tells the starter what it waits for, until there is nothing.
func (c *cluster) checkReady() {
	if c.up {
		return
	}
	waiting := []string{}
	for _, w := range c.workloads() {
		want, have, why := w.replicas, 0, ""
		if w.kind == "DaemonSet" {
			want = len(c.nodes)
		}
		for _, p := range c.sortedPods() {
			if p.workload != w.key() || p.revision != w.revision {
				continue
			}
			if p.ready() || p.finished() {
				have++
			} else if p.message != "" {
				why = ": pod " + p.name + ": " + p.message
			}
		}
		if !c.accountExists(w) {
			why = ": service account " + w.account() + " does not exist"
		}
		if have < want {
			waiting = append(waiting, fmt.Sprintf("%s: %d of %d ready%s", w.key(), have, want, why))
		}
	}
	if len(waiting) == 0 {
		c.up = true
	}
	if c.up || !slices.Equal(waiting, c.waiting) {
		c.waiting = waiting
		c.onReady(waiting)
	}
}
