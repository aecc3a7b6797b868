package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/ambit-mesh/ambit/apis/mesh"
)

const reviewsURL = "http://reviews.bookinfo:9080/reviews/0"

type chapter struct {
	title  string
	run    func(ctx context.Context) error
	needed bool // by all that follows
}

func (t *test) story(keep bool) []chapter {
	chapters := []chapter{
		{"a cluster without a mesh", t.look, true},
		{"install: ambitctl install", t.install, true},
		{"bookinfo, outside the mesh: plaintext between the nodes", t.bookinfo, true},
		{"label the namespace while traffic flows", t.enrol, true},
		{"only mutual TLS, please: PeerAuthentication STRICT", t.strict, false},
		{"new pods of a captured namespace", t.restart, false},
		{"a waypoint, and the canary by header: VirtualService", t.canary, false},
		{"a 90/10 split: HTTPRoute", t.split, false},
	}
	if keep {
		return chapters
	}
	return append(chapters,
		chapter{"take the label away while traffic flows", t.release, false},
		chapter{"uninstall: nothing is left", t.uninstall, false},
	)
}

func (t *test) look(ctx context.Context) error {
	text, err := t.kubectl(ctx, "get", "nodes", "-o", "jsonpath={.items[*].metadata.name}")
	if err != nil {
		return fmt.Errorf("is there a cluster? make cluster-up starts one: %w", err)
	}
	t.nodes = strings.Fields(text)
	if t.before, err = t.snapshot(ctx); err != nil {
		return err
	}
	mesh := slices.ContainsFunc(t.before.api, func(line string) bool { return line == "Namespace <none> istio-system" })
	saw := strings.Join(t.nodes, " ")
	if mesh {
		saw = "istio-system is there; ambitctl uninstall --purge removes an earlier installation"
	}
	return t.Check(len(t.nodes) >= 2 && !mesh, "two nodes, no mesh", saw)
}

func (t *test) install(ctx context.Context) error {
	t.Command("ambitctl install")
	text, err := output(t.program(ctx, "cluster", "kubeconfig"))
	if err != nil {
		return err
	}
	t.kubeconfig = strings.TrimSpace(text)
	if err := t.ambitctl(ctx, "install"); err != nil {
		return err
	}
	for _, daemonSet := range []string{mesh.AccountZtunnel, "ambit-cni"} {
		pods, err := t.pods(ctx, mesh.DefaultSystemNamespace, "app="+daemonSet)
		if err != nil {
			return err
		}
		unready := slices.ContainsFunc(pods, func(p pod) bool { return !p.ready() })
		if err := t.Check(len(pods) == len(t.nodes) && !unready, daemonSet+" is ready on every node", fmt.Sprintf("%d pods", len(pods))); err != nil {
			return err
		}
	}
	return nil
}

// ambitctl runs it and shows what it prints.
func (t *test) ambitctl(ctx context.Context, args ...string) error {
	text, err := output(t.program(ctx, "ambitctl", append(args, "--kubeconfig", t.kubeconfig)...))
	t.Note("%s", text)
	return err
}

func (t *test) bookinfo(ctx context.Context) error {
	for _, name := range []string{"bookinfo.yaml", "curl.yaml", "outside.yaml"} {
		if err := t.apply(ctx, name); err != nil {
			return err
		}
	}
	for _, namespace := range []string{"bookinfo", "outside"} {
		if err := t.rolledOut(ctx, namespace); err != nil {
			return err
		}
	}
	if err := t.choose(ctx); err != nil {
		return err
	}
	packets, err := t.capture(ctx, func() error {
		_, err := t.fetch(ctx, "bookinfo", t.farURL)
		return err
	})
	if err != nil {
		return err
	}
	for _, p := range packets {
		if strings.HasPrefix(p.HTTP, "GET ") {
			if err := t.Check(true, "the wire shows the HTTP request in the clear", fmt.Sprintf("%s > %s %s", p.Source, p.Target, p.HTTP)); err != nil {
				return err
			}
			t.unmeshed, err = t.nodeStates(ctx)
			return err
		}
	}
	return t.Check(false, "the wire shows the HTTP request in the clear", fmt.Sprintf("%d packets, no request", len(packets)))
}

