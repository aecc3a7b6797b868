package bed

import (
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/ambit-mesh/ambit/apis/zds"
	"github.com/ambit-mesh/ambit/ztunnel/netns"
)

const (
	maxPacket   = 1024 // what either side reads at once
	zdsPatience = 30 * time.Second
)

// agent is the node agent's side of ZDS for one node: the newest ztunnel is
// told of pods that come, every one of those that go.
type agent struct {
	path     string
	listener *net.UnixListener
	running  sync.WaitGroup

	mu       sync.Mutex
	closed   bool
	pods     []*Pod // enrolled
	sessions []*session
}

// session is one ztunnel.
type session struct {
	conn    *net.UnixConn
	packets <-chan netns.Received
	stop    func()
}

func startAgent(path string) (*agent, error) {
	l, err := netns.ListenSeqpacket(path)
	if err != nil {
		return nil, err
	}
	a := &agent{path: path, listener: l}
	a.running.Go(func() {
		for {
			conn, err := l.AcceptUnix()
			if err != nil {
				return
			}
			a.running.Go(func() { a.welcome(conn) })
		}
	})
	return a, nil
}

func (a *agent) stop() {
	_ = a.listener.Close()
	a.mu.Lock()
	a.closed = true
	sessions := a.sessions
	a.sessions = nil
	a.mu.Unlock()
	for _, s := range sessions {
		s.stop()
	}
	a.running.Wait()
}

// welcome gives a new ztunnel its snapshot. What it refuses or breaks off
// shows in its readiness, which the caller awaits.
func (a *agent) welcome(conn *net.UnixConn) {
	s := &session{conn: conn}
	s.packets, s.stop = netns.ReadPackets(conn, maxPacket)
	var hello zds.ZdsHello
	body, err := s.receive()
	if err == nil {
		err = proto.Unmarshal(body, &hello)
	}
	if err != nil || hello.GetVersion() != zds.Version_V1 {
		s.stop()
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, p := range a.pods {
		if err == nil {
			err = s.exchange(addMessage(p), p.ns.File())
		}
	}
	if err == nil {
		err = s.exchange(&zds.WorkloadRequest{Payload: &zds.WorkloadRequest_SnapshotSent{SnapshotSent: &zds.SnapshotSent{}}}, nil)
	}
	if err != nil || a.closed {
		s.stop()
		return
	}
	a.sessions = append(a.sessions, s)
}

// add enrols a pod with the newest ztunnel that lives; without one it is part
// of the next snapshot.
func (a *agent) add(p *Pod) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.pods = append(a.pods, p)
	for len(a.sessions) > 0 {
		newest := a.sessions[len(a.sessions)-1]
		err := newest.exchange(addMessage(p), p.ns.File())
		if !errors.Is(err, errSession) {
			return err
		}
		newest.stop()
		a.sessions = a.sessions[:len(a.sessions)-1]
	}
	return nil
}

// remove tells every ztunnel that the pod is gone.
func (a *agent) remove(p *Pod) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.pods = slices.DeleteFunc(a.pods, func(other *Pod) bool { return other == p })
	var errs []error
	a.sessions = slices.DeleteFunc(a.sessions, func(s *session) bool {
		err := s.exchange(&zds.WorkloadRequest{Payload: &zds.WorkloadRequest_Del{Del: &zds.DelWorkload{Uid: p.UID}}}, nil)
		if errors.Is(err, errSession) {
			s.stop()
			return true
		}
		errs = append(errs, err)
		return false
	})
	return errors.Join(errs...)
}

func addMessage(p *Pod) *zds.WorkloadRequest {
	return &zds.WorkloadRequest{Payload: &zds.WorkloadRequest_Add{Add: &zds.AddWorkload{
		Uid: p.UID, WorkloadInfo: &zds.WorkloadInfo{Name: p.Name, Namespace: p.Namespace, ServiceAccount: p.ServiceAccount},
	}}}
}

// errSession says that a ztunnel is not there any more.
var errSession = errors.New("zds session")

func (s *session) exchange(m *zds.WorkloadRequest, f *os.File) error {
	body, err := proto.Marshal(m)
	if err != nil {
		return err
	}
	if err := netns.SendPacket(s.conn, body, f); err != nil {
		return fmt.Errorf("%w: %w", errSession, err)
	}
	if body, err = s.receive(); err != nil {
		return fmt.Errorf("%w: ack: %w", errSession, err)
	}
	var answer zds.WorkloadResponse
	if err := proto.Unmarshal(body, &answer); err != nil {
		return fmt.Errorf("%w: ack: %w", errSession, err)
	}
	if why := answer.GetAck().GetError(); why != "" {
		return fmt.Errorf("ztunnel: %s", why)
	}
	return nil
}

func (s *session) receive() ([]byte, error) {
	patience := time.NewTimer(zdsPatience)
	defer patience.Stop()
	select {
	case r := <-s.packets:
		r.Packet.Close()
		return r.Packet.Body, r.Err
	case <-patience.C:
		return nil, fmt.Errorf("no answer within %s", zdsPatience)
	}
}
