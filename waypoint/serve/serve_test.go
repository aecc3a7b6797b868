package serve_test

import (
	"testing"
)

func TestCatchAll(t *testing.T) {
	r := newRig(t, options{})
	r.service([]pod{r.newPod("reviews", answers("v1"))})
	if code, body := get(t, r.client(), "/x"); code != 200 || body != "v1" {
		t.Fatalf("got %d %q, want 200 v1", code, body)
	}
	eventually(t, "access line", func() bool { return r.log.String() != "" })
	t.Log(r.log.String())
}
