package manifest

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
)

// The kernel's notifications are read directly: no portable library tells when
// a writer has closed a file, and only then is the file whole.

type eventKind int

const (
	lost     eventKind = iota // notifications: anything may be different
	tree                      // a folder came, went or changed its name
	modified                  // by a writer that still has it open
	closed                    // by a writer
	replaced                  // by rename: whole at once
	removed
)

type event struct {
	kind eventKind
	path string // of a manifest file; empty for lost and tree
}

const interesting = syscall.IN_MODIFY | syscall.IN_CLOSE_WRITE | syscall.IN_MOVED_TO | syscall.IN_MOVED_FROM |
	syscall.IN_CREATE | syscall.IN_DELETE | syscall.IN_DELETE_SELF | syscall.IN_MOVE_SELF | syscall.IN_ONLYDIR

// notifier reads notifications on a goroutine of its own, until close.
type notifier struct {
	file   *os.File
	events chan event
	failed chan error // at most one
	done   chan struct{}
	ended  sync.WaitGroup

	mu      sync.Mutex
	folders map[int32]string // by watch descriptor
}

func newNotifier() (*notifier, error) {
	fd, err := syscall.InotifyInit1(syscall.IN_CLOEXEC | syscall.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("inotify: %w (maybe fs.inotify.max_user_instances is too low)", err)
	}
	n := &notifier{
		file:    os.NewFile(uintptr(fd), "inotify"),
		events:  make(chan event, 64),
		failed:  make(chan error, 1),
		done:    make(chan struct{}),
		folders: map[int32]string{},
	}
	n.ended.Go(n.run)
	return n, nil
}

func (n *notifier) close() {
	close(n.done)
	_ = n.file.Close()
	n.ended.Wait()
}

// add watches a folder; again is no error.
func (n *notifier) add(folder string) error {
	raw, err := n.file.SyscallConn()
	if err != nil {
		return err
	}
	var addErr error
	n.mu.Lock()
	defer n.mu.Unlock()
	err = raw.Control(func(fd uintptr) {
		watch, err := syscall.InotifyAddWatch(int(fd), folder, interesting)
		if err != nil {
			addErr = &os.PathError{Op: "watch", Path: folder, Err: err}
			return
		}
		n.folders[int32(watch)] = folder
	})
	return errors.Join(err, addErr)
}

func (n *notifier) run() {
	buffer := make([]byte, 64<<10)
	for {
		count, err := n.file.Read(buffer)
		if err != nil {
			select {
			case <-n.done:
			default:
				n.failed <- fmt.Errorf("inotify: %w", err)
			}
			return
		}
		for data := buffer[:count]; len(data) >= syscall.SizeofInotifyEvent; {
			var event event
			var relevant bool
			event, relevant, data = n.next(data)
			if !relevant {
				continue
			}
			select {
			case n.events <- event:
			case <-n.done:
				return
			}
		}
	}
}

// next decodes one struct inotify_event, inotify(7).
func (n *notifier) next(data []byte) (e event, relevant bool, rest []byte) {
	watch := int32(binary.NativeEndian.Uint32(data))
	mask := binary.NativeEndian.Uint32(data[4:])
	length := binary.NativeEndian.Uint32(data[12:])
	name, _, _ := bytes.Cut(data[syscall.SizeofInotifyEvent:syscall.SizeofInotifyEvent+length], []byte{0})
	rest = data[syscall.SizeofInotifyEvent+length:]

	n.mu.Lock()
	folder, known := n.folders[watch]
	if mask&syscall.IN_IGNORED != 0 {
		delete(n.folders, watch)
	}
	n.mu.Unlock()

	switch {
	case mask&syscall.IN_Q_OVERFLOW != 0:
		return event{kind: lost}, true, rest
	case mask&(syscall.IN_ISDIR|syscall.IN_DELETE_SELF|syscall.IN_MOVE_SELF) != 0:
		return event{kind: tree}, true, rest
	case strings.HasPrefix(string(name), "..") && mask&syscall.IN_MOVED_TO != 0:
		return event{kind: tree}, true, rest // a mounted ConfigMap was exchanged
	}
	path := filepath.Join(folder, string(name))
	if !known || !isManifest(path) {
		return event{}, false, rest
	}
	kind, relevant := kindOf(mask)
	return event{kind: kind, path: path}, relevant, rest
}

func kindOf(mask uint32) (eventKind, bool) {
	switch {
	case mask&syscall.IN_MOVED_TO != 0:
		return replaced, true
	case mask&(syscall.IN_DELETE|syscall.IN_MOVED_FROM) != 0:
		return removed, true
	case mask&syscall.IN_CLOSE_WRITE != 0:
		return closed, true
	case mask&syscall.IN_MODIFY != 0:
		return modified, true
	case mask&syscall.IN_CREATE != 0:
		return closed, true // a link, or a file whose writer will say more
	}
	return 0, false
}

func stampOf(path string) (stamp, error) {
	info, err := os.Stat(path)
	if err != nil {
		return stamp{}, err
	}
	if !info.Mode().IsRegular() {
		return stamp{}, fmt.Errorf("is no regular file but %s", info.Mode().Type())
	}
	result := stamp{size: info.Size(), modified: info.ModTime().UnixNano()}
	if system, ok := info.Sys().(*syscall.Stat_t); ok {
		result.inode = system.Ino
		result.changed = system.Ctim.Nano()
	}
	return result, nil
}
