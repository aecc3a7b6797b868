// Package lab is a cluster without a cluster: nodes and pods as network
// namespaces of one machine, started in seconds from ordinary Kubernetes
// manifests, for demos and end-to-end tests (DESIGN.md §8).
//
// It owns the networks, the processes, the addresses, and what a kubelet and
// Kubernetes' controllers would add to the user's manifests: Pods, Nodes,
// EndpointSlices and cluster IPs, which it writes to STATE/objects. It knows no
// mesh: istiod, ztunnel and ambit-cni run in it as pods like any other, and the
// manifests are read-only to it.
//
// [Start] makes a new pid 1 in namespaces of its own; everything of the lab is a
// descendant of that process or held by it, so killing it leaves nothing
// behind. A Go program cannot join a user namespace, hence everything that
// happens inside is asked of pid 1 over a socket in the state directory
// (protocol.go). Callers: cmd/lab, the demo, end-to-end tests. A [Lab] may be
// used by several goroutines.
//
// A pod is no security boundary here: all run as one user, who may read the
// state directory. The tokens of other pods and the key that signs them are out
// of a pod's sight, so that none uses them by mistake, but not out of its reach.
//
// In pid 1 one goroutine, cluster.run, owns all state; pods have one goroutine
// each that does the slow work and reports to it.
package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/ambit-mesh/ambit/apis/manifest"
)

// Names that the mesh's parts are told.
const (
	Issuer        = "https://kubernetes.default.svc.cluster.local" // of every token
	ClusterDomain = "cluster.local"
)

// Options say what to start.
type Options struct {
	Binary    string // the lab's own binary, which becomes pid 1; "" means the running one
	ConfigDir string // the user's manifests
	StateDir  string // written: objects, status, logs, keys, the control socket
	BinDir    string // the containers' binaries
	Nodes     int    // 0 means 2
	NoMesh    bool   // neither istiod, ztunnel, ambit-cni, nor the CNI call
	// MeshEnv is set in ztunnel's containers, over what mesh.yaml says.
	MeshEnv map[string]string
	// TokenLifetime replaces what pods ask for; for tests of rotation.
	TokenLifetime time.Duration
	// Timeout bounds the start; 0 means a minute.
	Timeout time.Duration
	// Detach lets the lab outlive the caller.
	Detach bool
}

// Lab is a running lab.
type Lab struct {
	stateDir string
	pid      int           // of its pid 1 as seen from here; 0 when it was opened
	ended    chan struct{} // closed when pid 1 has ended; nil when it was opened
}

// Open returns the running lab of the state directory.
func Open(stateDir string) (*Lab, error) {
	dir, err := filepath.Abs(stateDir)
	if err != nil {
		return nil, err
	}
	conn, err := dialControl(dir)
	if err != nil {
		return nil, err
	}
	return &Lab{stateDir: dir}, conn.Close()
}

// StateDir is where the lab writes.
func (l *Lab) StateDir() string { return l.stateDir }

// PID is the lab's pid 1 as this process sees it, 0 for a lab that was opened.
func (l *Lab) PID() int { return l.pid }

// Ended is closed when the lab has ended; nil for a lab that was opened.
func (l *Lab) Ended() <-chan struct{} { return l.ended }

// Objects holds what a cluster would generate.
func (l *Lab) Objects() *manifest.Store { return manifest.NewStore(objectsDir(l.stateDir)) }

// LogFile is where a container's output goes.
func (l *Lab) LogFile(namespace, pod, container string) string {
	return logFile(l.stateDir, namespace, pod, container)
}

// MintToken signs a token with the key that pods' tokens are signed with.
func (l *Lab) MintToken(claims any) (string, error) {
	tokens, err := openIssuer(l.stateDir)
	if err != nil {
		return "", err
	}
	return tokens.sign(claims)
}

func objectsDir(state string) string { return filepath.Join(state, "objects") }
func jwksFile(state string) string   { return filepath.Join(state, "jwks.json") }
func labLog(state string) string     { return filepath.Join(state, "lab.log") }

func logFile(state, namespace, pod, container string) string {
	return filepath.Join(state, "logs", namespace+"_"+pod+"_"+container+".log")
}

// checked returns the options with defaults and absolute directories.
func (o Options) checked() (Options, error) {
	if o.Binary == "" {
		o.Binary = "/proc/self/exe"
	}
	if o.Nodes == 0 {
		o.Nodes = 2
	}
	if o.Nodes < 1 || o.Nodes > maxNodes {
		return o, fmt.Errorf("%d nodes: must be 1 to %d", o.Nodes, maxNodes)
	}
	if o.Timeout == 0 {
		o.Timeout = time.Minute
	}
	if o.StateDir == "" || o.ConfigDir == "" || o.BinDir == "" {
		return o, errors.New("the directories of manifests, state and binaries must be given")
	}
	if err := os.MkdirAll(o.StateDir, 0o700); err != nil {
		return o, err
	}
	for _, dir := range []*string{&o.ConfigDir, &o.StateDir, &o.BinDir} {
		path, err := filepath.Abs(*dir)
		if err != nil {
			return o, err
		}
		if path, err = filepath.EvalSymlinks(path); err != nil {
			return o, err
		}
		for _, hidden := range []string{"/run", "/var/run", "/proc", "/sys"} {
			if path == hidden || strings.HasPrefix(path, hidden+"/") {
				return o, fmt.Errorf("%s: the lab has a %s of its own; use another directory", path, hidden)
			}
		}
		*dir = path
	}
	if o.StateDir == o.ConfigDir || strings.HasPrefix(o.StateDir, o.ConfigDir+"/") {
		return o, fmt.Errorf("state directory %s is in that of the manifests, %s: what the lab writes would be read as the user's", o.StateDir, o.ConfigDir)
	}
	return o, nil
}

// Down ends the lab and returns when nothing of it runs any more.
func (l *Lab) Down(ctx context.Context) error {
	conn, err := dialControl(l.stateDir)
	if err != nil {
		return err
	}
	defer conn.Close() //nolint:errcheck // the other end is gone
	if err := writeMessage(conn, request{Op: opDown}); err != nil {
		return err
	}
	// Pid 1 holds the lock for as long as it lives.
	for {
		lock, err := lockState(l.stateDir)
		if err == nil {
			return lock.Close()
		}
		if !errors.Is(err, errLocked) {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("lab in %s still runs: %w", l.stateDir, ctx.Err())
		case <-time.After(5 * time.Millisecond):
		}
	}
}
