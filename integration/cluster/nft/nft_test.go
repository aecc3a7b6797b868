package nft

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/nftables"
	"github.com/google/nftables/expr"

	"github.com/ambit-mesh/ambit/ztunnel/netns/netnstest"
)

var update = flag.Bool("update", false, "write the goldens")

func TestMain(m *testing.M) { netnstest.Main(m) }

// said is what a kube-proxy of Kubernetes 1.37 said, one element for each call:
// at its start, after Services of all kinds had been made, and as they went.
func said(tb testing.TB) []string {
	tb.Helper()
	content, err := os.ReadFile("testdata/kube-proxy.nft")
	if err != nil {
		tb.Fatal(err)
	}
	return strings.Split(strings.TrimPrefix(string(content), "---\n"), "---\n")
}

// TestRules compares each different rule with the golden, which has been
// compared with what nft 1.0.6 makes of it (nft --debug=netlink list ruleset).
func TestRules(t *testing.T) {
	var got strings.Builder
	seen := map[string]bool{}
	for _, text := range said(t) {
		for line := range strings.Lines(text) {
			line = strings.TrimSpace(line)
			if !strings.HasPrefix(line, "add rule ") || seen[line] {
				continue
			}
			seen[line] = true
			tokens, err := words(line)
			if err != nil {
				t.Fatal(err)
			}
			r := &reader{tokens: tokens[5:]}
			b := &builder{reader: r, rule: &nftables.Rule{Table: &nftables.Table{Family: families[tokens[2].text]}}}
			for !r.done() {
				b.statement()
			}
			if r.err != nil {
				t.Fatalf("%s: %v", line, r.err)
			}
			fmt.Fprintln(&got, line)
			for _, e := range b.rule.Exprs {
				fmt.Fprintf(&got, "\t%s\n", describe(e))
			}
			for _, a := range b.sets {
				for _, e := range a.elements {
					fmt.Fprintf(&got, "\telement %x end=%t value %x", e.Key, e.IntervalEnd, e.Val)
					if e.VerdictData != nil {
						fmt.Fprintf(&got, " %s", describe(e.VerdictData))
					}
					fmt.Fprintln(&got)
				}
			}
		}
	}
	golden(t, "testdata/rules.txt", got.String())
}

// describe is an expression with those of its fields that are set.
func describe(e expr.Any) string {
	v := reflect.ValueOf(e).Elem()
	out := v.Type().Name()
	for i := range v.NumField() {
		field := v.Field(i)
		if field.IsZero() {
			continue
		}
		value := fmt.Sprint(field.Interface())
		if raw, ok := reflect.TypeAssert[[]byte](field); ok {
			value = fmt.Sprintf("%x", raw)
		}
		out += " " + v.Type().Field(i).Name + "=" + value
	}
	return out
}

func golden(t *testing.T, path, got string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", path, diff)
	}
}

// TestKernel has the kernel take all that the kube-proxy said, in order, and
// reads sets and maps back after each step that the reference was asked, too.
func TestKernel(t *testing.T) {
	for i, text := range said(t) {
		if err := Run([]string{"-f", "-"}, strings.NewReader(text), nil); err != nil {
			t.Fatalf("call %d: %v", i, err)
		}
		switch i {
		case 5: // a Service of each kind, no endpoints yet
			compareLists(t, "testdata/lists-services.json")
		case 6: // endpoints
			compareLists(t, "testdata/lists-endpoints.json")
		}
	}
	compareLists(t, "testdata/lists-end.json")
}

// compareLists compares with what nft 1.0.6 said of the same sets and maps.
func compareLists(t *testing.T, path string) {
	t.Helper()
	want, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer want.Close()
	reference := json.NewDecoder(want)
	n := 0
	for ; reference.More(); n++ {
		var listing any
		if err := reference.Decode(&listing); err != nil {
			t.Fatal(err)
		}
		key, elements := elementsOf(t, listing)
		var out bytes.Buffer
		if err := Run(append([]string{"--json", "list"}, strings.Fields(key)...), nil, &out); err != nil {
			t.Fatalf("list %s: %v", key, err)
		}
		var own any
		if err := json.Unmarshal(out.Bytes(), &own); err != nil {
			t.Fatalf("list %s: %v", key, err)
		}
		gotKey, got := elementsOf(t, own)
		if gotKey != key {
			t.Errorf("list %s: is called %s", key, gotKey)
		}
		if diff := cmp.Diff(elements, got); diff != "" {
			t.Errorf("list %s (-want +got):\n%s", key, diff)
		}
	}
	if n == 0 {
		t.Errorf("%s is empty", path)
	}
}

