package cni

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
)

// record is what only the container runtime told the agent about a pod, and what the
// agent did in its namespace: a restarted agent reads it again.
type record struct {
	UID       string       `json:"uid"`
	Name      string       `json:"name"`
	Namespace string       `json:"namespace"`
	NetNS     string       `json:"netns"` // path; empty when the namespace was found but has no lasting one
	IPs       []netip.Addr `json:"ips,omitempty"`
	// Enrolled is set before the rules are made and cleared after they are gone.
	Enrolled bool `json:"enrolled"`
	// MigrateWasOff says that the agent turned net.ipv4.tcp_migrate_req on.
	MigrateWasOff bool `json:"migrateWasOff,omitempty"`
}

// records is a directory with one file per pod.
type records struct{ dir string }

// validUID keeps what callers send from naming files elsewhere.
func validUID(uid string) error {
	const allowed = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ-_"
	foreign := func(r rune) bool { return !strings.ContainsRune(allowed, r) }
	if uid == "" || len(uid) > 128 || strings.ContainsFunc(uid, foreign) {
		return fmt.Errorf("pod uid %.200q: want letters, digits and dashes", uid)
	}
	return nil
}

func (r records) path(uid string) string { return filepath.Join(r.dir, uid+".json") }

// save replaces the pod's file.
func (r records) save(rec record) error {
	if err := os.MkdirAll(r.dir, 0o700); err != nil {
		return err
	}
	data, err := json.Marshal(rec)
	if err != nil {
		return err
	}
	part := r.path(rec.UID) + ".new"
	if err := os.WriteFile(part, data, 0o600); err != nil {
		return err
	}
	return os.Rename(part, r.path(rec.UID))
}

func (r records) remove(uid string) error {
	err := os.Remove(r.path(uid))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// load reads every file; one that cannot be read is logged and left out.
func (r records) load(log *slog.Logger) ([]record, error) {
	names, err := filepath.Glob(filepath.Join(r.dir, "*.json"))
	if err != nil {
		return nil, err
	}
	var all []record
	for _, name := range names {
		data, err := os.ReadFile(name)
		if err != nil {
			return nil, err
		}
		rec, err := parseRecord(data)
		if err != nil {
			log.Warn("pod record not read, the pod is unknown until it is started again", "file", name, "error", err)
			continue
		}
		all = append(all, rec)
	}
	return all, nil
}

func parseRecord(data []byte) (record, error) {
	var rec record
	if err := json.Unmarshal(data, &rec); err != nil {
		return record{}, err
	}
	return rec, rec.validate()
}

func (r record) validate() error {
	if err := validUID(r.UID); err != nil {
		return err
	}
	if r.Name == "" || r.Namespace == "" {
		return errors.New("pod without a name or a namespace")
	}
	if r.NetNS != "" && !filepath.IsAbs(r.NetNS) {
		return fmt.Errorf("network namespace %q: want an absolute path", r.NetNS)
	}
	return nil
}
