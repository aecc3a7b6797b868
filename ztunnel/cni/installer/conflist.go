package installer

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
)

// object is JSON whose values are kept as they came: what is not ours is not
// interpreted.
type object map[string]json.RawMessage

func parseObject(data []byte) (object, error) {
	var o object
	if err := json.Unmarshal(data, &o); err != nil {
		return nil, err
	}
	if o == nil {
		return nil, errors.New("null instead of an object")
	}
	return o, nil
}

// text is the value of a string, empty when it is absent or something else.
func (o object) text(key string) string {
	var s string
	if json.Unmarshal(o[key], &s) != nil {
		return ""
	}
	return s
}

// networkList is a network configuration list,
// https://www.cni.dev/docs/spec/#section-1-network-configuration-format.
type networkList struct {
	fields  object
	plugins []json.RawMessage
}

// parseList reads a file whose name ends in .conflist.
func parseList(data []byte) (networkList, error) {
	fields, err := parseObject(data)
	if err != nil {
		return networkList{}, err
	}
	l := networkList{fields: fields}
	if err := json.Unmarshal(fields["plugins"], &l.plugins); err != nil {
		return networkList{}, fmt.Errorf("plugins: %w", err)
	}
	others := 0
	for i, p := range l.plugins {
		plugin, err := parseObject(p)
		if err == nil && plugin.text("type") == "" {
			err = errors.New("no type")
		}
		if err != nil {
			return networkList{}, fmt.Errorf("plugin %d: %w", i+1, err)
		}
		if plugin.text("type") != PluginName {
			others++
		}
	}
	if others == 0 {
		return networkList{}, errors.New("no plugin that makes a network")
	}
	return l, nil
}

// parseSingle reads a file with one plugin, whose name ends in .conf or .json, into a
// list of one.
func parseSingle(data []byte) (networkList, error) {
	plugin, err := parseObject(data)
	if err != nil {
		return networkList{}, err
	}
	if plugin.text("type") == "" || plugin.text("type") == PluginName {
		return networkList{}, errors.New("no plugin that makes a network")
	}
	l := networkList{fields: object{}, plugins: []json.RawMessage{bytes.TrimSpace(data)}}
	for _, key := range []string{"cniVersion", "name"} {
		if v, ok := plugin[key]; ok {
			l.fields[key] = v
		}
	}
	return l, nil
}

// chain puts the entry where ours is, or at the end, and once. changed is false when it
// is so already.
func (l *networkList) chain(entry json.RawMessage) (changed bool) {
	var plugins []json.RawMessage
	found := false
	for _, p := range l.plugins {
		switch {
		case !isOurs(p):
			plugins = append(plugins, p)
		case found:
			changed = true // one is enough
		default:
			found = true
			changed = changed || !sameJSON(p, entry)
			plugins = append(plugins, entry)
		}
	}
	if !found {
		plugins, changed = append(plugins, entry), true
	}
	l.plugins = plugins
	return changed
}

// unchain takes our entries away.
func (l *networkList) unchain() (changed bool) {
	var plugins []json.RawMessage
	for _, p := range l.plugins {
		if !isOurs(p) {
			plugins = append(plugins, p)
		}
	}
	changed = len(plugins) != len(l.plugins)
	l.plugins = plugins
	return changed
}

// same compares meanings.
func (l *networkList) same(other networkList) bool {
	a, erra := l.marshal()
	b, errb := other.marshal()
	return erra == nil && errb == nil && sameJSON(a, b)
}

func isOurs(plugin json.RawMessage) bool {
	o, err := parseObject(plugin)
	return err == nil && o.text("type") == PluginName
}

// sameJSON compares meanings, numbers by their digits.
func sameJSON(a, b []byte) bool {
	va, erra := decode(a)
	vb, errb := decode(b)
	return erra == nil && errb == nil && reflect.DeepEqual(va, vb)
}

func decode(data []byte) (v any, err error) {
	d := json.NewDecoder(bytes.NewReader(data))
	d.UseNumber()
	return v, d.Decode(&v)
}

// marshal writes the list; the order of keys is not kept, since it means nothing.
func (l *networkList) marshal() ([]byte, error) {
	plugins, err := encode(l.plugins, "")
	if err != nil {
		return nil, err
	}
	l.fields["plugins"] = plugins
	return encode(l.fields, "  ")
}

func encode(v any, indent string) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", indent)
	err := e.Encode(v)
	return b.Bytes(), err
}
