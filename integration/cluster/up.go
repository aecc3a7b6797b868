package cluster

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Up starts a cluster, builds what it needs before, and returns when it can be
// used: with nodes, when they are ready and DNS answers. One that runs as
// wanted already is left alone, what remains of one that does not run any more
// is removed. When ctx ends before, nothing is left; when something fails, only
// the logs are.
func Up(ctx context.Context, config Config) (*Cluster, error) {
	config, err := config.completed()
	if err != nil {
		return nil, err
	}
	if err := Check(); err != nil {
		return nil, err
	}
	parts, err := Build(ctx, BuildOptions{CacheDir: config.CacheDir, SourceDir: config.SourceDir, Out: config.Out}, config.Nodes)
	if err != nil {
		return nil, err
	}
	c := &Cluster{state: stateOf(config.Name), record: record{Config: config, Parts: parts}}
	lock, err := c.state.lock(ctx, func() {
		fmt.Fprintf(config.Out, "waiting for another command on cluster %s to end\n", config.Name)
	})
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	if same, err := c.adopt(); same || err != nil {
		return c, err
	}
	if err := c.clean(); err != nil {
		return nil, fmt.Errorf("remove what is left of cluster %s: %w", config.Name, err)
	}
	starting, cancel := context.WithTimeout(ctx, config.Timeout)
	defer cancel()
	err = c.start(starting)
	switch {
	case err == nil:
		return c, nil
	case ctx.Err() != nil: // interrupted
		return nil, errors.Join(ctx.Err(), c.clean(), c.state.remove())
	}
	return nil, errors.Join(err, c.clean())
}

// adopt says whether the wanted cluster is running already, and fails if one is
// that was not wanted like that.
func (c *Cluster) adopt() (bool, error) {
	before, err := c.state.readRecord()
	if err != nil || !before.Complete {
		return false, nil //nolint:nilerr // what cannot be read is removed
	}
	is := &Cluster{state: c.state, record: before}
	if !is.running() {
		return false, nil
	}
	if before.Nodes != c.record.Nodes {
		return false, fmt.Errorf("cluster %s is running with %s; for %s: cluster down first, or use another --name",
			before.Name, before.profile(), c.record.profile())
	}
	if !maps.Equal(before.Parts, c.record.Parts) {
		return false, fmt.Errorf("cluster %s is running with other binaries than those of these sources: cluster down first, or use another --name", before.Name)
	}
	fmt.Fprintf(c.record.Out, "cluster %s is already running\n", before.Name)
	before.Out = c.record.Out
	c.record = before
	return true, nil
}

// profile is how people call a configuration.
func (c Config) profile() string {
	switch c.Nodes {
	case 0:
		return "a control plane only"
	case 1:
		return "1 node"
	}
	return fmt.Sprintf("%d nodes", c.Nodes)
}

// start starts everything and waits until it can be used.
//
//  1. the record, so that whatever comes next can be removed
//  2. keys and certificates
//  3. the networks
//  4. the machines, all at once
//  5. wait, and apply what every cluster has
func (c *Cluster) start(ctx context.Context) error {
	began := time.Now()
	all := machines(c.record.Nodes)
	if err := os.MkdirAll(c.state.dir(), 0o700); err != nil {
		return err
	}
	relay, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return err
	}
	defer relay.Close()
	c.record.Port = relay.Addr().(*net.TCPAddr).Port
	if err := c.state.writeRecord(c.record); err != nil { // 1
		return err
	}
	admin, err := writeCredentials(c.state, all, time.Now()) // 2
	if err != nil {
		return err
	}
	kubeconfig := admin.kubeconfig("ambit-cluster-"+c.record.Name, "https://127.0.0.1:"+strconv.Itoa(c.record.Port))
	if err := os.WriteFile(c.Kubeconfig(), kubeconfig, 0o600); err != nil {
		return err
	}
	if err := makeNetworks(c.record.Name, all); err != nil { // 3
		return fmt.Errorf("networks: %w", err)
	}
	groups, err := hierarchies()
	if err != nil {
		return err
	}
	for _, m := range all { // 4
		if err := c.startMachine(m, groups, relay.(*net.TCPListener)); err != nil {
			return fmt.Errorf("start %s: %w", m.name(), err)
		}
	}
	if err := c.await(ctx, began); err != nil { // 5
		return err
	}
	c.record.Complete = true
	return c.state.writeRecord(c.record)
}

