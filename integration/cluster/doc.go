// Package cluster is a real Kubernetes of several nodes on one machine, made of
// nothing but Go modules: for tests, demos and development (DESIGN.md §8).
//
// # What runs here
//
// A cluster is a set of machines: the control plane ("cp") and the nodes ("n1",
// "n2", ...). A machine is a process that is pid 1 of its own pid, mount, uts,
// ipc and cgroup namespaces in a named network namespace, and what that process
// starts:
//
//	cp       etcd (data in memory), kube-apiserver, kube-controller-manager, kube-scheduler
//	n1, n2…  containerd (with runc), kubelet, kube-proxy, and the pods
//
// The control plane's network namespace holds a bridge, the nodes hang on it:
//
//	host 127.0.0.1:PORT ──relay──► cp 10.89.0.1 ══ bridge ══╤══ n1 10.89.0.11, pods 10.244.1.0/24
//	                                                         └══ n2 10.89.0.12, pods 10.244.2.0/24
//
// The relay is a socket of the host's namespace that cp's pid 1 was given. There
// is no other way in, and none out: pods reach each other, the nodes and the
// control plane, but not the world. Services are 10.96.0.0/16, DNS is 10.96.0.10.
//
// A node sees the host's files, but /etc is a layer over the host's, and /var,
// /opt, /run and /sys are its own: containerd, the kubelet, CNI plugins and
// hostPath volumes are at the paths where a real node has them, and nothing is
// written to the host's. Kernel settings that belong to all namespaces and that
// a kubelet would change are hidden from it.
//
// Whoever kills a pid 1 ends its machine: the kernel kills the rest, and what
// was mounted goes with the mount namespace. Besides the state directory, a
// cluster owns names in /run/netns and directories in the cgroup hierarchies,
// all of which begin with or lie below its own name; [Down] removes them from
// whatever state an interrupted start, or a kill, has left behind.
//
// # Binaries
//
// Below parts/ there is a Go module for each program, so that what they require
// never meets what the mesh requires. [Build] compiles them once and keeps them
// by the hash of all that went in. On this machine nothing is needed but Go, a
// C compiler (runc starts in C), mount(8) and a kernel that has what containers
// need; [Check] says what is missing. Two things that a node usually finds on
// its host are not asked for:
//
//   - nft(8), which kube-proxy calls: the tool stands in for it, see package nft.
//   - libseccomp: where its headers are not installed, runc is built without it,
//     and containers run without their seccomp profile (parts/runc/noseccomp).
//     [Cluster.Status] says so.
//
// Of the CNI plugins there are ptp and host-local; a pod's hostPort does
// nothing.
//
// IPv6 is not there yet: addresses.go is where its ranges would be.
//
// # Use
//
// [Up] starts a cluster, [Attach] finds a running one, [Down] ends it. The tool
// cmd/cluster does the same for people. A machine's pid 1 is that tool, called
// with [InitCommand]; see [Config].Tool. The functions may be called by several
// processes at once, a lock makes them wait for each other.
package cluster
