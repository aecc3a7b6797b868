// Command conformance runs the Gateway API conformance suite for a mesh on the
// test cluster: it starts the cluster and installs the mesh where they are
// absent, runs the suite to its end, and prints each test as it ends, then the
// score. Its exit code is 0 if every test that is listed in expected.txt
// passed, and all others ran.
//
// The cluster is left running; a mesh that was installed for the run is
// uninstalled after it, and so are, on any way out, the suite's namespaces.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/ambit-mesh/ambit/integration/conformance"
)

// options are the flags.
type options struct {
	root       string // of the repository
	bin        string // where programs are, and where report and log go
	name       string // of the cluster
	kubeconfig string // of a cluster that is there, instead of one by name
	tests      string // names, separated by commas; empty: all
	version    string
	update     bool
	keep       bool
}

// errRed ends a run that has said itself what is wrong.
var errRed = errors.New("not as expected")

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	go func() {
		<-ctx.Done()
		stop() // a second interrupt ends the program at once
	}()
	opts, err := parse(os.Args[1:], os.Getenv("CLUSTER"))
	if err == nil {
		err = run(ctx, opts, os.Stdout)
	}
	stop()
	switch {
	case errors.Is(err, flag.ErrHelp):
		os.Exit(2)
	case errors.Is(err, context.Canceled):
		fmt.Fprintln(os.Stderr, "conformance: interrupted")
		os.Exit(130)
	case err != nil && !errors.Is(err, errRed):
		fmt.Fprintln(os.Stderr, "conformance:", err)
		os.Exit(1)
	case err != nil:
		os.Exit(1)
	}
}

func parse(args []string, cluster string) (options, error) {
	if cluster == "" {
		cluster = "ambit"
	}
	var opts options
	flags := flag.NewFlagSet("conformance", flag.ContinueOnError)
	flags.StringVar(&opts.root, "root", ".", "directory of the repository")
	flags.StringVar(&opts.name, "name", cluster, "name of the test cluster, which is started when absent")
	flags.StringVar(&opts.kubeconfig, "kubeconfig", "", "use the cluster of this file, as it is, instead of the test cluster")
	flags.StringVar(&opts.tests, "test", "", "run only these tests, separated by commas")
	flags.StringVar(&opts.version, "version", "dev", "version of the mesh, for the report")
	flags.BoolVar(&opts.update, "update", false, "add to expected.txt what passes and is not listed")
	flags.BoolVar(&opts.keep, "keep", false, "leave the mesh installed")
	if err := flags.Parse(args); err != nil {
		return options{}, err
	}
	if flags.NArg() > 0 {
		return options{}, fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}
	root, err := filepath.Abs(opts.root)
	opts.root, opts.bin = root, filepath.Join(root, "bin")
	return opts, err
}

// run does all, in this order:
//  1. read the list of expected tests: no run without it
//  2. cluster and mesh
//  3. the suite
//  4. put away what was made, also after an interrupt
//  5. judge
func run(ctx context.Context, opts options, out io.Writer) (err error) {
	list, err := readExpected(opts.expectedFile())
	if err != nil {
		return err
	}
	bed, err := prepare(ctx, opts, out)
	if err != nil {
		return err
	}
	results, suiteErr := runSuite(ctx, opts, bed.kubeconfig, out)
	// What was made is put away with a context of its own, as the run's may
	// have been cancelled.
	cleanup, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupWait)
	defer cancel()
	if err := errors.Join(suiteErr, ctx.Err(), bed.putAway(cleanup)); err != nil {
		return err
	}
	return judge(opts, list, results, out)
}

const cleanupWait = 3 * time.Minute

func (o options) expectedFile() string {
	return filepath.Join(o.root, "integration/conformance/expected.txt")
}

func (o options) reportFile() string { return filepath.Join(o.bin, "conformance-report.yaml") }

func (o options) logFile() string { return filepath.Join(o.bin, "conformance.log") }

// selected are the names of the tests that are to run.
func (o options) selected() ([]string, error) {
	var all []string
	for _, test := range conformance.Tests() {
		all = append(all, test.ShortName)
	}
	if o.tests == "" {
		return all, nil
	}
	return conformance.Select(all, strings.Split(o.tests, ","))
}
