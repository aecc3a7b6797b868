package cluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// step is something that a start waits for.
type step struct {
	what string // "the API server is ready"
	// done is nil when it is; the error says what is missing.
	done func(ctx context.Context) error
	// machine and program are where to look if it never is.
	machine machine
	program string
}

// await waits for one step after the other and says when each was done.
func (c *Cluster) await(ctx context.Context, began time.Time) error {
	client, err := newAPI(c.Kubeconfig())
	if err != nil {
		return err
	}
	defer client.close()
	for _, s := range c.steps(client) {
		if err := c.awaitStep(ctx, s); err != nil {
			return err
		}
		fmt.Fprintf(c.record.Out, "%5.1f s  %s\n", time.Since(began).Seconds(), s.what)
	}
	return nil
}

func (c *Cluster) steps(client *api) []step {
	all := machines(c.record.Nodes)
	steps := []step{
		{what: "the API server is ready", done: client.ready, machine: all[0], program: "kube-apiserver"},
	}
	if c.record.Nodes > 0 {
		steps = append(steps, step{
			what: "DNS is applied", machine: all[0], program: "kube-apiserver",
			done: func(ctx context.Context) error { return client.apply(ctx, corednsManifest) },
		})
	}
	steps = append(steps, step{
		what: "controllers work", machine: all[0], program: "kube-controller-manager",
		done: func(ctx context.Context) error {
			return client.get(ctx, "/api/v1/namespaces/default/serviceaccounts/default", &struct{}{})
		},
	})
	for _, node := range all[1:] {
		steps = append(steps, step{
			what: node.name() + " is ready", machine: node, program: "kubelet",
			done: func(ctx context.Context) error {
				var object nodeObject
				if err := client.get(ctx, "/api/v1/nodes/"+node.name(), &object); err != nil {
					return err
				}
				if ready := conditionOf(object.Status.Conditions, "Ready"); ready.Status != "True" {
					return fmt.Errorf("%s: %s", ready.Reason, ready.Message)
				}
				return nil
			},
		})
	}
	if c.record.Nodes > 0 {
		steps = append(steps, step{
			what: "DNS answers", machine: all[1], program: "kubelet",
			done: func(ctx context.Context) error {
				var object struct {
					Status struct {
						Available int `json:"availableReplicas"`
					} `json:"status"`
				}
				if err := client.get(ctx, "/apis/apps/v1/namespaces/kube-system/deployments/coredns", &object); err != nil {
					return err
				}
				if object.Status.Available == 0 {
					return errors.New("no pod of deployment kube-system/coredns is available")
				}
				return nil
			},
		})
	}
	return steps
}

// awaitStep waits until the step is done, a machine has ended, or one of the
// programs ends again and again.
func (c *Cluster) awaitStep(ctx context.Context, s step) error {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		try, cancel := context.WithTimeout(ctx, 5*time.Second)
		err := s.done(try)
		cancel()
		if err == nil {
			return nil
		}
		if failure := c.failure(); failure != nil {
			return failure
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return c.withLog(fmt.Errorf("waited in vain until %s: %w", s.what, err), s.machine, s.program)
		}
	}
}

// tooManyStarts of a program are a failure: the API server not being there yet
// explains one or two.
const tooManyStarts = 5

// failure says which machine or program does not run as it should.
func (c *Cluster) failure() error {
	for _, m := range machines(c.record.Nodes) {
		if !c.state.pid1(m).alive() {
			return c.withLog(fmt.Errorf("%s has ended", m.name()), m, "init")
		}
		status, err := c.state.programs(m)
		if err != nil {
			continue // it has not started any yet
		}
		for _, p := range status {
			if p.Starts >= tooManyStarts {
				return c.withLog(fmt.Errorf("%s on %s ended %d times: %s", p.Name, m.name(), p.Starts-1, p.Ended), m, p.Name)
			}
		}
	}
	return nil
}

// programs reads how a machine's programs do.
func (s state) programs(m machine) ([]ProgramStatus, error) {
	var status []ProgramStatus
	err := readJSON(filepath.Join(s.machine(m), "status.json"), &status)
	return status, err
}

// withLog adds the end of a program's log to an error.
func (c *Cluster) withLog(err error, m machine, program string) error {
	path := c.state.log(m, program)
	content, _ := os.ReadFile(path)
	lines := lastLines(content, 12)
	if len(lines) == 0 {
		return fmt.Errorf("%w\n(nothing is in %s)", err, path)
	}
	return fmt.Errorf("%w\nthe end of %s:\n  %s", err, path, strings.Join(lines, "\n  "))
}

// lastLines are at most n, each cut to what fits a screen.
func lastLines(content []byte, n int) []string {
	const width = 400
	var lines []string
	all := bytes.Split(bytes.TrimSpace(content), []byte("\n"))
	for _, line := range all[max(0, len(all)-n):] {
		text := string(line)
		if len(text) > width {
			text = text[:width] + "…"
		}
		if text != "" {
			lines = append(lines, text)
		}
	}
	return lines
}
