package lab

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// Back-off of what is tried again: quicker than a kubelet's, as nothing here
// takes long.
const (
	backOffFirst = 50 * time.Millisecond
	backOffLast  = 300 * time.Millisecond
	restartLast  = 10 * time.Second // between restarts of a container
)

// keeper does the slow work for one pod, in a kubelet's order, until its
// context ends; then it takes everything down again.
//
//  1. the network namespace, with its veth
//  2. the volumes
//  3. the CNI plugin
//  4. the containers' mount namespaces
//  5. the containers, with their probes
type keeper struct {
	c   *cluster
	pod *pod // what never changes of it
	log *slog.Logger

	net    *os.File // its network namespace
	uts    *os.File
	linked bool // step 1 has been done
	called bool // step 3 has been tried
}

func (k *keeper) dir() string { return filepath.Join(labDir, "pods", k.pod.uid) }

// link is the name of the node's end; 15 bytes at most.
func (k *keeper) link() string { return "veth" + shortHash(k.pod.uid) }

// report hands a change of the pod's state to its owner.
func (k *keeper) report(change func(p *pod)) {
	k.c.post(func() {
		change(k.pod)
		k.pod.dirty = true
	})
}

// run keeps the pod until ctx ends.
func (k *keeper) run(ctx context.Context) {
	var background sync.WaitGroup
	if volumes, ok := k.start(ctx); ok {
		background.Go(func() { volumes.run(ctx, k.log) })
		k.report(func(p *pod) {
			p.phase, p.reason, p.message, p.started, p.hasAddress = corev1.PodRunning, "", "", time.Now(), true
		})
		for i := range k.pod.spec.Containers {
			background.Go(func() { k.keepContainer(ctx, k.pod.spec.Containers[i]) })
		}
	}
	<-ctx.Done()
	background.Wait()
	k.takeDown(context.WithoutCancel(ctx))
}

// start does steps 1 to 4 and returns who is to keep the volumes from then on;
// false if ctx ended before.
func (k *keeper) start(ctx context.Context) (*volumeKeeper, bool) {
	var dirs map[string]string
	volumes := newVolumeKeeper(k.c, k.pod, filepath.Join(k.dir(), "volumes"))
	return volumes, k.insist(ctx, "network", false, k.connect) &&
		k.insist(ctx, "volumes", true, func(context.Context) (err error) {
			dirs, err = volumes.fill(time.Now())
			return err
		}) &&
		k.insist(ctx, "CNI plugin", false, k.addToNetwork) &&
		k.insist(ctx, "mounts", false, func(context.Context) error { return k.mountContainers(dirs) })
}

// insist tries the step until it succeeds, and says what it waits for; with
// wake, a change of the manifests is a reason to try again at once.
func (k *keeper) insist(ctx context.Context, name string, wake bool, step func(context.Context) error) bool {
	last := ""
	for wait := backOffFirst; ; wait = min(wait*2, backOffLast) {
		changed := k.c.manifestsChanged()
		if !wake {
			changed = nil
		}
		err := step(ctx)
		if ctx.Err() != nil {
			return false
		}
		if err == nil {
			return true
		}
		if message := name + ": " + err.Error(); message != last {
			last = message
			k.log.Info("pod waits", "reason", message)
			k.report(func(p *pod) { p.message = message })
		}
		select {
		case <-ctx.Done():
			return false
		case <-changed:
		case <-time.After(wait):
		}
	}
}

// connect makes the pod's network namespace and joins it to the node.
func (k *keeper) connect(context.Context) (err error) {
	if err := k.writeEtc(); err != nil {
		return err
	}
	if k.pod.spec.HostNetwork {
		k.net, k.uts = k.pod.node.place.net, k.pod.node.place.uts
		return nil
	}
	if k.net == nil {
		if k.net, err = newNetNS(k.pod.uid); err != nil {
			return err
		}
	}
	if k.uts == nil {
		if k.uts, err = newHostName(k.pod.hostName()); err != nil {
			return err
		}
	}
	if k.linked {
		return nil
	}
	err = connectPod(k.pod.node.place.net, k.net, k.link(), k.pod.address, k.pod.node.gateway)
	if err != nil {
		return errors.Join(err, disconnectPod(k.pod.node.place.net, k.link()))
	}
	k.linked = true
	return nil
}

// writeEtc writes the pod's resolv.conf and hosts.
func (k *keeper) writeEtc() error {
	etc := filepath.Join(k.dir(), "etc")
	if err := os.MkdirAll(etc, 0o755); err != nil {
		return err
	}
	hosts := fmt.Sprintf("127.0.0.1\tlocalhost\n::1\tlocalhost\n%s\t%s\n", k.pod.address, k.pod.hostName())
	return errors.Join(
		os.WriteFile(filepath.Join(etc, "resolv.conf"), []byte(resolvConf(k.pod.namespace)), 0o644),
		os.WriteFile(filepath.Join(etc, "hosts"), []byte(hosts), 0o644),
	)
}

// resolvConf is what a kubelet writes for dnsPolicy ClusterFirst.
func resolvConf(namespace string) string {
	return fmt.Sprintf("search %s.svc.%[2]s svc.%[2]s %[2]s\nnameserver %[3]s\noptions ndots:5\n", namespace, ClusterDomain, dnsAddress)
}

// mountContainers makes each container's mount namespace.
func (k *keeper) mountContainers(volumes map[string]string) error {
	at := place{mount: k.pod.node.place.mount, net: k.net}
	places := map[string]place{}
	for _, c := range k.pod.spec.Containers {
		m := containerMounts{private: !k.pod.spec.HostNetwork, etc: filepath.Join(k.dir(), "etc"), keys: filepath.Dir(keyFile(k.c.options.StateDir))}
		var err error
		if m.binds, err = containerBinds(k.pod, c, volumes, k.log); err != nil {
			return err
		}
		propagation := uintptr(syscall.MS_PRIVATE)
		if !m.private {
			propagation = syscall.MS_SLAVE
		}
		mounts, err := newMounts(at, propagation, m.set)
		if err != nil {
			for _, p := range places {
				_ = p.mount.Close()
			}
			return fmt.Errorf("container %s: %w", c.Name, err)
		}
		places[c.Name] = place{mount: mounts, net: k.net, uts: k.uts}
	}
	k.c.ask(func() { k.pod.places = places })
	return nil
}

// takeDown undoes the start.
func (k *keeper) takeDown(ctx context.Context) {
	if k.called {
		ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		if err := k.deleteFromNetwork(ctx); err != nil {
			k.log.Warn("CNI plugin", "command", "DEL", "error", err)
		}
	}
	var places map[string]place
	k.c.ask(func() { places, k.pod.places = k.pod.places, nil })
	for _, at := range places {
		_ = at.mount.Close()
	}
	if !k.pod.spec.HostNetwork {
		if k.net != nil {
			killAllIn(k.net)
			err := errors.Join(disconnectPod(k.pod.node.place.net, k.link()), dropNetNS(k.pod.uid), k.net.Close())
			if err != nil {
				k.log.Warn("network not removed", "error", err)
			}
		}
		if k.uts != nil {
			_ = k.uts.Close()
		}
	}
	_ = os.RemoveAll(k.dir())
	k.c.post(func() { k.c.forget(k.pod) })
}