// choose finds a server on another node than the client's.
func (t *test) choose(ctx context.Context) error {
	curl, err := t.pods(ctx, "bookinfo", "app=curl")
	if err != nil || len(curl) != 1 {
		return errors.Join(err, fmt.Errorf("%d pods of curl", len(curl)))
	}
	t.curl = curl[0]
	for _, server := range []struct{ service, selector, path string }{
		{"details", "app=details", "/details/0"},
		{"ratings", "app=ratings", "/ratings/0"},
		{"reviews-v1", "app=reviews,version=v1", "/reviews/0"},
		{"reviews-v2", "app=reviews,version=v2", "/reviews/0"},
		{"reviews-v3", "app=reviews,version=v3", "/reviews/0"},
	} {
		pods, err := t.pods(ctx, "bookinfo", server.selector)
		if err != nil {
			return err
		}
		if len(pods) == 1 && pods[0].Spec.NodeName != t.curl.Spec.NodeName {
			t.far, t.farURL = pods[0], "http://"+server.service+".bookinfo:9080"+server.path
			t.Note("client %s on %s, server %s on %s", t.curl.Metadata.Name, t.curl.Spec.NodeName, t.far.Metadata.Name, t.far.Spec.NodeName)
			return nil
		}
	}
	return errors.New("all pods are on one node")
}

func (t *test) enrol(ctx context.Context) error {
	before, err := t.pods(ctx, "bookinfo", "")
	if err != nil {
		return err
	}
	l, err := t.load(ctx, t.farURL)
	if err != nil {
		return err
	}
	if err := t.say(ctx, "label", "namespace", "bookinfo", mesh.LabelDataplaneMode+"="+mesh.DataplaneModeAmbient); err != nil {
		return err
	}
	if err := t.awaitRedirection(ctx, mesh.RedirectionEnabled); err != nil {
		return err
	}
	if err := l.more(ctx, 20); err != nil { // what was on its way when the label came
		return err
	}
	if err := t.checkWire(ctx, l); err != nil {
		return err
	}
	if err := l.stop(); err != nil {
		return err
	}
	if err := t.Check(len(l.failed) == 0, "no request failed", fmt.Sprintf("%d requests; failed: %v", l.total, l.failed)); err != nil {
		return err
	}
	after, err := t.pods(ctx, "bookinfo", "")
	if err != nil {
		return err
	}
	if err := t.Check(slices.Equal(identities(before), identities(after)), "no pod was restarted", fmt.Sprintf("%d pods", len(after))); err != nil {
		return err
	}
	seen, err := t.requests(ctx, "-n", "5", "--by", "X-Peer", t.farURL)
	if err != nil {
		return err
	}
	return t.Check(seen.By[t.curl.Status.PodIP] == 5, "the server sees the client's own address, through the tunnel",
		fmt.Sprintf("%v, client is %s", seen.By, t.curl.Status.PodIP))
}

// identities of pods, with what would show a restart.
func identities(pods []pod) []string {
	var out []string
	for _, p := range pods {
		out = append(out, fmt.Sprintf("%s/%d", p.Metadata.UID, p.restarts()))
	}
	slices.Sort(out)
	return out
}

// awaitRedirection waits until all pods of bookinfo have the annotation, or
// none if value is empty.
func (t *test) awaitRedirection(ctx context.Context, value string) error {
	return await(ctx, "pods of bookinfo are annotated "+mesh.AnnotationRedirection+"="+value, func(ctx context.Context) error {
		pods, err := t.pods(ctx, "bookinfo", "gateway.networking.k8s.io/gateway-name notin (waypoint)")
		if err != nil {
			return err
		}
		for _, p := range pods {
			if got := p.Metadata.Annotations[mesh.AnnotationRedirection]; got != value {
				return fmt.Errorf("%s has %q", p.Metadata.Name, got)
			}
		}
		return nil
	})
}

