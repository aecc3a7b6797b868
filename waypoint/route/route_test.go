package route_test

import (
	"math"
	"strconv"
	"sync"
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
	for point, want := range map[uint64]string{0: "a", 1<<62 - 1: "a", 1 << 62: "b", 1 << 63: "b", ^uint64(0): "b"} {
		if c := targets.Pick(point).Cluster; c != want {
			t.Errorf("point %x: got %s, want %s", point, c, want)
		}
	}
}

// TestSequence bounds how far the requests to each target are from its share,
// at any time in a run of 500 and from many starts: of all requests, and of
// those that are every second or third one because clients take turns.
func TestSequence(t *testing.T) {
	const rounding = 1e-9
	for _, c := range []struct {
		weights     []uint32
		every, run  int
		atEnd, ever float64
	}{
		{[]uint32{90, 10}, 1, 500, 1, 3},
		{[]uint32{50, 50}, 1, 500, 1, 3},
		{[]uint32{99, 1}, 1, 500, 1, 2},
		{[]uint32{1, 2}, 1, 500, 2, 3},
		{[]uint32{80, 15, 5}, 1, 500, 2, 3},
		{[]uint32{1, 1, 1, 1, 1, 1, 1}, 1, 500, 2, 3},
		{[]uint32{90, 10}, 2, 500, 2, 4},
		{[]uint32{50, 50}, 2, 500, 2, 3},
		{[]uint32{80, 15, 5}, 2, 500, 3, 4},
		{[]uint32{90, 10}, 3, 500, 2, 4},
	} {
		atEnd, ever := deviation(c.weights, c.every, c.run)
		if atEnd > c.atEnd+rounding || ever > c.ever+rounding {
			t.Errorf("weights %v, every %d. request: off by %.2f after %d and by up to %.2f before, want at most %.2f and %.2f",
				c.weights, c.every, atEnd, c.run, ever, c.atEnd, c.ever)
		}
	}
}

// deviation returns by how many requests any target is off its share at the end
// of a run and at its worst, over 200 starts.
func deviation(weights []uint32, every, run int) (atEnd, ever float64) {
	var list []route.Target
	var total float64
	for i, w := range weights {
		list = append(list, route.Target{Cluster: strconv.Itoa(i), Weight: w})
		total += float64(w)
	}
	targets := route.NewTargets(list...)
	for start := range uint64(200) {
		s := route.NewSequence(start * (^uint64(0) / 200))
		got := make([]int, len(weights))
		for n := range run {
			i, _ := strconv.Atoi(targets.Pick(s.Next()).Cluster)
			got[i]++
			for range every - 1 {
				s.Next()
			}
			for i, w := range weights {
				off := math.Abs(float64(got[i]) - float64(n+1)*float64(w)/total)
				ever = max(ever, off)
				if n+1 == run {
					atEnd = max(atEnd, off)
				}
			}
		}
	}
	return atEnd, ever
}

// TestSequenceConcurrently: no point is given twice or left out, so the bound
// holds for whoever asks, in whatever order.
func TestSequenceConcurrently(t *testing.T) {
	const callers, each = 8, 500
	s, alone := route.NewSequence(1), route.NewSequence(1)
	want := map[uint64]bool{}
	for range callers * each {
		want[alone.Next()] = true
	}
	points := make(chan uint64, callers*each)
	var all sync.WaitGroup
	for range callers {
		all.Go(func() {
			for range each {
				points <- s.Next()
			}
		})
	}
	all.Wait()
	close(points)
	for p := range points {
		delete(want, p)
	}
	if len(want) != 0 {
		t.Errorf("%d points were left out", len(want))
	}
}

func TestPickAllocatesNothing(t *testing.T) {
	s := route.NewSequence(0)
	targets := route.NewTargets(route.Target{Cluster: "a", Weight: 90}, route.Target{Cluster: "b", Weight: 10})
	if n := testing.AllocsPerRun(100, func() { targets.Pick(s.Next()) }); n != 0 {
		t.Errorf("%v allocations per choice", n)
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
	r.Base = math.MaxInt64
	for number := 1; number < 40; number++ {
		if p := r.Pause(number, ^uint64(0)); p < 0 || p > 10*time.Hour {
			t.Errorf("pause %d after a huge interval is %v", number, p)
		}
	}
	r.Base = 0
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
