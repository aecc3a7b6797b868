package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/ambit-mesh/ambit/apis/mesh"
	"github.com/ambit-mesh/ambit/integration/lab/scene"
)

// certificateLife is short so that rotations can be watched.
const certificateLife = 10 * time.Second

const (
	inside   = "bookinfo/curl"
	outside  = "outside/curl"
	waypoint = "bookinfo/waypoint"

	reviewsURL  = "http://reviews.bookinfo:9080/reviews/0"
	ratingsURL  = "http://ratings.bookinfo:9080/ratings/0"
	detailsURL  = "http://details.bookinfo:9080/details/0"
	reviewsName = "reviews.bookinfo.svc.cluster.local:9080"
)

type chapter struct {
	title string
	run   func(ctx context.Context) error
}

func (d *demo) story() []chapter {
	return []chapter{
		{"traffic is plaintext", d.plaintext},
		{"label the namespace while traffic flows: mutual TLS, no restart, nothing lost", d.enrol},
		{"only mutual TLS, please: PeerAuthentication STRICT", d.strict},
		{"who may call whom: AuthorizationPolicy by principal, at L4", d.authorize},
		{"a waypoint, and the classic canary by header", d.canary},
		{"the same call, direct, through L4, and through the waypoint", d.latency},
		{"a 90/10 split by HTTPRoute", d.split},
		{"certificates rotate under load", d.rotate},
		{"one call as metrics and logs tell it", d.observe},
	}
}

func (d *demo) up(ctx context.Context, o scene.Options) error {
	d.Command("lab up manifests/    # bookinfo.yaml, curl.yaml, outside.yaml")
	began := time.Now()
	s, err := scene.Start(ctx, o)
	if err != nil {
		return err
	}
	d.Scene = s
	if d.nodes, err = s.Nodes(ctx); err != nil {
		return err
	}
	status, err := s.Lab.Status(ctx)
	if err != nil {
		return err
	}
	ready := 0
	for _, pod := range status.Pods {
		d.Note("%-14s %-28s %-4s %s", pod.Namespace, pod.Name, pod.Node, pod.Address)
		if pod.Ready {
			ready++
		}
	}
	return d.Check(ready == len(status.Pods) && ready > 0, "all pods are ready",
		fmt.Sprintf("%d of %d, in %.1f s", ready, len(status.Pods), time.Since(began).Seconds()))
}

func (d *demo) plaintext(ctx context.Context) error {
	capture, err := d.Capture(ctx, d.nodes...)
	if err != nil {
		return err
	}
	d.Command("lab exec %s -- client %s", inside, detailsURL)
	body, err := d.Get(ctx, inside, detailsURL)
	if err != nil {
		return err
	}
	d.Note("%s", strings.TrimSpace(body))
	packets, err := capture.Stop()
	if err != nil {
		return err
	}
	for _, p := range packets {
		if strings.HasPrefix(p.HTTP, "GET ") {
			return d.Check(true, "the wire shows the HTTP request in the clear", p.String())
		}
	}
	return d.Check(false, "the wire shows the HTTP request in the clear", fmt.Sprintf("%d packets, no request", len(packets)))
}

