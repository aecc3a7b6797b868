package plan

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"
)

func TestTallyCounts(t *testing.T) {
	tally := NewTally(time.Now)
	for range 3 {
		tally.Opened("a")
	}
	tally.Opened("b")
	tally.Closed("a")
	tally.Closed("b")
	tally.Closed("never opened")
	tally.Opened("")
	for uid, want := range map[string]int{"a": 2, "b": 0, "never opened": 0, "": 0} {
		if got := tally.Load(uid); got != want {
			t.Errorf("%q: %d, want %d", uid, got, want)
		}
	}
	tally.Closed("a")
	tally.Closed("a")
	for i := range tally.live {
		if n := len(tally.live[i].counts); n > 0 {
			t.Errorf("%d entries left without a connection", n)
		}
	}
}

func TestTallyAvoidance(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tally := NewTally(time.Now)
		avoided := func(want bool, when string) {
			t.Helper()
			if got := tally.Refused("a", 80); got != want {
				t.Errorf("%s: avoided %v, want %v", when, got, want)
			}
		}
		avoided(false, "at first")
		tally.Failed("a", 80)
		tally.Failed("a", 80)
		avoided(true, "after a refusal")
		if tally.Refused("a", 81) || tally.Refused("b", 80) {
			t.Error("another port or endpoint is avoided")
		}
		time.Sleep(firstAvoidance)
		avoided(false, "after two seconds")
		tally.Failed("a", 80)
		time.Sleep(2*firstAvoidance - time.Nanosecond)
		avoided(true, "after the second refusal")
		time.Sleep(time.Nanosecond)
		avoided(false, "when twice the time is over")
		for range 10 {
			tally.Failed("a", 80)
			time.Sleep(maxAvoidance)
		}
		avoided(false, "after the longest time")
		tally.Failed("a", 80)
		tally.Worked("a", 80)
		avoided(false, "after it has worked")
		tally.Failed("a", 80)
		time.Sleep(firstAvoidance)
		avoided(false, "the count begins anew")
		time.Sleep(maxAvoidance)
		avoided(false, "long after")
		if n := len(tally.refusals); n > 0 || tally.refusing.Load() != 0 {
			t.Errorf("%d refusals remembered", n)
		}
	})
}

func TestTallyIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tally := NewTally(time.Now)
		for i := range 3 * maxRefusals {
			tally.Failed(fmt.Sprint(i), 80)
		}
		if n := len(tally.refusals); n != maxRefusals {
			t.Errorf("%d refusals remembered, want %d", n, maxRefusals)
		}
		time.Sleep(firstAvoidance + maxAvoidance)
		tally.Failed("new", 80)
		if n := len(tally.refusals); n != 1 {
			t.Errorf("%d refusals remembered, want 1", n)
		}
	})
}

func BenchmarkTally(b *testing.B) {
	tally := NewTally(time.Now)
	uids := make([]string, 1000)
	for i := range uids {
		uids[i] = fmt.Sprintf("Kubernetes//Pod/namespace/pod-%d", i)
	}
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for i := 0; pb.Next(); i++ {
			uid := uids[i%len(uids)]
			tally.Opened(uid)
			_, _ = tally.Load(uids[i*7%len(uids)]), tally.Refused(uid, 80)
			tally.Closed(uid)
		}
	})
}
