package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/ambit-mesh/ambit/apis/manifest"
)

// stopTime is how long the lab's processes have to end in peace.
const stopTime = 2 * time.Second

// Init is the life of pid 1; cmd/lab calls it when it is started as such. It
// returns when the lab is to end, and the kernel does the rest.
func Init(ctx context.Context) error {
	if os.Getpid() != 1 {
		return errors.New("this is the life of a lab's pid 1: use lab up")
	}
	// Other threads come and go with namespaces of their own; /proc/self is the
	// first one's, which must stay where it is.
	runtime.LockOSThread()
	syscall.CloseOnExec(fdReport)
	syscall.CloseOnExec(fdLock)
	reports := json.NewEncoder(os.NewFile(fdReport, "report"))
	err := runInit(ctx, reports)
	if err != nil {
		_ = reports.Encode(report{Error: err.Error()}) // nobody else to tell
	}
	return err
}

func runInit(ctx context.Context, reports *json.Encoder) error {
	data, err := io.ReadAll(os.Stdin)
	if err != nil {
		return err
	}
	var options Options
	if err := json.Unmarshal(data, &options); err != nil {
		return fmt.Errorf("options: %w", err)
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	c := newCluster(options, log)
	listener, err := setUp(c)
	if err != nil {
		return fmt.Errorf("%w: %w", errSetup, err)
	}
	c.onReady = reporter(reports, log)
	go c.procs.reap()

	ctx, stop := signal.NotifyContext(ctx, syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	running, end := context.WithCancel(context.WithoutCancel(ctx))
	defer end()
	var parts sync.WaitGroup
	var failed error
	parts.Go(func() {
		if err := c.run(running); err != nil {
			failed = err
			stop()
		}
	})
	answering, endAnswering := context.WithCancel(ctx)
	defer endAnswering()
	server := &control{c: c, down: stop}
	parts.Go(func() {
		if err := server.run(answering, listener); err != nil {
			log.Error("control", "error", err)
			stop() // a lab that nobody can talk to
		}
	})
	<-ctx.Done()
	log.Info("lab ends")
	c.stopAll(stopTime)
	end()
	parts.Wait()
	// The kernel would do it too, but only after it has let go of the lock, which
	// says that nothing runs any more.
	killAll(stopTime)
	return failed
}

// setUp makes everything that pods need.
func setUp(c *cluster) (*net.UnixListener, error) {
	if err := mountRoot(); err != nil {
		return nil, err
	}
	var err error
	if c.nodes, err = setUpNodes(c.options.Nodes); err != nil {
		return nil, err
	}
	if c.dns, err = newDNSServer(dnsEndpoint); err != nil {
		return nil, err
	}
	if c.tokens, err = newIssuer(c.options.StateDir); err != nil {
		return nil, err
	}
	for _, n := range c.nodes {
		if err := n.nat.set(nil); err != nil {
			return nil, err
		}
		body, err := manifest.ToUnstructured(n.object())
		if err != nil {
			return nil, err
		}
		if err := c.store.Apply(body); err != nil {
			return nil, err
		}
	}
	if !c.options.NoMesh {
		if err := writeMesh(c.store, c.options.MeshEnv); err != nil {
			return nil, err
		}
	}
	return listenControl(c.options.StateDir)
}

// reporter tells the starter what is awaited, and finally that nothing is.
func reporter(reports *json.Encoder, log *slog.Logger) func([]string) {
	began := time.Now()
	return func(waiting []string) {
		r := report{Ready: len(waiting) == 0, Error: strings.Join(waiting, "; ")}
		if r.Ready {
			log.Info("lab is up", "after", time.Since(began).Round(time.Millisecond))
		}
		if err := reports.Encode(r); err != nil && !errors.Is(err, syscall.EPIPE) {
			log.Warn("report", "error", err)
		}
	}
}
