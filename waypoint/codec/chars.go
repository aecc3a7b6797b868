package codec

// Character classes of RFC 9110 §5.6.2 and §5.5, one bit each.
const (
	charToken  = 1 << iota // of a method or field name
	charValue              // of a field value
	charTarget             // of a request target
	charHost               // of an authority
	charHex
)

var chars = func() (t [256]uint8) {
	for c := range 256 {
		switch {
		case c >= '0' && c <= '9', c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z':
			t[c] |= charToken | charHost
		}
		if c >= '0' && c <= '9' || c >= 'a' && c <= 'f' || c >= 'A' && c <= 'F' {
			t[c] |= charHex
		}
		if c == '\t' || c >= 0x20 && c != 0x7f {
			t[c] |= charValue
		}
		if c > 0x20 && c != 0x7f && c != '#' {
			t[c] |= charTarget
		}
	}
	for _, c := range []byte("!#$%&'*+-.^_`|~") {
		t[c] |= charToken
	}
	// Of RFC 3986 reg-name and IP-literal; no user information.
	for _, c := range []byte("-._~%!$&'()*+,;=:[]") {
		t[c] |= charHost
	}
	return t
}()

// ValidName reports whether a field may have this name: a token in lower case,
// and none of the fields that are about one connection or the body's length.
func ValidName(name string) bool {
	if name == "" || name == "host" || perConnection(name) || !all(name, charToken) {
		return false
	}
	for i := range len(name) {
		if name[i] >= 'A' && name[i] <= 'Z' {
			return false
		}
	}
	return true
}

// ValidValue reports whether s may be the value of a field.
func ValidValue(s string) bool { return all(s, charValue) }

// ValidTarget reports whether s may be part of a request target.
func ValidTarget(s string) bool { return all(s, charTarget) }

// ValidHost reports whether s may be part of an authority.
func ValidHost(s string) bool { return all(s, charHost) }

func all[T string | []byte](s T, class uint8) bool {
	for i := range len(s) {
		if chars[s[i]]&class == 0 {
			return false
		}
	}
	return true
}

func lower(b []byte) {
	for i, c := range b {
		if c >= 'A' && c <= 'Z' {
			b[i] = c + ('a' - 'A')
		}
	}
}

func trim(b []byte) []byte {
	for len(b) > 0 && (b[0] == ' ' || b[0] == '\t') {
		b = b[1:]
	}
	for len(b) > 0 && (b[len(b)-1] == ' ' || b[len(b)-1] == '\t') {
		b = b[:len(b)-1]
	}
	return b
}
