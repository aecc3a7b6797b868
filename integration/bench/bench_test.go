package main

import (
	"math"
	"reflect"
	"strings"
	"testing"
	"time"
)

func TestMedian(t *testing.T) {
	for _, c := range []struct {
		values []float64
		want   float64
	}{
		{[]float64{3}, 3},
		{[]float64{3, 1, 2}, 2},
		{[]float64{4, 1, 3, 2}, 2.5},
	} {
		if got := median(c.values); got != c.want {
			t.Errorf("median(%v) = %v, want %v", c.values, got, c.want)
		}
	}
	if got := median(nil); !math.IsNaN(got) {
		t.Errorf("median of nothing = %v, want NaN", got)
	}
}

func TestPercentile(t *testing.T) {
	hundred := make([]time.Duration, 100)
	for i := range hundred {
		hundred[99-i] = time.Duration(i + 1)
	}
	for _, c := range []struct {
		values []time.Duration
		p      float64
		want   time.Duration
	}{
		{hundred, .5, 50},
		{hundred, .99, 99},
		{hundred, 1, 100},
		{hundred, 0, 1},
		{[]time.Duration{7}, .99, 7},
		{nil, .5, 0},
	} {
		if got := percentile(c.values, c.p); got != c.want {
			t.Errorf("percentile(%d values, %v) = %v, want %v", len(c.values), c.p, got, c.want)
		}
	}
}

func TestRatios(t *testing.T) {
	got := ratios([]float64{4, 9, 1, math.NaN()}, []float64{2, 3, 0, 1, 5})
	if want := []float64{2, 3}; !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, want %v: round by round, without those that cannot be divided", got, want)
	}
}

func TestReport(t *testing.T) {
	rows := []row{
		{name: "speed", unit: "GB/s", goals: map[string]float64{"direct": 0.15, "baseline": 1.4}},
		{name: "cost", unit: "us/op", less: true, goals: map[string]float64{"baseline": 0.6}},
		{name: "size", unit: "KB", less: true, goals: map[string]float64{limit: 10}},
		{name: "alone", unit: "/s"},
		{name: "unmeasured", unit: "/s", goals: map[string]float64{"direct": 1}},
	}
	s := series{}
	for _, v := range []struct {
		row, system string
		values      []float64
	}{
		{"speed", "ztunnel", []float64{.3, .1, .2}}, // ratios .15, .1, .2
		{"speed", "direct", []float64{2, 1, 1}},
		{"speed", "baseline", []float64{.2, .1, .2}}, // ratios 1.5, 1, 1
		{"cost", "ztunnel", []float64{30}},
		{"cost", "baseline", []float64{60}},
		{"size", "ztunnel", []float64{12.34}},
		{"alone", "ztunnel", []float64{1234.5}},
	} {
		for _, x := range v.values {
			s.add(v.row, v.system, x)
		}
	}
	var out strings.Builder
	short := s.report(&out, rows, "ztunnel", []string{"direct", "baseline", "peer"})
	want := `bench speed 0.200 GB/s 0.150 vs direct goal >=0.150 ok
bench speed 0.200 GB/s 1.00 vs baseline goal >=1.40 short
bench cost 30.0 us/op 0.500 vs baseline goal <=0.600 ok
bench size 12.3 KB 1.23 vs limit goal <=10.0KB short
bench alone 1234 /s - vs - goal - -
`
	if out.String() != want {
		t.Errorf("got:\n%s\nwant:\n%s", out.String(), want)
	}
	if short != 2 {
		t.Errorf("%d goals missed, want 2", short)
	}
	for line := range strings.Lines(out.String()) {
		fields := strings.Fields(line)
		if len(fields) != 10 || fields[5] != "vs" || fields[7] != "goal" {
			t.Errorf("line of another form: %q", line)
		}
	}
}

