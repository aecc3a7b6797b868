package cluster

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
)

// Status writes how the cluster does: machines and programs, the API server,
// nodes, and the pods that are not ready.
func (c *Cluster) Status(ctx context.Context, out io.Writer) error {
	fmt.Fprintf(out, "cluster %s: %s, Kubernetes %s", c.record.Name, c.record.profile(), KubernetesVersion)
	if !c.record.Complete {
		fmt.Fprint(out, ", NOT started to its end: cluster up starts it again")
	}
	fmt.Fprintf(out, "\nkubeconfig %s\nlogs %s/*/logs/\n", c.Kubeconfig(), c.state.dir())
	if _, err := os.Stat(filepath.Join(c.record.Parts["runc"], seccompFile)); err != nil && c.record.Nodes > 0 {
		fmt.Fprintln(out, "containers run without seccomp profiles, as libseccomp's headers are not here (Debian's package is libseccomp-dev)")
	}
	fmt.Fprintln(out)
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "MACHINE\tPROGRAM\tPID\tUP\tSTARTS\tSTATE")
	for _, m := range machines(c.record.Nodes) {
		c.machineStatus(table, m)
	}
	if err := table.Flush(); err != nil {
		return err
	}
	fmt.Fprintln(out)
	return c.apiStatus(ctx, out)
}

// machineStatus writes a line for the machine and one for each program.
func (c *Cluster) machineStatus(out io.Writer, m machine) {
	first := c.state.pid1(m)
	if !first.alive() {
		fmt.Fprintf(out, "%s\t\t\t\t\tENDED, see %s\n", m.name(), c.state.log(m, "init"))
		return
	}
	fmt.Fprintf(out, "%s\t(pid 1)\t%d\t%s\t\t%s\n", m.name(), first.PID, first.age().Round(time.Second), m.address())
	programs, err := c.state.programs(m)
	if err != nil {
		fmt.Fprintf(out, "\t\t\t\t\t%v\n", err)
	}
	inside := pidsInside(first.PID)
	for _, p := range programs {
		pid, up, state := "", "", "waits"
		switch {
		case p.PID != 0:
			pid, up, state = strconv.Itoa(inside[p.PID]), time.Since(p.Started).Round(time.Second).String(), "runs"
		case p.Done:
			state = "done"
		case p.Ended != "":
			state = "ENDED: " + p.Ended
		}
		fmt.Fprintf(out, "\t%s\t%s\t%s\t%d\t%s\n", p.Name, pid, up, p.Starts, state)
	}
}

// age is how long the process has been running.
func (p process) age() time.Duration {
	content, err := os.ReadFile("/proc/uptime")
	if err != nil {
		return 0
	}
	var uptime float64
	if _, err := fmt.Sscan(string(content), &uptime); err != nil {
		return 0
	}
	const ticks = 100 // USER_HZ, on every architecture that Go has
	return time.Duration((uptime - float64(p.Started)/ticks) * float64(time.Second))
}

// pidsInside maps the pids in the namespace of which the process is the first
// to the caller's.
func pidsInside(first int) map[int]int {
	namespace, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", first))
	if err != nil {
		return nil
	}
	pids := map[int]int{}
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		if link, err := os.Readlink(dir + "/ns/pid"); err != nil || link != namespace {
			continue
		}
		content, err := os.ReadFile(dir + "/status")
		if err != nil {
			continue
		}
		if outer, inner, ok := parseNSPid(content); ok {
			pids[inner] = outer
		}
	}
	return pids
}

// parseNSPid reads a process's numbers in the outermost and the innermost pid
// namespace from proc_pid_status(5).
func parseNSPid(status []byte) (outer, inner int, ok bool) {
	for line := range bytes.Lines(status) {
		numbers, found := strings.CutPrefix(string(line), "NSpid:")
		if !found {
			continue
		}
		fields := strings.Fields(numbers)
		if len(fields) == 0 {
			return 0, 0, false
		}
		var err1, err2 error
		outer, err1 = strconv.Atoi(fields[0])
		inner, err2 = strconv.Atoi(fields[len(fields)-1])
		return outer, inner, err1 == nil && err2 == nil
	}
	return 0, 0, false
}

// apiStatus writes what the API server says.
func (c *Cluster) apiStatus(ctx context.Context, out io.Writer) error {
	client, err := newAPI(c.Kubeconfig())
	if err != nil {
		return err
	}
	defer client.close()
	if err := client.ready(ctx); err != nil {
		fmt.Fprintf(out, "API server: NOT ready: %v\n", err)
		return nil
	}
	fmt.Fprintf(out, "API server: ready at %s\n", client.url)
	nodes, err := client.nodes(ctx)
	if err != nil {
		return err
	}
	for _, node := range nodes {
		state := "ready"
		if ready := conditionOf(node.Status.Conditions, "Ready"); ready.Status != "True" {
			state = "NOT ready: " + ready.Message
		}
		fmt.Fprintf(out, "node %s: %s, kubelet %s\n", node.Metadata.Name, state, node.Status.NodeInfo.KubeletVersion)
	}
	pods, err := client.pods(ctx)
	if err != nil {
		return err
	}
	ready := 0
	for _, pod := range pods {
		if pod.Status.Phase == "Succeeded" || conditionOf(pod.Status.Conditions, "Ready").Status == "True" {
			ready++
			continue
		}
		fmt.Fprintf(out, "pod %s/%s on %s: NOT ready: %s\n", pod.Metadata.Namespace, pod.Metadata.Name, pod.Spec.NodeName, pod.why())
	}
	fmt.Fprintf(out, "pods: %d of %d ready\n", ready, len(pods))
	return nil
}

// why says what a pod waits for.
func (p podObject) why() string {
	for _, container := range p.Status.ContainerStatuses {
		if w := container.State.Waiting; w.Reason != "" {
			return strings.TrimSuffix(w.Reason+": "+w.Message, ": ")
		}
	}
	if c := conditionOf(p.Status.Conditions, "PodScheduled"); c.Status == "False" {
		return c.Reason + ": " + c.Message
	}
	return p.Status.Phase
}
