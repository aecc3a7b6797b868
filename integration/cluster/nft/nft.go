// Package nft stands in for nft(8) where that is not installed: it understands
// what kube-proxy says to it, which is a small part of the language, and tells
// the kernel by netlink. A machine's kube-proxy finds it on its PATH; see
// package cluster, whose tool becomes it when called nft.
//
// Understood are:
//
//	nft --version
//	nft [--check] -f -                              commands on standard input
//	nft --json list set|map FAMILY TABLE NAME
//
// and of the commands add, delete and flush of tables, chains, sets, maps,
// elements and counters, and add of rules with the expressions that are in
// rule.go. Anything else is an error that says what is not understood. Comments
// of tables and chains are dropped; --check only reads.
//
// [Parse] is pure; [Run] acts. The reference is nft 1.0.6: testdata/ has what a
// kube-proxy said, and what the reference made of it.
package nft

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"syscall"

	"github.com/google/nftables"
)

// version is that of the nft which this one was compared with.
const version = "nftables v1.0.6 (ambit-cluster's stand-in)"

// Run does what nft would do with the arguments, in the calling thread's
// network namespace.
func Run(args []string, stdin io.Reader, stdout io.Writer) error {
	switch {
	case slices.Equal(args, []string{"--version"}):
		_, err := fmt.Fprintln(stdout, version)
		return err
	case slices.Equal(args, []string{"-f", "-"}):
		return apply(stdin, true)
	case slices.Equal(args, []string{"--check", "-f", "-"}):
		return apply(stdin, false)
	case len(args) > 2 && slices.Equal(args[:2], []string{"--json", "list"}):
		return list(stdout, args[2:])
	}
	return fmt.Errorf("arguments %q: not understood by this stand-in for nft", args)
}

// apply reads commands and, if they are meant, does them: all or none.
func apply(stdin io.Reader, meant bool) error {
	text, err := io.ReadAll(stdin)
	if err != nil {
		return err
	}
	commands, err := Parse(string(text))
	if err != nil || !meant {
		return err
	}
	// One acknowledgement for each command; they have to fit.
	conn, err := nftables.New(nftables.WithSockOptions(enlargeBuffers))
	if err != nil {
		return err
	}
	for _, c := range commands {
		if err := c.do(conn); err != nil {
			return fmt.Errorf("line %d: %w", c.line, err)
		}
	}
	return conn.Flush()
}

// Explain is an error as nft writes it: who calls nft looks for these words.
func Explain(err error) string {
	switch {
	case errors.Is(err, syscall.ENOENT):
		return "Error: No such file or directory: " + err.Error()
	case errors.Is(err, syscall.EEXIST):
		return "Error: File exists: " + err.Error()
	}
	return "Error: " + err.Error()
}
