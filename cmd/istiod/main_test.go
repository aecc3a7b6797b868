package main

import (
	"strings"
	"testing"
)

func TestFlagsThatNeedEachOther(t *testing.T) {
	tests := []struct{ name, args, want string }{
		{"nothing, outside of a cluster", "", "give --kubeconfig, or --config-dir"},
		{"two sources", "--config-dir=c --kubeconfig=k", "two sources"},
		{"no such kubeconfig", "--kubeconfig=/nowhere/config", "/nowhere/config"},
		{"keys and a cluster", "--kubeconfig=k --jwks-file=f", "--jwks-file and --jwt-issuer need --config-dir"},
		{"issuer and a cluster", "--kubeconfig=k --jwt-issuer=i", "--jwks-file and --jwt-issuer need --config-dir"},
		{"state and a cluster", "--kubeconfig=k --state-dir=s", "--state-dir needs --config-dir"},
		{"no state", "--config-dir=c", "--config-dir needs --state-dir"},
		{"no keys", "--config-dir=c --state-dir=s", "needs --jwks-file"},
		{"no issuer", "--config-dir=c --state-dir=s --jwks-file=f", "needs --jwt-issuer and --jwt-audience"},
		{"no audience", "--config-dir=c --state-dir=s --jwks-file=f --jwt-issuer=i --jwt-audience=", "needs --jwt-issuer and --jwt-audience"},
		{"unknown level", "--log-level=loud", "log-level"},
	}
	t.Setenv("KUBERNETES_SERVICE_HOST", "") // the test itself may run in a pod
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
