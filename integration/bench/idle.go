package main

import (
	"context"
	"fmt"
	"math"
	"net"
	"slices"
	"sync"
	"time"
)

// Rows of memory and descriptors; spec: the budgets. Each side of a
// connection is one process here, as on a real cluster.
var memoryRows = []row{
	{name: "base-rss", unit: "MB", less: true, goals: map[string]float64{limit: 25}},
	{name: "idle-outbound", unit: "KB", less: true, goals: map[string]float64{limit: 10}},
	{name: "idle-inbound", unit: "KB", less: true, goals: map[string]float64{limit: 10}},
	{name: "files-outbound", unit: "fd", less: true, goals: map[string]float64{limit: 1.05}},
	{name: "files-inbound", unit: "fd", less: true, goals: map[string]float64{limit: 1.05}},
	{name: "aborted-rss", unit: "MB", less: true},
	{name: "aborted-files", unit: "fd", less: true},
}

// footprint is what a system's proxies hold, by process.
type footprint struct{ resident, files []float64 }

// settled takes the footprint once it has stopped changing: collectors give
// memory back in the background.
func (s *system) settled(ctx context.Context) (footprint, error) {
	const (
		interval = 250 * time.Millisecond
		calm     = 6  // samples without a change
		most     = 60 // samples
	)
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	last, same := 0.0, 0
	for range most {
		f, total, err := s.footprint()
		if err != nil {
			return f, err
		}
		if math.Abs(total-last) < 0.002*total {
			same++
		} else {
			same = 0
		}
		if last = total; same >= calm {
			return f, nil
		}
		select {
		case <-ctx.Done():
			return f, ctx.Err()
		case <-ticker.C:
		}
	}
	f, _, err := s.footprint()
	return f, err
}

func (s *system) footprint() (f footprint, total float64, err error) {
	for _, pid := range s.proxies {
		memory, err := resident(pid)
		if err != nil {
			return f, 0, err
		}
		files, err := descriptors(pid)
		if err != nil {
			return f, 0, err
		}
		f.resident, f.files, total = append(f.resident, memory), append(f.files, files), total+memory
	}
	return f, total, nil
}

// memory must come before any other load: what a process has once needed it may
// keep. It measures the base, then idle connections, then what aborted ones
// leave behind. All systems rest at the same time.
func (b *bench) memory(ctx context.Context) error {
	var subjects []*system
	for _, s := range b.systems {
		if len(s.proxies) > 0 {
			subjects = append(subjects, s)
		}
	}
	idle := map[*system][]*net.TCPConn{}
	defer func() {
		for _, conns := range idle {
			closeAll(conns)
		}
	}()
	base, err := footprints(ctx, subjects, 0)
	if err != nil {
		return err
	}
	for _, s := range subjects {
		if idle[s], err = open(ctx, s, b.idle); err != nil {
			return fmt.Errorf("%s: idle: %w", s.name, err)
		}
	}
	full, err := footprints(ctx, subjects, b.rest)
	if err != nil {
		return err
	}
	for _, s := range subjects {
		closeAll(idle[s])
		delete(idle, s)
	}
	before, err := footprints(ctx, subjects, b.rest)
	if err != nil {
		return err
	}
	for _, s := range subjects {
		if err := abort(ctx, s, b.aborted, b.idle); err != nil {
			return fmt.Errorf("%s: aborted: %w", s.name, err)
		}
	}
	after, err := footprints(ctx, subjects, b.rest)
	if err != nil {
		return err
	}
	for i, s := range subjects {
		b.values.add("base-rss", s.name, slices.Max(base[i].resident)/1e6)
		held, left := full[i].minus(base[i]), after[i].minus(before[i])
		for side, name := range []string{"outbound", "inbound"} {
			b.values.add("idle-"+name, s.name, held.resident[side]/1e3/float64(b.idle))
			b.values.add("files-"+name, s.name, held.files[side]/float64(b.idle))
		}
		b.values.add("aborted-rss", s.name, slices.Max(left.resident)/1e6)
		b.values.add("aborted-files", s.name, slices.Max(left.files))
	}
	return nil
}

// footprints rests and takes those of all systems.
func footprints(ctx context.Context, systems []*system, rest time.Duration) ([]footprint, error) {
	if err := pause(ctx, rest, nil); err != nil {
		return nil, err
	}
	var all []footprint
	for _, s := range systems {
		f, err := s.settled(ctx)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", s.name, err)
		}
		all = append(all, f)
	}
	return all, nil
}

func (f footprint) minus(other footprint) footprint {
	var d footprint
	for i := range f.resident {
		d.resident = append(d.resident, f.resident[i]-other.resident[i])
		d.files = append(d.files, f.files[i]-other.files[i])
	}
	return d
}

// abort opens n connections, some at a time, and resets them.
func abort(ctx context.Context, s *system, n, atOnce int) error {
	for rest := n; rest > 0; rest -= atOnce {
		batch, err := open(ctx, s, min(atOnce, rest))
		for _, c := range batch {
			_ = c.SetLinger(0) // close resets
		}
		closeAll(batch)
		if err != nil {
			return err
		}
	}
	return nil
}

func closeAll(conns []*net.TCPConn) {
	for _, c := range conns {
		_ = c.Close()
	}
}

// open makes connections that have carried one byte each way.
func open(ctx context.Context, s *system, n int) ([]*net.TCPConn, error) {
	const openers = 16
	var (
		mu    sync.Mutex
		conns []*net.TCPConn
		errs  []error
		all   sync.WaitGroup
	)
	for i := range openers {
		all.Go(func() {
			for j := i; j < n; j += openers {
				c, err := s.openOne(ctx)
				mu.Lock()
				if err != nil {
					errs = append(errs, err)
				} else {
					conns = append(conns, c)
				}
				mu.Unlock()
				if err != nil {
					return
				}
			}
		})
	}
	all.Wait()
	if len(errs) > 0 {
		return conns, fmt.Errorf("connection %d of %d: %w", len(conns)+1, n, errs[0])
	}
	return conns, nil
}

func (s *system) openOne(ctx context.Context) (*net.TCPConn, error) {
	c, err := s.client.Dial(ctx, s.echo())
	if err != nil {
		return nil, err
	}
	_ = c.SetDeadline(time.Now().Add(patience))
	if _, err := ping(c, make([]byte, 1)); err != nil {
		_ = c.Close()
		return nil, err
	}
	_ = c.SetDeadline(time.Time{})
	return c, nil
}
