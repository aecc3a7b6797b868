package main

import (
	"encoding/json"
	"reflect"
	"testing"
)

func TestBundleOf(t *testing.T) {
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"runc", "--root", "/r", "--log", "/l", "create", "--bundle", "/b", "--pid-file", "/p", "id"}, "/b"},
		{[]string{"runc", "run", "-b", "/b", "id"}, "/b"},
		{[]string{"runc", "create", "--bundle=/b", "id"}, "/b"},
		{[]string{"runc", "delete", "--force", "id"}, ""},
		{[]string{"runc", "create", "--bundle"}, ""},
	} {
		if got := bundleOf(c.args); got != c.want {
			t.Errorf("%q: bundle %q, want %q", c.args, got, c.want)
		}
	}
}

func TestWithoutProfile(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{
			`{"ociVersion":"1.2.1","linux":{"resources":{"memory":{"limit":9007199254740993}},"seccomp":{"defaultAction":"SCMP_ACT_ERRNO"}}}`,
			`{"ociVersion":"1.2.1","linux":{"resources":{"memory":{"limit":9007199254740993}}}}`,
		},
		{`{"linux":{"namespaces":[]}}`, `{"linux":{"namespaces":[]}}`},
		{`{"process":{}}`, `{"process":{}}`},
	} {
		got, err := withoutProfile([]byte(c.in))
		if err != nil {
			t.Errorf("%s: %v", c.in, err)
			continue
		}
		var is, want map[string]json.RawMessage
		if err := json.Unmarshal(got, &is); err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal([]byte(c.want), &want); err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(is, want) { // numbers as they were written
			t.Errorf("%s has become %s, want %s", c.in, got, c.want)
		}
	}
	if _, err := withoutProfile([]byte("nonsense")); err == nil {
		t.Error("nonsense is no error")
	}
}