// checkWire watches the links of the nodes while a load goes on.
func (t *test) checkWire(ctx context.Context, l *load) error {
	packets, err := t.capture(ctx, func() error { return l.more(ctx, 20) })
	if err != nil {
		return err
	}
	var tls int
	var plain []string
	for _, p := range packets {
		switch {
		case p.Source.Port() == mesh.PortHBONE || p.Target.Port() == mesh.PortHBONE:
			if p.TLS {
				tls++
			}
		case p.Source.Port() == 9080 || p.Target.Port() == 9080:
			plain = append(plain, fmt.Sprintf("%s > %s %s", p.Source, p.Target, p.HTTP))
		}
	}
	return t.Check(tls > 0 && len(plain) == 0, "between the nodes all of it is TLS to port 15008",
		fmt.Sprintf("%d packets start a TLS record; in plaintext: %d %s", tls, len(plain), strings.Join(plain[:min(1, len(plain))], "")))
}

func (t *test) strict(ctx context.Context) error {
	_, err := t.fetch(ctx, "outside", t.farURL)
	if err := t.Check(err == nil, "a client outside the mesh is still served, in plaintext", text(err)); err != nil {
		return err
	}
	if err := t.apply(ctx, "security/peer-authentication-strict.yaml"); err != nil {
		return err
	}
	var refused error
	if err := await(ctx, "the policy is in force", func(ctx context.Context) error {
		if _, refused = t.fetch(ctx, "outside", t.farURL); refused == nil {
			return errors.New("the client outside is still served")
		}
		return nil
	}); err != nil {
		return t.Check(false, "under STRICT it is refused", err.Error())
	}
	if err := t.Check(true, "under STRICT it is refused", lastLine(refused.Error())); err != nil {
		return err
	}
	if err := t.awaitZtunnelLog(ctx, `direction="inbound"`, "policy-denied", "istio_converted_static_strict", t.far.Metadata.Name); err != nil {
		return t.Check(false, "by the policy, and ztunnel says so", err.Error())
	}
	if err := t.Check(true, "by the policy, and ztunnel says so", ""); err != nil {
		return err
	}
	_, err = t.fetch(ctx, "bookinfo", t.farURL)
	return t.Check(err == nil, "one inside is served", text(err))
}

func text(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

func lastLine(s string) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return lines[len(lines)-1]
}

// awaitZtunnelLog waits for an access line that contains all texts.
func (t *test) awaitZtunnelLog(ctx context.Context, texts ...string) error {
	return await(ctx, "ztunnel logs "+strings.Join(texts, " "), func(ctx context.Context) error {
		all, err := t.kubectl(ctx, "logs", "-n", mesh.DefaultSystemNamespace, "-l", "app="+mesh.AccountZtunnel, "--tail=-1")
		if err != nil {
			return err
		}
		for line := range strings.Lines(all) {
			if !slices.ContainsFunc(texts, func(text string) bool { return !strings.Contains(line, text) }) {
				return nil
			}
		}
		return errors.New("no such line")
	})
}

// restart shows that pods start in a captured namespace under STRICT: their
// kubelet's probes pass, and their first connection is captured.
func (t *test) restart(ctx context.Context) error {
	if err := t.say(ctx, "-n", "bookinfo", "rollout", "restart", "deployment/details-v1", "deployment/ratings-v1"); err != nil {
		return err
	}
	for _, deployment := range []string{"details-v1", "ratings-v1"} {
		if _, err := t.kubectl(ctx, "-n", "bookinfo", "rollout", "status", "deployment/"+deployment, "--timeout=90s"); err != nil {
			return t.Check(false, "new pods get ready: the kubelet's probes pass", err.Error())
		}
	}
	if err := t.settled(ctx, "bookinfo"); err != nil {
		return err
	}
	pods, err := t.pods(ctx, "bookinfo", "app in (details,ratings,reviews,productpage)")
	if err != nil {
		return err
	}
	var bad []string
	for _, p := range pods {
		if !p.ready() || p.restarts() > 0 {
			bad = append(bad, p.Metadata.Name)
		}
	}
	if err := t.newcomer(ctx); err != nil {
		return err
	}
	if err := t.Check(len(bad) == 0, "probes are green under STRICT, of old pods and new", fmt.Sprintf("%d pods; not ready or restarted: %v", len(pods), bad)); err != nil {
		return err
	}
	if err := t.awaitRedirection(ctx, mesh.RedirectionEnabled); err != nil {
		return err
	}
	seen, err := t.requests(ctx, "-n", "20", "http://details.bookinfo:9080/details/0")
	if err != nil {
		return err
	}
	return t.Check(seen.Failed == 0, "they serve the mesh", fmt.Sprintf("%d requests, failed: %v", seen.Requests, seen.Errors))
}

