package route_test

import (
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/waypoint/codec"
	"github.com/ambit-mesh/ambit/waypoint/route"
)

func text(t *testing.T, kind route.Kind, value string, fold bool) route.Text {
	t.Helper()
	v, err := route.NewText(kind, value, fold)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func TestText(t *testing.T) {
	for _, c := range []struct {
		kind  route.Kind
		value string
		fold  bool
		in    string
		want  bool
	}{
		{route.Any, "", false, "x", true},
		{route.Exact, "v1", false, "v1", true},
		{route.Exact, "v1", false, "V1", false},
		{route.Exact, "v1", true, "V1", true},
		{route.Prefix, "/api", false, "/apis", true},
		{route.Prefix, "/api", true, "/API/x", true},
		{route.Prefix, "/api", false, "/ap", false},
		{route.Suffix, ".png", false, "/a.png", true},
		{route.Suffix, ".png", true, "/a.PNG", true},
		{route.Contains, "mid", true, "aMIDb", true},
		{route.Regex, "a|ab", false, "ab", true},
		{route.Regex, "v[0-9]", false, "v1x", false},
		{route.Regex, "v[0-9]", false, "xv1", false},
		{route.Regex, ".*", false, "", true},
		{route.Regex, "a.b", false, "a\nb", false},
	} {
		m := text(t, c.kind, c.value, c.fold)
		if got := m.Matches(c.in); got != c.want {
			t.Errorf("kind %d %q fold %v on %q: got %v, want %v", c.kind, c.value, c.fold, c.in, got, c.want)
		}
	}
	if _, err := route.NewText(route.Regex, "(", false); err == nil {
		t.Error("a broken regular expression was accepted")
	}
}

func TestFind(t *testing.T) {
	exact := func(name, value string) route.FieldMatch {
		return route.FieldMatch{Name: name, Text: text(t, route.Exact, value, false)}
	}
	for _, c := range []struct {
		name  string
		match route.Match
		req   codec.Request
		want  bool
	}{
		{"empty", route.Match{}, codec.Request{Path: "/"}, true},
		{"path without query", route.Match{Path: route.Path{Text: text(t, route.Exact, "/a", false)}}, codec.Request{Path: "/a?b=/c"}, true},
		{"prefix in query", route.Match{Path: route.Path{Text: text(t, route.Prefix, "/a?b", false)}}, codec.Request{Path: "/a?b"}, false},
		{"segments exact", route.Match{Path: route.Path{Text: text(t, route.Prefix, "/a", false), Segments: true}}, codec.Request{Path: "/a"}, true},
		{"segments below", route.Match{Path: route.Path{Text: text(t, route.Prefix, "/a", false), Segments: true}}, codec.Request{Path: "/a/b"}, true},
		{"segments beside", route.Match{Path: route.Path{Text: text(t, route.Prefix, "/a", false), Segments: true}}, codec.Request{Path: "/ab"}, false},
		{"header", route.Match{Fields: []route.FieldMatch{exact("x", "1")}}, codec.Request{Path: "/", Fields: []codec.Field{{Name: "x", Value: "1"}}}, true},
		{"header missing", route.Match{Fields: []route.FieldMatch{exact("x", "1")}}, codec.Request{Path: "/"}, false},
		{"header twice", route.Match{Fields: []route.FieldMatch{exact("x", "1,2")}}, codec.Request{
			Path: "/", Fields: []codec.Field{{Name: "x", Value: "1"}, {Name: "y"}, {Name: "x", Value: "2"}},
		}, true},
		{"inverted", route.Match{Fields: []route.FieldMatch{{Name: "x", Invert: true, Text: text(t, route.Exact, "1", false)}}}, codec.Request{Path: "/", Fields: []codec.Field{{Name: "x", Value: "2"}}}, true},
		{"inverted missing", route.Match{Fields: []route.FieldMatch{{Name: "x", Invert: true, Text: text(t, route.Exact, "1", false)}}}, codec.Request{Path: "/"}, false},
		{"inverted missing as empty", route.Match{Fields: []route.FieldMatch{{Name: "x", Invert: true, MissingIsEmpty: true, Text: text(t, route.Exact, "1", false)}}}, codec.Request{Path: "/"}, true},
		{"present", route.Match{Fields: []route.FieldMatch{{Name: "x", Present: true}}}, codec.Request{Path: "/", Fields: []codec.Field{{Name: "x"}}}, true},
		{"not present", route.Match{Fields: []route.FieldMatch{{Name: "x", Present: true, Invert: true}}}, codec.Request{Path: "/"}, true},
		{"absent", route.Match{Fields: []route.FieldMatch{{Name: "x", Absent: true}}}, codec.Request{Path: "/", Fields: []codec.Field{{Name: "x"}}}, false},
		{"method", route.Match{Fields: []route.FieldMatch{exact(":method", "POST")}}, codec.Request{Path: "/", Method: "POST"}, true},
		{"authority", route.Match{Fields: []route.FieldMatch{exact(":authority", "a:80")}}, codec.Request{Path: "/", Authority: "a:80"}, true},
		{"host", route.Match{Fields: []route.FieldMatch{exact("host", "a:80")}}, codec.Request{Path: "/", Authority: "b"}, false},
		{"query", route.Match{Query: []route.QueryMatch{{Name: "v", Text: text(t, route.Exact, "2", false)}}}, codec.Request{Path: "/?u&v=2&v=3"}, true},
		{"query first counts", route.Match{Query: []route.QueryMatch{{Name: "v", Text: text(t, route.Exact, "3", false)}}}, codec.Request{Path: "/?v=2&v=3"}, false},
		{"query present", route.Match{Query: []route.QueryMatch{{Name: "u", Present: true}}}, codec.Request{Path: "/?v&u"}, true},
		{"query missing", route.Match{Query: []route.QueryMatch{{Name: "u", Present: true}}}, codec.Request{Path: "/u"}, false},
	} {
		table := route.Table{Rules: []*route.Rule{{Name: "r", Match: c.match}}}
		if got := table.Find(&c.req) != nil; got != c.want {
			t.Errorf("%s: got %v, want %v", c.name, got, c.want)
		}
	}
}

func TestFirstRuleWins(t *testing.T) {
	table := route.Table{Rules: []*route.Rule{
		{Name: "no", Match: route.Match{Path: route.Path{Text: text(t, route.Exact, "/x", false)}}}, {Name: "first"}, {Name: "second"},
	}}
	if got := table.Find(&codec.Request{Path: "/"}); got.Name != "first" {
		t.Errorf("got %s, want first", got.Name)
	}
}

func TestPick(t *testing.T) {
	targets := route.NewTargets(route.Target{Cluster: "a", Weight: 1}, route.Target{Cluster: "zero"}, route.Target{Cluster: "b", Weight: 3})
	got := map[string]int{}
	for n := range uint64(400) {
		got[targets.Pick(n).Cluster]++
	}
	if got["a"] != 100 || got["b"] != 300 || got["zero"] != 0 {
		t.Errorf("400 picks: %v, want a 100, b 300", got)
	}
}

func TestRetry(t *testing.T) {
	parse := func(on string) route.Retry {
		var r route.Retry
		if err := r.ParseRetryOn(on); err != nil {
			t.Fatal(err)
		}
		return r
	}
	standard := parse("connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes,503")
	if !standard.Failed(route.OnConnectFailure) || standard.Failed(route.OnReset) || standard.TimedOut() {
		t.Error("the standard policy repeats on connect failure only")
	}
	for _, c := range []struct {
		on     string
		status int
		field  codec.Field
		want   bool
	}{
		{"503", 503, codec.Field{}, true},
		{"503", 502, codec.Field{}, false},
		{"5xx", 500, codec.Field{}, true},
		{"5xx", 499, codec.Field{}, false},
		{"gateway-error", 500, codec.Field{}, false},
		{"gateway-error", 504, codec.Field{}, true},
		{"retriable-4xx", 409, codec.Field{}, true},
		{"unavailable", 200, codec.Field{Name: "grpc-status", Value: "14"}, true},
		{"unavailable", 200, codec.Field{Name: "grpc-status", Value: "0"}, false},
		{"envoy-ratelimited", 429, codec.Field{Name: "x-envoy-ratelimited"}, true},
		{"connect-failure", 503, codec.Field{}, false},
	} {
		r := parse(c.on)
		if got := r.Answered(&codec.Response{Status: c.status, Fields: []codec.Field{c.field}}); got != c.want {
			t.Errorf("%s on %d: got %v, want %v", c.on, c.status, got, c.want)
		}
	}
	var r route.Retry
	if err := r.ParseRetryOn("5xx,sometimes"); err == nil {
		t.Error("an unknown condition was accepted")
	}
	for number := 1; number < 40; number++ {
		if p := r.Pause(number, ^uint64(0)); p < 0 || p >= 250*time.Millisecond {
			t.Errorf("pause %d is %v, want less than ten times 25 ms", number, p)
		}
	}
}

func FuzzFind(f *testing.F) {
	re, err := route.NewText(route.Regex, "/a.*", false)
	if err != nil {
		f.Fatal(err)
	}
	table := route.Table{Rules: []*route.Rule{
		{Match: route.Match{Path: route.Path{Text: re}, Query: []route.QueryMatch{{Name: "q", Text: re}}}},
		{Match: route.Match{Fields: []route.FieldMatch{{Name: "x", Text: re}}}},
	}}
	f.Add("/a?q=/a&b", "x", "y")
	f.Fuzz(func(_ *testing.T, path, name, value string) {
		table.Find(&codec.Request{Path: path, Fields: []codec.Field{{Name: name, Value: value}}})
	})
}

func BenchmarkFind(b *testing.B) {
	var table route.Table
	for range 20 {
		v, _ := route.NewText(route.Exact, "test-user", false)
		table.Rules = append(table.Rules, &route.Rule{Match: route.Match{Fields: []route.FieldMatch{{Name: "end-user", Text: v}}}})
	}
	table.Rules = append(table.Rules, &route.Rule{})
	req := &codec.Request{Path: "/reviews/1", Fields: []codec.Field{{Name: "a"}, {Name: "b"}, {Name: "end-user", Value: "other"}}}
	b.ReportAllocs()
	for b.Loop() {
		table.Find(req)
	}
}
