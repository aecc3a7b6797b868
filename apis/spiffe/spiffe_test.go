package spiffe

import (
	"crypto/x509"
	"net/url"
	"strings"
	"testing"
)

func TestParse(t *testing.T) {
	for text, valid := range map[string]bool{
		"spiffe://cluster.local/ns/shop/sa/cart": true,
		"spiffe://td/ns/a.b/sa/c_d":              true,
		"":                                       false,
		"spiffe://cluster.local":                 false,
		"spiffe://cluster.local/ns/shop/sa/cart/x":  false,
		"spiffe://cluster.local/ns/shop/sa/":        false,
		"spiffe://cluster.local/ns//sa/cart":        false,
		"spiffe://cluster.local/sa/cart/ns/shop":    false,
		"spiffe://CLUSTER.local/ns/shop/sa/cart":    false,
		"spiffe:///ns/shop/sa/cart":                 false,
		"https://cluster.local/ns/shop/sa/cart":     false,
		"spiffe://cluster.local/ns/../sa/cart":      false,
		"spiffe://cluster.local/ns/shop/sa/cart?a":  false,
		"spiffe://cluster.local/ns/shop/sa/c%61rt":  false,
		"spiffe://user@cluster.local/ns/a/sa/b":     false,
		"spiffe://cluster.local:80/ns/shop/sa/cart": false,
	} {
		id, err := Parse(text)
		if (err == nil) != valid {
			t.Errorf("%q: got error %v, want valid %v", text, err, valid)
		}
		if err == nil && id.String() != text {
			t.Errorf("%q: got %q back", text, id)
		}
	}
}

func TestFromCertificateWantsOneName(t *testing.T) {
	one := &url.URL{Scheme: "spiffe", Host: "td", Path: "/ns/a/sa/b"}
	if id, err := FromCertificate(&x509.Certificate{URIs: []*url.URL{one}}); err != nil || id.Principal() != "td/ns/a/sa/b" {
		t.Errorf("one name: got %v, %v", id, err)
	}
	for _, names := range [][]*url.URL{nil, {one, one}} {
		if id, err := FromCertificate(&x509.Certificate{URIs: names}); err == nil {
			t.Errorf("%d names: got %v, want an error", len(names), id)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add("spiffe://cluster.local/ns/shop/sa/cart")
	f.Fuzz(func(t *testing.T, text string) {
		id, err := Parse(text)
		if err != nil {
			return
		}
		again, err := New(id.TrustDomain(), id.Namespace(), id.ServiceAccount())
		if err != nil || again != id || id.String() != text || strings.Contains(id.Namespace(), "/") {
			t.Errorf("%q: got %v, again %v, %v", text, id, again, err)
		}
	})
}
