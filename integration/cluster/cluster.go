package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"time"
)

// DefaultName is a cluster's name when none is given.
const DefaultName = "ambit"

// Config says what to start.
type Config struct {
	// Name tells clusters on one machine apart; "" means [DefaultName].
	Name string `json:"name"`
	// Nodes is how many; 0 means 2, unless ControlPlaneOnly.
	Nodes int `json:"nodes"`
	// ControlPlaneOnly is for what needs an API server and no pods: etcd, API
	// server and controller manager, and no scheduler or node.
	ControlPlaneOnly bool `json:"controlPlaneOnly"`
	// CacheDir is where binaries are kept; "" means ambit/cluster in the user's
	// cache directory.
	CacheDir string `json:"cacheDir"`
	// SourceDir has the sources of the binaries; "" means integration/cluster/parts
	// of the repository that the tool, or the working directory, is in.
	SourceDir string `json:"sourceDir"`
	// Tool is the cluster tool's binary, which becomes each machine's pid 1; ""
	// means the running binary if it is called cluster, otherwise the
	// repository's bin/cluster.
	Tool string `json:"tool"`
	// Timeout bounds the start, without the build; 0 means three minutes.
	Timeout time.Duration `json:"-"`
	// Out is told how far the start is; nil means nobody is.
	Out io.Writer `json:"-"`
}

// completed fills in what the caller left open.
func (c Config) completed() (Config, error) {
	if c.Name == "" {
		c.Name = DefaultName
	}
	if err := checkName(c.Name); err != nil {
		return c, err
	}
	switch {
	case c.ControlPlaneOnly && c.Nodes != 0:
		return c, errors.New("a control plane alone has no nodes")
	case !c.ControlPlaneOnly && c.Nodes == 0:
		c.Nodes = 2
	}
	if c.Nodes < 0 || c.Nodes > maxNodes {
		return c, fmt.Errorf("%d nodes: want 1 to %d", c.Nodes, maxNodes)
	}
	if c.Out == nil {
		c.Out = io.Discard
	}
	if c.Timeout == 0 {
		c.Timeout = 3 * time.Minute
	}
	if c.CacheDir == "" {
		cache, err := os.UserCacheDir()
		if err != nil {
			return c, fmt.Errorf("where to keep binaries: %w", err)
		}
		c.CacheDir = filepath.Join(cache, "ambit", "cluster")
	}
	running, err := os.Executable()
	if err != nil {
		return c, err
	}
	if c.SourceDir == "" {
		if c.SourceDir, err = sourceDir(running); err != nil {
			return c, err
		}
	}
	if c.Tool == "" {
		c.Tool = running
		if filepath.Base(running) != "cluster" {
			c.Tool = filepath.Join(c.SourceDir, "../../..", "bin", "cluster")
		}
	}
	if _, err := os.Stat(c.Tool); err != nil {
		return c, fmt.Errorf("the cluster tool: %w (make build makes it)", err)
	}
	for _, path := range []*string{&c.CacheDir, &c.SourceDir, &c.Tool} { // others will use them elsewhere
		if *path, err = filepath.Abs(*path); err != nil {
			return c, err
		}
	}
	return c, nil
}

// Cluster is a cluster that has been started.
type Cluster struct {
	state  state
	record record
}

// ErrNotRunning says that there is no such cluster.
var ErrNotRunning = errors.New("is not running")

// Attach returns the running cluster of that name; "" means [DefaultName].
func Attach(name string) (*Cluster, error) {
	if name == "" {
		name = DefaultName
	}
	if err := checkName(name); err != nil {
		return nil, err
	}
	c := &Cluster{state: stateOf(name)}
	var err error
	c.record, err = c.state.readRecord()
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("cluster %s %w", name, ErrNotRunning)
	}
	return c, err
}

// Kubeconfig is the path of the administrator's kubeconfig, which works from
// the host.
func (c *Cluster) Kubeconfig() string { return c.state.kubeconfig() }

// Nodes are the names of the nodes.
func (c *Cluster) Nodes() []string {
	var names []string
	for _, node := range machines(c.record.Nodes)[1:] {
		names = append(names, node.name())
	}
	return names
}

// Kubectl is the path of a kubectl of the cluster's version.
func (c *Cluster) Kubectl() string { return filepath.Join(c.record.Parts["kube"], "kubectl") }

// Command is a command in the namespaces of a node, or of the control plane
// ("cp"), not started yet.
func (c *Cluster) Command(machine string, args ...string) *exec.Cmd {
	return exec.Command(c.record.Tool, c.execArgs(machine, args)...)
}

// CommandContext is as Command; the command is killed when ctx ends.
func (c *Cluster) CommandContext(ctx context.Context, machine string, args ...string) *exec.Cmd {
	return exec.CommandContext(ctx, c.record.Tool, c.execArgs(machine, args)...)
}

func (c *Cluster) execArgs(machine string, args []string) []string {
	return append([]string{"--name", c.record.Name, "exec", machine, "--"}, args...)
}

// machine finds a machine by its name.
func (c *Cluster) machine(name string) (machine, error) {
	for _, m := range machines(c.record.Nodes) {
		if m.name() == name {
			return m, nil
		}
	}
	return machine{}, fmt.Errorf("cluster %s has no machine %q, but cp and n1 to n%d", c.record.Name, name, c.record.Nodes)
}

// running says whether all machines' first processes are alive.
func (c *Cluster) running() bool {
	for _, m := range machines(c.record.Nodes) {
		if !c.state.pid1(m).alive() {
			return false
		}
	}
	return true
}
