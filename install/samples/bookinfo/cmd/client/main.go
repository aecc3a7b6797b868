// Command client makes HTTP requests and says what became of them: a small
// curl that can also keep on asking. Each request opens a connection of its
// own unless --keepalive is given.
//
//	client http://reviews:9080/reviews/0
//	client -n 100 -H 'end-user: test-user' --summary http://reviews:9080/reviews/0
//	client --until-eof --keepalive --interval 50ms --summary http://ratings:9080/ratings/0
package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"os"
	"os/signal"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"
)

type options struct {
	url       string
	method    string
	headers   []string
	requests  int
	parallel  int
	keepalive bool
	untilEOF  bool
	summary   bool
	lines     bool
	interval  time.Duration
	timeout   time.Duration
	by        string
	sleep     bool
}

// result is one request, as --json prints it.
type result struct {
	Time    time.Time `json:"time"`
	Status  int       `json:"status,omitempty"`
	Error   string    `json:"error,omitempty"`
	By      string    `json:"by,omitempty"`
	Latency float64   `json:"latency_us"`
	Local   string    `json:"local,omitempty"`
	Remote  string    `json:"remote,omitempty"`

	body []byte
}

// summary is what --summary prints at the end.
type summary struct {
	Requests    int            `json:"requests"`
	Failed      int            `json:"failed"` // without a response, or with a status of 400 or more
	Connections int            `json:"connections"`
	Statuses    map[string]int `json:"statuses"`
	By          map[string]int `json:"by"`
	Errors      []string       `json:"errors,omitempty"` // the first few
	P50         float64        `json:"p50_us"`
	P99         float64        `json:"p99_us"`
}

func main() {
	var o options
	command := &cobra.Command{
		Use:   "client [flags] URL",
		Short: "Make HTTP requests and say what became of them",
		Args:  cobra.MaximumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if o.sleep {
				<-c.Context().Done()
				return nil
			}
			if len(args) == 0 {
				return errors.New("a URL is needed")
			}
			o.url = args[0]
			return run(c.Context(), o, os.Stdin, os.Stdout)
		},
		SilenceUsage: true,
	}
	flags := command.Flags()
	flags.StringVarP(&o.method, "request", "X", http.MethodGet, "method")
	flags.StringArrayVarP(&o.headers, "header", "H", nil, "header `name: value`; may be repeated")
	flags.IntVarP(&o.requests, "requests", "n", 1, "how many requests")
	flags.IntVarP(&o.parallel, "parallel", "c", 1, "how many at a time")
	flags.BoolVar(&o.keepalive, "keepalive", false, "use one connection (each of -c) for all requests")
	flags.BoolVar(&o.untilEOF, "until-eof", false, "go on until standard input ends; -n does not count")
	flags.BoolVar(&o.summary, "summary", false, "print one JSON summary at the end instead of bodies")
	flags.BoolVar(&o.lines, "json", false, "print a JSON line for each request instead of bodies")
	flags.DurationVar(&o.interval, "interval", 0, "pause between requests")
	flags.DurationVar(&o.timeout, "timeout", 10*time.Second, "of one request")
	flags.StringVar(&o.by, "by", "X-Version", "response header by which the summary counts")
	flags.BoolVar(&o.sleep, "sleep", false, "make no requests and stay until terminated, as a pod to enter")
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	err := command.ExecuteContext(ctx)
	stop()
	if err != nil {
		os.Exit(1)
	}
}

func run(ctx context.Context, o options, input io.Reader, output io.Writer) error {
	work, stop := context.WithCancel(ctx)
	defer stop()
	if o.untilEOF {
		go func() {
			_, _ = io.Copy(io.Discard, input)
			stop()
		}()
	}
	results := make(chan result)
	var workers sync.WaitGroup
	for i := range o.parallel {
		share := o.requests / o.parallel
		if i < o.requests%o.parallel {
			share++
		}
		workers.Go(func() { o.worker(ctx, work, share, results) })
	}
	go func() {
		workers.Wait()
		close(results)
	}()
	return o.report(results, output)
}

