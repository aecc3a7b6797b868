package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"
)

// control answers on the control socket.
type control struct {
	c    *cluster
	down context.CancelFunc
}

// lastWords is how long clients have for their answers when the lab ends.
const lastWords = time.Second

// run accepts until ctx ends and returns when all requests have been answered.
func (s *control) run(ctx context.Context, listener *net.UnixListener) error {
	stop := context.AfterFunc(ctx, func() { _ = listener.Close() })
	defer stop()
	var serving sync.WaitGroup
	defer serving.Wait()
	for {
		conn, err := listener.AcceptUnix()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("control socket: %w", err)
		}
		serving.Go(func() {
			defer conn.Close() //nolint:errcheck // the answer has been given
			// A client that says or reads nothing does not keep the lab from ending.
			stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Now().Add(lastWords)) })
			defer stop()
			s.serve(ctx, conn)
		})
	}
}

func (s *control) serve(ctx context.Context, conn *net.UnixConn) {
	data, files, err := readMessage(conn)
	defer func() {
		for _, file := range files {
			_ = file.Close()
		}
	}()
	if err != nil {
		return // nobody to answer to
	}
	r, err := parseRequest(data)
	answer := reply{}
	if err == nil {
		switch r.Op {
		case opStatus:
			s.c.ask(func() { answer.Status = s.c.status() })
		case opDown:
			s.down()
		case opExec:
			answer.Code, err = s.exec(ctx, conn, r, files)
		}
	}
	if err != nil {
		answer.Error = err.Error()
	}
	_ = writeMessage(conn, answer) // a client that has gone does not care
}

// exec runs a command and returns its exit code. When the client goes away or
// ctx ends, the command is killed.
func (s *control) exec(ctx context.Context, conn *net.UnixConn, r request, files []*os.File) (int, error) {
	if len(files) != stdioNumber {
		return 0, fmt.Errorf("%w: %d files, want %d", errMessage, len(files), stdioNumber)
	}
	var at place
	var env []string
	var err error
	s.c.ask(func() { at, env, err = s.c.find(r.Target) })
	if err != nil {
		return 0, err
	}
	path, err := s.c.findProgram(r.Argv[0])
	if err != nil {
		return 0, err
	}
	running, err := s.c.procs.start(command{path: path, argv: r.Argv, env: append(env, r.Env...), stdio: [3]*os.File(files), in: at})
	for _, file := range files {
		_ = file.Close() // else the client would wait for an end of output that we hold open
	}
	if err != nil {
		return 0, err
	}
	left := make(chan struct{})
	go func() { // ends when serve closes the connection
		defer close(left)
		_, _ = conn.Read(make([]byte, 1))
	}()
	select {
	case <-running.ended:
	case <-left:
	case <-ctx.Done():
	}
	s.c.procs.signal(running, syscall.SIGKILL)
	<-running.ended
	return running.code(), nil
}

var errTarget = errors.New("no such target")

// find returns where a target is and its environment; run calls it.
func (c *cluster) find(target string) (place, []string, error) {
	first, rest, ok := strings.Cut(target, "/")
	if !ok {
		return place{}, nil, fmt.Errorf("%w: %q is neither NAMESPACE/POD, NAMESPACE/DEPLOYMENT nor node/NAME", errTarget, target)
	}
	if first == "node" {
		for _, n := range c.nodes {
			if n.name == rest {
				env := []string{"PATH=" + c.options.BinDir + ":" + os.Getenv("PATH"), "HOME=/", "HOSTNAME=" + n.name}
				return n.place, env, nil
			}
		}
		return place{}, nil, fmt.Errorf("%w: node %s", errTarget, rest)
	}
	name, container, _ := strings.Cut(rest, "/")
	var found *pod
	for _, p := range c.sortedPods() {
		_, workload, _ := strings.Cut(p.workload, " ")
		if p.key() == first+"/"+name {
			found = p
			break
		}
		if workload == first+"/"+name && !p.terminating && (found == nil || !found.ready() && p.ready()) {
			found = p
		}
	}
	if found == nil {
		return place{}, nil, fmt.Errorf("%w: pod or deployment %s/%s", errTarget, first, name)
	}
	for _, spec := range found.spec.Containers {
		if container != "" && spec.Name != container {
			continue
		}
		at, ok := found.places[spec.Name]
		if !ok {
			return place{}, nil, fmt.Errorf("pod %s has not started: %s", found.key(), found.message)
		}
		return at, c.environment(found, spec).list(), nil
	}
	return place{}, nil, fmt.Errorf("%w: container %s of pod %s", errTarget, container, found.key())
}
