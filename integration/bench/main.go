package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
)

// options are the flags.
type options struct {
	quick   bool
	only    string
	ztunnel string
	peers   []string
	results string
	root    string
	rounds  int
	length  time.Duration
	idle    int
	aborted int
	rest    time.Duration
	micro   bool
	idling  bool
}

func main() {
	var o options
	command := &cobra.Command{
		Use: "bench", Short: "Measure ztunnel against direct TCP, net/http and other ztunnels", Args: cobra.NoArgs,
		SilenceUsage: true, SilenceErrors: true,
		RunE: func(c *cobra.Command, _ []string) error { return o.run(c.Context(), os.Stdout) },
	}
	f := command.Flags()
	f.BoolVar(&o.quick, "quick", false, "less than a minute: short rounds, no microbenchmarks")
	f.StringVar(&o.only, "only", "", "only loads whose name matches this regular expression: memory, bulk-1, ping-1B-1, short, handshake, …")
	f.StringVar(&o.ztunnel, "ztunnel", "", "ztunnel binary to measure (default: beside this program)")
	f.StringArrayVar(&o.peers, "peer", nil, "another ztunnel `binary`, as path or name=path; repeatable; PEER in the environment is one, too")
	f.StringVar(&o.results, "results", "", "`directory` for a file with the results (default: none)")
	f.StringVar(&o.root, "root", ".", "the repository, for the microbenchmarks")
	f.IntVar(&o.rounds, "rounds", 0, "interleaved rounds (default 5, quick 2)")
	f.DurationVar(&o.length, "length", 0, "of one measurement (default 2s, quick 500ms)")
	f.IntVar(&o.idle, "idle", 0, "idle connections (default 4000, quick 1000)")
	f.IntVar(&o.aborted, "aborted", 0, "aborted connections (default 20000, quick 1000)")
	f.DurationVar(&o.rest, "rest", 0, "before memory is measured: Go collects every two minutes when nothing happens (default 130s, quick 0)")
	f.BoolVar(&o.micro, "micro", true, "run go test -bench of plan, rbac and workload")
	f.BoolVar(&o.idling, "memory", true, "measure memory and descriptors")
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := command.ExecuteContext(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// complete fills in what was not said.
func (o *options) complete() error {
	preset := func(full, quick int) int {
		if o.quick {
			return quick
		}
		return full
	}
	o.rounds = cmp.Or(o.rounds, preset(5, 2))
	o.length = cmp.Or(o.length, time.Duration(preset(2000, 500))*time.Millisecond)
	o.idle = cmp.Or(o.idle, preset(4000, 1000))
	o.aborted = cmp.Or(o.aborted, preset(20000, 1000))
	o.rest = cmp.Or(o.rest, time.Duration(preset(130, 0))*time.Second)
	o.micro = o.micro && !o.quick
	if peer := os.Getenv("PEER"); peer != "" {
		o.peers = append(o.peers, peer)
	}
	if o.ztunnel == "" {
		var err error
		if o.ztunnel, err = sibling("ztunnel"); err != nil {
			return err
		}
	}
	return nil
}

// sibling is a program beside this one, where make puts them.
func sibling(name string) (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	path := filepath.Join(filepath.Dir(self), name)
	if _, err := os.Stat(path); err != nil {
		return "", fmt.Errorf("%w: build it first, see make bench", err)
	}
	return path, nil
}

const ours = "ztunnel"

// kinds are the systems of a run; the first is the one that has goals.
func (o *options) kinds() ([]systemKind, error) {
	program, err := sibling("baseline")
	if err != nil {
		return nil, err
	}
	kinds := []systemKind{{ours, o.ztunnel, startZtunnels}, {name: direct}, {baseline, program, startBaseline}}
	for i, peer := range o.peers {
		name, path, named := strings.Cut(peer, "=")
		if !named {
			name, path = "peer", peer
			if i > 0 {
				name = fmt.Sprintf("peer%d", i+1)
			}
		}
		kinds = append(kinds, systemKind{name, path, startZtunnels})
	}
	for i, k := range kinds {
		if slices.ContainsFunc(kinds[:i], func(other systemKind) bool { return other.name == k.name }) {
			return nil, fmt.Errorf("two systems are named %q", k.name)
		}
		if k.binary, err = filepath.Abs(k.binary); err == nil && kinds[i].binary != "" {
			kinds[i].binary = k.binary
		}
	}
	return kinds, nil
}

func (o *options) run(ctx context.Context, out io.Writer) (err error) {
	if err := o.complete(); err != nil {
		return err
	}
	kinds, err := o.kinds()
	if err != nil {
		return err
	}
	only, err := regexp.Compile(o.only)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "ambit-bench-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	r := &bench{options: o, only: only, out: out, values: series{}}
	defer func() { err = errors.Join(err, r.stop()) }()
	if err := r.start(ctx, kinds, dir); err != nil {
		return err
	}
	describe(out, r.systems)
	if o.idling && only.MatchString("memory") {
		if err := r.memory(ctx); err != nil {
			return err
		}
	}
	for ; r.done < o.rounds; r.done++ {
		if err := r.round(ctx, r.done); err != nil {
			if ctx.Err() == nil {
				return err
			}
			r.micro = false // interrupted: tell what there is
			return errors.Join(r.finish(ctx), err)
		}
	}
	return r.finish(ctx)
}

// bench is a run.
type bench struct {
	*options
	only     *regexp.Regexp
	out      io.Writer
	systems  []*system
	values   series
	foreign  []float64 // of every measurement that counts
	repeated int
	done     int // rounds
}

func (b *bench) start(ctx context.Context, kinds []systemKind, dir string) error {
	for _, k := range kinds {
		s, err := k.make(ctx, dir)
		if err != nil {
			return err
		}
		b.systems = append(b.systems, s)
	}
	return nil
}

func (b *bench) stop() error {
	var errs []error
	for _, s := range b.systems {
		errs = append(errs, s.close())
	}
	return errors.Join(errs...)
}

// round runs every load on every system, beginning with another system each
// time.
func (b *bench) round(ctx context.Context, number int) error {
	order := slices.Concat(b.systems[number%len(b.systems):], b.systems[:number%len(b.systems)])
	for _, f := range families() {
		if !b.only.MatchString(f.name) {
			continue
		}
		for _, s := range order {
			if f.proxy && len(s.proxies) == 0 {
				continue
			}
			m, err := b.measure(ctx, f, s)
			if err != nil {
				return fmt.Errorf("%s: %s: %w", s.name, f.name, err)
			}
			for i, v := range f.values(m) {
				b.values.add(f.rows[i].name, s.name, v)
			}
		}
		fmt.Fprintf(os.Stderr, "bench: round %d of %d: %s\n", number+1, b.rounds, f.name)
	}
	return nil
}

// measure runs a load, and again when other processes have disturbed it.
func (b *bench) measure(ctx context.Context, f family, s *system) (measurement, error) {
	const disturbed = 0.2
	repeats := 2
	if b.quick {
		repeats = 0
	}
	for again := 0; ; again++ {
		m, err := f.load.run(ctx, s, b.length)
		if err != nil || m.foreign < disturbed || again == repeats {
			b.foreign = append(b.foreign, m.foreign)
			return m, err
		}
		b.repeated++
	}
}

// finish writes everything, to a file as well when there is a place for it.
func (b *bench) finish(ctx context.Context) error {
	out := b.out
	if b.results != "" {
		if err := os.MkdirAll(b.results, 0o755); err != nil {
			return err
		}
		file, err := os.Create(filepath.Join(b.results, time.Now().UTC().Format("2006-01-02-1504")+".txt"))
		if err != nil {
			return err
		}
		defer func() { _ = file.Close() }()
		describe(file, b.systems)
		out = io.MultiWriter(out, file)
	}
	rows := slices.Clone(memoryRows)
	for _, f := range families() {
		rows = append(rows, f.rows...)
	}
	var names []string
	for _, s := range b.systems {
		names = append(names, s.name)
	}
	fmt.Fprintf(out, "# %d rounds of %s each, %d idle and %d aborted connections; others took %s of the machine (median), most %s; %d measurements repeated\n",
		b.done, b.length, b.idle, b.aborted, figure(median(b.foreign)), figure(slices.Max(append(b.foreign, 0))), b.repeated)
	b.values.table(out, rows, names)
	short := b.values.report(out, rows, names[0], names[1:])
	if b.micro && b.only.MatchString("micro") {
		if err := runMicro(ctx, out, b.root, "0.3s"); err != nil {
			return err
		}
	}
	fmt.Fprintf(out, "bench: %d goals missed\n", short)
	return nil
}