func TestRowsHaveValues(t *testing.T) {
	names := map[string]bool{}
	for _, f := range families() {
		m := measurement{bytes: 1e9, ops: 10, elapsed: time.Second, cpu: time.Second, latencies: []time.Duration{time.Millisecond}}
		if got := len(f.values(m)); got != len(f.rows) {
			t.Errorf("%s: %d values for %d rows", f.name, got, len(f.rows))
		}
		for _, r := range f.rows {
			if names[r.name] {
				t.Errorf("two rows are named %s", r.name)
			}
			names[r.name] = true
		}
	}
}

func TestParseProcessStat(t *testing.T) {
	got, err := parseProcessStat([]byte("42 (a (b) c) S 1 42 42 0 -1 4194560 1 2 3 4 150 50 7 8 20 0 9 0 100 200 300"))
	if want := 2 * time.Second; err != nil || got != want {
		t.Errorf("got %v, %v; want %v", got, err, want)
	}
	for _, bad := range []string{"", "42 (x", "42 (x) S 1", "42 (x) S 1 2 3 4 5 6 7 8 9 10 eleven 12 13"} {
		if _, err := parseProcessStat([]byte(bad)); err == nil {
			t.Errorf("no error for %q", bad)
		}
	}
}

func TestParseStat(t *testing.T) {
	busy, total, err := parseStat("cpu  100 0 50 800 30 5 15 0 0 0\ncpu0 1 2 3\n")
	if err != nil || busy != 1500*time.Millisecond || total != 10*time.Second {
		t.Errorf("got %v of %v, %v; want 1.5s of 10s", busy, total, err)
	}
	for _, bad := range []string{"", "cpu 1 2", "intr 1 2 3 4 5 6 7 8 9", "cpu a 2 3 4 5 6 7 8"} {
		if _, _, err := parseStat(bad); err == nil {
			t.Errorf("no error for %q", bad)
		}
	}
}

func TestParseResident(t *testing.T) {
	got, err := parseResident("Name:\tx\nVmHWM:\t 9 kB\nVmRSS:\t   2048 kB\n")
	if err != nil || got != 2048*1024 {
		t.Errorf("got %v, %v", got, err)
	}
	if _, err := parseResident("Name: x\n"); err == nil {
		t.Error("no error without VmRSS")
	}
}

func TestSince(t *testing.T) {
	at := time.Now()
	before := usage{at: at, proxies: time.Second, own: time.Second, busy: 10 * time.Second, total: 100 * time.Second, sunk: 5}
	after := usage{at: at.Add(time.Second), proxies: 1500 * time.Millisecond, own: 1200 * time.Millisecond, busy: 11 * time.Second, total: 102 * time.Second, sunk: 105}
	m := after.since(before)
	if m.bytes != 100 || m.cpu != 500*time.Millisecond || m.elapsed != time.Second {
		t.Errorf("got %+v", m)
	}
	if math.Abs(m.foreign-0.15) > 1e-9 { // 1 s busy, 0.7 s of it known, of 2 s
		t.Errorf("others took %v, want 0.15", m.foreign)
	}
}

func TestParseMicro(t *testing.T) {
	got := parseMicro(`goos: linux
pkg: github.com/ambit-mesh/ambit/ztunnel/plan
cpu: some
BenchmarkOutbound-2   	 1000	      1234 ns/op	      48 B/op	       2 allocs/op
BenchmarkVIP/4000-endpoints 	 5	      99.5 ns/op
BenchmarkBroken
PASS
pkg: github.com/ambit-mesh/ambit/ztunnel/rbac
BenchmarkEvaluate/x-y-16  	 7	 3 ns/op
`)
	want := []microResult{
		{"plan/Outbound", []microValue{{1234, "ns/op"}, {48, "B/op"}, {2, "allocs/op"}}},
		{"plan/VIP/4000-endpoints", []microValue{{99.5, "ns/op"}}},
		{"rbac/Evaluate/x-y", []microValue{{3, "ns/op"}}},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
}

func TestFigure(t *testing.T) {
	for value, want := range map[float64]string{1234.5: "1234", 12.345: "12.3", 1.2345: "1.23", 0.12345: "0.123", math.Inf(1): "-"} {
		if got := figure(value); got != want {
			t.Errorf("figure(%v) = %q, want %q", value, got, want)
		}
	}
}
