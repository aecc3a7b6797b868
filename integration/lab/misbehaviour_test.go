package lab_test

import (
	"bytes"
	"context"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/integration/lab"
)

// misbehaving are pods that a kubelet has to put up with.
const misbehaving = `
apiVersion: v1
kind: Pod
metadata: {name: orphans, namespace: shop}
spec:
  restartPolicy: Never
  containers: [{name: c, image: x, command: [sh, -c, "sleep 86397 & exit 3"]}]
---
apiVersion: v1
kind: Pod
metadata: {name: deaf, namespace: shop}
spec:
  containers:
  - {name: c, image: x, command: [sh, -c, "trap '' TERM; while :; do sleep 86398; done"], volumeMounts: [{name: v, mountPath: /run/v}]}
  volumes: [{name: v, configMap: {name: keys}}]
---
apiVersion: v1
kind: ConfigMap
metadata: {name: keys, namespace: shop}
data:
  one: "1"
  two: "2"
`

func TestMisbehaviour(t *testing.T) {
	b := start(t, nil)
	file := filepath.Join(b.config, "misbehaving.yaml")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(misbehaving)
	b.ready("shop/deaf", 1)
	b.await("what a container left running is gone", func(s lab.Status) bool {
		pods := s.Of("shop/orphans")
		return len(pods) == 1 && pods[0].Phase == "Failed" && !runs(t, "86397")
	})
	write(strings.Replace(misbehaving, "  two: \"2\"\n", "", 1))
	b.await("a key that its config map has no more is gone", func(lab.Status) bool {
		out, _ := b.exec("shop/deaf", "ls", "/run/v")
		return out == "one"
	})
	// A volume that cannot be mounted must not cost more the longer it takes.
	write(misbehaving + "---\n" + `{apiVersion: v1, kind: Pod, metadata: {name: broken, namespace: shop},
spec: {containers: [{name: c, image: echo, volumeMounts: [{name: none, mountPath: /run/v}]}]}}`)
	b.await("the pod says what it lacks", func(s lab.Status) bool {
		pods := s.Of("shop/broken")
		return len(pods) == 1 && strings.Contains(pods[0].Message, "there is no volume none")
	})
	if out, _ := b.exec("shop/deaf", "ls", "-A", "/run/lab", filepath.Join(b.StateDir(), "keys")); strings.Contains(out, "pods") || strings.Contains(out, "pem") {
		t.Errorf("a pod sees what is not its own: %q", out)
	}

	// Neither a client that says nothing nor a program that does not end keeps
	// the lab from ending, and its end is the end of everything.
	t.Chdir(b.StateDir())
	silent, err := net.Dial("unix", "lab.sock")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := b.Down(ctx); err != nil {
		t.Fatal(err)
	}
	if runs(t, "86398") {
		t.Error("a program outlived the lab")
	}
}

// runs says whether a process with the word among its arguments runs.
func runs(t *testing.T, word string) bool {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		if line, err := os.ReadFile(file); err == nil && bytes.Contains(line, []byte("sleep\x00"+word+"\x00")) {
			return true
		}
	}
	return false
}
