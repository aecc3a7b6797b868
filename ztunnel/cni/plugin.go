package cni

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containernetworking/cni/pkg/skel"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"

	"github.com/ambit-mesh/ambit/apis/mesh"
)

// pluginTimeout is more than the agent takes: its answer says more than a timeout.
const pluginTimeout = 10 * time.Second

// PluginMain is the whole CNI plugin: it reads the call from the environment and stdin,
// as the container runtime sets them, writes the result to stdout and exits on errors.
// The plugin comes after the one that makes the pod's interfaces, and changes nothing of
// its result; the work is the agent's.
func PluginMain() {
	skel.PluginMainFuncs(skel.CNIFuncs{
		Add:    func(args *skel.CmdArgs) error { return pluginAdd(args, os.Stdout) },
		Del:    pluginDel,
		Check:  func(*skel.CmdArgs) error { return nil },
		GC:     func(*skel.CmdArgs) error { return nil },
		Status: pluginStatus,
	}, version.PluginSupports("0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"), "ambit-cni")
}

// pluginConf is the plugin's entry in the network configuration list.
type pluginConf struct {
	CNIVersion string          `json:"cniVersion"`
	PrevResult json.RawMessage `json:"prevResult"`
	RunDir     string          `json:"cni_agent_run_dir"`
	Excluded   []string        `json:"exclude_namespaces"`
}

// podArgs are the CNI_ARGS by which container runtimes name a Kubernetes pod.
type podArgs struct {
	name, namespace, uid string
}

func pluginAdd(args *skel.CmdArgs, out io.Writer) error {
	conf, err := parsePluginConf(args.StdinData)
	if err != nil {
		return err
	}
	pod, err := parsePodArgs(args.Args)
	if err != nil {
		return err
	}
	result, ips, err := prevResult(conf)
	if err != nil {
		return err
	}
	if pod.name != "" && !slices.Contains(conf.Excluded, pod.namespace) {
		ev := event{NetNS: args.Netns, PodName: pod.name, PodNamespace: pod.namespace, PodUID: pod.uid, IPs: ips}
		if err := conf.post(pathAdd, ev); err != nil {
			return fmt.Errorf("add pod %s/%s to the mesh: %w", pod.namespace, pod.name, err)
		}
	}
	_, err = out.Write(result)
	return err
}

// pluginDel never keeps a pod from being deleted: the agent learns of it from its watch,
// too.
func pluginDel(args *skel.CmdArgs) error {
	conf, err := parsePluginConf(args.StdinData)
	if err != nil {
		return err
	}
	pod, err := parsePodArgs(args.Args)
	if err != nil || pod.name == "" || args.Netns == "" || slices.Contains(conf.Excluded, pod.namespace) {
		return err
	}
	ev := event{NetNS: args.Netns, PodName: pod.name, PodNamespace: pod.namespace, PodUID: pod.uid}
	if err := conf.post(pathDel, ev); err != nil {
		fmt.Fprintf(os.Stderr, "ambit-cni: delete pod %s/%s: %v\n", pod.namespace, pod.name, err)
	}
	return nil
}

// pluginStatus says that ADD can be tried. It does not ask the agent: a runtime whose
// plugins are not available makes the kubelet report its node as not ready, and all pods
// of it are taken out of service, though only new ones need the agent.
func pluginStatus(args *skel.CmdArgs) error {
	_, err := parsePluginConf(args.StdinData)
	return err
}

func parsePluginConf(data []byte) (pluginConf, error) {
	conf := pluginConf{RunDir: mesh.CNIAgentRunDir, Excluded: []string{"kube-system"}}
	if err := json.Unmarshal(data, &conf); err != nil {
		return pluginConf{}, fmt.Errorf("network configuration: %w", err)
	}
	return conf, nil
}

// parsePodArgs reads "KEY=value;KEY=value". No pod name means that the call is not
// Kubernetes's; a pod needs all three.
func parsePodArgs(args string) (podArgs, error) {
	var pod podArgs
	for pair := range strings.SplitSeq(args, ";") {
		key, value, _ := strings.Cut(pair, "=")
		switch key {
		case "K8S_POD_NAME":
			pod.name = value
		case "K8S_POD_NAMESPACE":
			pod.namespace = value
		case "K8S_POD_UID":
			pod.uid = value
		}
	}
	if pod.name == "" {
		return podArgs{}, nil
	}
	if pod.namespace == "" || pod.uid == "" {
		return podArgs{}, errors.New("CNI_ARGS name a pod without K8S_POD_NAMESPACE or K8S_POD_UID; maybe the container runtime is too old (containerd before 1.6)")
	}
	return pod, nil
}

// prevResult is the result of the plugin before, to be printed as it came, and the pod's
// addresses in it. A plugin that comes first has an empty one.
func prevResult(conf pluginConf) ([]byte, []netip.Addr, error) {
	if len(conf.PrevResult) == 0 || string(conf.PrevResult) == "null" {
		raw, err := json.Marshal(&current.Result{CNIVersion: conf.CNIVersion})
		return raw, nil, err
	}
	parsed, err := version.NewResult(conf.CNIVersion, conf.PrevResult)
	if err != nil {
		return nil, nil, fmt.Errorf("prevResult: %w", err)
	}
	result, err := current.NewResultFromResult(parsed)
	if err != nil {
		return nil, nil, fmt.Errorf("prevResult: %w", err)
	}
	var ips []netip.Addr
	for _, ip := range result.IPs {
		if a, ok := netip.AddrFromSlice(ip.Address.IP); ok {
			ips = append(ips, a.Unmap())
		}
	}
	return conf.PrevResult, ips, nil
}

func (c pluginConf) post(path string, ev event) error {
	body, err := json.Marshal(ev)
	if err != nil {
		return err
	}
	return c.call(http.MethodPost, path, body)
}

// call asks the agent; its answer is the error's text.
func (c pluginConf) call(method, path string, body []byte) error {
	client := http.Client{Timeout: pluginTimeout, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", filepath.Join(c.RunDir, mesh.CNIAgentSocket))
		},
	}}
	req, err := http.NewRequest(method, "http://ambit-cni"+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return fmt.Errorf("node agent: %w; maybe ambit-cni does not run on this node", err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, 4096))
	if resp.StatusCode == http.StatusOK {
		return nil
	}
	return errors.Join(fmt.Errorf("node agent: %s", bytes.TrimSpace(text)), err)
}
