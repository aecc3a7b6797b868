package main

import (
	"fmt"
	"time"
)

// row is one figure.
type row struct {
	name string
	unit string
	less bool // is better
	// goals, by what it is compared with: a system, or "limit" for a value. The
	// last one of PERFORMANCE.md is told beside the one that must be reached.
	goals map[string]float64
}

// family is the rows that one load gives.
type family struct {
	name   string
	load   load
	proxy  bool // direct has no such thing
	rows   []row
	values func(m measurement) []float64 // one for each row
}

// Names of what rows are compared with.
const (
	direct   = "direct"
	baseline = "baseline"
	limit    = "limit"
)

func families() []family {
	return []family{
		bulkFamily(1, map[string]float64{direct: 0.15, baseline: 1.4}, map[string]float64{baseline: 0.6}),
		bulkFamily(8, nil, nil),
		pingFamily(1, 1, map[string]float64{baseline: 0.5}),
		pingFamily(1, 32, nil),
		pingFamily(1<<10, 1, nil),
		pingFamily(1<<10, 32, nil),
		{
			name: "short", load: load{8, short},
			rows: []row{
				{name: "short-connections", unit: "/s", goals: map[string]float64{baseline: 1.4}},
				{name: "short-p50", unit: "us", less: true},
				{name: "short-p99", unit: "us", less: true},
				{name: "short-cpu", unit: "us/op", less: true},
			},
			values: func(m measurement) []float64 {
				return []float64{m.ops / m.elapsed.Seconds(), micros(percentile(m.latencies, .5)), micros(percentile(m.latencies, .99)), m.cpuPerOp()}
			},
		},
		{
			name: "handshake", load: load{4, handshake}, proxy: true,
			rows: []row{{name: "handshakes", unit: "/s"}, {name: "handshake-cpu", unit: "us/op", less: true}},
			values: func(m measurement) []float64 {
				return []float64{m.ops / m.elapsed.Seconds(), m.cpuPerOp()}
			},
		},
	}
}

func bulkFamily(streams int, throughput, cpu map[string]float64) family {
	return family{
		name: fmt.Sprintf("bulk-%d", streams), load: load{streams, bulk},
		rows: []row{
			{name: fmt.Sprintf("throughput-%d", streams), unit: "GB/s", goals: throughput},
			{name: fmt.Sprintf("cpu-per-gb-%d", streams), unit: "s/GB", less: true, goals: cpu},
		},
		values: func(m measurement) []float64 {
			return []float64{m.bytes / 1e9 / m.elapsed.Seconds(), m.cpu.Seconds() / (m.bytes / 1e9)}
		},
	}
}

func pingFamily(size, conns int, p50 map[string]float64) family {
	name := fmt.Sprintf("ping-%dB-%d", size, conns)
	if size >= 1<<10 {
		name = fmt.Sprintf("ping-%dKB-%d", size>>10, conns)
	}
	return family{
		name: name, load: load{conns, pings(size)},
		rows: []row{
			{name: name + "-p50", unit: "us", less: true, goals: p50},
			{name: name + "-p99", unit: "us", less: true},
			{name: name + "-cpu", unit: "us/op", less: true},
			{name: name + "-rate", unit: "/s"},
		},
		values: func(m measurement) []float64 {
			return []float64{micros(percentile(m.latencies, .5)), micros(percentile(m.latencies, .99)), m.cpuPerOp(), m.ops / m.elapsed.Seconds()}
		},
	}
}

func micros(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }

// cpuPerOp is the proxies' CPU time for one operation, in microseconds.
func (m measurement) cpuPerOp() float64 { return micros(m.cpu) / m.ops }
