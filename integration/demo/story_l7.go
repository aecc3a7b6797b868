package main

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/ambit-mesh/ambit/integration/lab/scene"
)

const (
	virtualService = "networking/virtual-service-reviews-test-v2.yaml"
	httpRoute      = "networking/http-route-reviews-90-10.yaml"
)

// waypointOptions sets the waypoint's certificate life as ztunnel's, by the
// overlay that every Gateway may name.
var waypointOptions = fmt.Sprintf(`apiVersion: v1
kind: ConfigMap
metadata:
  name: waypoint-options
  namespace: bookinfo
data:
  deployment: |
    spec:
      template:
        spec:
          containers:
          - name: istio-proxy
            env:
            - name: SECRET_TTL
              value: %s
`, certificateLife)

const infrastructure = `  gatewayClassName: istio-waypoint
  infrastructure:
    parametersRef:
      group: ""
      kind: ConfigMap
      name: waypoint-options
`

func (d *demo) canary(ctx context.Context) error {
	if err := d.Add("waypoint-options.yaml", waypointOptions); err != nil {
		return err
	}
	gateway, err := scene.Sample("networking/waypoint.yaml")
	if err != nil {
		return err
	}
	gateway = strings.Replace(gateway, "  gatewayClassName: istio-waypoint\n", infrastructure, 1)
	d.Command("kubectl apply -f waypoint.yaml && kubectl label service reviews istio.io/use-waypoint=waypoint")
	d.Manifest(gateway)
	if err := d.Add("waypoint.yaml", gateway); err != nil {
		return err
	}
	if err := d.Label("Service", "reviews", "istio.io/use-waypoint", "waypoint"); err != nil {
		return err
	}
	if err := d.apply("networking/destination-rule-reviews.yaml"); err != nil {
		return err
	}
	if err := d.apply(virtualService); err != nil {
		return err
	}
	if err := d.AwaitServiceWaypoint(ctx, "bookinfo", "reviews"); err != nil {
		return err
	}
	if err := d.AwaitRoutes(ctx, waypoint, reviewsName, "test-user", "outbound|9080|v2|"); err != nil {
		return err
	}
	if err := d.checkVersions(ctx, "the test user sees v2, 100 of 100", "v2", "-H", "end-user: test-user"); err != nil {
		return err
	}
	return d.checkVersions(ctx, "everybody else sees v1, 100 of 100", "v1")
}

func (d *demo) checkVersions(ctx context.Context, expected, version string, header ...string) error {
	args := append([]string{"-n", "100"}, header...)
	d.Command("lab exec %s -- client -n 100 %s --summary %s", inside, quoted(header), reviewsURL)
	summary, err := d.Requests(ctx, inside, append(args, reviewsURL)...)
	if err != nil {
		return err
	}
	d.table(summary)
	return d.Check(summary.Failed == 0 && summary.By[version] == 100, expected, fmt.Sprintf("failed: %d %v", summary.Failed, summary.Errors))
}

func quoted(words []string) string {
	if len(words) == 0 {
		return ""
	}
	return words[0] + " '" + strings.Join(words[1:], " ") + "'"
}

// table shows where requests went.
func (d *demo) table(summary scene.Summary) {
	for _, version := range slices.Sorted(maps.Keys(summary.By)) {
		count := summary.By[version]
		d.Note("reviews %-4s %5d  %5.1f %%", version, count, 100*float64(count)/float64(summary.Requests))
	}
}

func (d *demo) split(ctx context.Context) error {
	d.Command("kubectl delete -f %s", virtualService)
	if err := d.Remove(virtualService); err != nil {
		return err
	}
	if err := d.apply(httpRoute); err != nil {
		return err
	}
	if err := d.AwaitRoutes(ctx, waypoint, reviewsName, "reviews-v1.bookinfo", "!test-user"); err != nil {
		return err
	}
	d.Command("lab exec %s -- client -n 500 -c 4 --summary %s", inside, reviewsURL)
	summary, err := d.Requests(ctx, inside, "-n", "500", "-c", "4", reviewsURL)
	if err != nil {
		return err
	}
	d.table(summary)
	share := 100 * float64(summary.By["v2"]) / float64(summary.Requests)
	return d.Check(summary.Failed == 0 && share >= 5 && share <= 15 && summary.By["v1"]+summary.By["v2"] == summary.Requests,
		"v2 gets 10 % within 5 points", fmt.Sprintf("%.1f %% of %d, failed: %d %v", share, summary.Requests, summary.Failed, summary.Errors))
}

