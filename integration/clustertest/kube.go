package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/ambit-mesh/ambit/install/samples/bookinfo"
	"github.com/ambit-mesh/ambit/integration/lab"
)

const (
	awaitFor  = 90 * time.Second
	pollEvery = 200 * time.Millisecond
)

// await calls check until it succeeds.
func await(ctx context.Context, what string, check func(ctx context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, awaitFor)
	defer cancel()
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for {
		err := check(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waited for: %s: %w", what, err)
		case <-tick.C:
		}
	}
}

// program returns one of our programs with arguments.
func (t *test) program(ctx context.Context, name string, args ...string) *exec.Cmd {
	c := exec.CommandContext(ctx, filepath.Join(t.programs, name), args...)
	c.WaitDelay = 5 * time.Second
	return c
}

// output runs a program and returns what it prints; on failure, what it
// complains about is in the error.
func output(c *exec.Cmd) (string, error) {
	var out, errs bytes.Buffer
	c.Stdout, c.Stderr = &out, &errs
	if err := c.Run(); err != nil {
		return out.String(), fmt.Errorf("%s: %w: %s", strings.Join(c.Args[1:], " "), err, strings.TrimSpace(errs.String()))
	}
	return out.String(), nil
}

func (t *test) kubectl(ctx context.Context, args ...string) (string, error) {
	return output(t.program(ctx, "cluster", append([]string{"kubectl"}, args...)...))
}

// say runs kubectl and shows it, as one would type it.
func (t *test) say(ctx context.Context, args ...string) error {
	t.Command("kubectl %s", strings.Join(args, " "))
	_, err := t.kubectl(ctx, args...)
	return err
}

// apply applies one of the sample's manifests and shows it.
func (t *test) apply(ctx context.Context, name string) error {
	text, err := fs.ReadFile(bookinfo.Manifests, name)
	if err != nil {
		return err
	}
	t.Command("kubectl apply -f install/samples/bookinfo/%s", name)
	c := t.program(ctx, "cluster", "kubectl", "apply", "-f", "-")
	c.Stdin = bytes.NewReader(text)
	_, err = output(c)
	return err
}

// get decodes objects of the API server.
func (t *test) get(ctx context.Context, into any, args ...string) error {
	text, err := t.kubectl(ctx, append([]string{"get", "-o", "json"}, args...)...)
	if err != nil {
		return err
	}
	return json.Unmarshal([]byte(text), into)
}

// pod is what the checks read of a pod.
type pod struct {
	Metadata struct {
		Name              string
		UID               string
		DeletionTimestamp string
		Annotations       map[string]string
	}
	Spec   struct{ NodeName string }
	Status struct {
		PodIP             string
		Phase             string
		Conditions        []condition
		ContainerStatuses []struct{ RestartCount int }
	}
}

type condition struct{ Type, Status, Reason, Message string }

func (p pod) ready() bool {
	for _, c := range p.Status.Conditions {
		if c.Type == "Ready" {
			return c.Status == "True"
		}
	}
	return false
}

func (p pod) restarts() int {
	n := 0
	for _, c := range p.Status.ContainerStatuses {
		n += c.RestartCount
	}
	return n
}

func (t *test) pods(ctx context.Context, namespace, selector string) ([]pod, error) {
	var list struct{ Items []pod }
	err := t.get(ctx, &list, "pods", "-n", namespace, "-l", selector)
	return list.Items, err
}

// settled waits until no pod of a namespace is on its way out.
func (t *test) settled(ctx context.Context, namespace string) error {
	return await(ctx, "pods that were replaced are gone", func(ctx context.Context) error {
		pods, err := t.pods(ctx, namespace, "")
		for _, p := range pods {
			if p.Metadata.DeletionTimestamp != "" {
				err = errors.Join(err, errors.New(p.Metadata.Name+" is still there"))
			}
		}
		return err
	})
}

// rolledOut waits until the deployments of a namespace are available.
func (t *test) rolledOut(ctx context.Context, namespace string) error {
	_, err := t.kubectl(ctx, "-n", namespace, "wait", "--for=condition=Available", "--timeout=90s", "deployment", "--all")
	return err
}

// clientIn are kubectl's arguments to run the sample's client.
func clientIn(namespace string, args ...string) []string {
	return append([]string{"exec", "-n", namespace, "deployment/curl", "--", "client"}, args...)
}

