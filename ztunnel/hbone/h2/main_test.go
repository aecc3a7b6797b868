package h2

import (
	"fmt"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"
)

// TestMain fails the run if a goroutine of the package is left behind.
func TestMain(m *testing.M) {
	code := m.Run()
	var left string
	for range 200 {
		if left = leaked(); left == "" {
			os.Exit(code)
		}
		<-time.After(10 * time.Millisecond)
	}
	fmt.Fprintf(os.Stderr, "goroutines left behind:\n%s\n", left)
	os.Exit(1)
}

// leaked returns the stacks of goroutines other than this one that run code of
// the package.
func leaked() string {
	buf := make([]byte, 4<<20)
	var left []string
	for i, stack := range strings.Split(string(buf[:runtime.Stack(buf, true)]), "\n\n") {
		if i > 0 && strings.Contains(stack, "ztunnel/hbone/h2") {
			left = append(left, stack)
		}
	}
	return strings.Join(left, "\n\n")
}
