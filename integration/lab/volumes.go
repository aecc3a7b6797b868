package lab

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

// volumeKeeper fills a pod's volumes and keeps them as they should be: tokens
// are replaced at 80 % of their life, and config maps when they change. Each
// volume is a directory in the lab's /run that containers bind.
type volumeKeeper struct {
	c   *cluster
	pod *pod
	dir string

	written map[string][]byte // by path
	tokens  map[string]time.Time
	wanted  map[string]bool // paths that the running fill has come by
}

func newVolumeKeeper(c *cluster, p *pod, dir string) *volumeKeeper {
	return &volumeKeeper{c: c, pod: p, dir: dir, written: map[string][]byte{}, tokens: map[string]time.Time{}}
}

// fill writes what is missing or due and returns each volume's directory.
func (v *volumeKeeper) fill(now time.Time) (map[string]string, error) {
	dirs := map[string]string{}
	v.wanted = map[string]bool{}
	for _, volume := range v.pod.spec.Volumes {
		if volume.HostPath != nil {
			dirs[volume.Name] = volume.HostPath.Path
			continue
		}
		dir := filepath.Join(v.dir, volume.Name)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, err
		}
		dirs[volume.Name] = dir
		if err := v.fillVolume(dir, volume, now); err != nil {
			return nil, err
		}
	}
	return dirs, v.prune()
}

// prune removes the files of keys that their config map has no more.
func (v *volumeKeeper) prune() error {
	for path := range v.written {
		if v.wanted[path] {
			continue
		}
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		delete(v.written, path)
	}
	return nil
}

func (v *volumeKeeper) fillVolume(dir string, volume corev1.Volume, now time.Time) error {
	switch {
	case volume.ConfigMap != nil:
		m := volume.ConfigMap
		return v.configMap(dir, m.Name, m.Items, dereference(m.Optional))
	case volume.Projected != nil:
		for _, source := range volume.Projected.Sources {
			if m := source.ConfigMap; m != nil {
				if err := v.configMap(dir, m.Name, m.Items, dereference(m.Optional)); err != nil {
					return err
				}
			}
			if t := source.ServiceAccountToken; t != nil {
				if err := v.token(filepath.Join(dir, filepath.Clean("/"+t.Path)), t, now); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

func (v *volumeKeeper) configMap(dir, name string, items []corev1.KeyToPath, optional bool) error {
	var found *corev1.ConfigMap
	v.c.ask(func() {
		found, _ = v.c.objects.configMaps.get(types.NamespacedName{Namespace: v.pod.namespace, Name: name})
	})
	if found == nil {
		if optional {
			return nil
		}
		return fmt.Errorf("config map %s/%s does not exist", v.pod.namespace, name)
	}
	content := map[string][]byte{}
	for key, text := range found.Data {
		content[key] = []byte(text)
	}
	maps.Copy(content, found.BinaryData)
	if len(items) == 0 {
		for key := range content {
			items = append(items, corev1.KeyToPath{Key: key, Path: key})
		}
	}
	for _, item := range items {
		data, ok := content[item.Key]
		if !ok {
			if optional {
				continue
			}
			return fmt.Errorf("config map %s/%s has no key %s", v.pod.namespace, name, item.Key)
		}
		if err := v.write(filepath.Join(dir, filepath.Clean("/"+item.Path)), data); err != nil {
			return err
		}
	}
	return nil
}

func (v *volumeKeeper) token(path string, t *corev1.ServiceAccountTokenProjection, now time.Time) error {
	if now.Before(v.tokens[path]) {
		v.wanted[path] = true
		return nil
	}
	lifetime := maxTokenLifetime
	if t.ExpirationSeconds != nil {
		lifetime = min(lifetime, time.Duration(*t.ExpirationSeconds)*time.Second)
	}
	lifetime = cmp.Or(v.c.options.TokenLifetime, lifetime)
	claims := NewClaims(v.pod.namespace, v.pod.account(), []string{cmp.Or(t.Audience, Issuer)}, now, lifetime)
	claims.Kubernetes.Pod = &Binding{Name: v.pod.name, UID: v.pod.uid}
	claims.Kubernetes.Node = &Binding{Name: v.pod.node.name, UID: v.pod.node.uid}
	token, err := v.c.tokens.sign(claims)
	if err != nil {
		return err
	}
	if err := v.write(path, []byte(token)); err != nil {
		return err
	}
	v.tokens[path] = now.Add(lifetime * 8 / 10)
	return nil
}

// write replaces the file if its content is new.
func (v *volumeKeeper) write(path string, data []byte) error {
	v.wanted[path] = true
	if old, ok := v.written[path]; ok && bytes.Equal(old, data) {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	if err := replaceFile(path, data, 0o644); err != nil {
		return err
	}
	v.written[path] = data
	return nil
}

// run keeps the volumes until ctx ends.
func (v *volumeKeeper) run(ctx context.Context, log *slog.Logger) {
	for {
		changed := v.c.manifestsChanged()
		if _, err := v.fill(time.Now()); err != nil {
			log.Warn("volume not updated", "error", err)
		}
		timer := time.NewTimer(v.untilDue(time.Now()))
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-changed:
		case <-timer.C:
		}
		timer.Stop()
	}
}

func (v *volumeKeeper) untilDue(now time.Time) time.Duration {
	wait := time.Hour
	for _, due := range v.tokens {
		wait = min(wait, max(due.Sub(now), 100*time.Millisecond))
	}
	return wait
}

// containerBinds says what goes where in a container.
func containerBinds(p *pod, c corev1.Container, volumes map[string]string, log *slog.Logger) ([]bind, error) {
	var binds []bind
	for _, m := range c.VolumeMounts {
		source, ok := volumes[m.Name]
		if !ok {
			return nil, fmt.Errorf("container %s: there is no volume %s", c.Name, m.Name)
		}
		for _, volume := range p.spec.Volumes {
			if volume.Name != m.Name || volume.HostPath == nil {
				continue
			}
			if err := p.node.ownPath(source); err != nil {
				return nil, err
			}
		}
		if filepath.Clean(source) == filepath.Clean(m.MountPath) {
			continue // the node's own path, in the node's own place
		}
		if _, err := os.Stat(m.MountPath); errors.Is(err, os.ErrNotExist) && !inRun(m.MountPath) {
			log.Warn("volume not mounted: this machine has no such path", "container", c.Name, "path", m.MountPath)
			continue
		}
		binds = append(binds, bind{source: source, target: m.MountPath, readOnly: m.ReadOnly})
	}
	return binds, nil
}
