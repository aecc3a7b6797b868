package xds

import (
	"bytes"
	"context"
	"sync"

	"google.golang.org/grpc"
)

// A Conn is a connection to the control plane that is made anew when the file
// with its roots has changed, so that a server which only the old root vouches
// for is not asked for certificates any more (spec/ztunnel.md §5.2). Calls that
// run, the xDS stream among them, end on the connection that they began on.
type Conn struct {
	cfg DialConfig

	mu      sync.Mutex
	current *dialled
	root    []byte
	old     map[*dialled]bool // with calls that still run
	closing sync.WaitGroup
}

// dialled is one connection and its calls.
type dialled struct {
	*grpc.ClientConn
	calls sync.WaitGroup
}

var _ grpc.ClientConnInterface = (*Conn)(nil)

// NewConn is Dial for a Conn.
func NewConn(cfg DialConfig) (*Conn, error) {
	cc, err := Dial(cfg)
	if err != nil {
		return nil, err
	}
	c := &Conn{cfg: cfg, current: &dialled{ClientConn: cc}, old: map[*dialled]bool{}}
	c.root, _ = c.readRoot() // missing for now: the handshake says so
	return c, nil
}

func (c *Conn) readRoot() ([]byte, error) {
	if c.cfg.RootCertPath == System {
		return nil, nil
	}
	if _, err := readRoots(c.cfg.RootCertPath); err != nil {
		return nil, err
	}
	return rootText(c.cfg.RootCertPath)
}

// begin returns the connection for one more call. As long as the file cannot be
// read or holds no root, it is the one that there was.
func (c *Conn) begin() *dialled {
	root, err := c.readRoot()
	c.mu.Lock()
	defer c.mu.Unlock()
	if err == nil && !bytes.Equal(root, c.root) {
		if cc, err := Dial(c.cfg); err == nil {
			c.retire(c.current)
			c.current, c.root = &dialled{ClientConn: cc}, root
		}
	}
	c.current.calls.Add(1)
	return c.current
}

// retire closes a connection when its calls have ended; c.mu is held.
func (c *Conn) retire(d *dialled) {
	c.old[d] = true
	c.closing.Go(func() {
		d.calls.Wait()
		_ = d.Close() // nothing is left of it
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.old, d)
	})
}

// Invoke implements [grpc.ClientConnInterface].
func (c *Conn) Invoke(ctx context.Context, method string, args, reply any, opts ...grpc.CallOption) error {
	d := c.begin()
	defer d.calls.Done()
	return d.Invoke(ctx, method, args, reply, opts...)
}

// NewStream implements [grpc.ClientConnInterface].
func (c *Conn) NewStream(ctx context.Context, desc *grpc.StreamDesc, method string, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	d := c.begin()
	ended := sync.OnceFunc(d.calls.Done)
	stream, err := d.NewStream(ctx, desc, method, append(opts, grpc.OnFinish(func(error) { ended() }))...)
	if err != nil {
		ended()
	}
	return stream, err
}

// Close ends all calls and connections. No call may begin after it.
func (c *Conn) Close() error {
	c.mu.Lock()
	err := c.current.Close()
	for d := range c.old {
		_ = d.Close() // ends its calls
	}
	c.mu.Unlock()
	c.closing.Wait()
	return err
}
