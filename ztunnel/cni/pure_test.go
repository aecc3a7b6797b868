package cni

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/skel"

	"github.com/ambit-mesh/ambit/apis/mesh"
)

func labelled(mode string) map[string]string {
	if mode == "" {
		return nil
	}
	return map[string]string{mesh.LabelDataplaneMode: mode}
}

func TestCaptures(t *testing.T) {
	scope := Scope{SystemNamespace: "istio-system", ExcludedNamespaces: []string{"kube-system"}}
	for _, tc := range []struct {
		name      string
		namespace string
		pod       string
		change    func(*Pod)
		want      bool
		note      bool
	}{
		{name: "no label"},
		{name: "namespace", namespace: "ambient", want: true},
		{name: "pod", pod: "ambient", want: true},
		{name: "pod opts out", namespace: "ambient", pod: "none"},
		{name: "pod opts in", namespace: "none", pod: "ambient", want: true},
		{name: "pod with another mode", namespace: "ambient", pod: "sidecar", want: true},
		{name: "host network", pod: "ambient", change: func(p *Pod) { p.HostNetwork = true }},
		{name: "ended", pod: "ambient", change: func(p *Pod) { p.Ended = true }},
		{name: "sidecar", namespace: "ambient", change: func(p *Pod) { p.Annotations = map[string]string{mesh.AnnotationSidecarStatus: "{}"} }},
		{name: "excluded", namespace: "ambient", change: func(p *Pod) { p.Namespace = "kube-system" }, note: true},
		{name: "excluded, not labelled", change: func(p *Pod) { p.Namespace = "kube-system" }},
		{name: "ztunnel", namespace: "ambient", change: func(p *Pod) { p.Namespace, p.Labels = "istio-system", map[string]string{"app": "ztunnel"} }},
		{name: "system namespace", namespace: "ambient", change: func(p *Pod) { p.Namespace = "istio-system" }, want: true},
	} {
		p := Pod{Namespace: "shop", Labels: labelled(tc.pod), NamespaceLabels: labelled(tc.namespace)}
		if tc.change != nil {
			tc.change(&p)
		}
		got := scope.captures(p)
		if got.captured != tc.want || (got.note != "") != tc.note {
			t.Errorf("%s: got %+v, want captured %v, note %v", tc.name, got, tc.want, tc.note)
		}
	}
}

