package cluster

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// progress tells how far a build is: in place on a terminal, every ten seconds
// elsewhere.
type progress struct {
	out      io.Writer
	what     string
	began    time.Time
	terminal bool
	stop     chan struct{}
	stopped  sync.WaitGroup

	mu       sync.Mutex
	total    int // packages; 0 until it is known
	compiled int
}

func newProgress(out io.Writer, what string) *progress {
	p := &progress{out: out, what: what, began: time.Now(), terminal: isTerminal(out), stop: make(chan struct{})}
	interval := 10 * time.Second
	if p.terminal {
		interval = 500 * time.Millisecond
	}
	p.stopped.Go(func() {
		tick := time.NewTicker(interval)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				p.show()
			case <-p.stop:
				return
			}
		}
	})
	return p
}

func isTerminal(out io.Writer) bool {
	file, ok := out.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(file.Fd()), unix.TCGETS)
	return err == nil
}

// expect says how many packages there are at most.
func (p *progress) expect(total int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.total = total
}

// line takes a line of go build -v: a package that is being compiled; anything
// else is an error's, and it returns true.
func (p *progress) line(text string) bool {
	if strings.HasPrefix(text, "go: downloading ") {
		return false
	}
	if strings.ContainsAny(text, " \t#") {
		return true
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.compiled++
	return false
}

func (p *progress) show() {
	p.mu.Lock()
	state := "fetching sources"
	if p.total > 0 {
		state = fmt.Sprintf("%d packages compiled of at most %d", p.compiled, p.total)
	}
	p.mu.Unlock()
	text := fmt.Sprintf("%s: %s, %.0f s", p.what, state, time.Since(p.began).Seconds())
	if p.terminal {
		fmt.Fprintf(p.out, "\r\x1b[K%s", text)
		return
	}
	fmt.Fprintln(p.out, text)
}

// end tells that the build has ended.
func (p *progress) end(err error) {
	close(p.stop)
	p.stopped.Wait()
	how := "done"
	if err != nil {
		how = "failed"
	}
	if p.terminal {
		fmt.Fprint(p.out, "\r\x1b[K")
	}
	fmt.Fprintf(p.out, "%s: %s after %.0f s\n", p.what, how, time.Since(p.began).Seconds())
}