// fetch makes one request from the client of a namespace.
func (t *test) fetch(ctx context.Context, namespace string, args ...string) (string, error) {
	return t.kubectl(ctx, clientIn(namespace, append([]string{"--timeout", "5s"}, args...)...)...)
}

// summary is what the client prints about many requests.
type summary struct {
	Requests, Failed int
	By               map[string]int
	Errors           []string
}

// requests makes many from the client in the mesh. Failed ones are counted and
// are no error.
func (t *test) requests(ctx context.Context, args ...string) (summary, error) {
	text, err := t.kubectl(ctx, clientIn("bookinfo", append([]string{"--summary"}, args...)...)...)
	var s summary
	if jsonErr := json.Unmarshal([]byte(text), &s); jsonErr != nil {
		return s, errors.Join(err, jsonErr)
	}
	return s, nil
}

// load is a client that keeps making requests.
type load struct {
	input io.Closer
	wait  func() error

	mu     sync.Mutex
	total  int
	failed []string
}

// load starts the client in the mesh; it makes a connection for each request.
func (t *test) load(ctx context.Context, args ...string) (*load, error) {
	argv := clientIn("bookinfo", append([]string{"--json", "--until-eof", "--interval", "20ms"}, args...)...)
	argv = append([]string{"exec", "-i"}, argv[1:]...)
	c := t.program(ctx, "cluster", append([]string{"kubectl"}, argv...)...)
	var errs bytes.Buffer
	c.Stderr = &errs
	input, err := c.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := c.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := c.Start(); err != nil {
		return nil, err
	}
	l := &load{input: input}
	read := make(chan struct{})
	go func() {
		defer close(read)
		for lines := bufio.NewScanner(out); lines.Scan(); {
			l.note(lines.Bytes())
		}
	}()
	l.wait = func() error {
		<-read
		if err := c.Wait(); err != nil {
			return fmt.Errorf("%w: %s", err, errs.String())
		}
		return nil
	}
	return l, l.more(ctx, 1)
}

func (l *load) note(line []byte) {
	var r struct {
		Status int
		Error  string
	}
	err := json.Unmarshal(line, &r)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.total++
	if err != nil || r.Error != "" || r.Status != 200 {
		l.failed = append(l.failed, string(line))
	}
}

// more waits until n more requests have ended.
func (l *load) more(ctx context.Context, n int) error {
	count := func() int {
		l.mu.Lock()
		defer l.mu.Unlock()
		return l.total
	}
	want := count() + n
	return await(ctx, fmt.Sprintf("the load makes %d more requests", n), func(context.Context) error {
		if got := count(); got < want {
			return fmt.Errorf("%d of %d", got, want)
		}
		return nil
	})
}

// stop ends the load; all its results are in afterwards.
func (l *load) stop() error {
	return errors.Join(l.input.Close(), l.wait())
}

// capture records TCP packets on the links of all nodes while run runs.
func (t *test) capture(ctx context.Context, run func() error) ([]lab.Packet, error) {
	type recording struct {
		input   io.Closer
		ended   chan error
		packets []lab.Packet
	}
	var all []*recording
	stop := func() error {
		var err error
		for _, r := range all {
			err = errors.Join(err, r.input.Close(), <-r.ended)
		}
		return err
	}
	for _, node := range t.nodes {
		c := t.program(ctx, "cluster", "exec", "--local", node, filepath.Join(t.programs, "lab"), "capture", "-i", "eth0")
		input, inErr := c.StdinPipe()
		out, outErr := c.StdoutPipe()
		if err := errors.Join(inErr, outErr); err != nil {
			return nil, errors.Join(err, stop())
		}
		if err := c.Start(); err != nil {
			return nil, errors.Join(err, stop())
		}
		r := &recording{input: input, ended: make(chan error, 1)}
		lines := bufio.NewScanner(out)
		if !lines.Scan() { // the first line says that nothing is missed from now on
			return nil, errors.Join(errors.New("capture on "+node+" did not start"), c.Wait(), stop())
		}
		go func() {
			var err error
			for lines.Scan() {
				var p lab.Packet
				if err = json.Unmarshal(lines.Bytes(), &p); err != nil {
					break
				}
				r.packets = append(r.packets, p)
			}
			_, _ = io.Copy(io.Discard, out)
			r.ended <- errors.Join(err, c.Wait())
		}()
		all = append(all, r)
	}
	runErr := run()
	err := errors.Join(runErr, stop())
	var packets []lab.Packet
	for _, r := range all {
		packets = append(packets, r.packets...)
	}
	return packets, err
}
