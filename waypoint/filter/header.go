package filter

import "github.com/ambit-mesh/ambit/waypoint/codec"

// Mode is what Header does about a field that is there already.
type Mode uint8

// Modes.
const (
	Append      Mode = iota // add another field
	Overwrite               // replace it, or add
	AddIfAbsent             // leave it
	Replace                 // replace it, do not add
)

// Change is one field to set.
type Change struct {
	Name, Value string // Name is lower case
	Mode        Mode
}

// Header changes the fields of a head. The zero Header changes nothing.
type Header struct {
	Set    []Change
	Remove []string
}

// Apply returns the changed fields; the slice that it is given is used.
func (h *Header) Apply(fields []codec.Field) []codec.Field {
	for _, name := range h.Remove {
		fields = codec.Remove(fields, name)
	}
	for _, c := range h.Set {
		_, there := codec.Get(fields, c.Name)
		switch {
		case c.Mode == Append, !there && c.Mode != Replace:
			fields = append(fields, codec.Field{Name: c.Name, Value: c.Value})
		case there && c.Mode != AddIfAbsent:
			fields = codec.Set(fields, c.Name, c.Value)
		}
	}
	return fields
}
