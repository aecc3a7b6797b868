package bed

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"github.com/ambit-mesh/ambit/apis/mesh"
	"github.com/ambit-mesh/ambit/ztunnel/netns"
)

const pollInterval = 20 * time.Millisecond

// Ztunnel is a process. It runs in a namespace of its own beside the node's
// pods, as its DaemonSet's pod does, so that an old and a new one share no port.
type Ztunnel struct {
	LogPath string // what it writes

	home  *Pod
	cmd   *exec.Cmd
	ended chan struct{}
	err   error // of Wait; read after ended
}

// StartZtunnel starts a ztunnel on the node and waits until it is ready; what
// ran before goes on beside it. The environment is that of Istio's chart,
// changed by env ("NAME=value"); nothing of this process's own reaches it.
func (n *Node) StartZtunnel(ctx context.Context, binary string, env ...string) (*Ztunnel, error) {
	home, err := n.newPod(PodOptions{Name: account + "-" + n.Name, Namespace: rootNamespace, ServiceAccount: account})
	if err != nil {
		return nil, fmt.Errorf("bed: ztunnel on %s: %w", n.Name, err)
	}
	z, err := n.launch(home, binary, env)
	if err != nil {
		return nil, fmt.Errorf("bed: ztunnel on %s: %w", n.Name, err)
	}
	if err := z.awaitReady(ctx); err != nil {
		z.Kill()
		return nil, fmt.Errorf("bed: ztunnel on %s: %w; its log ends with:\n%s", n.Name, err, z.tail())
	}
	return z, nil
}

// launch starts the process; what it leaves behind, close gives up.
func (n *Node) launch(home *Pod, binary string, env []string) (*Ztunnel, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.homes = append(n.homes, home)
	root, err := n.bed.file("root.pem", n.bed.RootPEM())
	if err != nil {
		return nil, err
	}
	token, err := n.bed.file(n.Name+".token", []byte(tokenPrefix+n.Name))
	if err != nil {
		return nil, err
	}
	z := &Ztunnel{home: home, ended: make(chan struct{}), LogPath: fmt.Sprintf("%s/%s-ztunnel-%d.log", n.bed.dir, n.Name, len(n.homes))}
	log, err := os.Create(z.LogPath)
	if err != nil {
		return nil, err
	}
	defer func() { _ = log.Close() }()
	istiod := "https://" + netip.AddrPortFrom(wireAddress, mesh.PortXDS).String()
	z.cmd = exec.Command(binary, "proxy", "ztunnel")
	z.cmd.Dir = n.bed.dir
	z.cmd.Env = append([]string{
		"NODE_NAME=" + n.Name, "POD_NAME=" + home.Name, "POD_NAMESPACE=" + home.Namespace,
		"SERVICE_ACCOUNT=" + account, "INSTANCE_IP=" + home.Addr.String(), "CLUSTER_ID=Kubernetes",
		"XDS_ADDRESS=" + istiod, "CA_ADDRESS=" + istiod, "XDS_ROOT_CA=" + root, "CA_ROOT_CA=" + root,
		"ALT_XDS_HOSTNAME=" + istiodName, "ALT_CA_HOSTNAME=" + istiodName, "AUTH_TOKEN=" + token,
		"INPOD_UDS=" + n.agent.path, "PROXY_MODE=shared", "ISTIO_META_DNS_CAPTURE=false", "RUST_LOG=info",
	}, env...)
	z.cmd.Stdout, z.cmd.Stderr = log, log
	if err := start(home.ns, z.cmd); err != nil {
		return nil, err
	}
	go func() { // ends with the process, which Kill and Bed.Close end
		z.err = z.cmd.Wait()
		close(z.ended)
	}()
	n.ztunnels = append(n.ztunnels, z)
	return z, nil
}

// start starts a command in a namespace, in a process group of its own: what a
// terminal interrupts is this process, which ends its children in order. The
// child dies with the thread that made it, and threads of Do live as long as the
// process.
func start(ns *netns.NS, c *exec.Cmd) error {
	if c.SysProcAttr == nil {
		c.SysProcAttr = &syscall.SysProcAttr{}
	}
	c.SysProcAttr.Pdeathsig, c.SysProcAttr.Setpgid = syscall.SIGKILL, true
	return ns.Do(c.Start)
}

// awaitReady polls the readiness port.
func (z *Ztunnel) awaitReady(ctx context.Context) error {
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	for last := error(nil); ; {
		select {
		case <-ctx.Done():
			return fmt.Errorf("not ready: %w (%w)", ctx.Err(), last)
		case <-z.ended:
			return fmt.Errorf("ended before it was ready: %w", z.err)
		case <-tick.C:
		}
		body, err := z.Get(ctx, "http://127.0.0.1:15021/healthz/ready")
		if err == nil {
			return nil
		}
		last = fmt.Errorf("%w %s", err, body)
	}
}

// Pid is the process's.
func (z *Ztunnel) Pid() int { return z.cmd.Process.Pid }

// Pod is the process's own.
func (z *Ztunnel) Pod() *Pod { return z.home }

// Get asks the process over HTTP, from its pod; an answer other than 200 is an
// error that holds its text.
func (z *Ztunnel) Get(ctx context.Context, url string) (string, error) {
	return z.request(ctx, http.MethodGet, url)
}

// Post asks the process over HTTP to do something.
func (z *Ztunnel) Post(ctx context.Context, url string) (string, error) {
	return z.request(ctx, http.MethodPost, url)
}

func (z *Ztunnel) request(ctx context.Context, method, url string) (string, error) {
	transport := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, to string) (net.Conn, error) {
		at, err := netip.ParseAddrPort(to)
		if err != nil {
			return nil, err
		}
		return z.home.ns.Dial(ctx, at, netns.DialOptions{})
	}}
	r, err := http.NewRequestWithContext(ctx, method, url, nil)
	if err != nil {
		return "", err
	}
	answer, err := transport.RoundTrip(r)
	if err != nil {
		return "", err
	}
	defer func() { _ = answer.Body.Close() }()
	body, err := io.ReadAll(answer.Body)
	if err == nil && answer.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s: %s", url, answer.Status, body)
	}
	return string(body), err
}

// Stop asks the process to end and waits until it has drained, or ctx is done;
// it returns why it ended otherwise than asked.
func (z *Ztunnel) Stop(ctx context.Context) error {
	if err := z.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	select {
	case <-z.ended:
		return z.err
	case <-ctx.Done():
		return fmt.Errorf("bed: ztunnel on %s: %w", z.home.node.Name, ctx.Err())
	}
}

// Kill ends the process at once and waits for that.
func (z *Ztunnel) Kill() {
	_ = z.cmd.Process.Kill()
	<-z.ended
}

// Ended is closed when the process has ended.
func (z *Ztunnel) Ended() <-chan struct{} { return z.ended }

// Log returns what the process has written.
func (z *Ztunnel) Log() (string, error) {
	text, err := os.ReadFile(z.LogPath)
	return string(text), err
}

func (z *Ztunnel) tail() string {
	text, _ := z.Log()
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return strings.Join(lines[max(0, len(lines)-20):], "\n")
}
