package main

import (
	"strings"
	"testing"
)

func TestFlagsThatNeedEachOther(t *testing.T) {
	tests := []struct{ name, args, want string }{
		{"nothing", "", "--config-dir is required"},
		{"no state", "--config-dir=c", "--config-dir needs --state-dir"},
		{"no keys", "--config-dir=c --state-dir=s", "needs --jwks-file"},
		{"no issuer", "--config-dir=c --state-dir=s --jwks-file=f", "needs --jwt-issuer and --jwt-audience"},
		{"no audience", "--config-dir=c --state-dir=s --jwks-file=f --jwt-issuer=i --jwt-audience=", "needs --jwt-issuer and --jwt-audience"},
		{"unknown level", "--log-level=loud", "log-level"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			cmd := command()
			cmd.SetArgs(strings.Fields(test.args))
			if err := cmd.ExecuteContext(t.Context()); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("%s: error %v, want one that says %q", test.name, err, test.want)
			}
		})
	}
}

func TestTrustedNodeAccounts(t *testing.T) {
	t.Setenv("CA_TRUSTED_NODE_ACCOUNTS", " a/b, c/d,")
	if got := strings.Join(trustedNodeAccounts(), " "); got != "a/b c/d" {
		t.Errorf("accounts %q, want a/b c/d", got)
	}
	t.Setenv("CA_TRUSTED_NODE_ACCOUNTS", "")
	if got := strings.Join(trustedNodeAccounts(), " "); got != "istio-system/ztunnel" {
		t.Errorf("default accounts %q, want istio-system/ztunnel", got)
	}
}
