package authn

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// Limits of the JWKS verifier.
const (
	skew          = time.Minute // clocks of issuer and verifier may differ by this much, DESIGN §4
	readInterval  = time.Second // the file is read no more often than this
	maxJWKSBytes  = 1 << 20
	maxTokenBytes = 16 << 10
)

// JWKSConfig says whose tokens a JWKS accepts.
type JWKSConfig struct {
	File     string // JSON Web Key Set of the issuer
	Issuer   string // the token's iss, equal
	Audience string // one of the token's aud
	Now      func() time.Time
	Log      *slog.Logger // where a broken file is reported; nil for nowhere
}

// JWKS verifies tokens against a file of public keys. The file is read again
// when it has changed or a token names an unknown key; while it is broken the
// last good keys stay.
type JWKS struct {
	cfg  JWKSConfig
	keys atomic.Pointer[keySet]

	mu     sync.Mutex
	tried  time.Time // of the last reading, good or not
	seen   stamp     // of the last file that was read well
	broken string    // the last error that was logged
}

// stamp tells one content of a file from the next.
type stamp struct {
	modified time.Time
	size     int64
}

// NewJWKS reads the file for the first time. Unlike later, a file that cannot be
// used is an error now: no token could be accepted.
func NewJWKS(cfg JWKSConfig) (*JWKS, error) {
	if cfg.File == "" || cfg.Issuer == "" || cfg.Audience == "" {
		return nil, errors.New("jwks: file, issuer and audience are all needed")
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	j := &JWKS{cfg: cfg, tried: cfg.Now()}
	if err := j.load(); err != nil {
		return nil, err
	}
	return j, nil
}

// Verify implements the type of the same name.
func (j *JWKS) Verify(_ context.Context, token string) (Caller, error) {
	parsed, err := parseToken(token)
	if err != nil {
		return Caller{}, err
	}
	j.refresh(false)
	key, ok := j.keys.Load().byID[parsed.keyID]
	if !ok {
		j.refresh(true)
		key, ok = j.keys.Load().byID[parsed.keyID]
	}
	if !ok {
		return Caller{}, &Error{ReasonUnknownKey, fmt.Errorf("key id %q is not in %s", clip(parsed.keyID), j.cfg.File)}
	}
	claims, err := parsed.verify(key)
	if err != nil {
		return Caller{}, err
	}
	if err := claims.check(j.cfg, j.cfg.Now()); err != nil {
		return Caller{}, err
	}
	return claims.caller()
}

// refresh reads the file again if it has changed, or in any case when forced.
// Whatever callers send, it is read once per readInterval at most.
func (j *JWKS) refresh(force bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	now := j.cfg.Now()
	if since := now.Sub(j.tried); since >= 0 && since < readInterval {
		return
	}
	if !force {
		info, err := os.Stat(j.cfg.File)
		if err == nil && (stamp{info.ModTime(), info.Size()}) == j.seen {
			return
		}
	}
	j.tried = now
	if err := j.load(); err != nil {
		if text := err.Error(); text != j.broken {
			j.broken = text
			j.cfg.Log.Warn("key set unusable, last good keys stay", "file", j.cfg.File, "error", err)
		}
	}
}

// load reads the file; the caller holds mu or is alone.
func (j *JWKS) load() error {
	data, info, err := readFile(j.cfg.File)
	if err != nil {
		return fmt.Errorf("jwks: %w", err)
	}
	keys, err := parseJWKS(data)
	if err != nil {
		return fmt.Errorf("jwks %s: %w", j.cfg.File, err)
	}
	if before := j.keys.Swap(keys); before != nil && !bytes.Equal(before.source, keys.source) {
		j.cfg.Log.Info("key set read", "file", j.cfg.File, "keys", len(keys.byID))
	}
	j.seen, j.broken = info, ""
	return nil
}

func readFile(name string) (data []byte, info stamp, err error) {
	file, err := os.Open(name)
	if err != nil {
		return nil, stamp{}, err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	stat, err := file.Stat()
	if err != nil {
		return nil, stamp{}, err
	}
	data, err = io.ReadAll(io.LimitReader(file, maxJWKSBytes+1))
	if err != nil {
		return nil, stamp{}, err
	}
	if len(data) > maxJWKSBytes {
		return nil, stamp{}, fmt.Errorf("%s: larger than %d bytes", name, maxJWKSBytes)
	}
	return data, stamp{stat.ModTime(), stat.Size()}, nil
}

// clip keeps what a stranger sent from filling the log.
func clip(text string) string {
	const most = 64
	if len(text) <= most {
		return text
	}
	return text[:most] + "…"
}
