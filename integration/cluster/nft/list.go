package nft

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// list writes a set or map as nft's JSON, libnftables-json(5).
func list(out io.Writer, args []string) error {
	if len(args) != 4 || (args[0] != "set" && args[0] != "map") {
		return fmt.Errorf("list %q: not understood by this stand-in for nft", args)
	}
	kind, family, table, name := args[0], args[1], args[2], args[3]
	t := &nftables.Table{Name: table}
	var ok bool
	if t.Family, ok = families[family]; !ok {
		return fmt.Errorf("family %q is not understood", family)
	}
	conn, err := nftables.New()
	if err != nil {
		return err
	}
	set, err := conn.GetSetByName(t, name)
	if err != nil {
		return err
	}
	elements, err := conn.GetSetElements(set)
	if err != nil {
		return err
	}
	object := map[string]any{"family": family, "table": table, "name": name}
	var encoded []any
	for _, element := range elements {
		one, err := encodeElement(element, set)
		if err != nil {
			return fmt.Errorf("%s %s: %w", kind, name, err)
		}
		encoded = append(encoded, one)
	}
	if len(encoded) > 0 {
		object["elem"] = encoded
	}
	return json.NewEncoder(out).Encode(map[string]any{"nftables": []any{
		map[string]any{"metainfo": map[string]any{"json_schema_version": 1}},
		map[string]any{kind: object},
	}})
}

// encodeElement is KEY in a set and [KEY, VERDICT] in a map, where a key with a
// comment is an object.
func encodeElement(element nftables.SetElement, set *nftables.Set) (any, error) {
	key, err := encodeKey(element.Key, set.Table.Family)
	if err != nil {
		return nil, err
	}
	if element.Comment != "" {
		key = map[string]any{"elem": map[string]any{"val": key, "comment": element.Comment}}
	}
	if !set.IsMap {
		return key, nil
	}
	verdict, err := encodeVerdict(element.Val)
	return []any{key, verdict}, err
}

// encodeKey is the values of the key, joined if there are several. The kernel
// would say which types they have, but the library loses a verdict map's, and
// what kube-proxy uses can be told by its size: ADDRESS, PROTOCOL . PORT, or
// these after one address or two.
func encodeKey(key []byte, family nftables.TableFamily) (any, error) {
	addressSize := net4Size
	if family == nftables.TableFamilyIPv6 {
		addressSize = net6Size
	}
	const rest = 2 * registerSize // protocol and port
	addresses, service := key, []byte(nil)
	if len(key) >= rest {
		if n := len(key) - rest; n%addressSize == 0 {
			addresses, service = key[:n], key[n:]
		}
	}
	if len(addresses)%addressSize != 0 || len(key) == 0 {
		return nil, fmt.Errorf("a key of %d bytes is not understood", len(key))
	}
	var values []any
	for ; len(addresses) > 0; addresses = addresses[addressSize:] {
		address, _ := netip.AddrFromSlice(addresses[:addressSize])
		values = append(values, address.String())
	}
	if service != nil {
		values = append(values, protocolName(service[0]), binary.BigEndian.Uint16(service[registerSize:]))
	}
	if len(values) == 1 {
		return values[0], nil
	}
	return map[string]any{"concat": values}, nil
}

func protocolName(number byte) any {
	for name, n := range protocols {
		if n == number {
			return name
		}
	}
	return number
}

// encodeVerdict reads netlink's attributes of a verdict.
func encodeVerdict(attributes []byte) (any, error) {
	var code int32
	chain := ""
	for len(attributes) >= unix.SizeofNlAttr {
		size := int(binary.NativeEndian.Uint16(attributes))
		kind := binary.NativeEndian.Uint16(attributes[2:]) &^ (unix.NLA_F_NESTED | unix.NLA_F_NET_BYTEORDER)
		if size < unix.SizeofNlAttr || size > len(attributes) {
			return nil, errors.New("a verdict has attributes of a wrong size")
		}
		value := attributes[unix.SizeofNlAttr:size]
		switch {
		case kind == unix.NFTA_VERDICT_CODE && len(value) == 4:
			code = int32(binary.BigEndian.Uint32(value))
		case kind == unix.NFTA_VERDICT_CHAIN:
			chain = strings.TrimRight(string(value), "\x00")
		}
		attributes = attributes[min(len(attributes), (size+3)&^3):]
	}
	for kind, name := range map[expr.VerdictKind]string{
		expr.VerdictAccept: "accept", expr.VerdictDrop: "drop", expr.VerdictContinue: "continue", expr.VerdictReturn: "return",
	} {
		if int32(kind) == code {
			return map[string]any{name: nil}, nil
		}
	}
	for kind, name := range map[expr.VerdictKind]string{expr.VerdictJump: "jump", expr.VerdictGoto: "goto"} {
		if int32(kind) == code {
			return map[string]any{name: map[string]any{"target": chain}}, nil
		}
	}
	return nil, fmt.Errorf("verdict %d is not understood", code)
}
