package h2

import "testing"

var client = Config{Client: true}

func TestClientPreface(t *testing.T) {
	cases(t, client, map[string]string{
		"does not wait for the server's": `
			raw
			want: PREFACE
			want: SETTINGS WINDOW=65535 FRAME=1048576 HEADER=16384 PUSH=0
			app: open CONNECT => stream 1 early 0
			want: HEADERS 1 :method=CONNECT :authority=a:1
			peer: SETTINGS
			want: SETTINGS ACK`,
		"first frame is not SETTINGS": `
			raw
			want: PREFACE
			want: SETTINGS *
			peer: PING 0102030405060708
			want: GOAWAY 0 PROTOCOL_ERROR
			want: EOF`,
		"push": `
			peer: RAW 5 4 1 00000002
			want: GOAWAY 0 PROTOCOL_ERROR`,
		"SETTINGS_ENABLE_PUSH of a server": `
			peer: SETTINGS PUSH=1
			want: GOAWAY 0 PROTOCOL_ERROR`,
	})
}

func TestAnswers(t *testing.T) {
	cases(t, client, map[string]string{
		"of a tunnel": `
			app: open CONNECT => stream 1 early 0
			want: HEADERS 1 :method=CONNECT :authority=a:1
			app: answer 1 => ...
			peer: HEADERS 1 :status=103 a=b
			peer: HEADERS 1 :status=200 c=d
			then => 200 [{c d}]
			peer: DATA 1 hello
			app: read 1 5 => hello
			peer: HEADERS 1 END e=f
			want: RST 1 PROTOCOL_ERROR`,
		"that ends the stream": `
			app: open CONNECT => stream 1 early 0
			peer: HEADERS 1 END :status=503
			app: answer 1 => 503 []
			app: read 1 1 => EOF`,
		"of a request, with trailers": `
			app: open POST => stream 1 early 0
			want: HEADERS 1 :method=POST :scheme=https :authority=a:1 :path=/
			app: write 1 body => 4
			want: DATA 1 body
			app: trail 1 sum=1
			want: HEADERS 1 sum=1 END
			peer: HEADERS 1 :status=200
			peer: DATA 1 text
			peer: HEADERS 1 END grpc-status=0
			app: answer 1 => 200 []
			app: read 1 4 => text
			app: read 1 1 => EOF
			app: trailer 1 => [{grpc-status 0}]
			app: streams => 0`,
		"malformed": `
			app: open CONNECT => stream 1 early 0
			peer: HEADERS 1 :status=20
			want: HEADERS 1 *
			want: RST 1 PROTOCOL_ERROR
			app: answer 1 => stream reset: PROTOCOL_ERROR: malformed answer`,
		"interim and the end": `
			app: open CONNECT => stream 1 early 0
			peer: HEADERS 1 END :status=103
			want: HEADERS 1 *
			want: RST 1 PROTOCOL_ERROR`,
		"too large": `
			app: open CONNECT => stream 1 early 0
			peer: HEADERS 1 :status=200 a=[16000] b=[2000]
			want: HEADERS 1 *
			want: RST 1 ENHANCE_YOUR_CALM`,
		"DATA before": `
			app: open CONNECT => stream 1 early 0
			peer: DATA 1 x
			want: HEADERS 1 *
			want: RST 1 PROTOCOL_ERROR`,
		"to no request": `
			peer: HEADERS 1 :status=200
			want: GOAWAY 0 PROTOCOL_ERROR`,
		"flood of interim ones": `
			app: open CONNECT => stream 1 early 0
			want: HEADERS 1 *
			peer: FLOOD 3000 HEADERS 1 :status=103
			want: GOAWAY 0 ENHANCE_YOUR_CALM`,
		"refused": `
			app: open CONNECT => stream 1 early 0
			peer: RST 1 REFUSED_STREAM
			app: answer 1 => peer refused the stream unprocessed`,
	})
}

// TestEarlyData is sent with the request as far as the windows go.
func TestEarlyData(t *testing.T) {
	cases(t, client, map[string]string{
		"all": `
			app: open CONNECT hello => stream 1 early 5
			want: HEADERS 1 *
			want: DATA 1 hello
			peer: HEADERS 1 :status=200
			app: write 1 more => 4
			want: DATA 1 more`,
		"the stream's window": `
			peer: SETTINGS WINDOW=3
			want: SETTINGS ACK
			app: open CONNECT hello => stream 1 early 3
			want: HEADERS 1 *
			want: DATA 1 hel
			peer: HEADERS 1 :status=200
			app: write 1 lo => ...
			peer: WINDOW 1 100
			want: DATA 1 lo
			then => 2`,
		"no window": `
			peer: SETTINGS WINDOW=0
			want: SETTINGS ACK
			app: open CONNECT hello => stream 1 early 0
			want: HEADERS 1 *
			want: nothing`,
		"the connection's window": `
			app: open CONNECT [65535] => stream 1 early 65535
			app: open CONNECT x => stream 3 early 0`,
		"refused": `
			app: open CONNECT hello => stream 1 early 5
			want: HEADERS 1 *
			want: DATA 1 hello
			peer: HEADERS 1 END :status=503
			app: answer 1 => 503 []
			app: reset 1
			want: RST 1 CANCEL`,
	})
}

