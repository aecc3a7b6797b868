package ztunnel

import (
	"context"
	"fmt"
	"os"
	"sync/atomic"
	"time"

	"github.com/ambit-mesh/ambit/ztunnel/local"
	"github.com/ambit-mesh/ambit/ztunnel/mtls"
	"github.com/ambit-mesh/ambit/ztunnel/telemetry"
)

// followEvery is how often followed files are looked at. Looking beats watching
// here: it sees a file that is replaced, a symbolic link that is swapped and a
// directory that is mounted over alike, and costs one stat.
const followEvery = time.Second

// followed is a file that takes effect whenever it changes. What it said last
// stays in effect while it cannot be read.
type followed struct {
	variable, path string
	set            func([]byte) error

	last os.FileInfo           // as it was read last; nil if it was not there
	err  atomic.Pointer[error] // why it is not in effect; nil: it is
}

// read takes the file over if it has changed, and reports whether it had.
func (f *followed) read() (changed bool, err error) {
	info, err := os.Stat(f.path)
	if err == nil && f.last != nil && os.SameFile(info, f.last) && info.Size() == f.last.Size() && info.ModTime().Equal(f.last.ModTime()) {
		return false, nil
	}
	was := f.err.Load()
	if err == nil {
		f.last = info // before it is read: a write in between shows next time
		var text []byte
		if text, err = os.ReadFile(f.path); err == nil {
			if err = f.set(text); err != nil {
				err = fmt.Errorf("%s: %w", f.path, err)
			}
		} else {
			f.last = nil // it may be readable next time
		}
	} else {
		f.last = nil
	}
	if err != nil {
		err = fmt.Errorf("%s: %w", f.variable, err)
		f.err.Store(&err)
		return was == nil || (*was).Error() != err.Error(), err
	}
	f.err.Store(nil)
	return true, nil
}

// readLocal puts the local document in force. Without one at start nothing
// would be as it was meant, so that is an error; later, the last good one stays.
func (z *Ztunnel) readLocal() error {
	if z.cfg.Local == "" && z.cfg.LocalPath == "" {
		return nil
	}
	z.local = local.NewSource(z.store, z.cfg.ClusterID)
	if z.cfg.Local != "" {
		if err := z.local.Set([]byte(z.cfg.Local)); err != nil {
			return fmt.Errorf("LOCAL_XDS: %w", err)
		}
		return nil
	}
	f := &followed{variable: "LOCAL_XDS_PATH", path: z.cfg.LocalPath, set: z.local.Set}
	z.files = append(z.files, f)
	_, err := f.read()
	return err
}

// readRevocations begins with what the file says, if it does: revocation must
// not keep a node from starting (spec/ztunnel.md §10.4).
func (z *Ztunnel) readRevocations() {
	if z.cfg.CRLPath == "" {
		return
	}
	z.revocations = mtls.NewRevocations(z.identities.Roots)
	f := &followed{variable: "CRL_PATH", path: z.cfg.CRLPath, set: z.revocations.Set}
	z.files = append(z.files, f)
	z.take(f)
}

// take reads a file and logs what has come of it.
func (z *Ztunnel) take(f *followed) {
	changed, err := f.read()
	switch {
	case !changed:
	case err != nil:
		z.log.Warn("file is not in effect; what it said before is", telemetry.KeyVariable, f.variable, telemetry.KeyError, err)
	default:
		z.log.Info("file is in effect", telemetry.KeyVariable, f.variable, "path", f.path)
	}
}

// follow looks at the files until ctx ends.
func (z *Ztunnel) follow(ctx context.Context) error {
	if len(z.files) == 0 {
		return nil
	}
	tick := time.NewTicker(followEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
		for _, f := range z.files {
			z.take(f)
		}
	}
}
