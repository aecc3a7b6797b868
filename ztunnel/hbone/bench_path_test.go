package hbone_test

// The benchmarks of this file measure a whole path, application → proxy A →
// tunnel (TCP and mTLS over loopback) → proxy B → application. A and B run in a
// process of their own, so that CPU time and allocations are theirs alone; the
// applications are in the benchmark's process. The engines are
//
//	ambit     package hbone and package relay
//	nethttp   CONNECT over golang.org/x/net/http2, the baseline
//	direct    no proxy at all
//
// and all are measured in one run:
//
//	go test -run '^$' -bench Path -count 10 ./ztunnel/hbone | tee new.txt
//	go run golang.org/x/perf/cmd/benchstat@latest -col /engine new.txt

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// A path is a way to the application.
type path struct {
	b    *testing.B
	addr string
	cmd  *exec.Cmd
	in   io.WriteCloser
	out  *bufio.Reader
}

// newPath makes a path to an application that serves each connection with
// serve.
func newPath(b *testing.B, engine string, serve func(*net.TCPConn)) *path {
	b.Helper()
	l := listen(b)
	var apps sync.WaitGroup
	apps.Go(func() { accept(l, func(c *net.TCPConn) { apps.Go(func() { serve(c); _ = c.Close() }) }) })
	p := &path{b: b, addr: l.Addr().String()}
	b.Cleanup(func() {
		if p.cmd != nil {
			_ = p.in.Close()
			_ = p.cmd.Wait()
		}
		_ = l.Close()
		apps.Wait()
	})
	if engine == "direct" {
		return p
	}
	p.cmd = exec.Command(os.Args[0], "-test.run=^TestBenchProxies$")
	p.cmd.Env = append(os.Environ(), proxiesEnv+"="+engine+" "+p.addr)
	p.cmd.Stderr = os.Stderr
	var err error
	if p.in, err = p.cmd.StdinPipe(); err != nil {
		b.Fatal(err)
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	p.out = bufio.NewReader(out)
	if err := p.cmd.Start(); err != nil {
		b.Fatal(err)
	}
	line, err := p.out.ReadString('\n')
	if err != nil {
		b.Fatalf("proxies: %v", err)
	}
	p.addr = strings.TrimSpace(line)
	return p
}

func (p *path) usage(ask string) usage {
	p.b.Helper()
	var u usage
	if p.cmd == nil {
		return u
	}
	if _, err := io.WriteString(p.in, ask+"\n"); err != nil {
		p.b.Fatal(err)
	}
	line, err := p.out.ReadBytes('\n')
	if err != nil {
		p.b.Fatalf("proxies: %v", err)
	}
	if err := json.Unmarshal(line, &u); err != nil {
		p.b.Fatal(err)
	}
	return u
}

func (p *path) dial() *net.TCPConn {
	p.b.Helper()
	c, err := net.Dial("tcp", p.addr)
	if err != nil {
		p.b.Fatal(err)
	}
	return c.(*net.TCPConn)
}

// report adds what the proxies have consumed since before, per unit.
func (p *path) report(before usage, units float64, cpu string) {
	if p.cmd == nil {
		return
	}
	after := p.usage("now")
	scale := map[string]float64{"s/GB": 1, "µs/op": 1e6}[cpu[strings.Index(cpu, "-")+1:]]
	p.b.ReportMetric((after.CPU-before.CPU).Seconds()*scale/units, cpu)
	p.b.ReportMetric(float64(after.Mallocs-before.Mallocs)/units, "mallocs/"+cpu[strings.LastIndex(cpu, "/")+1:])
}

func engines(b *testing.B, run func(b *testing.B, engine string)) {
	b.Helper()
	for _, engine := range []string{"ambit", "nethttp", "direct"} {
		b.Run("engine="+engine, func(b *testing.B) { run(b, engine) })
	}
}

const benchBlock = 64 << 10

// BenchmarkPathThroughput moves blocks over one and eight streams.
func BenchmarkPathThroughput(b *testing.B) {
	for _, streams := range []int{1, 8} {
		b.Run(fmt.Sprintf("streams=%d", streams), func(b *testing.B) {
			engines(b, func(b *testing.B, engine string) {
				b.Helper()
				p := newPath(b, engine, drainApp)
				throughput(b, p, streams)
			})
		})
	}
}

// drainApp reads all, then says so.
func drainApp(c *net.TCPConn) {
	buf := make([]byte, 256<<10)
	for {
		if _, err := c.Read(buf); err != nil {
			break
		}
	}
	_, _ = c.Write([]byte{1})
}

func throughput(b *testing.B, p *path, streams int) {
	b.Helper()
	conns := make([]*net.TCPConn, streams)
	for i := range conns {
		conns[i] = p.dial()
		_, _ = conns[i].Write(make([]byte, 1<<20)) // warm
	}
	before := p.usage("now")
	b.SetBytes(benchBlock)
	b.ResetTimer()
	var left atomic.Int64
	left.Store(int64(b.N))
	var all sync.WaitGroup
	for _, c := range conns {
		all.Go(func() {
			block := make([]byte, benchBlock)
			for left.Add(-1) >= 0 {
				if _, err := c.Write(block); err != nil {
					b.Error(err)
					return
				}
			}
			_ = c.CloseWrite()
			if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
				b.Errorf("answer: %v", err)
			}
			_ = c.Close()
		})
	}
	all.Wait()
	b.StopTimer()
	p.report(before, float64(b.N)*benchBlock/1e9, "cpu-s/GB")
}

