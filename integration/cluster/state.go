package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
)

// stateRoot holds the state directories of all clusters, and their locks. It is
// on disk, as the nodes' images are there.
const stateRoot = "/var/lib/ambit-cluster"

// state is where a cluster keeps everything that outlives the calling process:
//
//	NAME.lock             held while somebody starts, ends or changes the cluster
//	NAME/cluster.json     what was started, see record
//	NAME/kubeconfig       of the administrator, for the host
//	NAME/MACHINE/         a machine's own; it sees it as /run/cluster
//	  init.json           what its pid 1 is to do
//	  process.json        which process that is
//	  status.json         what it says about itself
//	  logs/ pki/ config/
//	  etc/ opt/ run/ var/ what the machine has at these paths
type state struct {
	root, cluster string
}

func stateOf(cluster string) state { return state{root: stateRoot, cluster: cluster} }

func (s state) dir() string        { return filepath.Join(s.root, s.cluster) }
func (s state) kubeconfig() string { return filepath.Join(s.dir(), "kubeconfig") }

func (s state) machine(m machine) string       { return filepath.Join(s.dir(), m.name()) }
func (s state) pki(m machine) string           { return filepath.Join(s.machine(m), "pki") }
func (s state) log(m machine, p string) string { return filepath.Join(s.machine(m), "logs", p+".log") }

// A cluster's name is part of names of network namespaces, cgroups and files.
var namePattern = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,30}[a-z0-9])?$`)

func checkName(name string) error {
	if !namePattern.MatchString(name) {
		return fmt.Errorf("cluster name %q: want at most 32 lower-case letters, digits and dashes", name)
	}
	return nil
}

// record is what is known of a cluster.
type record struct {
	Config
	// Parts are the directories of the binaries, by part.
	Parts map[string]string `json:"parts"`
	// Port is the API server's on the host's 127.0.0.1.
	Port int `json:"port"`
	// Complete is set when the start has succeeded.
	Complete bool `json:"complete"`
}

func (s state) readRecord() (record, error) {
	var r record
	err := readJSON(filepath.Join(s.dir(), "cluster.json"), &r)
	return r, err
}

func (s state) writeRecord(r record) error {
	return writeJSON(filepath.Join(s.dir(), "cluster.json"), r)
}

// pid1 is the machine's first process; the zero process if none was recorded.
func (s state) pid1(m machine) process {
	var p process
	_ = readJSON(filepath.Join(s.machine(m), "process.json"), &p)
	return p
}

// lock takes the cluster's lock, and waits for it until ctx ends; note is told
// once that somebody else has it.
func (s state) lock(ctx context.Context, note func()) (*os.File, error) {
	path := s.dir() + ".lock"
	for {
		if err := os.MkdirAll(s.root, 0o755); err != nil {
			return nil, err
		}
		file, err := lockFile(ctx, path, os.O_CREATE|os.O_RDWR, note)
		if errors.Is(err, fs.ErrNotExist) {
			continue // the last cluster has just taken the directory with it
		}
		if err != nil {
			return nil, err
		}
		// Down removes the file: the lock of one that has no name is worth nothing.
		if sameFile(file, path) {
			return file, nil
		}
		_ = file.Close()
	}
}

func sameFile(file *os.File, path string) bool {
	held, err := file.Stat()
	if err != nil {
		return false
	}
	named, err := os.Stat(path)
	return err == nil && os.SameFile(held, named)
}

// remove removes the state directory and, with the lock still held, its lock.
func (s state) remove() error {
	if err := os.RemoveAll(s.dir()); err != nil {
		return err
	}
	if err := ignoring(os.Remove(s.dir()+".lock"), fs.ErrNotExist); err != nil {
		return err
	}
	_ = os.Remove(s.root) // fails as long as there is another cluster
	return nil
}

func readJSON(path string, into any) error {
	content, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(content, into); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

// writeJSON replaces the file at once, so that a reader never sees half of it.
func writeJSON(path string, value any) error {
	content, err := json.MarshalIndent(value, "", "  ")
	if err != nil {
		return err
	}
	next := path + ".next"
	if err := os.WriteFile(next, append(content, '\n'), 0o600); err != nil {
		return err
	}
	return os.Rename(next, path)
}
