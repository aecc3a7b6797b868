package lab

import (
	"encoding/json"
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/ambit-mesh/ambit/apis/manifest"
)

func testService(name, clusterIP string) *corev1.Service {
	return &corev1.Service{
		Namespace: "shop", Name: name,
		Spec: corev1.ServiceSpec{
			ClusterIP: clusterIP, Selector: map[string]string{"app": "web"},
			Ports: []corev1.ServicePort{{Name: "http", Port: 80, TargetPort: intstr.FromString("web")}},
		},
	}
}

// testPod is a pod that runs, with a port named web.
func testPod(name, address string, ready bool) *pod {
	return &pod{
		namespace: "shop", name: name, uid: "uid-" + name, labels: map[string]string{"app": "web"}, node: &node{name: "n1"},
		spec:  corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Ports: []corev1.ContainerPort{{Name: "web", ContainerPort: 8080}}}}},
		phase: corev1.PodRunning, hasAddress: true, address: netip.MustParseAddr(address),
		containers: []container{{name: "c", running: true, ready: ready}},
	}
}

func TestClusterIPs(t *testing.T) {
	addresses := clusterIPs{}
	name := func(s string) types.NamespacedName { return types.NamespacedName{Namespace: "shop", Name: s} }
	services := []*corev1.Service{
		testService("given", "10.96.1.1"), testService("any", ""), testService("headless", "None"),
		testService("again", "10.96.1.1"), testService("dns", "10.96.0.10"), testService("outside", "10.0.0.1"),
	}
	if refused := addresses.assign(services); len(refused) != 3 || !strings.Contains(errors.Join(refused...).Error(), "taken by the lab/DNS server") {
		t.Errorf("refused: %v, want again, dns and outside", refused)
	}
	any1 := addresses[name("any")]
	if addresses[name("given")] != netip.MustParseAddr("10.96.1.1") || !serviceNetwork.Contains(any1) || len(addresses) != 2 {
		t.Errorf("addresses %v", addresses)
	}
	// Someone asks for the address that another was given: the other moves.
	services = append(services[:2:2], testService("late", any1.String()))
	if refused := addresses.assign(services); refused != nil || addresses[name("late")] != any1 || addresses[name("any")] == any1 {
		t.Errorf("addresses %v, refused %v", addresses, refused)
	}
	again := clusterIPs{}
	again.assign([]*corev1.Service{testService("any", "")})
	if again[name("any")] != any1 {
		t.Errorf("the same name got %s, then %s", any1, again[name("any")])
	}
}

func testBackend(s *corev1.Service, address string, pods ...*pod) backend {
	b := backend{service: s, endpoints: selectEndpoints(s, pods)}
	if address != "" {
		b.address = netip.MustParseAddr(address)
	}
	return b
}

