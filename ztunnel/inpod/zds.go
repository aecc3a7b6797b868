package inpod

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/ambit-mesh/ambit/apis/zds"
	"github.com/ambit-mesh/ambit/ztunnel/netns"
)

const (
	maxPacket   = 1024 // either side reads into a buffer of this size
	maxAckError = 512  // well below maxPacket, whatever else an Ack will carry
)

// serve speaks ZDS on conn until it ends or ctx is done. wasReady says whether the
// agent was ready at any time on this connection.
func (a *Agent) serve(ctx context.Context, conn *net.UnixConn) (wasReady bool, err error) {
	a.snapshot, a.connected, a.retry = map[string]bool{}, true, nil
	defer func() { a.connected = false }()
	a.dropPending()
	a.publish()
	hello, err := proto.Marshal(&zds.ZdsHello{Version: zds.Version_V1})
	if err != nil {
		return false, errors.Join(err, conn.Close())
	}
	if err := netns.SendPacket(conn, hello, nil); err != nil {
		return false, errors.Join(fmt.Errorf("hello: %w", err), conn.Close())
	}
	packets, stop := netns.ReadPackets(conn, maxPacket)
	defer stop()
	for {
		select {
		case <-ctx.Done():
			return wasReady, ctx.Err()
		case <-a.retry:
			a.retryPending()
		case r := <-packets:
			if ctx.Err() != nil { // a drain comes before the next packet
				r.Packet.Close()
				return wasReady, ctx.Err()
			}
			if err := a.answer(conn, r); err != nil {
				return wasReady, err
			}
		}
		a.publish()
		wasReady = wasReady || a.Ready()
	}
}

// answer handles one packet and acknowledges it. Its error ends the connection; a
// proxy that could not start does not.
func (a *Agent) answer(conn *net.UnixConn, r netns.Received) error {
	fatal, nack := r.Err, error(nil)
	if r.Err == nil {
		fatal, nack = a.handle(r.Packet)
	}
	sent := sendAck(conn, cmp.Or(fatal, nack))
	if fatal != nil {
		return fatal
	}
	return sent
}

func sendAck(conn *net.UnixConn, why error) error {
	ack := &zds.Ack{}
	if why != nil {
		ack.Error = cut(why.Error(), maxAckError)
	}
	body, err := proto.Marshal(&zds.WorkloadResponse{Payload: &zds.WorkloadResponse_Ack{Ack: ack}})
	if err != nil {
		return err
	}
	if err := netns.SendPacket(conn, body, nil); err != nil {
		return fmt.Errorf("ack: %w", err)
	}
	return nil
}

// handle applies one request. fatal ends the connection, and the process when it is
// ErrProtocol; nack is only reported to the agent.
func (a *Agent) handle(p netns.Packet) (fatal, nack error) {
	q, err := parse(p)
	if err != nil {
		return err, nil
	}
	switch {
	case q.add != nil:
		return nil, a.add(*q.add)
	case q.keep != "":
		if a.snapshot == nil {
			return fmt.Errorf("%w: keep %s after the snapshot", ErrProtocol, q.keep), nil
		}
		a.snapshot[q.keep] = true
	case q.del != "":
		a.forgetPending(q.del)
		if a.snapshot == nil {
			a.stop(q.del)
		} else {
			delete(a.snapshot, q.del) // stopped when the snapshot is complete
		}
	default:
		if a.snapshot == nil {
			return fmt.Errorf("%w: second end of snapshot", ErrProtocol), nil
		}
		a.reconcile()
	}
	return nil, nil
}

// add starts the pod's proxy unless it already runs in the same namespace.
func (a *Agent) add(pod Pod) error {
	if a.snapshot != nil {
		a.snapshot[pod.UID] = true
	}
	a.forgetPending(pod.UID)
	if err := pod.NetNS.Check(); err != nil {
		a.cfg.Log.Warn("descriptor from the node agent", "uid", pod.UID, "error", err)
	}
	if r, ok := a.running[pod.UID]; ok {
		if r.pod.NetNS.Same(pod.NetNS) {
			a.closeNS(pod)
			return nil
		}
		a.stop(pod.UID) // the pod's sandbox was made again
	}
	return a.start(pod)
}

// reconcile ends the snapshot: what it did not name is gone.
func (a *Agent) reconcile() {
	for uid := range a.running {
		if !a.snapshot[uid] {
			a.stop(uid)
		}
	}
	a.snapshot = nil
}

// publish makes the state visible to Ready, Pods and the metrics.
func (a *Agent) publish() {
	pods := make([]PodState, 0, len(a.running)+len(a.pending))
	for _, r := range a.running {
		pods = append(pods, PodState{Pod: r.pod, State: StateUp, Proxy: r.proxy})
	}
	for _, pod := range a.pending {
		pods = append(pods, PodState{Pod: pod, State: StatePending})
	}
	slices.SortFunc(pods, func(x, y PodState) int { return cmp.Compare(x.Pod.UID, y.Pod.UID) })
	a.pods.Store(&pods)
	a.describe()
	a.ready.Store(a.connected && a.snapshot == nil && len(a.pending) == 0)
	if a.cfg.Metrics.Active != nil {
		a.cfg.Metrics.Active(len(a.running))
	}
	if a.cfg.Metrics.Pending != nil {
		a.cfg.Metrics.Pending(len(a.pending))
	}
}

// cut shortens s to at most n bytes without breaking a character.
func cut(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for n > 0 && s[n]&0xC0 == 0x80 {
		n--
	}
	return s[:n]
}

func jitter(d time.Duration) time.Duration {
	return time.Duration(float64(d) * (0.8 + 0.4*rand.Float64()))
}

// wait returns false when ctx is done first.
func wait(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
