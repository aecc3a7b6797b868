package serve

import (
	"context"
	"errors"
	"io"
	"net/http"
	"time"

	"github.com/ambit-mesh/ambit/waypoint/backend"
	"github.com/ambit-mesh/ambit/waypoint/codec"
	"github.com/ambit-mesh/ambit/waypoint/config"
	"github.com/ambit-mesh/ambit/waypoint/route"
)

// smallBody is how large a request body may be to be taken in whole before the
// request goes out, which makes it repeatable and saves a goroutine.
const smallBody = 64 << 10

// exchange is one request and its response.
type exchange struct {
	st     *stream
	server *Server
	conn   *codec.ServerConn
	watch  *watch
	req    *codec.Request
	start  time.Time

	authority, path string // as the client sent them

	listener *config.Listener
	rule     *route.Rule
	target   *route.Target
	cluster  *backend.Cluster
	endpoint *backend.Endpoint // of the last try
	tried    []*backend.Endpoint
	small    []byte    // the body when it is small
	deadline time.Time // of the response; zero for none
	sent     time.Time // when the last try was sent
	waited   time.Duration
	upload   *upload // of a body that is not small
	local    string  // our address towards the endpoint

	status   int
	content  uint64 // bytes of the response's body
	flags    Flags
	details  string
	failure  string // of connecting
	detached bool
}

// serve answers the request.
//
//  1. Find the rule. 2. Answer at once where the rule says so. 3. Choose the
//     cluster, prepare head and body. 4. Try endpoints. 5. Record.
func (x *exchange) serve() {
	defer x.record()
	x.req.Source = x.st.tunnel.peer
	if x.server.draining() {
		x.conn.CloseAfter()
	}
	x.requestID()
	snapshot := x.server.cfg.Routes.Snapshot()
	if x.listener = snapshot.Named(x.st.listener); x.listener != nil && x.listener.Routes != nil {
		x.rule = x.listener.Routes.Find(x.req)
	}
	if x.rule == nil {
		x.answer(404, FlagNR, routeNotFound, "no route matches the request\n")
		return
	}
	if x.answered() {
		return
	}
	x.target = x.rule.Targets.Pick(x.rule.Turn.Next())
	if x.cluster = snapshot.Cluster(x.target.Cluster); x.cluster == nil {
		status := x.rule.Missing
		if status == 0 {
			status = 503
		}
		x.answer(status, FlagNC, clusterNotFound, "the route's destination is not known\n")
		return
	}
	x.authority, x.path = x.req.Authority, x.req.Path
	x.rule.Rewrite.Apply(x.req, x.rule.Match.Path.Matched(x.req.PathOnly()))
	if x.target.Host != "" {
		x.req.Authority = x.target.Host
	}
	x.req.Fields = x.target.Request.Apply(x.req.Fields)
	x.req.Fields = x.rule.Request.Apply(x.req.Fields)
	if err := x.takeSmallBody(); err != nil {
		x.clientFailed(err)
		return
	}
	if x.rule.Timeout > 0 {
		x.deadline = time.Now().Add(x.rule.Timeout)
	}
	x.tries()
}

// answered serves a rule that needs no endpoint.
func (x *exchange) answered() bool {
	switch {
	case x.rule.Direct != nil:
		x.answer(x.rule.Direct.Status, 0, directResponse, x.rule.Direct.Body)
	case x.rule.Redirect != nil:
		location := x.rule.Redirect.Location(x.req, x.rule.Match.Path.Matched(x.req.PathOnly()))
		x.answer(x.rule.Redirect.Status, 0, directResponse, "", codec.Field{Name: "location", Value: location})
	default:
		return false
	}
	return true
}

// answer sends a response of our own.
func (x *exchange) answer(status int, flags Flags, details, text string, fields ...codec.Field) {
	x.status, x.flags, x.details = status, x.flags|flags, details
	res := &codec.Response{Status: status, Reason: http.StatusText(status), Fields: fields}
	if text != "" {
		res.Fields = append(res.Fields, codec.Field{Name: "content-type", Value: "text/plain"})
	}
	res.Fields = append(res.Fields, codec.Field{Name: "date", Value: time.Now().UTC().Format(http.TimeFormat)})
	if x.rule != nil {
		res.Fields = x.rule.Response.Apply(res.Fields)
	}
	x.content = uint64(len(text))
	if err := x.conn.Text(res, text); err != nil {
		x.flags |= FlagDC
	}
}

// refuse answers a request that could not be read.
func (st *stream) refuse(c *codec.ServerConn, err error) {
	bad, ok := errors.AsType[*codec.Error](err)
	if !ok {
		return // the connection ended
	}
	x := &exchange{st: st, server: st.server, conn: c, req: &codec.Request{}, start: time.Now()}
	flags, details := FlagDPE, clientProtocol
	if bad.Status == http.StatusRequestTimeout {
		flags, details = 0, clientLate
	}
	x.answer(bad.Status, flags, details, bad.Reason+"\n")
	x.record()
	c.Linger(time.Second)
}

func (x *exchange) takeSmallBody() error {
	if x.req.Length <= 0 || x.req.Length > smallBody || x.req.ExpectContinue {
		return nil
	}
	x.small = make([]byte, x.req.Length)
	_, err := io.ReadFull(x.conn.Body(), x.small)
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return err
}

// clientFailed ends a request whose client broke off or sent a broken body.
func (x *exchange) clientFailed(err error) {
	x.conn.CloseAfter()
	if bad, ok := errors.AsType[*codec.Error](err); ok {
		x.answer(bad.Status, FlagDPE, clientProtocol, bad.Reason+"\n")
		return
	}
	x.flags |= FlagDC
	x.details = clientGone
}

// repeatable reports whether the request can be sent again from the start:
// nothing of its body was taken, or all of it is kept.
func (x *exchange) repeatable() bool { return x.upload == nil }

// kept reports whether the body, if there is one, is all here.
func (x *exchange) kept() bool { return x.req.Length == 0 || x.small != nil }

// idempotent reports whether sending the request twice does no harm, RFC 9110
// §9.2.2.
func (x *exchange) idempotent() bool {
	switch x.req.Method {
	case "GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE":
		return true
	}
	return false
}

// left returns how much of the route's time is left, and limit when there is
// no timeout or limit is shorter.
func (x *exchange) left(limit time.Duration) time.Duration {
	if x.deadline.IsZero() {
		return limit
	}
	left := max(time.Until(x.deadline), time.Nanosecond)
	if limit <= 0 {
		return left
	}
	return min(left, limit)
}

// pause waits before a retry; false means that the time or the client is gone.
func (x *exchange) pause(ctx context.Context, number int) bool {
	wait := time.NewTimer(x.left(x.rule.Retry.Pause(number, x.server.cfg.Random())))
	defer wait.Stop()
	select {
	case <-wait.C:
		return x.deadline.IsZero() || time.Now().Before(x.deadline)
	case <-ctx.Done():
		return false
	}
}
