// Package netns makes sockets in other network namespaces and holds the other
// kernel facts that Go's net package hides: socket marks, transparent binding,
// the original destination of a redirected connection, the established
// connections of a namespace, and descriptors passed over Unix sockets.
//
// It knows no pods and no protocols, and it starts no long-lived goroutine. It is
// called by proxy, inpod and cni. Every function is safe for concurrent use; an NS
// may be used by many goroutines until it is closed. Outside ztunnel/redirect it is
// the only product code that imports golang.org/x/sys/unix.
//
// Entering a namespace is a property of a thread, so each socket is made on a
// locked thread that enters the namespace, creates and binds, and returns; all later
// I/O is ordinary (spec/ztunnel.md §1.6, App. D.1).
package netns

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"

	"golang.org/x/sys/unix"
)

// ErrNotNetNS says that a descriptor is no network namespace.
var ErrNotNetNS = errors.New("not a network namespace")

// NS is an open network namespace. The nil NS is the process's own.
type NS struct {
	file     *os.File
	dev, ino uint64
}

// Open opens the namespace bound at path, such as /run/netns/NAME or
// /proc/PID/ns/net.
func Open(path string) (*NS, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	return FromFile(f)
}

// FromFile takes ownership of f, also when it returns an error.
func FromFile(f *os.File) (*NS, error) {
	var st unix.Stat_t
	if err := control(f, func(fd int) error { return unix.Fstat(fd, &st) }); err != nil {
		return nil, errors.Join(&os.PathError{Op: "stat", Path: f.Name(), Err: err}, f.Close())
	}
	return &NS{file: f, dev: uint64(st.Dev), ino: st.Ino}, nil //nolint:unconvert // Dev is narrower on some architectures
}

// Close gives up the descriptor. Sockets made before stay where they are.
func (ns *NS) Close() error {
	if ns == nil {
		return nil
	}
	return ns.file.Close()
}

// File is the namespace's descriptor, still owned by ns; nil for the process's own.
func (ns *NS) File() *os.File {
	if ns == nil {
		return nil
	}
	return ns.file
}

// Same says whether both are one namespace, compared by device and inode.
func (ns *NS) Same(other *NS) bool {
	if ns == nil || other == nil {
		return ns == other
	}
	return ns.dev == other.dev && ns.ino == other.ino
}

// String names the namespace as the kernel does, "net:[4026531840]".
func (ns *NS) String() string {
	if ns == nil {
		return "net:[self]"
	}
	return fmt.Sprintf("net:[%d]", ns.ino)
}

// Check returns ErrNotNetNS when the descriptor is something else, and nil when it
// is a network namespace or the kernel (before 4.11) cannot tell.
func (ns *NS) Check() error {
	if ns == nil {
		return nil
	}
	return control(ns.file, func(fd int) error {
		kind, err := unix.IoctlRetInt(fd, unix.NS_GET_NSTYPE)
		if err == nil && kind == unix.CLONE_NEWNET {
			return nil
		}
		if err == nil {
			return fmt.Errorf("%w: namespace type %#x", ErrNotNetNS, kind)
		}
		var st unix.Statfs_t
		if err := unix.Fstatfs(fd, &st); err != nil {
			return fmt.Errorf("%w: %w", ErrNotNetNS, err)
		}
		if st.Type != unix.NSFS_MAGIC && st.Type != unix.PROC_SUPER_MAGIC {
			return fmt.Errorf("%w: file system %#x", ErrNotNetNS, st.Type)
		}
		return nil
	})
}

// own is the process's namespace, to which threads return.
var own = sync.OnceValues(func() (*os.File, error) { return os.Open("/proc/thread-self/ns/net") })

// Do runs f on a locked thread inside ns and returns its error. A goroutine that f
// starts is not inside. f must not block for long: it occupies a thread.
func (ns *NS) Do(f func() error) error {
	if ns == nil {
		return f()
	}
	home, err := own()
	if err != nil {
		return fmt.Errorf("own namespace: %w", err)
	}
	// A goroutine of its own, because the thread must not be used again when it
	// cannot return home: a goroutine that ends locked takes its thread with it.
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if err := enter(ns.file); err != nil {
			runtime.UnlockOSThread()
			done <- fmt.Errorf("enter %s: %w", ns, err)
			return
		}
		finished := false
		defer func() {
			if !finished { // f ended the goroutine (t.FailNow) or panicked
				done <- fmt.Errorf("in %s: function did not return", ns)
			}
		}()
		err := f()
		finished = true
		if enter(home) == nil {
			runtime.UnlockOSThread()
		}
		done <- err
	}()
	return <-done
}

// enter moves the calling, locked thread into the namespace.
func enter(f *os.File) error {
	return control(f, func(fd int) error {
		return os.NewSyscallError("setns", unix.Setns(fd, unix.CLONE_NEWNET))
	})
}

// control runs f with the descriptor, which cannot be closed meanwhile.
func control(f *os.File, do func(fd int) error) error {
	rc, err := f.SyscallConn()
	if err != nil {
		return err
	}
	if cerr := rc.Control(func(fd uintptr) { err = do(int(fd)) }); cerr != nil {
		return cerr
	}
	return err
}