func (d *demo) rotate(ctx context.Context) error {
	d.Note("SECRET_TTL=%s for ztunnel and waypoint", certificateLife)
	l4, err := d.Load(ctx, inside, "--interval", "10ms", detailsURL)
	if err != nil {
		return err
	}
	l7, err := d.Load(ctx, inside, "--interval", "10ms", reviewsURL)
	if err != nil {
		return err
	}
	seen, err := d.watchRotations(ctx)
	l4All, l4Err := l4.Stop()
	l7All, l7Err := l7.Stop()
	for _, err := range []error{err, l4Err, l7Err} {
		if err != nil {
			return err
		}
	}
	var shown []string
	for _, who := range slices.Sorted(maps.Keys(seen)) {
		shown = append(shown, who+" "+strings.Join(seen[who], " > "))
	}
	d.Note("%s", strings.Join(shown, "\n"))
	if err := d.Check(true, "every certificate in use was renewed twice, by serial number", fmt.Sprintf("%d identities", len(seen))); err != nil {
		return err
	}
	failures := append(scene.Failures(l4All), scene.Failures(l7All)...)
	return d.Check(len(failures) == 0, "no request failed", fmt.Sprintf("%d requests through L4, %d through the waypoint; failed: %v", len(l4All), len(l7All), failures))
}

// watchRotations waits until the certificates of both ends of the calls and of
// the waypoint have been renewed twice, and returns their serial numbers, the
// ends of them.
func (d *demo) watchRotations(ctx context.Context) (map[string][]string, error) {
	seen := map[string][]string{}
	note := func(who string, certificates []scene.Certificate) {
		for identity, serial := range scene.Serials(certificates) {
			name := who + " " + identity[strings.LastIndex(identity, "/")+1:]
			short := serial[max(0, len(serial)-6):]
			if history := seen[name]; len(history) == 0 || history[len(history)-1] != short {
				seen[name] = append(history, short)
			}
		}
	}
	err := scene.Await(ctx, "certificates have been renewed twice", func(ctx context.Context) error {
		for _, node := range d.nodes {
			dump, err := d.Ztunnel(ctx, node)
			if err != nil {
				return err
			}
			note("ztunnel on "+node, dump.Certificates)
		}
		dump, err := d.Waypoint(ctx, waypoint)
		if err != nil {
			return err
		}
		note("waypoint", dump.Certificates)
		for _, who := range []string{"curl", "bookinfo-details", "bookinfo-reviews", "waypoint"} { // the ends of both loads
			if !slices.ContainsFunc(slices.Collect(maps.Keys(seen)), func(name string) bool { return strings.HasSuffix(name, " "+who) }) {
				return fmt.Errorf("no proxy has a certificate of %s", who)
			}
		}
		for who, history := range seen {
			if len(history) < 3 {
				return fmt.Errorf("%s has had %v", who, history)
			}
		}
		return nil
	})
	return seen, err
}

func (d *demo) latency(ctx context.Context) error {
	ways := []struct{ name, from, url string }{
		{"direct", outside, "http://reviews-v1.outside:9080/reviews/0"},
		{"L4", inside, "http://reviews-v1.bookinfo:9080/reviews/0"},
		{"waypoint", inside, reviewsURL},
	}
	p50, p99 := map[string][]float64{}, map[string][]float64{}
	const rounds = 5
	for range rounds { // interleaved, since machines are noisy
		for _, way := range ways {
			summary, err := d.Requests(ctx, way.from, "--keepalive", "-n", "200", way.url)
			if err != nil {
				return err
			}
			if summary.Failed > 0 {
				return d.Check(false, way.name+" answers", fmt.Sprint(summary.Errors))
			}
			p50[way.name] = append(p50[way.name], summary.P50)
			p99[way.name] = append(p99[way.name], summary.P99)
		}
	}
	base50, base99 := median(p50["direct"]), median(p99["direct"])
	d.Note("%-10s %12s %7s %12s %7s", "", "p50", "ratio", "p99", "ratio")
	for _, way := range ways {
		m50, m99 := median(p50[way.name]), median(p99[way.name])
		d.Note("%-10s %12s %7.2f %12s %7.2f", way.name, micros(m50), m50/base50, micros(m99), m99/base99)
	}
	return d.Check(true, "measured", fmt.Sprintf("medians of %d rounds of 200 requests, on one machine that does everything at once", rounds))
}

