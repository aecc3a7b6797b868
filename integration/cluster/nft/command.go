package nft

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
)

// Command is one line, understood.
type Command struct {
	line int
	do   func(*nftables.Conn) error
}

// Parse reads commands, one on each line.
func Parse(text string) ([]Command, error) {
	var commands []Command
	n := 0
	for line := range strings.Lines(text) {
		n++
		tokens, err := words(strings.TrimSuffix(line, "\n"))
		if err == nil && len(tokens) > 0 {
			r := &reader{tokens: tokens}
			do := r.command()
			if !r.done() {
				r.failf("%q is not understood", r.tokens[0].text)
			}
			err = r.err
			commands = append(commands, Command{line: n, do: do})
		}
		if err != nil {
			return nil, fmt.Errorf("line %d: %w: %s", n, err, strings.TrimSpace(line))
		}
	}
	return commands, nil
}

var families = map[string]nftables.TableFamily{
	"ip": nftables.TableFamilyIPv4, "ip6": nftables.TableFamilyIPv6, "inet": nftables.TableFamilyINet,
}

// command reads a line.
func (r *reader) command() func(*nftables.Conn) error {
	verb, kind, family := r.next(), r.next(), r.next()
	table := &nftables.Table{Name: r.next()}
	var ok bool
	if table.Family, ok = families[family]; !ok {
		r.failf("family %q is not understood", family)
		return nil
	}
	if kind == "table" {
		return r.table(verb, table)
	}
	name := r.next()
	switch kind {
	case "chain":
		return r.chain(verb, &nftables.Chain{Table: table, Name: name})
	case "rule":
		if verb == "add" {
			return r.rule(&nftables.Rule{Table: table, Chain: &nftables.Chain{Table: table, Name: name}})
		}
	case "set", "map":
		return r.set(verb, &nftables.Set{Table: table, Name: name, IsMap: kind == "map"})
	case "element":
		return r.elements(verb, &nftables.Set{Table: table, Name: name})
	case "counter":
		return r.counter(verb, &nftables.NamedObj{Table: table, Name: name, Type: nftables.ObjTypeCounter, Obj: &expr.Counter{}})
	}
	r.failf("%s %s is not understood", verb, kind)
	return nil
}

func (r *reader) table(verb string, t *nftables.Table) func(*nftables.Conn) error {
	switch verb {
	case "add":
		r.properties(nil)
		return func(c *nftables.Conn) error { c.AddTable(t); return nil }
	case "delete":
		return func(c *nftables.Conn) error { c.DelTable(t); return nil }
	case "flush":
		return func(c *nftables.Conn) error { c.FlushTable(t); return nil }
	}
	r.failf("%s table is not understood", verb)
	return nil
}

// properties reads { PROPERTY ... ; ... }, if it is there. A comment is a
// property of everything; read takes the others.
func (r *reader) properties(read func(property string)) (comment string) {
	if !r.take("{") {
		return ""
	}
	for !r.done() && !r.take("}") {
		property := r.next()
		switch {
		case property == "comment":
			comment = r.text()
		case read == nil:
			r.failf("%q is not understood", property)
		default:
			read(property)
		}
		r.want(";")
	}
	return comment
}

var hooks = map[string]*nftables.ChainHook{
	"prerouting": nftables.ChainHookPrerouting, "input": nftables.ChainHookInput, "forward": nftables.ChainHookForward,
	"output": nftables.ChainHookOutput, "postrouting": nftables.ChainHookPostrouting,
}

