package netns

import (
	"net/netip"
	"testing"
)

func FuzzParseFlowAnswer(f *testing.F) {
	f.Add(appendFlowQuestion(nil, 7, netip.MustParseAddrPort("127.0.0.1:15053"), netip.MustParseAddrPort("10.244.0.2:4711")))
	f.Add(appendFlowQuestion(nil, 7, netip.MustParseAddrPort("[::1]:15053"), netip.MustParseAddrPort("[fd00::2]:4711")))
	f.Fuzz(func(t *testing.T, b []byte) {
		to, _, err := parseFlowAnswer(b)
		if (err == nil) != to.IsValid() {
			t.Errorf("got %s, %v: an address or an error", to, err)
		}
	})
}
