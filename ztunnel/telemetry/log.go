// Package telemetry owns what operators see: log lines and their keys, the
// access-log line, the metrics and the reasons for which connections are
// refused. It knows neither connections nor configuration; packages proxy and
// waypoint/serve fill in its values. Everything is safe for concurrent use.
// Formats: spec/ztunnel.md §8.
package telemetry

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

// Keys of log attributes. One spelling each.
const (
	KeyScope     = "scope" // the part that logs, shown as the line's target
	KeyError     = "error"
	KeyWorkload  = "workload"
	KeyNamespace = "namespace"
	KeyUID       = "uid"
	KeyIdentity  = "identity"
	KeyPolicy    = "policy"
	KeyAddress   = "address"
	KeyCount     = "count"
	KeyType      = "type"
	KeyVariable  = "variable"
)

// Format is how lines are written.
type Format uint8

// The formats.
const (
	Text Format = iota
	JSON
)

// ParseFormat reads LOG_FORMAT: "plain" (or nothing) or "json".
func ParseFormat(s string) (Format, error) {
	switch s {
	case "", "plain", "text":
		return Text, nil
	case "json":
		return JSON, nil
	}
	return 0, fmt.Errorf("log format %q is neither plain nor json", s)
}

const timeFormat = "2006-01-02T15:04:05.000000Z"

// Levels is the filter of a logger: one level, and other levels for single
// scopes. It may be changed while the logger is used.
type Levels struct {
	initial levels
	current atomic.Pointer[levels]
}

type levels struct {
	base   slog.Level
	scopes map[string]slog.Level
}

// NewLevels reads a list such as "info" or "info,xds=debug".
func NewLevels(text string) (*Levels, error) {
	l := &Levels{initial: levels{base: slog.LevelInfo}}
	l.Reset()
	if text != "" {
		if err := l.Add(text, true); err != nil {
			return nil, err
		}
	}
	l.initial = *l.current.Load()
	return l, nil
}

// Reset restores what NewLevels was given.
func (l *Levels) Reset() {
	c := l.initial
	l.current.Store(&c)
}

// Add changes the levels named in text and leaves the others. A bare name is a
// level; with lenient, a bare name that is no level is ignored.
func (l *Levels) Add(text string, lenient bool) error {
	next := levels{base: l.current.Load().base, scopes: maps.Clone(l.current.Load().scopes)}
	if next.scopes == nil {
		next.scopes = map[string]slog.Level{}
	}
	for part := range strings.SplitSeq(text, ",") {
		scope, name, scoped := strings.Cut(part, "=")
		if !scoped {
			name = scope
		}
		level, err := parseLevel(name)
		switch {
		case err != nil && lenient && !scoped:
			continue
		case err != nil:
			return err
		case scoped:
			next.scopes[scope] = level
		default:
			next.base = level
		}
	}
	l.current.Store(&next)
	return nil
}

const levelOff = slog.Level(100)

func parseLevel(s string) (slog.Level, error) {
	switch strings.ToLower(s) {
	case "trace", "debug":
		return slog.LevelDebug, nil
	case "info":
		return slog.LevelInfo, nil
	case "warn", "warning":
		return slog.LevelWarn, nil
	case "error":
		return slog.LevelError, nil
	case "off":
		return levelOff, nil
	}
	return 0, fmt.Errorf("log level %q is none of debug, info, warn, error, off", s)
}

// String returns the list in the form that NewLevels reads.
func (l *Levels) String() string {
	c := l.current.Load()
	parts := []string{levelName(c.base)}
	for _, scope := range slices.Sorted(maps.Keys(c.scopes)) {
		parts = append(parts, scope+"="+levelName(c.scopes[scope]))
	}
	return strings.Join(parts, ",")
}

func (l *Levels) enabled(scope string, level slog.Level) bool {
	c := l.current.Load()
	if only, ok := c.scopes[scope]; ok {
		return level >= only
	}
	return level >= c.base
}

func levelName(l slog.Level) string {
	switch {
	case l >= levelOff:
		return "off"
	case l >= slog.LevelError:
		return "error"
	case l >= slog.LevelWarn:
		return "warn"
	case l >= slog.LevelInfo:
		return "info"
	}
	return "debug"
}

// NewLogger returns a logger that writes lines to w. The attribute KeyScope
// names the part that logs.
func NewLogger(w io.Writer, format Format, filter *Levels) *slog.Logger {
	return slog.New(&handler{w: w, format: format, filter: filter, scope: "ambit"})
}

