package lab

import (
	"cmp"
	"context"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// keepContainer runs a container, again and again as its pod's policy says,
// until ctx ends; then it ends the container as a kubelet does.
func (k *keeper) keepContainer(ctx context.Context, c corev1.Container) {
	for wait := backOffFirst; ctx.Err() == nil; wait = min(wait*2, restartLast) {
		began := time.Now()
		code, err := k.runContainer(ctx, c)
		if ctx.Err() != nil {
			return
		}
		again := restarts(k.pod.spec.RestartPolicy, code)
		if err != nil {
			k.log.Warn("container does not start", "container", c.Name, "error", err)
		} else {
			k.log.Info("container ended", "container", c.Name, "code", code, "restart", again)
		}
		k.report(func(p *pod) { p.containerEnded(c.Name, code, err, again) })
		if !again {
			return
		}
		if time.Since(began) > restartLast {
			wait = backOffFirst
		}
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
	}
}

func restarts(policy corev1.RestartPolicy, code int) bool {
	switch policy {
	case corev1.RestartPolicyNever:
		return false
	case corev1.RestartPolicyOnFailure:
		return code != 0
	default:
		return true
	}
}

// containerEnded notes that a container ended or could not be started.
func (p *pod) containerEnded(name string, code int, err error, again bool) {
	c := p.container(name)
	c.running, c.ready, c.changed, c.ended, c.code = false, false, time.Now(), true, int32(code)
	c.waiting = ""
	if again {
		c.waiting = "CrashLoopBackOff"
		c.restarts++
		p.message = fmt.Sprintf("container %s ended with code %d", name, code)
		if err != nil {
			p.message = fmt.Sprintf("container %s: %s", name, err)
		}
		return
	}
	phase := corev1.PodSucceeded
	for _, other := range p.containers {
		if other.running || other.waiting != "" {
			return
		}
		if other.code != 0 {
			phase = corev1.PodFailed
		}
	}
	p.phase = phase
}

// runContainer runs a container once and returns its exit code.
func (k *keeper) runContainer(ctx context.Context, c corev1.Container) (int, error) {
	program, err := k.program(c)
	if err != nil {
		return 127, err
	}
	log, err := os.OpenFile(logFile(k.c.options.StateDir, k.pod.namespace, k.pod.name, c.Name), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return 127, err
	}
	defer log.Close()
	null, err := os.Open(os.DevNull)
	if err != nil {
		return 127, err
	}
	defer null.Close()
	program.stdio = [3]*os.File{null, log, log}
	running, err := k.c.procs.start(program)
	if err != nil {
		return 127, err
	}
	k.report(func(p *pod) {
		state := p.container(c.Name)
		state.running, state.ready, state.changed, state.waiting = true, c.ReadinessProbe == nil, time.Now(), ""
		p.message = ""
	})
	probing, stopProbing := context.WithCancel(ctx)
	probed := make(chan struct{})
	go func() {
		defer close(probed)
		k.probe(probing, c)
	}()
	select {
	case <-running.ended:
	case <-ctx.Done():
		k.endContainer(c, running)
	}
	stopProbing()
	<-probed
	return running.code(), nil
}

// endContainer asks the container to end and makes it, after the grace period.
func (k *keeper) endContainer(c corev1.Container, running *process) {
	grace := 30 * time.Second
	if seconds := k.pod.spec.TerminationGracePeriodSeconds; seconds != nil {
		grace = time.Duration(*seconds) * time.Second
	}
	deadline := time.After(grace)
	if c.Lifecycle != nil && c.Lifecycle.PreStop != nil && c.Lifecycle.PreStop.Sleep != nil {
		select {
		case <-time.After(time.Duration(c.Lifecycle.PreStop.Sleep.Seconds) * time.Second):
		case <-deadline:
		case <-running.ended:
		}
	}
	k.c.procs.signal(running, syscall.SIGTERM)
	select {
	case <-running.ended:
	case <-deadline:
		k.c.procs.signal(running, syscall.SIGKILL)
		<-running.ended
	}
}

// program is what the container runs.
func (k *keeper) program(c corev1.Container) (command, error) {
	var at place
	k.c.ask(func() { at = k.pod.places[c.Name] })
	env := k.c.environment(k.pod, c)
	argv := make([]string, 0, 1+len(c.Args))
	for _, word := range c.Command {
		argv = append(argv, expand(word, env.values))
	}
	if len(argv) == 0 {
		argv = append(argv, imageProgram(c.Image))
	}
	path, err := k.c.findProgram(argv[0])
	if err != nil {
		return command{}, err
	}
	for _, word := range c.Args {
		argv = append(argv, expand(word, env.values))
	}
	return command{path: path, argv: argv, env: env.list(), dir: c.WorkingDir, in: at}, nil
}

// imageProgram is the last path element of an image's name.
func imageProgram(image string) string {
	image, _, _ = strings.Cut(image, "@")
	name := image[strings.LastIndex(image, "/")+1:]
	name, _, _ = strings.Cut(name, ":")
	return name
}

// findProgram looks among the lab's binaries, then where the name says, then in
// PATH. An absolute path of an image is found by its last element.
func (c *cluster) findProgram(name string) (string, error) {
	ours := filepath.Join(c.options.BinDir, filepath.Base(name))
	if info, err := os.Stat(ours); err == nil && info.Mode().IsRegular() {
		return ours, nil
	}
	if name == "lab" {
		return "/proc/1/exe", nil
	}
	path, err := exec.LookPath(name)
	if err != nil {
		return "", fmt.Errorf("program %s: neither in %s nor on this machine: %w", name, c.options.BinDir, fs.ErrNotExist)
	}
	return path, nil
}

// environment is a container's, in order, and what $(NAME) means there.
type environment struct {
	names  []string
	values map[string]string
	hidden map[string]bool // only for expansion
}

func (e *environment) set(name, value string) {
	if _, ok := e.values[name]; !ok {
		e.names = append(e.names, name)
	}
	e.values[name] = value
}

func (e *environment) list() []string {
	var list []string
	for _, name := range e.names {
		if !e.hidden[name] {
			list = append(list, name+"="+e.values[name])
		}
	}
	return list
}

// environment builds the container's environment.
func (c *cluster) environment(p *pod, container corev1.Container) *environment {
	e := &environment{values: map[string]string{}, hidden: map[string]bool{}}
	e.set("PATH", c.options.BinDir+":"+cmp.Or(os.Getenv("PATH"), "/usr/local/bin:/usr/bin:/bin"))
	e.set("HOME", "/")
	e.set("HOSTNAME", p.hostName())
	if p.namespace == systemNamespace {
		for name, value := range c.placeholders() {
			e.set(name, value)
			e.hidden[name] = true
		}
	}
	for _, v := range container.Env {
		value := expand(v.Value, e.values)
		if v.ValueFrom != nil && v.ValueFrom.FieldRef != nil {
			value = p.field(v.ValueFrom.FieldRef.FieldPath)
		}
		e.set(v.Name, value)
		e.hidden[v.Name] = false
	}
	return e
}

// placeholders are what the mesh's own manifests may refer to.
func (c *cluster) placeholders() map[string]string {
	return map[string]string{
		"AMBIT_CONFIG_DIR": c.options.ConfigDir,
		"AMBIT_STATE_DIR":  c.options.StateDir,
		"AMBIT_JWKS_FILE":  jwksFile(c.options.StateDir),
		"AMBIT_JWT_ISSUER": Issuer,
	}
}

// field is the value that a fieldRef names.
func (p *pod) field(path string) string {
	if name, ok := strings.CutPrefix(path, "metadata.labels['"); ok {
		return p.labels[strings.TrimSuffix(name, "']")]
	}
	if name, ok := strings.CutPrefix(path, "metadata.annotations['"); ok {
		return p.annotations[strings.TrimSuffix(name, "']")]
	}
	switch path {
	case "metadata.name":
		return p.name
	case "metadata.namespace":
		return p.namespace
	case "metadata.uid":
		return p.uid
	case "spec.nodeName":
		return p.node.name
	case "spec.serviceAccountName":
		return p.account()
	case "status.podIP", "status.podIPs":
		return p.address.String()
	case "status.hostIP", "status.hostIPs":
		return p.node.address.String()
	}
	return ""
}

// expand replaces $(NAME) by its value where there is one; $$ stands for $.
func expand(text string, values map[string]string) string {
	var b strings.Builder
	for {
		at := strings.IndexByte(text, '$')
		if at < 0 || at == len(text)-1 {
			b.WriteString(text)
			return b.String()
		}
		b.WriteString(text[:at])
		text = text[at:]
		if text[1] == '$' {
			b.WriteByte('$')
			text = text[2:]
			continue
		}
		end := strings.IndexByte(text, ')')
		if text[1] != '(' || end < 0 {
			b.WriteByte('$')
			text = text[1:]
			continue
		}
		if value, ok := values[text[2:end]]; ok {
			b.WriteString(value)
		} else {
			b.WriteString(text[:end+1])
		}
		text = text[end+1:]
	}
}
