package h2

import "testing"

// TestSendWindow: not a byte more than the peer allows, for stream and
// connection, whatever it does to its settings.
func TestSendWindow(t *testing.T) {
	cases(t, Config{}, map[string]string{
		"a stream's": `
			peer: SETTINGS WINDOW=10
			want: SETTINGS ACK
			peer: HEADERS 1 CONNECT
			app: respond 1 200
			want: HEADERS 1 :status=200
			app: write 1 0123456789abcdefghijklmnopqrst => ...
			want: DATA 1 0123456789
			peer: WINDOW 1 3
			want: DATA 1 abc
			peer: SETTINGS WINDOW=14
			want: DATA 1 defg & SETTINGS ACK
			peer: SETTINGS WINDOW=4
			want: SETTINGS ACK
			peer: WINDOW 1 10
			want: nothing
			peer: WINDOW 1 2
			want: DATA 1 hi
			peer: WINDOW 1 100
			want: DATA 1 jklmnopqrst
			then => 30`,
		"ending needs none": `
			peer: SETTINGS WINDOW=0
			want: SETTINGS ACK
			peer: HEADERS 1 CONNECT
			app: respond 1 200
			want: HEADERS 1 :status=200
			app: closewrite 1
			want: DATA 1 END`,
		"a write that waits ends with its deadline": `
			peer: SETTINGS WINDOW=4
			want: SETTINGS ACK
			peer: HEADERS 1 CONNECT
			app: respond 1 200
			want: HEADERS 1 :status=200
			app: deadline 1
			app: write 1 abcdef => ...
			want: DATA 1 abcd
			pass: 1s
			then => 4 timeout`,
		"a write that waits ends with a reset": `
			peer: SETTINGS WINDOW=4
			want: SETTINGS ACK
			peer: HEADERS 1 CONNECT
			app: respond 1 200
			want: HEADERS 1 :status=200
			app: write 1 abcdef => ...
			want: DATA 1 abcd
			peer: RST 1 CANCEL
			then => 4 stream reset by peer: CANCEL`,
		"the connection's, in line": `
			peer: SETTINGS WINDOW=1000000
			want: SETTINGS ACK
			peer: HEADERS 1 CONNECT
			peer: HEADERS 3 CONNECT
			app: respond 1 200
			want: HEADERS 1 :status=200
			app: respond 3 200
			want: HEADERS 3 :status=200
			app: write 1 [65535] => 65535
			want: DATA 1 [16384]
			want: DATA 1 [16384]
			want: DATA 1 [16384]
			want: DATA 1 [16383]
			app: write 1 one => ...
			app: write 3 three => ...
			peer: WINDOW 1 1
			want: nothing
			peer: WINDOW 0 4
			want: DATA 1 one
			want: DATA 3 t
			then => 3
			peer: WINDOW 0 4
			want: DATA 3 hree
			then => 5`,
		"who leaves the line does not hold up the others": `
			peer: SETTINGS WINDOW=1000000
			want: SETTINGS ACK
			peer: HEADERS 1 CONNECT
			peer: HEADERS 3 CONNECT
			app: respond 1 200
			app: respond 3 200
			app: write 1 [65535] => 65535
			app: write 1 x => ...
			app: write 3 y => ...
			app: reset 1
			then => 0 use of closed network connection
			peer: WINDOW 0 1
			want: HEADERS 1 :status=200
			want: HEADERS 3 :status=200
			want: DATA 1 [16384]
			want: DATA 1 [16384]
			want: DATA 1 [16384]
			want: DATA 1 [16383]
			want: RST 1 CANCEL
			want: DATA 3 y
			then => 1`,
		"frames as large as the peer takes": `
			peer: SETTINGS WINDOW=1000000 FRAME=40000
			want: SETTINGS ACK
			peer: HEADERS 1 CONNECT
			app: respond 1 200
			want: HEADERS 1 :status=200
			app: write 1 [50000] => 50000
			want: DATA 1 [40000]
			want: DATA 1 [10000]`,
	})
}

// TestReceiveWindow: credit for the connection comes when a frame is read, for a
// stream when its bytes have been taken.
func TestReceiveWindow(t *testing.T) {
	cases(t, small, map[string]string{
		"a reader that keeps up": `
			peer: HEADERS 1 CONNECT
			app: respond 1 200
			want: HEADERS 1 :status=200
			peer: DATA 1 [8192]
			want: nothing
			app: read 1 8192 => [8192] ok
			want: WINDOW 1 8192`,
		"a reader that does not": `
			peer: HEADERS 1 CONNECT
			app: respond 1 200
			want: HEADERS 1 :status=200
			peer: DATA 1 [32768]
			want: nothing
			app: unread 1 => 32768
			peer: DATA 1 x
			want: RST 1 FLOW_CONTROL_ERROR`,
		"padding counts, and is given back": `
			peer: HEADERS 1 CONNECT
			app: respond 1 200
			want: HEADERS 1 :status=200
			peer: DATA 1 [8192] PADDED
			app: unread 1 => 8192
			app: read 1 8191 => [8191] ok
			want: WINDOW 1 8292`,
		"before it knows our settings the peer may send what the default allows": `
			raw
			peer: PREFACE
			peer: SETTINGS
			peer: HEADERS 1 CONNECT
			peer: DATA 1 [65535]
			want: SETTINGS WINDOW=32768 *
			want: SETTINGS ACK
			want: nothing
			peer: SETTINGS ACK
			app: unread 1 => 65535
			app: read 1 65535 => [65535] ok
			peer: DATA 1 [32768]
			peer: DATA 1 x
			want: RST 1 FLOW_CONTROL_ERROR`,
		"unread bytes go with the stream": `
			peer: HEADERS 1 CONNECT
			app: respond 1 200
			want: HEADERS 1 :status=200
			peer: DATA 1 [32768]
			app: close 1
			want: DATA 1 END
			want: RST 1 NO_ERROR
			app: read 1 1 => use of closed network connection`,
	})
	cases(t, Config{ConnWindow: 80_000}, map[string]string{
		"the connection's is given back whoever reads": `
			peer: HEADERS 1 CONNECT
			peer: HEADERS 3 CONNECT
			app: respond 1 200
			app: respond 3 200
			peer: DATA 1 [65535]
			want: HEADERS 1 :status=200
			want: HEADERS 3 :status=200
			peer: DATA 3 [65535]
			want: nothing
			app: unread 1 => 65535
			app: unread 3 => 65535`,
		"even of streams that are gone": `
			peer: HEADERS 1 CONNECT
			app: reset 1
			want: RST 1 CANCEL
			peer: DATA 1 [65535]
			want: WINDOW 0 32768
			want: WINDOW 0 32767`,
	})
	cases(t, Config{ConnWindow: 70_000, FirstWindow: 1 << 20}, map[string]string{
		"more than the connection's": `
			peer: HEADERS 1 CONNECT
			peer: BYTES 011171 00 00 00000001
			want: GOAWAY 1 FLOW_CONTROL_ERROR`,
	})
}