// worker makes requests one after the other. A request that has begun is
// finished even when work is done.
func (o options) worker(ctx, work context.Context, count int, results chan<- result) {
	transport := &http.Transport{DisableKeepAlives: !o.keepalive, TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12}}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport, Timeout: o.timeout, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	for i := 0; o.untilEOF || i < count; i++ {
		if i > 0 && o.interval > 0 {
			select {
			case <-time.After(o.interval):
			case <-work.Done():
			}
		}
		if work.Err() != nil {
			return
		}
		results <- o.request(ctx, client)
	}
}

func (o options) request(ctx context.Context, client *http.Client) (r result) {
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(info httptrace.GotConnInfo) {
		r.Local, r.Remote = info.Conn.LocalAddr().String(), info.Conn.RemoteAddr().String()
	}})
	request, err := http.NewRequestWithContext(ctx, o.method, o.url, nil)
	if err != nil {
		return result{Time: time.Now(), Error: err.Error()}
	}
	for _, header := range o.headers {
		name, value, _ := strings.Cut(header, ":")
		if value = strings.TrimSpace(value); strings.EqualFold(name, "host") {
			request.Host = value
		} else {
			request.Header.Add(name, value)
		}
	}
	r.Time = time.Now()
	defer func() { r.Latency = float64(time.Since(r.Time).Nanoseconds()) / 1000 }()
	response, err := client.Do(request)
	if err != nil {
		r.Error = err.Error()
		return r
	}
	defer response.Body.Close()
	r.Status, r.By = response.StatusCode, response.Header.Get(o.by)
	if r.body, err = io.ReadAll(response.Body); err != nil {
		r.Error = err.Error()
	}
	return r
}

// report prints the results as they come. It returns an error, so that the
// exit code is not 0, when a request had no response at all.
func (o options) report(results <-chan result, output io.Writer) error {
	out := bufio.NewWriter(output)
	total := summary{Statuses: map[string]int{}, By: map[string]int{}}
	connections := map[string]bool{}
	var latencies []float64
	var unanswered int
	for r := range results {
		total.add(r)
		connections[r.Local] = true
		latencies = append(latencies, r.Latency)
		if r.Error != "" {
			unanswered++
		}
		switch {
		case o.lines:
			writeJSON(out, r)
		case !o.summary && r.Error != "":
			fmt.Fprintln(out, "client:", r.Error)
		case !o.summary:
			_, _ = out.Write(r.body)
		}
		if err := out.Flush(); err != nil {
			return err
		}
	}
	if o.summary {
		slices.Sort(latencies)
		total.P50, total.P99 = quantile(latencies, 0.50), quantile(latencies, 0.99)
		delete(connections, "")
		total.Connections = len(connections)
		writeJSON(out, total)
	}
	if err := out.Flush(); err != nil {
		return err
	}
	if unanswered > 0 {
		return fmt.Errorf("%d of %d requests had no response", unanswered, total.Requests)
	}
	return nil
}

func (s *summary) add(r result) {
	s.Requests++
	if r.Error != "" {
		s.Failed++
		if len(s.Errors) < 5 {
			s.Errors = append(s.Errors, r.Error)
		}
		return
	}
	s.Statuses[fmt.Sprint(r.Status)]++
	s.By[r.By]++
	if r.Status >= http.StatusBadRequest {
		s.Failed++
	}
}

func quantile(sorted []float64, q float64) float64 {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[min(len(sorted)-1, int(q*float64(len(sorted))))]
}

func writeJSON(out io.Writer, value any) {
	data, err := json.Marshal(value)
	if err != nil {
		panic(err) // plain structs always marshal
	}
	fmt.Fprintf(out, "%s\n", data)
}