// newcomer shows that a pod's first act is captured: under STRICT nobody answers
// it otherwise. It tries once.
func (t *test) newcomer(ctx context.Context) error {
	if err := t.say(ctx, "-n", "bookinfo", "run", "newcomer", "--image=ambit-mesh/bookinfo/client:1", "--image-pull-policy=IfNotPresent",
		"--restart=Never", "--", "http://details:9080/details/0"); err != nil {
		return err
	}
	var p pod
	err := await(ctx, "the newcomer ends", func(ctx context.Context) error {
		if err := t.get(ctx, &p, "-n", "bookinfo", "pod", "newcomer"); err != nil {
			return err
		}
		if p.Status.Phase != "Succeeded" && p.Status.Phase != "Failed" {
			return errors.New("it is " + p.Status.Phase)
		}
		return nil
	})
	if err != nil {
		return err
	}
	said, err := t.kubectl(ctx, "-n", "bookinfo", "logs", "newcomer")
	if err != nil {
		return err
	}
	if _, err := t.kubectl(ctx, "-n", "bookinfo", "delete", "pod", "newcomer"); err != nil {
		return err
	}
	return t.Check(p.Status.Phase == "Succeeded", "a new pod's first connection is captured", strings.TrimSpace(said))
}

func (t *test) canary(ctx context.Context) error {
	if err := t.apply(ctx, "networking/waypoint.yaml"); err != nil {
		return err
	}
	if err := t.say(ctx, "-n", "bookinfo", "wait", "--for=condition=Programmed", "--timeout=90s", "gateway/waypoint"); err != nil {
		return t.Check(false, "the waypoint is programmed", err.Error())
	}
	var gateway struct {
		Status struct {
			Addresses []struct{ Type, Value string }
		}
	}
	if err := t.get(ctx, &gateway, "-n", "bookinfo", "gateway", "waypoint"); err != nil {
		return err
	}
	if err := t.Check(len(gateway.Status.Addresses) > 0, "the waypoint is programmed, with an address", fmt.Sprint(gateway.Status.Addresses)); err != nil {
		return err
	}
	if err := t.say(ctx, "-n", "bookinfo", "label", "service", "reviews", mesh.LabelUseWaypoint+"=waypoint"); err != nil {
		return err
	}
	for _, name := range []string{"networking/destination-rule-reviews.yaml", "networking/virtual-service-reviews-test-v2.yaml"} {
		if err := t.apply(ctx, name); err != nil {
			return err
		}
	}
	if err := t.awaitVersions(ctx, "v1"); err != nil {
		return err
	}
	for _, who := range []struct{ expected, version, header string }{
		{"the test user sees v2, 100 of 100", "v2", "end-user: test-user"},
		{"everybody else sees v1, 100 of 100", "v1", "end-user: nobody"},
	} {
		seen, err := t.requests(ctx, "-n", "100", "-H", who.header, reviewsURL)
		if err != nil {
			return err
		}
		if err := t.Check(seen.Failed == 0 && seen.By[who.version] == 100, who.expected, fmt.Sprintf("%v, failed: %d %v", seen.By, seen.Failed, seen.Errors)); err != nil {
			return err
		}
	}
	return nil
}

