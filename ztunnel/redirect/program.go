package redirect

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"golang.org/x/sys/unix"
)

// program makes the table hold exactly these chains, in one transaction, or leaves it
// alone when it does.
func program(fd int, want []chain) error {
	c, err := nftables.New(nftables.WithNetNSFd(fd))
	if err != nil {
		return err
	}
	same, err := programmed(c, table, want)
	if err != nil || same {
		return err
	}
	c.AddTable(table) // so that deleting cannot fail
	c.DelTable(table)
	add(c, table, want)
	if err := c.Flush(); err != nil {
		return unsupported(fd, want, err)
	}
	return nil
}

func add(c *nftables.Conn, t *nftables.Table, chains []chain) {
	c.AddTable(t)
	addChains(c, t, chains)
}

func addChains(c *nftables.Conn, t *nftables.Table, chains []chain) {
	for _, w := range chains {
		ch := c.AddChain(&nftables.Chain{Table: t, Name: w.name, Type: w.kind, Hooknum: w.hook, Priority: w.priority})
		for _, r := range w.rules {
			c.AddRule(&nftables.Rule{Table: t, Chain: ch, Exprs: r.exprs, UserData: label(r)})
		}
	}
}

// label is what nft lists as the rule's comment. It holds a digest of the rule, by
// which a rule is recognised: the kernel does not return expressions as it got them.
func label(r rule) []byte {
	h := sha256.New()
	for _, e := range r.exprs {
		raw, err := expr.Marshal(byte(table.Family), e)
		fmt.Fprintf(h, "%T %x %v\n", e, raw, err)
	}
	return userdata.AppendString(nil, userdata.TypeComment, fmt.Sprintf("%s %x", r.comment, h.Sum(nil)[:8]))
}

// programmed says whether the kernel's table t is the wanted one.
func programmed(c *nftables.Conn, t *nftables.Table, want []chain) (bool, error) {
	all, err := c.ListChainsOfTableFamily(t.Family)
	if err != nil {
		return false, unsupportedErrno(err, "nf_tables")
	}
	have := map[string]*nftables.Chain{}
	for _, ch := range all {
		if ch.Table.Name == t.Name {
			have[ch.Name] = ch
		}
	}
	if len(have) != len(want) {
		return false, nil
	}
	for _, w := range want {
		ch := have[w.name]
		if ch == nil {
			return false, nil
		}
		rules, err := c.GetRules(t, ch)
		if err != nil {
			return false, fmt.Errorf("list rules of %s: %w", w.name, err)
		}
		if !sameRules(rules, w.rules) {
			return false, nil
		}
	}
	return true, nil
}

func sameRules(have []*nftables.Rule, want []rule) bool {
	if len(have) != len(want) {
		return false
	}
	for i, r := range want {
		if !bytes.Equal(have[i].UserData, label(r)) {
			return false
		}
	}
	return true
}

// unsupported finds out what the kernel lacks after it has refused the chains: it adds
// them one by one to a table that goes within the same transaction.
func unsupported(fd int, chains []chain, refused error) error {
	if !isMissing(refused) {
		return fmt.Errorf("program table: %w", refused)
	}
	trial := &nftables.Table{Family: table.Family, Name: table.Name + "-trial"}
	try := func(part []chain) error {
		c, err := nftables.New(nftables.WithNetNSFd(fd))
		if err != nil {
			return err
		}
		add(c, trial, part)
		c.DelTable(trial)
		return c.Flush()
	}
	if try(nil) != nil {
		return fmt.Errorf("%w: nf_tables with family inet: %w", ErrUnsupported, refused)
	}
	for _, ch := range chains {
		empty := ch
		empty.rules = nil
		if try([]chain{empty}) != nil {
			return fmt.Errorf("%w: inet chains of type %s, Linux 5.2 or newer: %w", ErrUnsupported, ch.kind, refused)
		}
		for _, r := range ch.rules {
			one := ch
			one.rules = []rule{r}
			if try([]chain{one}) != nil {
				return fmt.Errorf("%w: rule %q in a chain of type %s (modules nft_ct, nft_redir, nf_conntrack): %w", ErrUnsupported, r.comment, ch.kind, refused)
			}
		}
	}
	return fmt.Errorf("program table: %w", refused)
}

// isMissing tells a missing feature from a refused permission or a busy kernel.
func isMissing(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EOPNOTSUPP) ||
		errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EPROTONOSUPPORT) || errors.Is(err, unix.EINVAL)
}

func unsupportedErrno(err error, what string) error {
	if isMissing(err) {
		return fmt.Errorf("%w: %s: %w", ErrUnsupported, what, err)
	}
	return fmt.Errorf("%s: %w", what, err)
}
