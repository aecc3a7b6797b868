package main

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"syscall"

	"github.com/spf13/cobra"
)

// programs are the binaries of a run; "" is one that is not there.
type programs struct {
	ztunnel, peer          string
	echoClient, echoServer string
	nghttp                 string
}

func main() {
	var bin, peer, only string
	command := &cobra.Command{
		Use: "interop", Short: "Try our ztunnel with others' parts, and theirs with ours", Args: cobra.NoArgs,
		SilenceUsage: true, SilenceErrors: true,
		RunE: func(c *cobra.Command, _ []string) error { return run(c.Context(), bin, peer, only) },
	}
	f := command.Flags()
	f.StringVar(&bin, "bin", "", "`directory` with ztunnel and upstream/ (default: that of this program)")
	f.StringVar(&peer, "peer", os.Getenv("PEER"), "another ztunnel `binary` (default: PEER in the environment)")
	f.StringVar(&only, "only", "", "only scenarios whose \"pair scenario\" matches this regular expression")
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := command.ExecuteContext(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "interop:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, bin, peer, only string) error {
	p, err := find(bin, peer)
	if err != nil {
		return err
	}
	pattern, err := regexp.Compile(only)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "ambit-interop-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	r := &report{out: os.Stdout, only: pattern, counts: map[string]int{}}
	const ours, theirs = "ztunnel", "peer"
	for _, pair := range []struct{ near, far string }{{ours, ours}, {ours, theirs}, {theirs, ours}, {theirs, theirs}} {
		path := map[string]string{ours: p.ztunnel, theirs: p.peer}
		if err := ztunnels(ctx, r, dir, pair.near+"/"+pair.far, path[pair.near], path[pair.far]); err != nil {
			return err
		}
	}
	for _, suite := range []func(context.Context, *report, string, programs) error{echo, nghttp} {
		if err := suite(ctx, r, dir, p); err != nil {
			return err
		}
	}
	return r.end()
}

// find looks for the programs; only ours must be there.
func find(bin, peer string) (p programs, err error) {
	self, err := os.Executable()
	if err != nil {
		return p, err
	}
	bin = cmp.Or(bin, filepath.Dir(self))
	if p.ztunnel, err = filepath.Abs(filepath.Join(bin, "ztunnel")); err != nil {
		return p, err
	}
	if _, err := os.Stat(p.ztunnel); err != nil {
		return p, fmt.Errorf("%w: build it first, see make interop", err)
	}
	if peer != "" {
		if p.peer, err = filepath.Abs(peer); err != nil {
			return p, err
		}
		if _, err := os.Stat(p.peer); err != nil {
			return p, err
		}
	}
	for name, path := range map[string]*string{"client": &p.echoClient, "server": &p.echoServer} {
		*path = existing(filepath.Join(bin, "upstream", name))
	}
	p.nghttp, _ = exec.LookPath("nghttp") // "" when it is not installed
	return p, nil
}

func existing(path string) string {
	absolute, err := filepath.Abs(path)
	if err != nil {
		return ""
	}
	if _, err := os.Stat(absolute); err != nil {
		return ""
	}
	return absolute
}

// need returns why a suite cannot run.
func need(what, path string) error {
	if path == "" {
		return fmt.Errorf("%s: %w", what, errMissing)
	}
	return nil
}