// elementsOf is "KIND FAMILY TABLE NAME" and the elements, in no order, as text.
func elementsOf(t *testing.T, listing any) (string, []string) {
	t.Helper()
	for _, item := range listing.(map[string]any)["nftables"].([]any) {
		for kind, value := range item.(map[string]any) {
			object := value.(map[string]any)
			if kind == "metainfo" {
				if object["json_schema_version"] != 1.0 {
					t.Errorf("metainfo %v", object)
				}
				continue
			}
			var elements []string
			all, _ := object["elem"].([]any)
			for _, element := range all {
				text, err := json.Marshal(element)
				if err != nil {
					t.Fatal(err)
				}
				elements = append(elements, string(text))
			}
			slices.Sort(elements)
			return fmt.Sprintf("%s %s %s %s", kind, object["family"], object["table"], object["name"]), elements
		}
	}
	t.Fatalf("no set or map in %v", listing)
	return "", nil
}

func TestAllOrNothing(t *testing.T) {
	text := "add table ip whole\nadd chain ip whole c\nadd rule ip whole c jump nowhere\n"
	if err := Run([]string{"-f", "-"}, strings.NewReader(text), nil); !errors.Is(err, syscall.ENOENT) {
		t.Errorf("a rule that jumps to a chain that is not there: error %v, want %v", err, syscall.ENOENT)
	}
	if err := Run([]string{"-f", "-"}, strings.NewReader("delete table ip whole\n"), nil); !errors.Is(err, syscall.ENOENT) {
		t.Errorf("delete the table of a failed call: error %v, want %v", err, syscall.ENOENT)
	}
	if err := Run([]string{"--check", "-f", "-"}, strings.NewReader("add table ip checked\n"), nil); err != nil {
		t.Errorf("check: %v", err)
	}
	if err := Run([]string{"-f", "-"}, strings.NewReader("delete table ip checked\n"), nil); !errors.Is(err, syscall.ENOENT) {
		t.Errorf("delete a table that was only checked: error %v, want %v", err, syscall.ENOENT)
	}
}

func TestExplain(t *testing.T) {
	for _, c := range []struct {
		err  error
		want string
	}{
		{syscall.ENOENT, "No such file or directory"}, // the words that knftables looks for
		{fmt.Errorf("x: %w", syscall.EEXIST), "File exists"},
		{errors.New("else"), "Error: else"},
	} {
		if got := Explain(c.err); !strings.Contains(got, c.want) {
			t.Errorf("Explain(%v) = %q, want %q in it", c.err, got, c.want)
		}
	}
}

func TestRefused(t *testing.T) {
	for _, line := range []string{
		"add",
		"list ruleset",
		"add table bridge t",
		"destroy table ip t",
		"add rule ip t c nonsense",
		"add rule ip t c ip daddr",
		"add rule ip t c ip daddr 10.0.0.1 .",
		"add rule ip t c ip daddr ::1 drop",
		"add rule ip t c ip daddr { } drop",
		"add rule ip t c ip daddr { 10.0.0.1 , } x",
		"add rule ip t c dnat to 10.0.0.1",
		"add rule ip t c dnat ip addr . port to numgen random mod 2 map { 0 : 10.0.0.1 }",
		"add rule ip t c numgen random mod 2 vmap { 0 : 10.0.0.1 . 80 }",
		"add rule ip t c mark set mark and 1",
		"add rule ip t c meta l4proto 80 drop",
		"add rule ip t c comment \"no end",
		"add set ip t s",
		"add set ip t s { type nonsense ; }",
		"add set ip t s { type ipv4_addr ; flags interval ; }",
		"add map ip t m { type ipv4_addr ; }",
		"add chain ip t c { type nat hook nowhere priority 0 ; }",
		"add element ip t s { 10.0.0.1 . }",
		"delete rule ip t c handle 5",
	} {
		if _, err := Parse(line); err == nil {
			t.Errorf("%q is understood", line)
		} else if !strings.Contains(err.Error(), "line 1") {
			t.Errorf("%q: error %q does not say where", line, err)
		}
	}
	if err := Run([]string{"list", "ruleset"}, nil, nil); err == nil {
		t.Error("nft list ruleset is understood")
	}
}

func FuzzParse(f *testing.F) {
	for _, text := range said(f) {
		for line := range strings.Lines(text) {
			f.Add(line)
		}
	}
	f.Fuzz(func(t *testing.T, text string) {
		commands, err := Parse(text)
		if err != nil {
			return
		}
		// What is understood can be put into messages.
		conn, err := nftables.New()
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range commands {
			_ = c.do(conn) // may refuse; nothing is sent
		}
	})
}

// FuzzVerdict: attributes come from the kernel, but lengths are lengths.
func FuzzVerdict(f *testing.F) {
	f.Add([]byte{8, 0, 1, 0, 0xff, 0xff, 0xff, 0xfc, 6, 0, 2, 0, 'a', 0, 0, 0})
	f.Fuzz(func(_ *testing.T, attributes []byte) {
		_, _ = encodeVerdict(attributes)
		_, _ = encodeKey(attributes, nftables.TableFamilyIPv4)
		_, _ = encodeKey(attributes, nftables.TableFamilyIPv6)
	})
}
