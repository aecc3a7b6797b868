package serve

import (
	"errors"
	"strings"
	"time"

	"github.com/ambit-mesh/ambit/waypoint/backend"
	"github.com/ambit-mesh/ambit/waypoint/codec"
	"github.com/ambit-mesh/ambit/waypoint/route"
)

const maxInterim = 16

// failed is a try without a response.
type failed struct {
	cause   route.Condition
	timeout bool
	status  int
	flags   Flags
	details string
	err     error
}

// tries sends the request to endpoints until one has answered, the retry policy
// is used up, or the request cannot be repeated.
func (x *exchange) tries() {
	retry := &x.rule.Retry
	for number := 1; ; number++ {
		e := x.cluster.Choose(x.server.cfg.Random, x.tried)
		if e == nil {
			x.answer(503, FlagUH, noHealthyEndpoint, "no healthy endpoint\n")
			return
		}
		x.endpoint = e
		e.Begin()
		c, res, f := x.try(e)
		again := number <= retry.Attempts && x.repeatable()
		switch {
		case f == nil && again && retry.Answered(res):
			x.watch.stop()
			_ = c.Close()
		case f == nil:
			if number > retry.Attempts && retry.Attempts > 0 && retry.Answered(res) {
				x.flags |= FlagURX
			}
			x.forward(c, res)
			e.End()
			return
		case !again || !x.retries(f):
			e.End()
			if number > retry.Attempts && retry.Attempts > 0 && x.retries(f) {
				x.flags |= FlagURX
			}
			x.fail(f)
			return
		}
		e.End()
		x.tried = append(x.tried, e)
		if !x.pause(x.st.ctx, number) {
			if err := x.st.ctx.Err(); err != nil {
				x.clientFailed(err)
				return
			}
			x.fail(&failed{status: 504, flags: FlagUT, details: endpointTimeout})
			return
		}
	}
}

func (x *exchange) retries(f *failed) bool {
	if f.flags&(FlagDC|FlagDPE) != 0 {
		return false
	}
	if f.timeout {
		return x.rule.Retry.TimedOut() && (x.deadline.IsZero() || time.Now().Before(x.deadline))
	}
	return x.rule.Retry.Failed(f.cause)
}

// fail answers for the last try.
func (x *exchange) fail(f *failed) {
	if f.err != nil {
		x.failure = f.err.Error()
	}
	if f.flags&(FlagDC|FlagDPE) != 0 {
		x.clientFailed(f.err)
		return
	}
	x.answer(f.status, f.flags, f.details, f.text())
}

func (f *failed) text() string {
	switch {
	case f.flags&FlagUT != 0:
		return "the endpoint did not answer in time\n"
	case f.flags&FlagUF != 0:
		return "connecting to the endpoint did not work\n"
	case f.flags&FlagUPE != 0:
		return "the endpoint's response is not valid HTTP\n"
	}
	return "the endpoint closed the connection without a response\n"
}

// try sends the request once and reads the response's head. A kept connection
// that turns out to be closed is replaced by a new one without further ado.
func (x *exchange) try(e *backend.Endpoint) (*codec.ClientConn, *codec.Response, *failed) {
	pool := x.server.cfg.Pool
	limit := x.left(x.cluster.ConnectTimeout())
	c, err := pool.HTTP(x.st.ctx, e, limit, x.idempotent() && x.kept() && x.req.Upgrade == "")
	if err != nil {
		return nil, nil, x.notConnected(err)
	}
	for {
		kept := c.Used() > 0
		res, f := x.send(c)
		if f == nil {
			return c, res, nil
		}
		_ = c.Close()
		stale := kept && f.cause&(route.OnReset|route.OnResetBeforeRequest) != 0 && x.repeatable() && x.idempotent()
		if !stale {
			return nil, nil, f
		}
		if c, err = pool.NewHTTP(x.st.ctx, e, x.left(x.cluster.ConnectTimeout())); err != nil {
			return nil, nil, x.notConnected(err)
		}
	}
}

func (x *exchange) notConnected(err error) *failed {
	f := &failed{cause: route.OnConnectFailure, status: 503, flags: FlagUF, details: connectFailed, err: err}
	if backend.Refused(err) {
		f.cause |= route.OnRefusedStream
	}
	if !x.deadline.IsZero() && !time.Now().Before(x.deadline) {
		f.status, f.flags, f.details = 504, FlagUT, endpointTimeout
	}
	return f
}

// send writes the request and reads the final head of the response. Whatever
// it returns, nothing of the request is being sent any more unless the response
// is there.
func (x *exchange) send(c *codec.ClientConn) (*codec.Response, *failed) {
	x.sent = time.Now()
	x.local = c.Conn().LocalAddr().String()
	x.limit(c)
	c.Head(x.req)
	if x.kept() {
		c.Bytes(x.small)
		// Any other error may still have a response to read: a server need not
		// take the whole request.
		if err := c.Flush(); err != nil && codec.Timeout(err) {
			return nil, x.lost(err, route.OnResetBeforeRequest)
		}
		x.watch.start(c)
	} else {
		x.upload = startUpload(c, x.req, x.conn.Body(), x.watch)
	}
	res, err := x.response(c)
	if err == nil {
		x.waited = time.Since(x.sent)
		return res, nil
	}
	if x.upload != nil {
		if f := x.upload.stop(x.st.conn, c); f != nil {
			x.watch.stop()
			return nil, f
		}
	}
	if x.watch.stop() {
		return nil, &failed{flags: FlagDC, details: clientGone, err: errors.New("the client is gone")}
	}
	return nil, x.lost(err, route.OnReset)
}

func codecError(err error) (*codec.Error, bool) { return errors.AsType[*codec.Error](err) }

// limit sets the time that a try has.
func (x *exchange) limit(c *codec.ClientConn) {
	limit := x.left(x.rule.Retry.PerTry)
	if limit > 0 {
		c.SetDeadline(time.Now().Add(limit))
	}
}

// lost says what a try that broke means.
func (x *exchange) lost(err error, cause route.Condition) *failed {
	if bad, ok := codecError(err); ok {
		return &failed{cause: route.OnReset, status: 502, flags: FlagUPE, details: endpointProtocol, err: bad}
	}
	if codec.Timeout(err) {
		return &failed{timeout: true, status: 504, flags: FlagUT, details: endpointTimeout}
	}
	return &failed{cause: cause, status: 503, flags: FlagUC, details: endpointClosed, err: err}
}

// response reads heads until the final one; those before it are passed on.
func (x *exchange) response(c *codec.ClientConn) (*codec.Response, error) {
	for range maxInterim {
		res, err := c.Response()
		if err != nil {
			return nil, err
		}
		if res.Status == 101 && (x.req.Upgrade == "" || !strings.EqualFold(res.Upgrade, x.req.Upgrade)) {
			return nil, &codec.Error{Status: 502, Reason: "the endpoint switches protocols unasked"}
		}
		if res.Status >= 200 || res.Status == 101 {
			return res, nil
		}
		if res.Status != 100 || x.req.ExpectContinue {
			if err := x.conn.Interim(res); err != nil {
				return nil, err
			}
		}
	}
	return nil, &codec.Error{Status: 502, Reason: "the endpoint sends informational responses without end"}
}