// startMachine starts a machine's pid 1, which outlives the caller.
func (c *Cluster) startMachine(m machine, groups []hierarchy, relay *net.TCPListener) error {
	dir := c.state.machine(m)
	for _, d := range []string{"logs", "config"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return err
		}
	}
	if err := writeJSON(filepath.Join(dir, "init.json"), orders{
		Cluster: c.record.Name, Node: m.node, Nodes: c.record.Nodes,
		Parts: c.record.Parts, Limited: !mayRaiseLimits(),
	}); err != nil {
		return err
	}
	if err := makeCgroups(groups, c.record.Name, m.name()); err != nil {
		return err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer w.Close()
	defer r.Close()
	log, err := os.OpenFile(c.state.log(m, "init"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()

	command := exec.Command(c.record.Tool, InitCommand, dir)
	command.Dir, command.Env = "/", machineEnvironment()
	command.Stdout, command.Stderr = log, log
	command.ExtraFiles = []*os.File{r}
	if m.node == 0 {
		file, err := relay.File()
		if err != nil {
			return err
		}
		defer file.Close()
		command.ExtraFiles = append(command.ExtraFiles, file)
	}
	command.SysProcAttr = &syscall.SysProcAttr{
		Setsid:     true,
		Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC,
	}
	if err := inNetNS(netNSName(c.record.Name, m.name()), command.Start); err != nil {
		return err
	}
	go func() { _ = command.Wait() }() // how it ends, its log says
	self, err := processOf(command.Process.Pid)
	if err == nil {
		err = writeJSON(filepath.Join(dir, "process.json"), self)
	}
	if err == nil {
		err = joinCgroups(groups, c.record.Name, m.name(), self.PID)
	}
	if err != nil { // it ends with the pipe
		return err
	}
	_, err = w.Write([]byte{1})
	return err
}

// mayRaiseLimits says whether the caller has CAP_SYS_RESOURCE to give.
func mayRaiseLimits() bool {
	set, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, unix.CAP_SYS_RESOURCE, 0, 0, 0)
	return err == nil && set == 1
}

// Down ends the cluster of that name and removes all that it has, from
// whatever state: nothing that is not there is an error. It says whether there
// was anything.
func Down(ctx context.Context, name string, note func(string)) (bool, error) {
	if name == "" {
		name = DefaultName
	}
	if err := checkName(name); err != nil {
		return false, err
	}
	if os.Getuid() != 0 {
		return false, errNotRoot
	}
	c := &Cluster{state: stateOf(name), record: record{Config: Config{Name: name}}}
	_, err := os.Stat(c.state.dir())
	there := !errors.Is(err, fs.ErrNotExist)
	lock, err := c.state.lock(ctx, func() {
		note(fmt.Sprintf("waiting for another command on cluster %s to end", name))
	})
	if err != nil {
		return there, err
	}
	defer lock.Close()
	if err := c.clean(); err != nil {
		return there, err
	}
	return there, c.state.remove()
}

// Down ends the cluster and removes all that it has.
func (c *Cluster) Down(ctx context.Context) error {
	_, err := Down(ctx, c.record.Name, func(string) {})
	return err
}

// clean ends all processes of the cluster and removes its cgroups, network
// namespaces and files but the logs. It does not rely on the record: an
// interrupted start may have got further than what is written there.
func (c *Cluster) clean() error {
	var errs []error
	entries, err := os.ReadDir(c.state.dir())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		errs = append(errs, err)
	}
	for _, entry := range entries {
		var first process
		if readJSON(filepath.Join(c.state.dir(), entry.Name(), "process.json"), &first) == nil {
			errs = append(errs, first.kill(10*time.Second))
		}
	}
	groups, err := hierarchies()
	if err != nil {
		return errors.Join(append(errs, err)...)
	}
	errs = append(errs, removeCgroups(groups, c.record.Name))
	names, err := netNSNames(c.record.Name)
	errs = append(errs, err)
	for _, name := range names {
		errs = append(errs, dropNetNS(name))
	}
	errs = append(errs, removeNetNSDir(), unmountBelow(c.state.dir()))
	if err := errors.Join(errs...); err != nil {
		return err // files are removed when nobody uses them
	}
	for _, entry := range entries {
		machine := filepath.Join(c.state.dir(), entry.Name())
		if !entry.IsDir() {
			errs = append(errs, os.Remove(machine))
			continue
		}
		for _, own := range []string{"process.json", "init.json", "status.json", "pki", "config", "etc", "etc-work", "opt", "run", "var"} {
			errs = append(errs, os.RemoveAll(filepath.Join(machine, own)))
		}
	}
	return errors.Join(errs...)
}