func TestStreamLimit(t *testing.T) {
	cases(t, client, map[string]string{
		"the peer's": `
			peer: SETTINGS STREAMS=1
			want: SETTINGS ACK
			app: open CONNECT => stream 1 early 0
			app: open CONNECT => tunnel takes no more streams
			app: reset 1
			app: open CONNECT => stream 3 early 0`,
		"none at all": `
			peer: SETTINGS STREAMS=0
			want: SETTINGS ACK
			app: open CONNECT => tunnel takes no more streams`,
	})
}

func TestGoAway(t *testing.T) {
	cases(t, client, map[string]string{
		"from the server": `
			app: open CONNECT => stream 1 early 0
			want: HEADERS 1 *
			app: open CONNECT => stream 3 early 0
			want: HEADERS 3 *
			peer: GOAWAY 0x7fffffff NO_ERROR
			app: open CONNECT => peer refused the stream unprocessed
			peer: GOAWAY 1 NO_ERROR
			app: answer 3 => peer refused the stream unprocessed
			peer: HEADERS 1 :status=200
			peer: DATA 1 x END
			app: read 1 1 => x
			app: read 1 1 => EOF`,
		"the server closes": `
			app: open CONNECT => stream 1 early 0
			want: HEADERS 1 *
			app: read 1 1 => ...
			peer: CLOSE
			then => tunnel: closed by peer
			app: open CONNECT => tunnel: closed by peer`,
		"we close": `
			app: open CONNECT => stream 1 early 0
			want: HEADERS 1 *
			app: abort
			want: GOAWAY 0 NO_ERROR
			want: EOF
			app: read 1 1 => tunnel: shut down
			app: run => shut down`,
	})
	cases(t, Config{Grace: 60e9}, map[string]string{
		"of a server, in two steps": `
			peer: HEADERS 1 CONNECT
			app: respond 1 200
			want: HEADERS 1 :status=200
			app: drain => ...
			want: GOAWAY 2147483647 NO_ERROR
			want: PING 676f6f6462796500
			peer: HEADERS 3 CONNECT
			app: respond 3 200
			want: HEADERS 3 :status=200
			peer: PING ACK 676f6f6462796500
			want: GOAWAY 3 NO_ERROR
			peer: HEADERS 5 CONNECT
			peer: DATA 5 ignored END
			want: nothing
			peer: DATA 1 last END
			app: read 1 4 => last
			app: closewrite 1
			want: DATA 1 END
			app: reset 3
			want: RST 3 CANCEL
			want: GOAWAY 3 NO_ERROR
			want: EOF
			then => ok`,
		"without an answer to the PING": `
			app: drain => ...
			want: GOAWAY 2147483647 NO_ERROR
			want: PING *
			pass: 1s
			want: GOAWAY 0 NO_ERROR
			want: GOAWAY 0 NO_ERROR
			want: EOF
			then => ok`,
		"the grace ends": `
			peer: HEADERS 1 CONNECT
			app: respond 1 200
			want: HEADERS 1 :status=200
			app: drain => ...
			want: GOAWAY 2147483647 NO_ERROR
			want: PING *
			pass: 1s
			want: GOAWAY 1 NO_ERROR
			pass: 58s
			want: nothing
			pass: 1s
			want: GOAWAY 1 NO_ERROR
			want: EOF
			app: read 1 1 => tunnel: shut down
			then => ok`,
	})
}

// TestPing: one after 10 s, then 10 s after each answer; without an answer the
// connection ends 20 s later.
func TestPing(t *testing.T) {
	play(t, Config{Client: true, PingInterval: 10e9, PingTimeout: 20e9}, `
		app: open CONNECT => stream 1 early 0
		want: HEADERS 1 *
		pass: 9s
		want: nothing
		pass: 1s
		want: PING *
		peer: PING ACK 0000000000000000
		pass: 19s
		want: nothing
		pass: 1s
		want: GOAWAY 0 NO_ERROR
		want: EOF
		app: read 1 1 => tunnel: peer does not answer pings
		app: open CONNECT => tunnel: peer does not answer pings`)
}
