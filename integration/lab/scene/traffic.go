package scene

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/ambit-mesh/ambit/integration/lab"
)

// Summary is what the sample's client prints about many requests.
type Summary struct {
	Requests    int            `json:"requests"`
	Failed      int            `json:"failed"`
	Connections int            `json:"connections"`
	Statuses    map[string]int `json:"statuses"`
	By          map[string]int `json:"by"`
	Errors      []string       `json:"errors"`
	P50         float64        `json:"p50_us"`
	P99         float64        `json:"p99_us"`
}

// Request is one request of a load.
type Request struct {
	Time   time.Time `json:"time"`
	Status int       `json:"status"`
	Error  string    `json:"error"`
	By     string    `json:"by"`
	Local  string    `json:"local"`
}

// Failed reports whether the request had no good response.
func (r Request) Failed() bool { return r.Error != "" || r.Status >= 400 }

// Get makes one request with the client and returns the body.
func (s *Scene) Get(ctx context.Context, from string, args ...string) (string, error) {
	return s.Run(ctx, from, append([]string{"client", "--timeout", "5s"}, args...)...)
}

// Requests makes requests with the client and returns its summary; failed ones
// are counted there and are no error.
func (s *Scene) Requests(ctx context.Context, from string, args ...string) (Summary, error) {
	text, err := s.Run(ctx, from, append([]string{"client", "--summary"}, args...)...)
	var exit *ExitError
	if err != nil && !errors.As(err, &exit) {
		return Summary{}, err
	}
	var summary Summary
	if jsonErr := json.Unmarshal([]byte(text), &summary); jsonErr != nil {
		return Summary{}, errors.Join(err, jsonErr)
	}
	return summary, nil
}

// Load is a client that keeps making requests.
type Load struct {
	input *os.File
	ended chan error

	mu       sync.Mutex
	requests []Request
}

// Load starts the client in a pod and returns once it has had its first good
// response.
func (s *Scene) Load(ctx context.Context, from string, args ...string) (*Load, error) {
	near, far, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	l := &Load{input: far, ended: make(chan error, 1)}
	argv := append([]string{"client", "--json", "--until-eof"}, args...)
	reader, writer := io.Pipe()
	go func() {
		var errOut bytes.Buffer
		_, err := s.Lab.Exec(ctx, from, argv, lab.Stdio{In: near, Out: writer, Err: &errOut})
		_ = near.Close()
		_ = writer.Close()
		if err != nil {
			err = fmt.Errorf("%w: %s", err, errOut.String())
		}
		l.ended <- err
	}()
	go l.read(reader)
	err = Await(ctx, "the load from "+from+" has a first response", func(context.Context) error {
		requests := l.Requests()
		if len(requests) == 0 {
			return errors.New("no request yet")
		}
		return nil
	})
	if err != nil {
		_, stopErr := l.Stop()
		return nil, errors.Join(err, stopErr)
	}
	return l, nil
}

func (l *Load) read(reader io.Reader) {
	lines := bufio.NewScanner(reader)
	for lines.Scan() {
		var r Request
		if err := json.Unmarshal(lines.Bytes(), &r); err != nil {
			r = Request{Error: "client printed: " + lines.Text()}
		}
		l.mu.Lock()
		l.requests = append(l.requests, r)
		l.mu.Unlock()
	}
}

// Requests returns what there is so far.
func (l *Load) Requests() []Request {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([]Request(nil), l.requests...)
}

// More waits until n more requests have ended.
func (l *Load) More(ctx context.Context, n int) error {
	want := len(l.Requests()) + n
	return Await(ctx, fmt.Sprintf("the load has made %d more requests", n), func(context.Context) error {
		if got := len(l.Requests()); got < want {
			return fmt.Errorf("%d of %d", got, want)
		}
		return nil
	})
}

// Stop lets the client finish and returns all its requests.
func (l *Load) Stop() ([]Request, error) {
	_ = l.input.Close()
	err := <-l.ended
	return l.Requests(), err
}

// Failures returns the requests that failed.
func Failures(requests []Request) []Request {
	var failed []Request
	for _, r := range requests {
		if r.Failed() {
			failed = append(failed, r)
		}
	}
	return failed
}

// Locals returns the client's addresses, one for each connection.
func Locals(requests []Request) map[string]bool {
	locals := map[string]bool{}
	for _, r := range requests {
		if r.Local != "" {
			locals[r.Local] = true
		}
	}
	return locals
}

// Packet is one TCP packet as it passed a node.
type Packet struct {
	Node string
	lab.Packet
}

// Port reports whether the packet goes to or comes from the port.
func (p Packet) Port(port uint16) bool { return p.Source.Port() == port || p.Target.Port() == port }

// String returns the form "n1: 10.244.1.4:42 > 10.244.2.5:9080 SYN".
func (p Packet) String() string {
	return strings.TrimSpace(fmt.Sprintf("%s: %s > %s %s %s", p.Node, p.Source, p.Target, p.Flags, p.HTTP))
}

// Capture records what goes between nodes.
type Capture struct {
	nodes    []string
	captures []*lab.Capture
}

// Capture starts recording on the nodes' links and returns when nothing is
// missed any more.
func (s *Scene) Capture(ctx context.Context, nodes ...string) (*Capture, error) {
	c := &Capture{nodes: nodes}
	for _, node := range nodes {
		capture, err := s.Lab.Capture(ctx, "node/"+node, "eth0", 0)
		if err != nil {
			_, stopErr := c.Stop()
			return nil, errors.Join(err, stopErr)
		}
		c.captures = append(c.captures, capture)
	}
	return c, nil
}

// Stop ends the recording and returns everything.
func (c *Capture) Stop() ([]Packet, error) {
	var packets []Packet
	var errs error
	for i, capture := range c.captures {
		captured, err := capture.Stop()
		errs = errors.Join(errs, err)
		for _, p := range captured {
			packets = append(packets, Packet{Node: c.nodes[i], Packet: p})
		}
	}
	return packets, errs
}
