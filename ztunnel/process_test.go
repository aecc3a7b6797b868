package ztunnel

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/ztunnel/config"
	"github.com/ambit-mesh/ambit/ztunnel/netns"
	"github.com/ambit-mesh/ambit/ztunnel/netns/netnstest"
)

// processName is the argv[0] by which this program knows that it is to be a
// ztunnel, as cmd/ztunnel is.
const processName = "ztunnel-process"

func runProcess() int {
	cfg, err := config.FromEnvironment()
	if err != nil {
		fmt.Println("environment:", err)
		return 1
	}
	Tune(cfg)
	z, err := New(cfg, os.Stdout)
	if err != nil {
		fmt.Println("ztunnel:", err)
		return 1
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := z.Run(ctx); err != nil {
		fmt.Println("ztunnel:", err)
		return 1
	}
	return 0
}

// process is a ztunnel inside a pod's network namespace.
type process struct {
	t    *testing.T
	pod  *netnstest.Pod
	cmd  *exec.Cmd
	out  output
	end  chan error // receives once, when it has ended
	http *http.Client
}

// start runs a ztunnel in a pod; it is killed when the test ends.
func startProcess(t *testing.T, pod *netnstest.Pod, environ ...string) *process {
	t.Helper()
	p := &process{t: t, pod: pod, cmd: exec.Command("/proc/self/exe"), end: make(chan error, 1)}
	p.http = &http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, address string) (net.Conn, error) {
		return pod.NS.Dial(ctx, netip.MustParseAddrPort(address), netns.DialOptions{})
	}}}
	p.cmd.Args[0], p.cmd.Env = processName, append([]string{"ISTIO_META_DNS_CAPTURE=false"}, environ...)
	p.cmd.Stdout, p.cmd.Stderr = &p.out, &p.out
	if err := pod.NS.Do(p.cmd.Start); err != nil {
		t.Fatalf("start: %v", err)
	}
	go func() { p.end <- p.cmd.Wait() }()
	t.Cleanup(func() {
		_ = p.cmd.Process.Kill()
		_ = p.wait() // killed
		if strings.Contains(p.out.String(), "DATA RACE") {
			t.Error("the process has a data race")
		}
		if t.Failed() {
			t.Logf("log of the ztunnel at %s:\n%s", pod.Addr, p.out.String())
		}
	})
	return p
}

// wait returns how the process has ended.
func (p *process) wait() error {
	p.t.Helper()
	select {
	case err := <-p.end:
		p.end <- err
		return err
	case <-time.After(patience):
		p.t.Error("the process does not end")
		return nil
	}
}

// get asks an HTTP port on the pod's loopback.
func (p *process) get(url string) string {
	r, err := p.http.Get("http://127.0.0.1:" + url)
	if err != nil {
		return err.Error()
	}
	defer r.Body.Close()
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return err.Error()
	}
	return string(body)
}

// until waits for a condition, which it names and shows when it does not come.
func until(t *testing.T, what string, got func() string, done func(string) bool) {
	t.Helper()
	deadline := time.After(patience)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		text := got()
		if done(text) {
			return
		}
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("%s does not happen; it is %s", what, text)
		}
	}
}

func (p *process) ready() {
	p.t.Helper()
	until(p.t, "readiness", func() string { return p.get("15021/healthz/ready") }, func(s string) bool { return s == "ready\n" })
}

func (p *process) logged(what string) {
	p.t.Helper()
	until(p.t, fmt.Sprintf("a log line with %q", what), p.out.String, func(s string) bool { return strings.Contains(s, what) })
}

// echo serves an application that sends back what it gets, and tells from where
// its connections come.
func echo(t *testing.T, pod *netnstest.Pod, port uint16) <-chan netip.Addr {
	t.Helper()
	l, err := pod.NS.Listen(netip.AddrPortFrom(pod.Addr, port), netns.ListenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	seen := make(chan netip.Addr, 64)
	go func() { // ends with the listener
		for {
			c, err := l.AcceptTCP()
			if err != nil {
				return
			}
			select {
			case seen <- c.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap():
			default: // the test looks at the first ones
			}
			go func() {
				_, _ = io.Copy(c, c)
				_ = c.Close()
			}()
		}
	}()
	t.Cleanup(func() { _ = l.Close() })
	return seen
}

// call opens a connection from a pod.
func call(t *testing.T, pod *netnstest.Pod, to netip.AddrPort) *net.TCPConn {
	t.Helper()
	c, err := pod.NS.Dial(t.Context(), to, netns.DialOptions{})
	if err != nil {
		t.Fatalf("dial %s: %v", to, err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// talk sends a word over a connection and expects it back.
func talk(c net.Conn) error {
	const word = "hello"
	_ = c.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(c, word); err != nil {
		return err
	}
	_, err := io.ReadFull(c, make([]byte, len(word)))
	return err
}
