package lab

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// cniPlugin is the binary that is called for each pod.
const cniPlugin = "ambit-cni"

// cniVersion is of the specification that the calls follow,
// https://www.cni.dev/docs/spec/.
const cniVersion = "1.0.0"

// addToNetwork calls the CNI plugin for a pod that has its interface already: a
// chained plugin's ADD.
func (k *keeper) addToNetwork(ctx context.Context) error {
	if k.c.options.NoMesh || k.pod.spec.HostNetwork {
		return nil
	}
	k.called = true
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	return k.callPlugin(ctx, "ADD")
}

func (k *keeper) deleteFromNetwork(ctx context.Context) error {
	return k.callPlugin(ctx, "DEL")
}

func (k *keeper) callPlugin(ctx context.Context, verb string) error {
	config, err := json.Marshal(k.networkConfig())
	if err != nil {
		return err
	}
	path := filepath.Join(k.c.options.BinDir, cniPlugin)
	args := []string{
		"IgnoreUnknown=1", "K8S_POD_NAMESPACE=" + k.pod.namespace, "K8S_POD_NAME=" + k.pod.name,
		"K8S_POD_INFRA_CONTAINER_ID=" + k.pod.uid, "K8S_POD_UID=" + k.pod.uid,
	}
	out, errs, err := k.c.procs.output(ctx, command{
		path: path, argv: []string{cniPlugin}, in: k.pod.node.place,
		env: []string{
			"CNI_COMMAND=" + verb, "CNI_CONTAINERID=" + k.pod.uid, "CNI_NETNS=" + filepath.Join(netNSDir, k.pod.uid),
			"CNI_IFNAME=eth0", "CNI_PATH=" + k.c.options.BinDir, "CNI_ARGS=" + strings.Join(args, ";"),
			"PATH=" + os.Getenv("PATH"),
		},
	}, config)
	if err != nil {
		return fmt.Errorf("%w: %s", err, pluginError(out, errs))
	}
	return nil
}

// pluginError is what a plugin that failed has to say: JSON on its standard
// output, or whatever else it wrote.
func pluginError(stdout, stderr []byte) string {
	var said struct {
		Message string `json:"msg"`
		Details string `json:"details"`
	}
	if json.Unmarshal(stdout, &said) == nil && said.Message != "" {
		return strings.TrimSuffix(said.Message+": "+said.Details, ": ")
	}
	return strings.TrimSpace(string(stdout) + string(stderr))
}

// networkConfig is the plugin's standard input: its configuration and what the
// plugins before it, that is the lab, have done.
func (k *keeper) networkConfig() map[string]any {
	return map[string]any{
		"cniVersion": cniVersion,
		"name":       "lab",
		"type":       cniPlugin,
		"prevResult": map[string]any{
			"cniVersion": cniVersion,
			"interfaces": []map[string]any{
				{"name": k.link()},
				{"name": "eth0", "sandbox": filepath.Join(netNSDir, k.pod.uid)},
			},
			"ips": []map[string]any{{
				"address": host(k.pod.address).String(), "gateway": k.pod.node.gateway.String(), "interface": 1,
			}},
			"routes": []map[string]any{{"dst": everywhere.String(), "gw": k.pod.node.gateway.String()}},
		},
	}
}