func (d *demo) enrol(ctx context.Context) error {
	before, err := d.Pods(ctx, "bookinfo")
	if err != nil {
		return err
	}
	open, err := d.Load(ctx, inside, "--keepalive", "--interval", "20ms", detailsURL)
	if err != nil {
		return err
	}
	fresh, err := d.Load(ctx, inside, "--interval", "20ms", detailsURL)
	if err != nil {
		return err
	}
	d.Note("one client keeps a connection open, another makes new ones, 50 requests a second each")
	d.Command("kubectl label namespace bookinfo istio.io/dataplane-mode=ambient    # here: in bookinfo.yaml")
	if err := d.Label("Namespace", "bookinfo", "istio.io/dataplane-mode", "ambient"); err != nil {
		return err
	}
	if err := d.AwaitEnrolled(ctx, "bookinfo"); err != nil {
		return err
	}
	if err := fresh.More(ctx, 2); err != nil { // what was on its way when the label came
		return err
	}
	wireErr := d.checkWire(ctx, open, fresh)
	yetErr := d.checkNotYetMeshed(ctx, open)
	openAll, openErr := open.Stop()
	freshAll, freshErr := fresh.Stop()
	for _, err := range []error{wireErr, yetErr, openErr, freshErr} {
		if err != nil {
			return err
		}
	}
	failures := append(scene.Failures(openAll), scene.Failures(freshAll)...)
	if err := d.Check(len(failures) == 0, "no request failed", fmt.Sprintf("%d requests on one connection, %d on new ones; failed: %v", len(openAll), len(freshAll), failures)); err != nil {
		return err
	}
	if err := d.Check(len(scene.Locals(openAll)) == 1, "the open connection was not reset", fmt.Sprintf("%d connection", len(scene.Locals(openAll)))); err != nil {
		return err
	}
	after, err := d.Pods(ctx, "bookinfo")
	if err != nil {
		return err
	}
	if err := d.Check(slices.Equal(before, after), "no pod was restarted", fmt.Sprintf("%d pods", len(after))); err != nil {
		return err
	}
	return d.checkIdentities(ctx)
}

// checkWire watches the nodes while both loads go on: the open connection stays
// as it is, everything else is TLS to the tunnel's port.
func (d *demo) checkWire(ctx context.Context, open, fresh *scene.Load) error {
	capture, err := d.Capture(ctx, d.nodes...)
	if err != nil {
		return err
	}
	if err := fresh.More(ctx, 40); err != nil {
		return err
	}
	packets, err := capture.Stop()
	if err != nil {
		return err
	}
	plain := scene.Locals(open.Requests())
	var tunnelled, tls int
	var strangers []string
	for _, p := range packets {
		switch {
		case p.Port(mesh.PortHBONE):
			tunnelled++
			if p.TLS {
				tls++
			}
			if p.HTTP != "" {
				strangers = append(strangers, p.String())
			}
		case p.Port(9080) && !plain[p.Source.String()] && !plain[p.Target.String()]:
			strangers = append(strangers, p.String())
		}
	}
	return d.Check(tls > 0 && len(strangers) == 0, "every new connection is TLS to port 15008",
		fmt.Sprintf("%d packets to or from 15008, %d of them start a TLS record; plaintext besides the open connection: %d%s",
			tunnelled, tls, len(strangers), firstOf(strangers)))
}

func firstOf(lines []string) string {
	if len(lines) == 0 {
		return ""
	}
	return ", such as " + lines[0]
}

func (d *demo) checkNotYetMeshed(ctx context.Context, open *scene.Load) error {
	plain := scene.Locals(open.Requests())
	for _, node := range d.nodes {
		dump, err := d.Ztunnel(ctx, node)
		if err != nil {
			return err
		}
		for _, state := range dump.WorkloadState {
			for _, c := range state.Connections.NotYetMeshed {
				if plain[c.Local] || plain[c.Remote] {
					return d.Check(true, "the open connection is reported as not yet meshed",
						fmt.Sprintf("%s: pod %s: %s - %s", node, state.Info.Name, c.Local, c.Remote))
				}
			}
		}
	}
	return d.Check(false, "the open connection is reported as not yet meshed", fmt.Sprintf("no ztunnel lists %v", plain))
}

func (d *demo) checkIdentities(ctx context.Context) error {
	var lines []string
	err := scene.Await(ctx, "ztunnel logs both identities", func(ctx context.Context) error {
		var err error
		lines, err = d.LogLines(ctx, "istio-system", "ztunnel", `src.identity="spiffe://cluster.local/ns/bookinfo/sa/curl"`,
			`dst.identity="spiffe://cluster.local/ns/bookinfo/sa/bookinfo-details"`)
		if err == nil && len(lines) == 0 {
			err = fmt.Errorf("no such access line")
		}
		return err
	})
	if err != nil {
		return err
	}
	return d.Check(true, "both ends know each other's SPIFFE id", fields(lines[0], "src.identity", "dst.identity"))
}

