package scenario

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"

	"github.com/ambit-mesh/ambit/apis/workload"
	"github.com/ambit-mesh/ambit/integration/bed"
)

// lifecycle: ztunnels and pods that come and go.
var lifecycle = []scenario{
	{"drain waits", []string{"CONNECTION_TERMINATION_DEADLINE=60s"}, drainWaits},
	{"drain ends", []string{"CONNECTION_TERMINATION_DEADLINE=500ms"}, drainEnds},
	{"quit", nil, quit},
	{"pod removed", nil, podRemoved},
	{"pod released", nil, podReleased},
	{"hand-over", []string{"CONNECTION_TERMINATION_DEADLINE=60s"}, handOver},
	{"killed and restarted", nil, killed},
	{"istiod away", nil, istiodAway},
	{"port taken", nil, portTaken},
	{"metrics over HBONE", nil, metricsOverHBONE},
}

// connected is a client and a server on different nodes with a connection
// between them.
func (w *world) connected() (from, to *bed.Pod, open *client) {
	w.Helper()
	from, to = w.pod(0, "client"), w.pod(1, "server")
	w.serve(to, 8080)
	w.tell()
	open, err := w.dial(from, at(to.Addr, 8080))
	w.must(err)
	_, err = open.ask()
	w.must(err)
	return from, to, open
}

// stopped asks a node's ztunnel to end and returns what to wait for.
func (w *world) stopped(node int) <-chan error {
	z, ended := w.ztunnels[node], make(chan error, 1)
	go func() { ended <- z.Stop(w.ctx) }()
	return ended
}

// drainWaits: the open connection works to its end, new ones are refused, and
// then the process ends at once.
func drainWaits(w *world) {
	for node, name := range []string{"the client's", "the server's"} {
		from, to, open := w.connected()
		ended := w.stopped(node)
		w.await(name+" new connections are refused", func() error {
			if _, err := w.ask(from, at(to.Addr, 8080)); err == nil {
				return errors.New("still accepted")
			}
			return nil
		})
		for range 3 {
			if _, err := open.ask(); err != nil {
				w.Fatalf("%s ztunnel drains: %v", name, err)
			}
		}
		w.must(open.Close())
		w.must(<-ended)
		w.restart(node)
		w.workloads = nil
		w.must(from.Remove())
		w.must(to.Remove())
	}
}

// drainEnds: a connection that stays is ended, and so is the process.
func drainEnds(w *world) {
	_, _, open := w.connected()
	w.must(<-w.stopped(1))
	if _, err := open.ask(); err == nil {
		w.Error("the connection outlives the process")
	}
}

func quit(w *world) {
	w.connected()
	_, err := w.ztunnels[0].Post(w.ctx, "http://127.0.0.1:15000/quitquitquit")
	w.must(err)
	select {
	case <-w.ztunnels[0].Ended():
	case <-w.ctx.Done():
		w.Error("it goes on")
	}
}

func podRemoved(w *world) {
	from, to, open := w.connected()
	w.must(to.Remove())
	if _, err := open.ask(); err == nil {
		w.Error("the connection goes on")
	}
	w.await("new connections fail", func() error {
		if _, err := w.ask(from, at(to.Addr, 8080)); err == nil {
			return errors.New("answered")
		}
		return nil
	})
}

// podReleased: a pod that leaves the mesh is served as before, in plaintext.
func podReleased(w *world) {
	from, to, open := w.connected()
	w.must(open.Close())
	w.must(from.Release())
	if _, err := w.ask(from, at(to.Addr, 8080)); err != nil {
		w.Errorf("the client has left: %v", err)
	}
	w.awaitLine(1, "in plaintext", func(l line) bool { return isFrom(l, from.Addr) && l.SrcIdentity == "" })
}

// restart starts a new ztunnel on a node.
func (w *world) restart(node int) {
	w.Helper()
	z, err := w.nodes[node].StartZtunnel(w.ctx, w.binary, w.env...)
	w.must(err)
	w.ztunnels[node] = z
}