// awaitVersions waits until reviews answers from exactly these versions.
func (t *test) awaitVersions(ctx context.Context, versions ...string) error {
	return await(ctx, fmt.Sprintf("reviews answers from %v", versions), func(ctx context.Context) error {
		seen, err := t.requests(ctx, "-n", "40", reviewsURL)
		if err != nil {
			return err
		}
		if got := slices.Sorted(maps.Keys(seen.By)); seen.Failed > 0 || !slices.Equal(got, versions) {
			return fmt.Errorf("it answers from %v, failed: %v", got, seen.Errors)
		}
		return nil
	})
}

func (t *test) split(ctx context.Context) error {
	if err := t.say(ctx, "-n", "bookinfo", "delete", "virtualservice", "reviews"); err != nil {
		return err
	}
	if err := t.apply(ctx, "networking/http-route-reviews-90-10.yaml"); err != nil {
		return err
	}
	if err := t.awaitVersions(ctx, "v1", "v2"); err != nil {
		return err
	}
	seen, err := t.requests(ctx, "-n", "500", "-c", "4", reviewsURL)
	if err != nil {
		return err
	}
	share := 100 * float64(seen.By["v2"]) / float64(seen.Requests)
	return t.Check(seen.Failed == 0 && share >= 5 && share <= 15 && seen.By["v1"]+seen.By["v2"] == seen.Requests,
		"v2 gets 10 % within 5 points", fmt.Sprintf("%.1f %% of %d, failed: %d %v", share, seen.Requests, seen.Failed, seen.Errors))
}

func (t *test) release(ctx context.Context) error {
	if err := t.say(ctx, "-n", "bookinfo", "delete", "peerauthentication", "default"); err != nil {
		return err
	}
	if err := await(ctx, "the client outside is served again", func(ctx context.Context) error {
		_, err := t.fetch(ctx, "outside", t.reviews(1))
		return err
	}); err != nil {
		return err
	}
	l, err := t.load(ctx, t.reviews(1))
	if err != nil {
		return err
	}
	if err := t.say(ctx, "label", "namespace", "bookinfo", mesh.LabelDataplaneMode+"-"); err != nil {
		return err
	}
	if err := t.awaitRedirection(ctx, ""); err != nil {
		return err
	}
	if err := l.more(ctx, 20); err != nil {
		return err
	}
	if err := l.stop(); err != nil {
		return err
	}
	if err := t.Check(len(l.failed) == 0, "no request failed", fmt.Sprintf("%d requests; failed: %v", l.total, l.failed)); err != nil {
		return err
	}
	err = await(ctx, "the pods' namespaces are as they were", func(ctx context.Context) error {
		now, err := t.nodeStates(ctx)
		if err != nil {
			return err
		}
		var left []string
		for node, before := range t.unmeshed {
			left = append(left, podChanges(before, now[node])...)
		}
		if len(left) > 0 {
			return errors.New(strings.Join(left, "\n"))
		}
		return nil
	})
	return t.Check(err == nil, "rules and routes of the pods are as they were before the label", text(err))
}

// reviews is the URL of one version, which no restart has moved.
func (t *test) reviews(version int) string {
	return fmt.Sprintf("http://reviews-v%d.bookinfo:9080/reviews/0", version)
}

func (t *test) uninstall(ctx context.Context) error {
	if err := t.say(ctx, "delete", "namespace", "bookinfo", "outside", "--timeout=90s"); err != nil {
		return err
	}
	t.Command("ambitctl uninstall --purge -y")
	if err := t.ambitctl(ctx, "uninstall", "--purge", "-y"); err != nil {
		return err
	}
	var left []string
	err := await(ctx, "everything is as before", func(ctx context.Context) error {
		after, err := t.snapshot(ctx)
		if err != nil {
			return err
		}
		if left = t.before.changes(after); len(left) > 0 {
			return errors.New("something differs")
		}
		return nil
	})
	seen := fmt.Sprintf("%d lines of state on %d nodes and in the API server", t.before.size(), len(t.nodes))
	if err != nil {
		seen = err.Error() + "\n" + strings.Join(left, "\n")
	}
	return t.Check(err == nil, "nodes and API server are as they were before the installation", seen)
}