func TestDecide(t *testing.T) {
	for _, tc := range []struct {
		name string
		f    facts
		want action
	}{
		{"nothing to do", facts{}, actNone},
		{"wanted", facts{wanted: true, reachable: true, connected: true}, actSend},
		{"wanted, namespace unknown", facts{wanted: true, connected: true}, actNone},
		{"wanted, to be found", facts{wanted: true, findable: true}, actFind},
		{"enrolled by an earlier agent, to be found", facts{wanted: true, findable: true, stage: stageProgrammed}, actFind},
		{"label removed, to be found", facts{findable: true, stage: stageProgrammed}, actFind},
		{"never enrolled, nothing to find it for", facts{findable: true}, actNone},
		{"probes pass before the rules", facts{wanted: true, reachable: true, connected: true, acked: true, exposed: true}, actExempt},
		{"address changed", facts{wanted: true, reachable: true, stage: stageProgrammed, verified: true, acked: true, exposed: true, exempted: true}, actExempt},
		{"probes do not pass before ztunnel listens", facts{wanted: true, reachable: true, connected: true, exposed: true}, actSend},
		{"released, probes pass", facts{reachable: true, stage: stageReleased, exempted: true, annotation: mesh.RedirectionEnabled}, actUnexempt},
		{"label removed, probes pass until released", facts{reachable: true, stage: stageProgrammed, exempted: true}, actRelease},
		{"gone, probes pass", facts{gone: true, exempted: true}, actUnexempt},
		{"sandbox deleted, probes pass", facts{wanted: true, exempted: true}, actUnexempt},
		{"wanted, no ztunnel", facts{wanted: true, reachable: true}, actNone},
		{"ztunnel listens", facts{wanted: true, reachable: true, connected: true, acked: true, served: true}, actProgram},
		{"left by an earlier agent", facts{wanted: true, reachable: true, stage: stageProgrammed}, actProgram},
		{"ztunnel replaced", facts{wanted: true, reachable: true, stage: stageProgrammed, verified: true, connected: true, served: true, annotation: mesh.RedirectionEnabled}, actSend},
		{"ztunnel away", facts{wanted: true, reachable: true, stage: stageProgrammed, verified: true, annotation: mesh.RedirectionEnabled}, actNone},
		{"acknowledged and programmed", facts{wanted: true, reachable: true, stage: stageProgrammed, verified: true, acked: true, annotation: mesh.RedirectionPending}, actEnable},
		{"done", facts{wanted: true, reachable: true, stage: stageProgrammed, verified: true, acked: true, annotation: mesh.RedirectionEnabled}, actNone},
		{"label removed before the rules", facts{reachable: true, connected: true, acked: true, served: true}, actForget},
		{"label removed", facts{reachable: true, stage: stageProgrammed, verified: true, acked: true, annotation: mesh.RedirectionEnabled}, actRelease},
		{"label removed, namespace lost", facts{stage: stageProgrammed, annotation: mesh.RedirectionEnabled}, actForget},
		{"released", facts{reachable: true, stage: stageReleased, annotation: mesh.RedirectionEnabled}, actClear},
		{"released and told", facts{reachable: true, stage: stageReleased}, actDrain},
		{"wanted again while draining", facts{wanted: true, reachable: true, stage: stageReleased, verified: true, acked: true}, actProgram},
		{"annotation of nobody", facts{annotation: mesh.RedirectionEnabled}, actClear},
		{"gone", facts{gone: true, reachable: true, stage: stageProgrammed, verified: true}, actForget},
		{"gone while draining", facts{gone: true, stage: stageReleased}, actForget},
		{"gone, never enrolled", facts{gone: true}, actNone},
	} {
		if got := decide(tc.f); got != tc.want {
			t.Errorf("%s: got action %d, want %d", tc.name, got, tc.want)
		}
	}
}

func TestPluginPassesThrough(t *testing.T) {
	conf := `{"cniVersion":"1.0.0","name":"lab","cni_agent_run_dir":"/nowhere","prevResult":{"cniVersion":"1.0.0","ips":[]}}`
	for name, args := range map[string]string{
		"no Kubernetes pod":  "",
		"excluded namespace": "K8S_POD_NAME=dns;K8S_POD_NAMESPACE=kube-system;K8S_POD_UID=u",
	} {
		var out bytes.Buffer
		if err := pluginAdd(&skel.CmdArgs{Netns: "/n", Args: args, StdinData: []byte(conf)}, &out); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if got, want := out.String(), `{"cniVersion":"1.0.0","ips":[]}`; got != want {
			t.Errorf("%s: result %s, want %s", name, got, want)
		}
	}
	args := "K8S_POD_NAME=web;K8S_POD_NAMESPACE=shop;K8S_POD_UID=u"
	err := pluginAdd(&skel.CmdArgs{Netns: "/n", Args: args, StdinData: []byte(conf)}, &bytes.Buffer{})
	if err == nil || !strings.Contains(err.Error(), "does not run on this node") {
		t.Errorf("agent away: got %v, want ADD to fail and say what to look at", err)
	}
	if err := pluginDel(&skel.CmdArgs{Netns: "/n", Args: args, StdinData: []byte(conf)}); err != nil {
		t.Errorf("agent away: DEL fails with %v", err)
	}
}

