package netns

import (
	"context"
	"fmt"
	"net"
	"time"

	"golang.org/x/sys/unix"
)

// handshakeTime is how long a client may take to answer the second packet of its
// connection's handshake, which the old listener has sent.
const handshakeTime = time.Second

// HandOver makes other listeners that share the addresses of ls (ListenOptions.ReusePort), in
// this process or another, take what is new, and returns once ls may be closed without
// a client noticing: the kernel resets connections that a closed listener has not
// accepted. The caller goes on accepting meanwhile. Unless every address has another
// listener, it returns false at once and has changed nothing.
//
//  1. The youngest listener of an address gets every new connection: a program, which
//     needs no privilege, chooses it by its place in the group.
//  2. Where it is not in that place (listeners have gone in another order), new
//     connections come to ls still; their first packets are dropped. Clients send them
//     again a second later, when ls are closed.
//  3. Wait for the handshakes that are under way, and until all has been accepted, or
//     ctx is done.
func (ns *NS) HandOver(ctx context.Context, ls []*net.TCPListener) (bool, error) {
	count, err := ns.listeners()
	if err != nil {
		return false, err
	}
	for _, l := range ls {
		if count[addrPort(l.Addr())] < 2 {
			return false, nil
		}
	}
	for _, l := range ls {
		addr := addrPort(l.Addr())
		err := onListener(l, func(fd int) error { return steer(fd, count[addr]-1) })
		if err != nil {
			return false, fmt.Errorf("hand over %s: %w", addr, err)
		}
	}
	timer := time.NewTimer(handshakeTime)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
		return true, nil
	}
	for _, l := range ls {
		awaitAccepted(ctx, l)
	}
	return true, nil
}

func onListener(l *net.TCPListener, f func(fd int) error) error {
	rc, err := l.SyscallConn()
	if err != nil {
		return err
	}
	if cerr := rc.Control(func(fd uintptr) { err = f(int(fd)) }); cerr != nil {
		return cerr
	}
	return err
}

// awaitAccepted returns when no connection waits to be accepted.
func awaitAccepted(ctx context.Context, l *net.TCPListener) {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		waiting := uint32(0)
		err := onListener(l, func(fd int) error {
			info, err := unix.GetsockoptTCPInfo(fd, unix.SOL_TCP, unix.TCP_INFO)
			if err == nil {
				waiting = info.Unacked // of a listener: its queue
			}
			return err
		})
		if err != nil || waiting == 0 {
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// steer sends new connections to the listener with an index in its group, and keeps
// this one from beginning any.
func steer(fd, index int) error {
	choose := []unix.SockFilter{{Code: unix.BPF_RET | unix.BPF_K, K: uint32(index)}}
	if err := attach(fd, unix.SO_ATTACH_REUSEPORT_CBPF, choose); err != nil {
		return fmt.Errorf("SO_ATTACH_REUSEPORT_CBPF: %w", err)
	}
	// A listener's filter sees the TCP header: the flags are its byte 13.
	const flags, syn, ack = 13, 0x02, 0x10
	dropSYN := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_B | unix.BPF_ABS, K: flags},
		{Code: unix.BPF_ALU | unix.BPF_AND | unix.BPF_K, K: syn | ack},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: syn, Jf: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: 0},
		{Code: unix.BPF_RET | unix.BPF_K, K: 0xffffffff},
	}
	if err := attach(fd, unix.SO_ATTACH_FILTER, dropSYN); err != nil {
		return fmt.Errorf("SO_ATTACH_FILTER: %w", err)
	}
	return nil
}

func attach(fd, option int, program []unix.SockFilter) error {
	return unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, option, &unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]})
}