// fields picks fields out of a line of key=value pairs.
func fields(line string, keys ...string) string {
	var found []string
	for word := range strings.FieldsSeq(line) {
		key, _, _ := strings.Cut(word, "=")
		if slices.Contains(keys, key) {
			found = append(found, word)
		}
	}
	return strings.Join(found, " ")
}

// apply adds one of the sample's manifests and shows it.
func (d *demo) apply(name string) error {
	text, err := scene.Sample(name)
	if err != nil {
		return err
	}
	d.Command("kubectl apply -f %s    # here: a file more in manifests/", name)
	d.Manifest(text)
	return d.AddSample(name)
}

func (d *demo) strict(ctx context.Context) error {
	if _, err := d.Get(ctx, outside, detailsURL); err != nil {
		return d.Check(false, "without a policy a client outside the mesh is served", err.Error())
	}
	if err := d.apply("security/peer-authentication-strict.yaml"); err != nil {
		return err
	}
	if err := d.AwaitPolicy(ctx, "istio-system/istio_converted_static_strict", "bookinfo", "details"); err != nil {
		return err
	}
	d.Command("lab exec %s -- client %s", outside, detailsURL)
	_, err := d.Get(ctx, outside, detailsURL)
	if err := d.Check(err != nil, "a client outside the mesh is refused", lastLine(err)); err != nil {
		return err
	}
	line, err := d.ztunnelLine(ctx, `direction="inbound"`, `dst.workload="details-`, "policy-denied", "istio_converted_static_strict")
	if err != nil {
		return err
	}
	if err := d.Check(true, "by the policy, and ztunnel says so", afterKey([]string{line}, "error=")); err != nil {
		return err
	}
	d.Command("lab exec %s -- client %s", inside, detailsURL)
	_, err = d.Get(ctx, inside, detailsURL)
	return d.Check(err == nil, "one inside is not", lastLine(err))
}

func lastLine(err error) string {
	if err == nil {
		return ""
	}
	lines := strings.Split(strings.TrimSpace(err.Error()), "\n")
	return lines[len(lines)-1]
}

func (d *demo) authorize(ctx context.Context) error {
	if _, err := d.Get(ctx, inside, ratingsURL); err != nil {
		return d.Check(false, "without a policy anybody in the mesh may call ratings", err.Error())
	}
	if err := d.apply("security/authorization-policy-ratings.yaml"); err != nil {
		return err
	}
	if err := d.AwaitPolicy(ctx, "bookinfo/ratings-from-reviews", "bookinfo", "ratings"); err != nil {
		return err
	}
	d.Command("lab exec %s -- client %s", inside, ratingsURL)
	_, err := d.Get(ctx, inside, ratingsURL)
	if err := d.Check(err != nil, "curl may not call ratings", lastLine(err)); err != nil {
		return err
	}
	lines, err := d.LogLines(ctx, "istio-system", "ztunnel", `direction="inbound"`, "/sa/curl", "/sa/bookinfo-ratings", "error=")
	if err != nil {
		return err
	}
	if err := d.Check(len(lines) > 0, "and ztunnel says why", afterKey(lines, "error=")); err != nil {
		return err
	}
	const url = "http://reviews-v2.bookinfo:9080/reviews/0"
	d.Command("lab exec %s -- client %s", inside, url)
	body, err := d.Get(ctx, inside, url)
	if err != nil {
		return err
	}
	return d.Check(strings.Contains(body, `"stars":5`), "reviews may: its v2 shows stars", strings.TrimSpace(body))
}

func afterKey(lines []string, key string) string {
	if len(lines) == 0 {
		return "no such line"
	}
	last := lines[len(lines)-1]
	return last[strings.Index(last, key):]
}