type handler struct {
	w      io.Writer
	format Format
	filter *Levels
	scope  string
	prefix string // of keys, from groups
	fields []byte // formatted already
}

func (h *handler) Enabled(_ context.Context, level slog.Level) bool {
	return h.filter.enabled(h.scope, level)
}

func (h *handler) WithGroup(name string) slog.Handler {
	c := *h
	c.prefix += name + "."
	return &c
}

func (h *handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	c := *h
	c.fields = slices.Clip(slices.Clone(h.fields))
	for _, a := range attrs {
		if a.Key == KeyScope && h.prefix == "" {
			c.scope = a.Value.String()
			continue
		}
		c.fields = h.format.field(c.fields, h.prefix, a)
	}
	return &c
}

func (h *handler) Handle(_ context.Context, r slog.Record) error {
	line := h.format.head(nil, r.Time, r.Level, h.scope, r.Message)
	line = append(line, h.fields...)
	r.Attrs(func(a slog.Attr) bool {
		line = h.format.field(line, h.prefix, a)
		return true
	})
	_, err := h.w.Write(h.format.tail(line))
	return err
}

func (f Format) head(b []byte, t time.Time, level slog.Level, scope, message string) []byte {
	if f == JSON {
		b = append(append(b, `{"level":"`...), levelName(level)...)
		b = t.UTC().AppendFormat(append(b, `","time":"`...), timeFormat)
		b = appendJSONString(append(b, `","scope":`...), scope)
		return appendJSONString(append(b, `,"message":`...), message)
	}
	b = append(t.UTC().AppendFormat(b, timeFormat), '\t')
	b = append(append(b, levelName(level)...), '\t')
	b = append(append(b, scope...), '\t')
	return append(appendOneLine(b, message), '\t')
}

func (f Format) tail(b []byte) []byte {
	if f == JSON {
		return append(b, '}', '\n')
	}
	if n := len(b); n > 0 && (b[n-1] == ' ' || b[n-1] == '\t') {
		b = b[:n-1]
	}
	return append(b, '\n')
}

func (f Format) field(b []byte, prefix string, a slog.Attr) []byte {
	v := a.Value.Resolve()
	if v.Kind() == slog.KindGroup {
		if a.Key != "" {
			prefix += a.Key + "."
		}
		for _, inner := range v.Group() {
			b = f.field(b, prefix, inner)
		}
		return b
	}
	key := prefix + a.Key
	//nolint:exhaustive // other kinds are text
	switch v.Kind() {
	case slog.KindInt64:
		return f.bare(b, key, strconv.FormatInt(v.Int64(), 10))
	case slog.KindUint64:
		return f.bare(b, key, strconv.FormatUint(v.Uint64(), 10))
	case slog.KindBool:
		return f.bare(b, key, strconv.FormatBool(v.Bool()))
	case slog.KindFloat64:
		return f.bare(b, key, strconv.FormatFloat(v.Float64(), 'g', -1, 64))
	case slog.KindTime:
		return f.quoted(b, key, v.Time().UTC().Format(time.RFC3339Nano))
	}
	if err, ok := v.Any().(error); ok {
		return f.quoted(b, key, err.Error())
	}
	return f.quoted(b, key, v.String())
}

// bare appends a field whose value needs no quotes in either format.
func (f Format) bare(b []byte, key, value string) []byte {
	if f == JSON {
		return append(append(appendJSONString(append(b, ','), key), ':'), value...)
	}
	return append(append(append(append(b, key...), '='), value...), ' ')
}

func (f Format) quoted(b []byte, key, value string) []byte {
	if f == JSON {
		return appendJSONString(append(appendJSONString(append(b, ','), key), ':'), value)
	}
	return append(strconv.AppendQuote(append(append(b, key...), '='), value), ' ')
}

// appendOneLine keeps control characters out of the parts of a line that are
// not quoted.
func appendOneLine(b []byte, s string) []byte {
	for _, r := range s {
		if r < ' ' {
			r = ' '
		}
		b = append(b, string(r)...)
	}
	return b
}

func appendJSONString(b []byte, s string) []byte {
	quoted, err := json.Marshal(s)
	if err != nil { // cannot be for a string
		return append(b, `""`...)
	}
	return append(b, quoted...)
}