func micros(us float64) string {
	return time.Duration(us * float64(time.Microsecond)).Round(time.Microsecond).String()
}

func median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	return sorted[len(sorted)/2]
}

func (d *demo) observe(ctx context.Context) error {
	id := fmt.Sprintf("demo-%d", time.Now().UnixNano())
	d.Command("lab exec %s -- client -H 'x-request-id: %s' %s", inside, id, reviewsURL)
	if _, err := d.Get(ctx, inside, "-H", "x-request-id: "+id, reviewsURL); err != nil {
		return err
	}
	var line []string
	err := scene.Await(ctx, "the waypoint has logged the call", func(ctx context.Context) error {
		var err error
		if line, err = d.LogLines(ctx, "bookinfo", "waypoint", id); err == nil && len(line) != 1 {
			err = fmt.Errorf("%d lines", len(line))
		}
		return err
	})
	if err != nil {
		return err
	}
	// A connection is logged when it ends, and the waypoint keeps its own for
	// more requests, until the route that leads there is gone.
	d.Command("kubectl delete -f %s", httpRoute)
	if err := d.Remove(httpRoute); err != nil {
		return err
	}
	source, err := d.ztunnelLine(ctx, `direction="outbound"`, `src.workload="curl-`, `dst.service="reviews.bookinfo`)
	if err != nil {
		return err
	}
	destination, err := d.ztunnelLine(ctx, `direction="inbound"`, `src.identity="spiffe://cluster.local/ns/bookinfo/sa/waypoint"`, `dst.workload="reviews-`)
	if err != nil {
		return err
	}
	d.Note("source       %s\nwaypoint     %s\ndestination  %s", source, line[0], destination)
	if err := d.Check(true, "access logs of source, waypoint and destination", ""); err != nil {
		return err
	}
	return d.metrics(ctx)
}

// ztunnelLine returns the newest access line that contains the texts. A
// connection is logged when it ends.
func (d *demo) ztunnelLine(ctx context.Context, texts ...string) (string, error) {
	var lines []string
	err := scene.Await(ctx, "ztunnel has logged "+strings.Join(texts, " "), func(ctx context.Context) error {
		var err error
		if lines, err = d.LogLines(ctx, "istio-system", "ztunnel", texts...); err == nil && len(lines) == 0 {
			err = fmt.Errorf("no such line")
		}
		return err
	})
	if err != nil {
		return "", err
	}
	return lines[len(lines)-1], nil
}

func (d *demo) metrics(ctx context.Context) error {
	const metricsURL = "http://localhost:15020/metrics"
	curl, err := d.PodOf(ctx, "bookinfo", "curl", "")
	if err != nil {
		return err
	}
	reviews, err := d.PodOf(ctx, "bookinfo", "reviews-v1", "")
	if err != nil {
		return err
	}
	for _, place := range []struct {
		name, target string
		texts        []string
	}{
		{"source", "node/" + curl.Node, []string{"istio_tcp_connections_opened_total{", `reporter="source"`, `source_workload="curl"`, `destination_service_name="reviews"`}},
		{"waypoint", waypoint, []string{"istio_requests_total{", `reporter="waypoint"`, `source_workload="curl"`, `destination_workload="reviews-v1"`, `response_code="200"`}},
		{"destination", "node/" + reviews.Node, []string{"istio_tcp_connections_opened_total{", `reporter="destination"`, `source_principal="spiffe://cluster.local/ns/bookinfo/sa/waypoint"`, `destination_workload="reviews-v1"`}},
	} {
		text, err := d.Get(ctx, place.target, metricsURL)
		if err != nil {
			return err
		}
		line := lineWith(text, place.texts)
		if line != "" {
			d.Note("%s", line)
		}
		if err := d.Check(line != "", "a metric of the "+place.name, "lab exec "+place.target+" -- client "+metricsURL); err != nil {
			return err
		}
	}
	return nil
}

func lineWith(text string, parts []string) string {
	for line := range strings.Lines(text) {
		found := true
		for _, part := range parts {
			found = found && strings.Contains(line, part)
		}
		if found {
			return strings.TrimSpace(line)
		}
	}
	return ""
}
