package filter_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/ambit-mesh/ambit/waypoint/codec"
	"github.com/ambit-mesh/ambit/waypoint/filter"
)

func TestHeader(t *testing.T) {
	h := filter.Header{
		Remove: []string{"gone"},
		Set: []filter.Change{
			{Name: "a", Value: "2"},
			{Name: "b", Value: "2", Mode: filter.Overwrite},
			{Name: "c", Value: "2", Mode: filter.AddIfAbsent},
			{Name: "d", Value: "2", Mode: filter.Replace},
			{Name: "e", Value: "2", Mode: filter.AddIfAbsent},
			{Name: "f", Value: "2", Mode: filter.Overwrite},
			{Name: "g", Value: "2", Mode: filter.Replace},
		},
	}
	got := h.Apply([]codec.Field{{Name: "a", Value: "1"}, {Name: "gone"}, {Name: "b", Value: "1"}, {Name: "b", Value: "1"}, {Name: "c", Value: "1"}, {Name: "d", Value: "1"}})
	want := []codec.Field{
		{Name: "a", Value: "1"},
		{Name: "c", Value: "1"},
		{Name: "a", Value: "2"},
		{Name: "b", Value: "2"},
		{Name: "d", Value: "2"},
		{Name: "e", Value: "2"},
		{Name: "f", Value: "2"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestLocation(t *testing.T) {
	regex, err := filter.NewRegexRewrite(`^/old/*`, "/")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		redirect                       filter.Redirect
		authority, path, matched, want string
	}{
		{filter.Redirect{Path: "/x"}, "a:8080", "/old?q", "/", "http://a:8080/x?q"},
		{filter.Redirect{Path: "/x?y"}, "a", "/old?q", "/", "http://a/x?y"},
		{filter.Redirect{Path: "/x", StripQuery: true}, "a", "/old?q", "/", "http://a/x"},
		{filter.Redirect{Scheme: "https"}, "a:8080", "/p", "/", "https://a/p"},
		{filter.Redirect{Scheme: "https", Port: 443}, "a:80", "/p", "/", "https://a/p"},
		{filter.Redirect{Scheme: "https", Port: 8443}, "a:80", "/p", "/", "https://a:8443/p"},
		{filter.Redirect{Host: "b", Port: 80}, "a:8080", "/p", "/", "http://b/p"},
		{filter.Redirect{Host: "b"}, "[::1]:8080", "/p", "/", "http://b:8080/p"},
		{filter.Redirect{}, "[::1]:8080", "/p", "/", "http://[::1]:8080/p"},
		{filter.Redirect{Rewrite: &filter.PathRewrite{Prefix: "/new"}}, "a", "/old/p", "/old", "http://a/new/p"},
		{filter.Redirect{Rewrite: regex}, "a", "/old/p?q", "/old", "http://a/p?q"},
	} {
		got := c.redirect.Location(&codec.Request{Scheme: "http", Authority: c.authority, Path: c.path}, c.matched)
		if got != c.want {
			t.Errorf("%+v of %s%s: got %s, want %s", c.redirect, c.authority, c.path, got, c.want)
		}
	}
}

func TestRegexRewrite(t *testing.T) {
	for _, c := range []struct{ pattern, with, path, want string }{
		{`^/user/([^/]+)/(.*)$`, `/\2/\1`, "/user/ann/home?x=1", "/home/ann?x=1"},
		{`a`, `$1\\`, "/banana", `/b$1\n$1\n$1\`},
		{`^/x`, ``, "/x", "/"},
	} {
		p, err := filter.NewRegexRewrite(c.pattern, c.with)
		if err != nil {
			t.Fatal(err)
		}
		req := &codec.Request{Path: c.path}
		w := filter.Rewrite{Path: p}
		w.Apply(req, "")
		if req.Path != c.want {
			t.Errorf("%s by %s: %s became %s, want %s", c.pattern, c.with, c.path, req.Path, c.want)
		}
	}
	if _, err := filter.NewRegexRewrite("(", ""); err == nil {
		t.Error("a broken expression was accepted")
	}
}
