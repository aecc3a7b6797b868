package installer

import (
	"fmt"
	"os"
	"sync"
	"syscall"
)

// watcher tells that something in some directories changed; what, is looked up.
type watcher struct {
	changed chan struct{} // holds a token
	failed  chan error    // at most one
	file    *os.File
	ended   sync.WaitGroup
}

const interesting = syscall.IN_CLOSE_WRITE | syscall.IN_MOVED_TO | syscall.IN_MOVED_FROM | syscall.IN_DELETE | syscall.IN_ONLYDIR

func watchDirs(dirs ...string) (*watcher, error) {
	fd, err := syscall.InotifyInit1(syscall.IN_CLOEXEC | syscall.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("inotify: %w (maybe fs.inotify.max_user_instances is too low)", err)
	}
	w := &watcher{changed: make(chan struct{}, 1), failed: make(chan error, 1), file: os.NewFile(uintptr(fd), "inotify")}
	for _, dir := range dirs {
		if _, err := syscall.InotifyAddWatch(fd, dir, interesting); err != nil {
			w.file.Close()
			return nil, fmt.Errorf("watch %s: %w", dir, err)
		}
	}
	w.ended.Go(w.read)
	return w, nil
}

func (w *watcher) read() {
	buf := make([]byte, 64<<10)
	for {
		if _, err := w.file.Read(buf); err != nil {
			w.failed <- fmt.Errorf("inotify: %w", err)
			return
		}
		select {
		case w.changed <- struct{}{}:
		default:
		}
	}
}

func (w *watcher) close() {
	w.file.Close()
	w.ended.Wait()
}