// TestWindowGrows while the reader keeps up, within bounds of connection and
// process; what has grown is given back.
func TestWindowGrows(t *testing.T) {
	cases(t, Config{StreamWindow: 150_000}, map[string]string{
		"to the most": `
			peer: HEADERS 1 CONNECT
			app: respond 1 200
			want: HEADERS 1 :status=200
			peer: DATA 1 [20000]
			app: window 1 => 65535
			app: read 1 20000 => [20000] ok
			app: window 1 => 131070
			peer: DATA 1 [40000]
			app: read 1 40000 => [40000] ok
			app: window 1 => 150000
			peer: DATA 1 [40000]
			app: read 1 40000 => [40000] ok
			app: window 1 => 150000`,
		"not for a reader that lags": `
			peer: HEADERS 1 CONNECT
			app: respond 1 200
			want: HEADERS 1 :status=200
			peer: DATA 1 [65535]
			app: read 1 20000 => [20000] ok
			want: WINDOW 1 *
			app: window 1 => 65535`,
	})
	t.Run("bounded", func(t *testing.T) {
		for _, bound := range []*int64{&maxGrownConn, &maxGrownProcess} {
			before := *bound
			*bound = 70_000
			play(t, Config{}, `
				peer: HEADERS 1 CONNECT
				peer: HEADERS 3 CONNECT
				app: respond 1 200
				app: respond 3 200
				peer: DATA 1 [20000]
				app: read 1 20000 => [20000] ok
				app: window 1 => 131070
				peer: DATA 3 [20000]
				app: read 3 20000 => [20000] ok
				app: window 3 => 65535
				app: reset 1
				peer: DATA 3 [20000]
				app: read 3 20000 => [20000] ok
				app: window 3 => 131070`)
			*bound = before
		}
	})
	if n := processGrown.Load(); n != 0 {
		t.Errorf("%d bytes of window are still accounted for", n)
	}
}

// TestForward: the connection's reader writes to the sink itself, and queues
// what that does not take.
func TestForward(t *testing.T) {
	cases(t, Config{StreamWindow: 65535}, map[string]string{
		"straight": `
			peer: HEADERS 1 CONNECT
			app: respond 1 200
			want: HEADERS 1 :status=200
			app: forward 1 1000000 => ...
			peer: DATA 1 [20000]
			app: sunk => 20000
			want: WINDOW 1 *
			app: unread 1 => 0
			peer: DATA 1 END
			then => ok`,
		"what came before": `
			peer: HEADERS 1 CONNECT
			peer: DATA 1 [20000]
			app: respond 1 200
			want: HEADERS 1 :status=200
			app: forward 1 1000000 => ...
			app: sunk => 20000
			want: WINDOW 1 *
			peer: DATA 1 more END
			app: sunk => 20004
			then => ok`,
		"all was there": `
			peer: HEADERS 1 CONNECT
			peer: DATA 1 all END
			app: respond 1 200
			app: forward 1 1000000 => ok
			app: sunk => 3`,
		"a sink that is full": `
			peer: HEADERS 1 CONNECT
			app: respond 1 200
			want: HEADERS 1 :status=200
			app: forward 1 10000 => ...
			peer: DATA 1 [65535]
			app: sunk => 10000
			app: unread 1 => 55535
			want: nothing
			app: sink 6000
			app: sunk => 16000
			app: sink 60000
			want: WINDOW 1 *
			app: sunk => 65535
			app: unread 1 => 0
			peer: DATA 1 x END
			app: sunk => 65536
			then => ok`,
		"the stream beside a full sink": `
			peer: HEADERS 1 CONNECT
			peer: HEADERS 3 CONNECT
			app: respond 1 200
			app: respond 3 200
			app: forward 1 0 => ...
			peer: DATA 1 [65535]
			peer: DATA 3 hello
			app: read 3 5 => hello
			app: breaksink
			then => sink is broken`,
		"a reset ends it": `
			peer: HEADERS 1 CONNECT
			app: respond 1 200
			app: forward 1 10000 => ...
			peer: RST 1 CANCEL
			then => stream reset by peer: CANCEL`,
		"Close ends it": `
			peer: HEADERS 1 CONNECT
			app: respond 1 200
			app: forward 1 10000 => ...
			app: close 1
			then => use of closed network connection`,
		"the end of the connection ends it": `
			peer: HEADERS 1 CONNECT
			app: respond 1 200
			app: forward 1 10000 => ...
			peer: CLOSE
			then => tunnel: closed by peer`,
	})
}