// handOver: one ztunnel follows another on both nodes in turn while connections
// are opened without pause; none is refused, none is cut, and a long one lives
// as long as the old process drains.
func handOver(w *world) {
	from, to, open := w.connected()
	stop, failures := make(chan struct{}), make(chan error, 1000)
	var asking sync.WaitGroup
	var made [4]int
	for i := range made {
		asking.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if _, err := w.ask(from, at(to.Addr, 8080)); err != nil {
					failures <- err
				}
				made[i]++
			}
		})
	}
	for node := range w.nodes {
		old := w.ztunnels[node]
		w.restart(node)
		ended := make(chan error, 1)
		go func() { ended <- old.Stop(w.ctx) }()
		for range 20 {
			if _, err := open.ask(); err != nil {
				w.Errorf("the long connection: %v", err)
				break
			}
		}
		w.must(open.Close())
		w.must(<-ended)
		var err error
		open, err = w.dial(from, at(to.Addr, 8080))
		w.must(err)
		_, err = open.ask()
		w.must(err)
	}
	close(stop)
	asking.Wait()
	close(failures)
	failed := 0
	for err := range failures {
		if failed++; failed <= 3 {
			w.Errorf("connection: %v", err)
		}
	}
	w.Logf("%d connections of %v failed", failed, made)
}

// killed: who follows a ztunnel that was killed serves the pods that are there.
func killed(w *world) {
	for node := range w.nodes {
		from, to, open := w.connected()
		w.ztunnels[node].Kill()
		if _, err := open.ask(); err == nil {
			w.Error("the connection outlives the process")
		}
		if _, err := w.ask(from, at(to.Addr, 8080)); err == nil {
			w.Error("a connection is made without a ztunnel: it is not encrypted")
		}
		w.restart(node)
		if _, err := w.ask(from, at(to.Addr, 8080)); err != nil {
			w.Errorf("after the restart on %s: %v", w.nodes[node].Name, err)
		}
		w.workloads = nil
		w.must(from.Remove())
		w.must(to.Remove())
	}
}

// istiodAway: what is known is enough for pods that are there; what istiod knows
// when it comes back arrives.
func istiodAway(w *world) {
	from, to, open := w.connected()
	w.bed.StopControl()
	if _, err := open.ask(); err != nil {
		w.Errorf("the open connection: %v", err)
	}
	for i := range 10 {
		if _, err := w.ask(from, at(to.Addr, 8080)); err != nil {
			w.Fatalf("connection %d: %v", i, err)
		}
	}
	w.must(w.bed.StartControl())
	late := w.pod(1, "late")
	w.serve(late, 8080)
	w.tell()
	if got, err := w.ask(from, at(late.Addr, 8080)); err != nil || got.pod != "late" {
		w.Errorf("a pod that came after: %v, %v", fmt.Sprint(got), err)
	}
	if _, err := open.ask(); err != nil {
		w.Errorf("the open connection, afterwards: %v", err)
	}
}

// portTaken: a pod whose application sits on a port of ztunnel's is refused, and
// the agent is told why.
func portTaken(w *world) {
	p := w.plainPod(0, "busy")
	l, err := p.Listen(15008)
	w.must(err)
	defer func() { _ = l.Close() }()
	if err := p.Enrol(); err == nil || !strings.Contains(err.Error(), "15008") {
		w.Errorf("enrolled: %v, want a reason that names the port", err)
	}
}

// metricsOverHBONE: ztunnel's own metrics are served to the mesh, as those of
// any workload.
func metricsOverHBONE(w *world) {
	client, own := w.pod(0, "client"), w.ztunnels[1].Pod()
	m := own.Workload()
	m.TunnelProtocol = workload.TunnelProtocol_HBONE
	w.workloads = append(w.workloads, m)
	w.tell()
	c, err := w.dial(client, at(own.Addr, 15020))
	w.must(err)
	_, err = io.WriteString(c, "GET /metrics HTTP/1.1\r\nHost: ztunnel\r\nConnection: close\r\n\r\n")
	w.must(err)
	answer, err := http.ReadResponse(bufio.NewReader(c), nil)
	w.must(err)
	defer func() { _ = answer.Body.Close() }()
	body, err := io.ReadAll(answer.Body)
	if answer.StatusCode != http.StatusOK || err != nil || !strings.Contains(string(body), "istio_build") {
		w.Errorf("status %d, %v: %.200s", answer.StatusCode, err, body)
	}
	w.must(c.Close())
	w.awaitLine(0, "with ztunnel's identity", func(l line) bool { return l.DstIdentity == identity(own) && l.Error == "" })
}