func TestNATRules(t *testing.T) {
	web := testBackend(testService("web", ""), "10.96.0.20",
		testPod("a", "10.244.1.2", true), testPod("b", "10.244.2.2", true), testPod("c", "10.244.2.3", false))
	nobody := testBackend(testService("nobody", ""), "10.96.0.30")
	headless := testBackend(testService("headless", "None"), "", testPod("a", "10.244.1.2", true))
	var got []string
	for _, rule := range natRules(vips([]backend{nobody, web, headless})) {
		got = append(got, rule.String())
	}
	want := []string{
		"services: to 10.96.0.20 tcp 80 goto service-0",
		"service-0: one of 2 goto service-0-0",
		"service-0-0: from 10.244.1.2 mark hairpin",
		"service-0-0: tcp 0 dnat 10.244.1.2:8080",
		"service-0: goto service-0-1",
		"service-0-1: from 10.244.2.2 mark hairpin",
		"service-0-1: tcp 0 dnat 10.244.2.2:8080",
		"nobackend: to 10.96.0.30 tcp 80 reject",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestEndpointSlices(t *testing.T) {
	leaving := testPod("b", "10.244.2.2", true)
	leaving.terminating = true
	other := testPod("c", "10.244.2.3", true)
	other.spec.Containers[0].Ports[0].ContainerPort = 9090
	made := endpointSlices(testBackend(testService("web", ""), "10.96.0.20", testPod("a", "10.244.1.2", true), leaving, other))
	if len(made) != 2 {
		t.Fatalf("%d slices, want one for each number of the port", len(made))
	}
	byPort := map[int32][]discoveryv1.Endpoint{}
	for _, s := range made {
		byPort[*s.Ports[0].Port] = s.Endpoints
	}
	if e := byPort[8080]; len(e) != 2 || !*e[0].Conditions.Ready || *e[1].Conditions.Ready || !*e[1].Conditions.Terminating || e[0].TargetRef.Name != "a" {
		t.Errorf("endpoints at 8080: %+v", e)
	}
	if len(byPort[9090]) != 1 {
		t.Errorf("endpoints at 9090: %+v", byPort[9090])
	}
}

func TestDNS(t *testing.T) {
	named := testPod("c", "10.244.2.3", true)
	named.spec.Hostname, named.spec.Subdomain = "zero", "db"
	external := testService("out", "")
	external.Spec.Type, external.Spec.ExternalName = corev1.ServiceTypeExternalName, "example.com"
	inside := testService("in", "")
	inside.Spec.Type, inside.Spec.ExternalName = corev1.ServiceTypeExternalName, "web.shop.svc.cluster.local"
	pods := []*pod{testPod("a", "10.244.1.2", true), testPod("b", "10.244.2.2", false), named}
	server := &dnsServer{}
	server.set(newZone([]backend{
		testBackend(testService("web", ""), "10.96.0.20", pods...),
		testBackend(testService("db", "None"), "", pods...),
		{service: external},
		{service: inside},
	}, pods))
	ask := func(name string, kind uint16) string {
		m := server.reply(new(dns.Msg).SetQuestion(name, kind), true)
		var answers []string
		for _, rr := range m.Answer {
			answers = append(answers, strings.Join(strings.Fields(rr.String())[3:], " "))
		}
		slices.Sort(answers)
		return dns.RcodeToString[m.Rcode] + " " + strings.Join(answers, ", ")
	}
	for _, c := range []struct {
		name string
		kind uint16
		want string
	}{
		{"web.shop.svc.cluster.local.", dns.TypeA, "NOERROR A 10.96.0.20"},
		{"WEB.Shop.svc.cluster.local.", dns.TypeA, "NOERROR A 10.96.0.20"},
		{"web.shop.svc.cluster.local.", dns.TypeAAAA, "NOERROR "},
		{"_http._tcp.web.shop.svc.cluster.local.", dns.TypeSRV, "NOERROR SRV 0 1 80 web.shop.svc.cluster.local."},
		{"db.shop.svc.cluster.local.", dns.TypeA, "NOERROR A 10.244.1.2, A 10.244.2.3"},
		{"zero.db.shop.svc.cluster.local.", dns.TypeA, "NOERROR A 10.244.2.3"},
		{"10-244-1-2.db.shop.svc.cluster.local.", dns.TypeA, "NOERROR A 10.244.1.2"},
		{"10-244-2-2.shop.pod.cluster.local.", dns.TypeA, "NOERROR A 10.244.2.2"},
		{"10-244-9-9.shop.pod.cluster.local.", dns.TypeA, "NXDOMAIN "},
		{
			"_http._tcp.db.shop.svc.cluster.local.", dns.TypeSRV,
			"NOERROR SRV 0 1 8080 10-244-1-2.db.shop.svc.cluster.local., SRV 0 1 8080 zero.db.shop.svc.cluster.local.",
		},
		{"out.shop.svc.cluster.local.", dns.TypeA, "NOERROR CNAME example.com."},
		{"in.shop.svc.cluster.local.", dns.TypeA, "NOERROR A 10.96.0.20, CNAME web.shop.svc.cluster.local."},
		{"in.shop.svc.cluster.local.", dns.TypeCNAME, "NOERROR CNAME web.shop.svc.cluster.local."},
		{"nix.shop.svc.cluster.local.", dns.TypeA, "NXDOMAIN "},
		{"example.com.", dns.TypeA, "NXDOMAIN "},
	} {
		if got := ask(c.name, c.kind); got != c.want {
			t.Errorf("%s %s: %s, want %s", dns.TypeToString[c.kind], c.name, got, c.want)
		}
	}
	big := new(dns.Msg).SetQuestion("web.shop.svc.cluster.local.", dns.TypeA)
	big.Question[0].Qclass = dns.ClassCHAOS
	if m := server.reply(big, true); m.Rcode != dns.RcodeNotImplemented {
		t.Errorf("class CHAOS: %s", dns.RcodeToString[m.Rcode])
	}
}

func TestTokens(t *testing.T) {
	dir := t.TempDir()
	made, err := newIssuer(dir)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(keyFile(dir)); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode of the key: %v, %v", info.Mode(), err)
	}
	l := &Lab{stateDir: dir}
	now := time.Now()
	claims := NewClaims("shop", "web", []string{"istio-ca"}, now, time.Hour)
	claims.Kubernetes.Pod = &Binding{Name: "a", UID: "1"}
	text, err := l.MintToken(claims)
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(jwksFile(dir))
	if err != nil {
		t.Fatal(err)
	}
	var keys jose.JSONWebKeySet
	if err := json.Unmarshal(data, &keys); err != nil {
		t.Fatal(err)
	}
	token, err := jwt.ParseSigned(text, []jose.SignatureAlgorithm{jose.ES256})
	if err != nil {
		t.Fatal(err)
	}
	if token.Headers[0].KeyID != made.id {
		t.Errorf("kid %q, want %q", token.Headers[0].KeyID, made.id)
	}
	var got Claims
	var standard jwt.Claims
	if err := token.Claims(keys.Key(made.id)[0], &got, &standard); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(claims, got); diff != "" {
		t.Error(diff)
	}
	want := jwt.Expected{Issuer: Issuer, Subject: "system:serviceaccount:shop:web", AnyAudience: jwt.Audience{"istio-ca"}, Time: now}
	if err := standard.Validate(want); err != nil {
		t.Error(err)
	}
	if strings.Contains(string(data), `"d"`) {
		t.Error("the published key set has a private key")
	}
}

func TestPlanReplicas(t *testing.T) {
	early, late := time.Unix(1, 0), time.Unix(2, 0)
	w := workload{kind: "Deployment", replicas: 2, revision: "new"}
	at := func(name, revision string, ready bool, created time.Time) standing {
		return standing{name: name, revision: revision, ready: ready, created: created}
	}
	for _, c := range []struct {
		name string
		w    workload
		pods []standing
		want steps
	}{
		{"none yet", w, nil, steps{create: []string{"", ""}}},
		{
			"old ones stay until the new are ready", w,
			[]standing{at("o1", "old", true, early), at("a", "new", true, late), at("b", "new", false, late)},
			steps{},
		},
		{
			"then they go", w,
			[]standing{at("o1", "old", true, early), at("a", "new", true, late), at("b", "new", true, late)},
			steps{remove: []string{"o1"}},
		},
		{
			"of too many, the unready and then the newest", w,
			[]standing{at("a", "new", true, early), at("b", "new", true, late), at("c", "new", false, early), at("d", "new", true, early)},
			steps{remove: []string{"c", "b"}},
		},
		{
			"one that leaves is replaced", w,
			[]standing{at("a", "new", true, early), {name: "b", revision: "new", leaving: true}},
			steps{create: []string{""}},
		},
		{"none wanted", workload{kind: "Deployment", revision: "new"}, []standing{at("o", "old", true, early)}, steps{remove: []string{"o"}}},
		{"a pod's name is used once", workload{kind: "Pod", replicas: 1, revision: "new"}, []standing{{name: "a", revision: "old", leaving: true}}, steps{}},
		{"a changed pod goes first", workload{kind: "Pod", replicas: 1, revision: "new"}, []standing{at("a", "old", true, early)}, steps{remove: []string{"a"}}},
	} {
		if diff := cmp.Diff(c.want, planReplicas(c.w, c.pods), cmp.AllowUnexported(steps{})); diff != "" {
			t.Errorf("%s: %s", c.name, diff)
		}
	}
}

func TestPlanDaemons(t *testing.T) {
	w := workload{kind: "DaemonSet", revision: "new"}
	nodes := []string{"n1", "n2"}
	for _, c := range []struct {
		name string
		pods []standing
		want steps
	}{
		{"one for each node", nil, steps{create: nodes}},
		{"one node at a time", []standing{
			{name: "a", node: "n1", revision: "old", ready: true}, {name: "b", node: "n2", revision: "old", ready: true},
		}, steps{remove: []string{"a"}}},
		{"wait for the old one's end", []standing{
			{name: "a", node: "n1", revision: "old", leaving: true}, {name: "b", node: "n2", revision: "old", ready: true},
		}, steps{}},
		{"wait for the new one", []standing{
			{name: "a", node: "n1", revision: "new"}, {name: "b", node: "n2", revision: "old", ready: true},
		}, steps{}},
	} {
		if diff := cmp.Diff(c.want, planDaemons(w, c.pods, nodes), cmp.AllowUnexported(steps{})); diff != "" {
			t.Errorf("%s: %s", c.name, diff)
		}
	}
}

func TestDeploymentPods(t *testing.T) {
	d := &appsv1.Deployment{Namespace: "shop", Name: "web"}
	d.Spec.Template.Labels = map[string]string{"app": "web"}
	d.Spec.Template.Spec.Containers = []corev1.Container{{Name: "c", Image: "echo"}}
	w := deploymentWorkload(d)
	p := newPod(w, &node{name: "n1", address: nodeAddress(1)}, podGateway(1).Next(), time.Unix(1, 0))
	o := p.object()
	hash := o.Labels["pod-template-hash"]
	if !strings.HasPrefix(o.Name, "web-"+hash+"-") || o.OwnerReferences[0].Kind != "ReplicaSet" || o.OwnerReferences[0].Name != "web-"+hash {
		t.Errorf("pod %s, labels %v, owners %v", o.Name, o.Labels, o.OwnerReferences)
	}
	if o.Spec.NodeName != "n1" || o.Spec.ServiceAccountName != "default" || o.Status.Phase != corev1.PodPending || o.Status.PodIP != "" {
		t.Errorf("spec %+v, status %+v", o.Spec, o.Status)
	}
	d.Spec.Template.Annotations = map[string]string{"restarted": "now"}
	if deploymentWorkload(d).revision == w.revision {
		t.Error("another template has the same revision")
	}
}

func TestExpand(t *testing.T) {
	values := map[string]string{"A": "1", "B": "two"}
	for text, want := range map[string]string{
		"$(A)-$(B)": "1-two", "$(C)": "$(C)", "$$(A)": "$(A)", "$A $": "$A $", "$(A": "$(A", "": "", "$": "$",
	} {
		if got := expand(text, values); got != want {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
}

func TestImageProgram(t *testing.T) {
	for image, want := range map[string]string{
		"istiod": "istiod", "localhost:5000/ambit/istiod:v1": "istiod", "a/b@sha256:00": "b", "localhost:5000/x": "x",
	} {
		if got := imageProgram(image); got != want {
			t.Errorf("%s: %s, want %s", image, got, want)
		}
	}
}

func TestUnsupportedFields(t *testing.T) {
	text := `
apiVersion: apps/v1
kind: Deployment
metadata: {name: a, namespace: b}
spec:
  template:
    spec:
      initContainers: [{name: i}]
      affinity: {}
      dnsPolicy: None
      containers:
      - name: c
        image: x
        resources: {limits: {cpu: 1}}
        env: [{name: E, valueFrom: {secretKeyRef: {name: s, key: k}}}]
        readinessProbe: {exec: {command: [x]}, periodSeconds: 1}
`
	objects, err := manifest.Parse("a.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"spec.template.spec.containers[c].env[E].valueFrom.secretKeyRef",
		"spec.template.spec.containers[c].readinessProbe.exec",
		"spec.template.spec.containers[c].resources",
		"spec.template.spec.dnsPolicy",
		"spec.template.spec.initContainers",
	}
	if diff := cmp.Diff(want, unsupportedFields(objects[0])); diff != "" {
		t.Error(diff)
	}
}

func TestMeshManifestHasNoUnsupportedFields(t *testing.T) {
	dir := t.TempDir()
	if err := writeMesh(manifest.NewStore(dir), map[string]string{"SECRET_TTL": "10s"}); err != nil {
		t.Fatal(err)
	}
	list, err := manifest.NewStore(dir).List()
	if err != nil || len(list) != 8 {
		t.Fatalf("%d objects, %v", len(list), err)
	}
	for _, body := range list {
		o := manifest.Object{Key: manifest.KeyOf(body), Body: body}
		if _, err := new(objects).set(fromGenerated, o); err != nil {
			t.Error(err)
		}
		if fields := unsupportedFields(o); len(fields) > 0 {
			t.Errorf("%s: %v", o.Key, fields)
		}
	}
}

func TestReadiness(t *testing.T) {
	r := readiness{successes: 2, failures: 3}
	var got []bool
	for _, ok := range []bool{true, false, true, true, false, false, true, false, false, false} {
		r.note(ok)
		got = append(got, r.ready)
	}
	want := []bool{false, false, false, true, true, true, true, true, true, false}
	if !slices.Equal(got, want) {
		t.Errorf("states %v, want %v", got, want)
	}
}

func TestRefused(t *testing.T) {
	for reason, remedy := range map[error]string{syscall.ENOSPC: "_namespaces", syscall.EINVAL: "Allow user namespaces"} {
		if e := refused(opNamespaces, reason, "Allow user namespaces, or run as root."); !strings.Contains(e.Error(), remedy) {
			t.Errorf("%v: remedy %q", reason, e)
		}
	}
}

func TestOptions(t *testing.T) {
	dir := t.TempDir()
	for _, o := range []Options{
		{ConfigDir: dir, StateDir: dir},
		{ConfigDir: dir, StateDir: dir, BinDir: dir, Nodes: -1},
		{ConfigDir: "/proc/self", StateDir: dir, BinDir: dir},
		{ConfigDir: filepath.Join(dir, "none"), StateDir: dir, BinDir: dir},
		{ConfigDir: dir, StateDir: dir, BinDir: dir},
		{ConfigDir: dir, StateDir: filepath.Join(dir, "state"), BinDir: dir},
	} {
		if _, err := o.checked(); err == nil {
			t.Errorf("%+v: no error", o)
		}
	}
}

func TestStateIsUsedByOne(t *testing.T) {
	dir := t.TempDir()
	lock, err := lockState(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := lockState(dir); !errors.Is(err, errLocked) {
		t.Errorf("second lock: %v", err)
	}
	if err := lock.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestMessages(t *testing.T) {
	pair, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var ends [2]*net.UnixConn
	for i, fd := range pair {
		file := os.NewFile(uintptr(fd), "end")
		conn, err := net.FileConn(file)
		if err := errors.Join(err, file.Close()); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		ends[i] = conn.(*net.UnixConn)
	}
	want := request{Op: opExec, Target: "a/b", Argv: []string{"x", strings.Repeat("y", 1<<20)}}
	go func() { _ = writeMessage(ends[0], want, os.Stdin, os.Stdout, os.Stderr) }()
	body, files, err := readMessage(ends[1])
	if err != nil || len(files) != 3 {
		t.Fatalf("%d files, %v", len(files), err)
	}
	for _, file := range files {
		_ = file.Close()
	}
	got, err := parseRequest(body)
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Errorf("%v %s", err, diff)
	}
}
