package cluster

import (
	"path/filepath"
	"strings"
)

// binary is where a machine has the program.
func binary(name string) string {
	return filepath.Join(binariesDir, partOf(name), name)
}

// machineEnvironment is that of everything that runs in a machine.
func machineEnvironment() []string {
	path := []string{filepath.Join(binariesDir, toolDir)}
	for _, p := range parts {
		path = append(path, filepath.Join(binariesDir, p.name))
	}
	path = append(path, "/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")
	return []string{
		"PATH=" + strings.Join(path, ":"),
		"HOME=/root",
		"CONTAINERD_ADDRESS=" + containerdSocket,
		"CONTAINERD_NAMESPACE=k8s.io",
	}
}

// programs are what a machine runs.
func programs(o orders) []program {
	if o.Node != 0 {
		return nodePrograms(o)
	}
	all := controlPlanePrograms()
	if o.Nodes > 0 {
		all = append(all, scheduler())
	}
	return all
}

// controlPlanePrograms are an API server and what belongs to it. It waits for
// etcd by itself; the others would end after ten seconds without it, which a
// slow machine takes. Nothing of the data is worth keeping, so it is in memory and nobody
// waits for a disk; and there is one of each, so nobody elects a leader.
func controlPlanePrograms() []program {
	pki := machineDir + "/pki/"
	controllerConfig := pki + "controller-manager.kubeconfig"
	return []program{
		{name: "etcd", argv: []string{
			binary("etcd"),
			"--data-dir=/run/etcd",
			"--unsafe-no-fsync",
			"--listen-client-urls=http://127.0.0.1:2379",
			"--advertise-client-urls=http://127.0.0.1:2379",
			"--listen-peer-urls=http://127.0.0.1:2380",
			"--initial-advertise-peer-urls=http://127.0.0.1:2380",
			"--initial-cluster=default=http://127.0.0.1:2380",
			"--log-level=warn",
		}},
		{name: "kube-apiserver", argv: []string{
			binary("kube-apiserver"),
			"--etcd-servers=http://127.0.0.1:2379",
			"--advertise-address=" + controlPlaneAddress.String(),
			"--bind-address=" + controlPlaneAddress.String(),
			"--secure-port=6443",
			"--service-cluster-ip-range=" + serviceRange,
			"--authorization-mode=Node,RBAC",
			"--enable-admission-plugins=NodeRestriction",
			"--allow-privileged=true",
			"--client-ca-file=" + pki + caFile,
			"--tls-cert-file=" + pki + "apiserver.crt",
			"--tls-private-key-file=" + pki + "apiserver.key",
			"--kubelet-certificate-authority=" + pki + caFile,
			"--kubelet-client-certificate=" + pki + "apiserver-kubelet.crt",
			"--kubelet-client-key=" + pki + "apiserver-kubelet.key",
			"--kubelet-preferred-address-types=InternalIP",
			"--service-account-issuer=https://kubernetes.default.svc." + ClusterDomain,
			"--service-account-key-file=" + pki + tokenPublicFile,
			"--service-account-signing-key-file=" + pki + tokenKeyFile,
			"--requestheader-client-ca-file=" + pki + frontProxyCAFile,
			"--requestheader-allowed-names=front-proxy-client",
			"--requestheader-extra-headers-prefix=X-Remote-Extra-",
			"--requestheader-group-headers=X-Remote-Group",
			"--requestheader-username-headers=X-Remote-User",
			"--proxy-client-cert-file=" + pki + "front-proxy.crt",
			"--proxy-client-key-file=" + pki + "front-proxy.key",
			// Webhooks and aggregated APIs are called at their pods' addresses:
			// no kube-proxy runs here.
			"--enable-aggregator-routing=true",
			"--profiling=false",
		}},
		{name: "kube-controller-manager", after: []condition{apiReady(pki)}, argv: []string{
			binary("kube-controller-manager"),
			"--kubeconfig=" + controllerConfig,
			"--authentication-kubeconfig=" + controllerConfig,
			"--authorization-kubeconfig=" + controllerConfig,
			// Started before the API server has its ConfigMap, it would end.
			"--authentication-skip-lookup=true",
			"--authentication-tolerate-lookup-failure=true",
			"--leader-elect=false",
			// It makes an account for each of 40 controllers before it starts them;
			// at the default rate that takes five seconds.
			"--kube-api-qps=500",
			"--kube-api-burst=1000",
			"--use-service-account-credentials=true",
			"--service-account-private-key-file=" + pki + tokenKeyFile,
			"--root-ca-file=" + pki + caFile,
			"--cluster-signing-cert-file=" + pki + caFile,
			"--cluster-signing-key-file=" + pki + caKeyFile,
			"--allocate-node-cidrs=false", // the CNI configuration has them
			"--bind-address=127.0.0.1",
			"--profiling=false",
		}},
	}
}

func scheduler() program {
	config := machineDir + "/pki/scheduler.kubeconfig"
	return program{name: "kube-scheduler", after: []condition{apiReady(machineDir + "/pki")}, argv: []string{
		binary("kube-scheduler"),
		"--kubeconfig=" + config,
		"--authentication-kubeconfig=" + config,
		"--authorization-kubeconfig=" + config,
		"--authentication-tolerate-lookup-failure=true",
		"--leader-elect=false",
		"--bind-address=127.0.0.1",
		"--profiling=false",
	}}
}
