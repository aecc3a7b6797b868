package serve

import (
	"errors"
	"net"
	"time"

	"github.com/ambit-mesh/ambit/waypoint/codec"
	"github.com/ambit-mesh/ambit/ztunnel/relay"
)

// uploadGrace is how long an endpoint that has answered may take the rest of the
// request.
const uploadGrace = time.Second

// forward sends the endpoint's response to the client.
func (x *exchange) forward(c *codec.ClientConn, res *codec.Response) {
	x.status, x.details = res.Status, viaEndpoint
	res.Fields = x.target.Response.Apply(res.Fields)
	res.Fields = x.rule.Response.Apply(res.Fields)
	if res.Upgrade != "" {
		x.upgrade(c, res)
		return
	}
	if x.rule.Retry.PerTry > 0 {
		c.SetDeadline(x.deadline) // the limit of a try ends with the head
	}
	x.conn.Head(res)
	readErr, writeErr := x.conn.Stream(res, c.Body())
	x.content = c.Body().Bytes()
	if x.upload != nil {
		x.uploaded(c)
	}
	gone := x.watch.stop()
	switch {
	case gone || writeErr != nil:
		x.flags |= FlagDC
		x.details = clientGone
	case readErr != nil && codec.Timeout(readErr):
		x.flags |= FlagUT
		x.details = endpointLate
	case readErr != nil:
		x.flags |= FlagUC
		if _, bad := codecError(readErr); bad {
			x.flags ^= FlagUC | FlagUPE
		}
		x.details = endpointClosedLate
	default:
		x.keep(c)
		return
	}
	x.conn.CloseAfter()
	x.st.conn.Reset() // what was sent is not the whole response
	_ = c.Close()
}

// keep gives the connection back to the pool.
func (x *exchange) keep(c *codec.ClientConn) {
	if !x.deadline.IsZero() {
		c.SetDeadline(time.Time{})
	}
	x.server.cfg.Pool.Done(x.endpoint, c)
}

// uploaded ends the sending of a request body after its response. When all of
// the body was taken from the client, its connection stays good whatever the
// endpoint does with the rest.
func (x *exchange) uploaded(c *codec.ClientConn) {
	taken := x.conn.Body().Done()
	if taken {
		x.upload.wait(uploadGrace)
	}
	if x.upload.finished() {
		return
	}
	// The endpoint has answered without wanting the rest.
	if !taken {
		x.conn.CloseAfter()
	}
	_ = x.upload.stop(x.st.conn, c)
	_ = c.Close()
}

// upgrade passes bytes on in both directions once both ends speak another
// protocol.
func (x *exchange) upgrade(c *codec.ClientConn, res *codec.Response) {
	x.watch.stop()
	x.detached = true
	x.conn.CloseAfter()
	x.conn.Head(res)
	err := x.conn.Flush()
	_, early := x.conn.Detach()
	conn, first := c.Detach()
	_ = conn.SetDeadline(time.Time{})
	far, ok := conn.(relay.Half)
	if err != nil || !ok {
		x.flags |= FlagDC
		_ = conn.Close()
		return
	}
	counters := &relay.Counters{}
	_ = relay.Copy(prefixedHalf(x.st.conn, early), prefixedHalf(far, first), counters)
}

// prefixed reads bytes that were taken from a stream before the stream itself.
type prefixed struct {
	relay.Half
	first []byte
}

func prefixedHalf(h relay.Half, first []byte) relay.Half {
	if len(first) == 0 {
		return h
	}
	return &prefixed{h, first}
}

func (p *prefixed) Read(b []byte) (int, error) {
	if len(p.first) > 0 {
		n := copy(b, p.first)
		p.first = p.first[n:]
		return n, nil
	}
	return p.Half.Read(b)
}

// upload sends a request body beside the reading of the response.
type upload struct {
	done     chan struct{}
	readErr  error // of the client
	writeErr error // of the endpoint
}

// startUpload sends the body of a request whose head was written. When all of it
// was taken, the client is watched: whoever stops the watch ends the upload first.
func startUpload(c *codec.ClientConn, req *codec.Request, body *codec.Body, w *watch) *upload {
	u := &upload{done: make(chan struct{})}
	go func() {
		defer close(u.done)
		u.readErr, u.writeErr = c.Stream(req, body)
		switch {
		case u.readErr != nil:
			c.Abort() // there will be no response to half a request
		case body.Done():
			w.start(c)
		}
	}()
	return u
}

// wait gives the last bytes time to be written.
func (u *upload) wait(limit time.Duration) {
	select {
	case <-u.done:
		return
	default:
	}
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-u.done:
	case <-timer.C:
	}
}

// finished reports whether the whole body was sent.
func (u *upload) finished() bool {
	select {
	case <-u.done:
		return u.readErr == nil && u.writeErr == nil
	default:
		return false
	}
}

// stop ends the upload and reports when it was the client that broke it.
func (u *upload) stop(client interface{ SetReadDeadline(t time.Time) error }, c *codec.ClientConn) *failed {
	select {
	case <-u.done:
	default:
		_ = client.SetReadDeadline(time.Unix(1, 0))
		c.Abort()
		<-u.done
		_ = client.SetReadDeadline(time.Time{})
	}
	if u.readErr == nil || errors.Is(u.readErr, net.ErrClosed) || codec.Timeout(u.readErr) {
		return nil
	}
	f := &failed{flags: FlagDC, details: clientGone, err: u.readErr}
	if _, ok := codecError(u.readErr); ok {
		f.flags = FlagDPE
	}
	return f
}