func (r *reader) chain(verb string, chain *nftables.Chain) func(*nftables.Conn) error {
	switch verb {
	case "add":
		r.properties(func(property string) {
			if property != "type" {
				r.failf("%q is not understood", property)
				return
			}
			chain.Type = nftables.ChainType(r.next())
			r.want("hook")
			hook := r.next()
			chain.Hooknum = hooks[hook]
			if chain.Hooknum == nil {
				r.failf("hook %q is not understood", hook)
			}
			r.want("priority")
			word := r.next()
			priority, err := strconv.ParseInt(word, 10, 32)
			if err != nil {
				r.failf("priority %q is not understood", word)
			}
			chain.Priority = new(nftables.ChainPriority(priority))
		})
		return func(c *nftables.Conn) error { c.AddChain(chain); return nil }
	case "delete":
		return func(c *nftables.Conn) error { c.DelChain(chain); return nil }
	case "flush":
		return func(c *nftables.Conn) error { c.FlushChain(chain); return nil }
	}
	r.failf("%s chain is not understood", verb)
	return nil
}

// dynamicSize is how many elements rules may add to a set; as nft has it.
const dynamicSize = 65535

func (r *reader) set(verb string, set *nftables.Set) func(*nftables.Conn) error {
	switch verb {
	case "add":
		set.KeyByteOrder = binaryutil.BigEndian
		set.Comment = r.properties(func(property string) { r.setProperty(property, set) })
		if set.KeyType.Bytes == 0 && r.err == nil {
			r.failf("a type is missing")
		}
		return func(c *nftables.Conn) error { return c.AddSet(set, nil) }
	case "delete":
		return func(c *nftables.Conn) error { c.DelSet(set); return nil }
	case "flush":
		return func(c *nftables.Conn) error { c.FlushSet(set); return nil }
	}
	r.failf("%s set is not understood", verb)
	return nil
}

func (r *reader) setProperty(property string, set *nftables.Set) {
	switch property {
	case "type":
		set.KeyType = r.datatype()
		if !set.IsMap {
			return
		}
		r.want(":")
		if r.take("verdict") {
			set.DataType = nftables.TypeVerdict
		} else {
			set.DataType = r.datatype()
		}
	case "flags":
		for {
			switch flag := r.next(); flag {
			case "dynamic":
				set.Dynamic, set.Size = true, dynamicSize
			case "timeout":
				set.HasTimeout = true
			default:
				r.failf("flag %q is not understood", flag)
			}
			if !r.take(",") {
				return
			}
		}
	case "timeout":
		word := r.next()
		timeout, err := time.ParseDuration(word)
		if err != nil || timeout < 0 {
			r.failf("timeout %q is not understood", word)
		}
		set.HasTimeout, set.Timeout = true, timeout
	default:
		r.failf("%q is not understood", property)
	}
}

// elements reads what is to be put into a set or map, or taken from it.
func (r *reader) elements(verb string, set *nftables.Set) func(*nftables.Conn) error {
	var all []nftables.SetElement
	r.list(func() {
		element := nftables.SetElement{Key: r.key()}
		if r.take("comment") {
			element.Comment = r.text()
		}
		if r.take(":") {
			if element.VerdictData = r.verdict(); element.VerdictData == nil {
				element.Val = r.key()
			}
		}
		all = append(all, element)
	})
	switch verb {
	case "add":
		return func(c *nftables.Conn) error { return c.SetAddElements(set, all) }
	case "delete":
		return func(c *nftables.Conn) error { return c.SetDeleteElements(set, all) }
	}
	r.failf("%s element is not understood", verb)
	return nil
}

func (r *reader) counter(verb string, counter *nftables.NamedObj) func(*nftables.Conn) error {
	switch verb {
	case "add":
		r.properties(nil)
		return func(c *nftables.Conn) error { c.AddObj(counter); return nil }
	case "delete":
		return func(c *nftables.Conn) error { c.DeleteObject(counter); return nil }
	}
	r.failf("%s counter is not understood", verb)
	return nil
}

// buffered is a connection to the kernel.
type buffered interface {
	SetReadBuffer(bytes int) error
	SetWriteBuffer(bytes int) error
}

// enlargeBuffers lets a connection hold the commands of a whole cluster and
// their acknowledgements.
func enlargeBuffers[C buffered](conn C) error {
	const size = 8 << 20
	return errors.Join(conn.SetReadBuffer(size), conn.SetWriteBuffer(size))
}