func echoApp(c *net.TCPConn) {
	buf := make([]byte, 64<<10)
	for {
		n, err := c.Read(buf)
		if n > 0 {
			_, _ = c.Write(buf[:n])
		}
		if err != nil {
			return
		}
	}
}

// BenchmarkPathPing sends a message there and back, over one connection or
// over 32 at once.
func BenchmarkPathPing(b *testing.B) {
	for _, test := range []struct{ conns, size int }{{1, 1}, {1, 1 << 10}, {32, 1 << 10}} {
		b.Run(fmt.Sprintf("conns=%d/size=%d", test.conns, test.size), func(b *testing.B) {
			engines(b, func(b *testing.B, engine string) {
				b.Helper()
				p := newPath(b, engine, echoApp)
				pings(b, p, test.conns, test.size)
			})
		})
	}
}

func pings(b *testing.B, p *path, conns, size int) {
	b.Helper()
	ends := make([]*net.TCPConn, conns)
	for i := range ends {
		ends[i] = p.dial()
		_, _ = ends[i].Write([]byte{1})
		_, _ = io.ReadFull(ends[i], make([]byte, 1))
	}
	before := p.usage("now")
	took := make([]time.Duration, b.N)
	var next atomic.Int64
	b.ResetTimer()
	var all sync.WaitGroup
	for _, c := range ends {
		all.Go(func() {
			defer func() { _ = c.Close() }()
			msg := make([]byte, size)
			for {
				i := next.Add(1) - 1
				if i >= int64(len(took)) {
					return
				}
				start := time.Now()
				if _, err := c.Write(msg); err != nil {
					b.Error(err)
					return
				}
				if _, err := io.ReadFull(c, msg); err != nil {
					b.Error(err)
					return
				}
				took[i] = time.Since(start)
			}
		})
	}
	all.Wait()
	b.StopTimer()
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2])/1e3, "p50-µs")
	b.ReportMetric(float64(took[len(took)*99/100])/1e3, "p99-µs")
	p.report(before, float64(b.N), "cpu-µs/op")
}

// BenchmarkPathShort opens a connection through the warm tunnel, sends a
// request, reads the answer to its end; 8 at a time.
func BenchmarkPathShort(b *testing.B) {
	engines(b, func(b *testing.B, engine string) {
		b.Helper()
		p := newPath(b, engine, echoApp)
		shortOnce(b, p)
		before := p.usage("now")
		b.ResetTimer()
		var left atomic.Int64
		left.Store(int64(b.N))
		var all sync.WaitGroup
		for range 8 {
			all.Go(func() {
				for left.Add(-1) >= 0 {
					shortOnce(b, p)
				}
			})
		}
		all.Wait()
		b.StopTimer()
		b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "conns/s")
		p.report(before, float64(b.N), "cpu-µs/op")
	})
}

func shortOnce(b *testing.B, p *path) {
	b.Helper()
	c, err := net.Dial("tcp", p.addr)
	if err != nil {
		b.Error(err)
		return
	}
	defer func() { _ = c.Close() }()
	_, _ = c.Write(make([]byte, 100))
	_ = c.(*net.TCPConn).CloseWrite()
	if got, err := io.ReadAll(c); err != nil || len(got) != 100 {
		b.Errorf("answer: %d bytes, %v", len(got), err)
	}
}

// BenchmarkPathIdle opens connections, uses each once and leaves it.
func BenchmarkPathIdle(b *testing.B) {
	const conns = 1000
	engines(b, func(b *testing.B, engine string) {
		b.Helper()
		if engine == "direct" {
			b.Skip("no proxy, no memory")
		}
		p := newPath(b, engine, echoApp)
		shortOnce(b, p)
		before := p.usage("gc")
		for b.Loop() {
			var open []*net.TCPConn
			for range conns {
				c := p.dial()
				_, _ = c.Write([]byte{1})
				_, _ = io.ReadFull(c, make([]byte, 1))
				open = append(open, c)
			}
			after := p.usage("gc")
			b.ReportMetric(float64(after.Memory-before.Memory)/conns/1024/2, "KB/conn/proxy")
			for _, c := range open {
				_ = c.Close()
			}
		}
	})
}

// BenchmarkPathStalled measures one stream beside 32 whose readers sleep, and
// alone. The baseline is not in it: there the sleepers stop the tunnel.
func BenchmarkPathStalled(b *testing.B) {
	for _, stalled := range []int{0, 32} {
		b.Run(fmt.Sprintf("stalled=%d", stalled), func(b *testing.B) {
			for _, engine := range []string{"ambit"} {
				b.Run("engine="+engine, func(b *testing.B) {
					release := make(chan struct{})
					p := newPath(b, engine, func(c *net.TCPConn) {
						first := make([]byte, 1)
						_, _ = io.ReadFull(c, first)
						if first[0] == 's' {
							<-release
							return
						}
						drainApp(c)
					})
					b.Cleanup(func() { close(release) })
					var sleepers sync.WaitGroup
					for range stalled {
						c := p.dial()
						sleepers.Go(func() { // as much as the path takes
							_, _ = c.Write([]byte{'s'})
							for {
								_ = c.SetWriteDeadline(time.Now().Add(time.Second))
								if _, err := c.Write(make([]byte, 64<<10)); err != nil {
									return
								}
							}
						})
						b.Cleanup(func() { _ = c.Close() })
					}
					sleepers.Wait()
					throughput(b, p, 1)
				})
			}
		})
	}
}