func TestPluginAsAProcess(t *testing.T) {
	b := newBed(t)
	b.namespace("shop", "ambient")
	p := b.pod("web")
	b.start()
	z := b.ztunnel()
	z.want("connect", "snapshot")
	run := func(command string) (stdout string, err error) {
		exe, err := os.Executable()
		must(t, err)
		c := exec.Command(exe)
		c.Env = append(os.Environ(), "CNI_COMMAND="+command, "CNI_CONTAINERID=c1", "CNI_NETNS="+p.Path,
			"CNI_IFNAME=eth0", "CNI_PATH="+filepath.Dir(exe), "CNI_ARGS="+p.cniArgs().Args)
		c.Stdin = bytes.NewReader(p.cniArgs().StdinData)
		out, err := c.Output()
		return string(out), err
	}
	if out, err := run("ADD"); err != nil || out != p.prev() {
		t.Errorf("ADD: got %s, %v, want %s", out, err, p.prev())
	}
	z.want("ADD", added(p))
	for _, command := range []string{"CHECK", "STATUS", "DEL"} {
		if out, err := run(command); err != nil {
			t.Errorf("%s: %s, %v", command, out, err)
		}
	}
	z.want("DEL", "del "+p.uid)
	out, err := run("VERSION")
	if err != nil || !strings.Contains(out, `"1.0.0"`) || !strings.Contains(out, `"1.1.0"`) {
		t.Errorf("VERSION: got %s, %v", out, err)
	}
	b.stop()
	if out, err := run("ADD"); err == nil || !strings.Contains(out, "does not run") {
		t.Errorf("ADD without the agent: got %s, %v, want an error", out, err)
	}
	if out, err := run("STATUS"); err != nil {
		t.Errorf("STATUS without the agent: got %s, %v, want that the node stays ready", out, err)
	}
}

func FuzzParseEvent(f *testing.F) {
	f.Add([]byte(`{"netns":"/run/netns/p","podName":"web","podNamespace":"shop","podUID":"u-1","ips":["10.0.0.1"]}`))
	f.Add([]byte(`{"netns":"/run/netns/p","podName":"web","podNamespace":"shop","podUID":"../../etc/passwd"}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		rec, err := parseEvent(data)
		if err != nil {
			return
		}
		dir := "/run/pods"
		if path := (records{dir: dir}).path(rec.UID); filepath.Dir(path) != dir {
			t.Errorf("uid %q names the file %s", rec.UID, path)
		}
		again, err := json.Marshal(rec)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := parseRecord(again); err != nil {
			t.Errorf("record %s is not read again: %v", again, err)
		}
	})
}

func FuzzParsePodArgs(f *testing.F) {
	f.Add("IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web;K8S_POD_UID=u")
	f.Add(";;=;K8S_POD_NAME")
	f.Fuzz(func(t *testing.T, args string) {
		pod, err := parsePodArgs(args)
		if err == nil && pod.name != "" && (pod.uid == "" || pod.namespace == "") {
			t.Errorf("incomplete pod %+v without an error", pod)
		}
	})
}

func FuzzPluginConf(f *testing.F) {
	f.Add([]byte(`{"cniVersion":"1.1.0","prevResult":{"ips":[{"address":"10.244.0.9/32"}],"extra":{"kept":true}}}`))
	f.Add([]byte(`{"prevResult":null,"exclude_namespaces":[]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		conf, err := parsePluginConf(data)
		if err != nil {
			return
		}
		result, _, err := prevResult(conf)
		if err == nil && !json.Valid(result) {
			t.Errorf("result %q is no JSON", result)
		}
	})
}

func FuzzParseAck(f *testing.F) {
	f.Add([]byte{0x0a, 0x00})
	f.Add([]byte{0x08, 0x01})
	f.Fuzz(func(t *testing.T, data []byte) {
		if parseAck(data) == nil && len(data) == 0 {
			t.Error("an empty packet acknowledges")
		}
		_ = parseHello(data)
	})
}

// TestLateTimerIsIgnored: a timer that has fired already when it is stopped must
// not take its successor's place.
func TestLateTimerIsIgnored(t *testing.T) {
	var fire []func()
	a := New(Config{AfterFunc: func(_ time.Duration, f func()) func() {
		fire = append(fire, f)
		return func() {}
	}})
	e := a.entry("u")
	a.later(e, actSend, time.Second)
	a.later(e, actProgram, time.Minute)
	late := func(f func()) {
		go f() // ends when the owner, here the test, has taken its message
		(<-a.mail)()
	}
	late(fire[0])
	if e.stop == nil || e.delayed != actProgram {
		t.Error("the second timer holds nothing back any more")
	}
	late(fire[1])
	if e.stop != nil {
		t.Error("the second timer is still set after it has fired")
	}
}
