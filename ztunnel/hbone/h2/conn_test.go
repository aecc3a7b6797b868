package h2

import "testing"

// small is a server that is easily exhausted.
var small = Config{MaxStreams: 3, StreamWindow: 32 << 10, FirstWindow: 32 << 10, MaxFrameSize: 32 << 10, MaxHeaderBytes: 16 << 10}

// cases run scripts, each against an endpoint of its own.
func cases(t *testing.T, cfg Config, scripts map[string]string) {
	t.Helper()
	for name, script := range scripts {
		t.Run(name, func(t *testing.T) { play(t, cfg, script) })
	}
}

func TestServerPreface(t *testing.T) {
	cases(t, Config{PrefaceTimeout: 10e9}, map[string]string{
		"settings": `
			raw
			want: SETTINGS WINDOW=65535 FRAME=1048576 HEADER=16384 STREAMS=200
			want: WINDOW 0 16711681
			peer: PREFACE
			want: nothing
			peer: SETTINGS
			want: SETTINGS ACK`,
		"another protocol": `
			raw
			want: SETTINGS *
			peer: BYTES 474554202f20485454502f312e310d0a0d0a474554202f20
			want: GOAWAY 0 PROTOCOL_ERROR
			want: EOF`,
		"first frame is not SETTINGS": `
			raw
			want: SETTINGS *
			peer: PREFACE
			peer: PING 0102030405060708
			want: GOAWAY 0 PROTOCOL_ERROR
			want: EOF`,
		"first frame is an acknowledgment": `
			raw
			want: SETTINGS *
			peer: PREFACE
			peer: SETTINGS ACK
			want: GOAWAY 0 PROTOCOL_ERROR`,
		"no preface": `
			raw
			want: SETTINGS *
			pass: 9s
			want: nothing
			pass: 1s
			want: EOF`,
		"no settings": `
			raw
			want: SETTINGS *
			peer: PREFACE
			pass: 10s
			want: EOF`,
		"nothing more": `
			pass: 1h
			want: nothing`,
	})
}

func TestFrames(t *testing.T) {
	cases(t, small, map[string]string{
		"unknown frames are ignored": `
			peer: RAW 0xbe 0xff 0 0102
			peer: RAW 0xbe 0xff 7 0102
			peer: RAW 0xbe 0 1
			peer: PING 0102030405060708
			want: PING ACK 0102030405060708`,
		"unknown settings are ignored": `
			peer: RAW 4 0 0 beef00000001
			want: SETTINGS ACK`,
		"the reserved bit is ignored": `
			peer: BYTES 000008 06 00 80000000 0102030405060708
			want: PING ACK 0102030405060708`,
		"larger than we allow": `
			peer: RAW 0xbe 0 0 [32769]
			want: GOAWAY 0 FRAME_SIZE_ERROR
			want: EOF`,
		"as large as we allow": `
			peer: RAW 0xbe 0 0 [32768]
			peer: PING 0000000000000000
			want: PING ACK 0000000000000000`,
		"PING on a stream": `
			peer: RAW 6 0 1 0102030405060708
			want: GOAWAY 0 PROTOCOL_ERROR`,
		"PING too short": `
			peer: RAW 6 0 0 01020304050607
			want: GOAWAY 0 FRAME_SIZE_ERROR`,
		"an answer to no PING": `
			peer: PING ACK 0102030405060708
			want: nothing`,
		"PRIORITY is ignored": `
			peer: PRIORITY 9
			want: nothing`,
		"PRIORITY on the connection": `
			peer: PRIORITY 0
			want: GOAWAY 0 PROTOCOL_ERROR`,
		"PRIORITY too long": `
			peer: HEADERS 1 CONNECT
			peer: RAW 2 0 1 010203040506
			want: RST 1 FRAME_SIZE_ERROR
			peer: PING 0000000000000000
			want: PING ACK 0000000000000000`,
		"SETTINGS on a stream": `
			peer: RAW 4 0 1
			want: GOAWAY 0 PROTOCOL_ERROR`,
		"SETTINGS of odd length": `
			peer: RAW 4 0 0 0102030405
			want: GOAWAY 0 FRAME_SIZE_ERROR`,
		"acknowledgment with payload": `
			peer: RAW 4 1 0 010203040506
			want: GOAWAY 0 FRAME_SIZE_ERROR`,
		"too many settings": `
			peer: RAW 4 0 0 [774]
			want: GOAWAY 0 ENHANCE_YOUR_CALM`,
		"SETTINGS_ENABLE_PUSH of 2": `
			peer: SETTINGS PUSH=2
			want: GOAWAY 0 PROTOCOL_ERROR`,
		"SETTINGS_MAX_FRAME_SIZE too small": `
			peer: SETTINGS FRAME=16383
			want: GOAWAY 0 PROTOCOL_ERROR`,
		"SETTINGS_MAX_FRAME_SIZE too large": `
			peer: SETTINGS FRAME=16777216
			want: GOAWAY 0 PROTOCOL_ERROR`,
		"SETTINGS_INITIAL_WINDOW_SIZE too large": `
			peer: SETTINGS WINDOW=0x80000000
			want: GOAWAY 0 FLOW_CONTROL_ERROR`,
		"SETTINGS make a window overflow": `
			peer: HEADERS 1 CONNECT
			peer: WINDOW 1 2147418112
			peer: SETTINGS WINDOW=65536
			want: GOAWAY 1 FLOW_CONTROL_ERROR`,
		"PUSH_PROMISE": `
			peer: RAW 5 4 1 00000002
			want: GOAWAY 0 PROTOCOL_ERROR`,
		"GOAWAY on a stream": `
			peer: RAW 7 0 1 0000000000000000
			want: GOAWAY 0 PROTOCOL_ERROR`,
		"GOAWAY too short": `
			peer: RAW 7 0 0 00000000
			want: GOAWAY 0 FRAME_SIZE_ERROR`,
		"the client says goodbye and goes on": `
			peer: GOAWAY 0 NO_ERROR
			peer: HEADERS 1 CONNECT
			app: respond 1 200
			want: HEADERS 1 :status=200`,
		"WINDOW_UPDATE of 0": `
			peer: WINDOW 0 0
			want: GOAWAY 0 PROTOCOL_ERROR`,
		"WINDOW_UPDATE of 0 on a stream": `
			peer: HEADERS 1 CONNECT
			peer: RAW 8 0 1 00000000
			want: RST 1 PROTOCOL_ERROR`,
		"WINDOW_UPDATE too short": `
			peer: RAW 8 0 0 000001
			want: GOAWAY 0 FRAME_SIZE_ERROR`,
		"the connection's window overflows": `
			peer: WINDOW 0 0x7fffffff
			want: GOAWAY 0 FLOW_CONTROL_ERROR`,
		"a stream's window overflows": `
			peer: HEADERS 1 CONNECT
			peer: WINDOW 1 0x7fffffff
			want: RST 1 FLOW_CONTROL_ERROR`,
		"RST_STREAM too long": `
			peer: HEADERS 1 CONNECT
			peer: RAW 3 0 1 0000000000
			want: GOAWAY 1 FRAME_SIZE_ERROR`,
		"RST_STREAM on the connection": `
			peer: RAW 3 0 0 00000000
			want: GOAWAY 0 PROTOCOL_ERROR`,
		"frames on streams that nobody has opened": `
			peer: WINDOW 1 1
			want: GOAWAY 0 PROTOCOL_ERROR`,
		"RST_STREAM on an idle stream": `
			peer: RST 1 CANCEL
			want: GOAWAY 0 PROTOCOL_ERROR`,
		"DATA on an idle stream": `
			peer: DATA 1 x
			want: GOAWAY 0 PROTOCOL_ERROR`,
		"DATA on the connection": `
			peer: DATA 0 x
			want: GOAWAY 0 PROTOCOL_ERROR`,
		"CONTINUATION alone": `
			peer: CONTINUATION 1 a=b
			want: GOAWAY 0 PROTOCOL_ERROR`,
		"the end in the middle of a frame": `
			peer: BYTES 000008 06 00 00000000 0102
			peer: CLOSE
			app: run => unexpected EOF`,
		"the end between frames": `
			peer: CLOSE
			app: run => closed by peer`,
	})
}

func TestHeaders(t *testing.T) {
	cases(t, small, map[string]string{
		"priority and padding are skipped": `
			peer: HEADERS 1 PRIORITY PADDED CONNECT a=b
			app: head 1 => CONNECT a:1  [{a b}]`,
		"only padding": `
			peer: RAW 1 0xc 1 05 0000000000
			want: RST 1 PROTOCOL_ERROR`,
		"padding as long as the frame": `
			peer: RAW 1 0xc 1 06 0000000000
			want: GOAWAY 0 PROTOCOL_ERROR`,
		"padding where the priority should be": `
			peer: RAW 1 0x2c 1 05 0000000000
			want: GOAWAY 0 PROTOCOL_ERROR`,
		"no place for the priority": `
			peer: RAW 1 0x24 1 00000000
			want: GOAWAY 0 FRAME_SIZE_ERROR`,
		"no place for the length of the padding": `
			peer: RAW 1 0xc 1
			want: GOAWAY 0 FRAME_SIZE_ERROR`,
		"on the connection": `
			peer: HEADERS 0 CONNECT
			want: GOAWAY 0 PROTOCOL_ERROR`,
		"even id": `
			peer: HEADERS 2 CONNECT
			want: GOAWAY 0 PROTOCOL_ERROR`,
		"not decodable": `
			peer: RAW 1 4 1 ff
			want: GOAWAY 0 COMPRESSION_ERROR`,
		"in pieces": `
			peer: HEADERS 1 MORE CONNECT
			peer: CONTINUATION 1 MORE a=b
			peer: CONTINUATION 1 c=d
			app: head 1 => CONNECT a:1  [{a b} {c d}]`,
		"pieces interrupted": `
			peer: HEADERS 1 MORE CONNECT
			peer: PING 0102030405060708
			want: GOAWAY 0 PROTOCOL_ERROR`,
		"pieces of another stream": `
			peer: HEADERS 1 MORE CONNECT
			peer: CONTINUATION 3 a=b
			want: GOAWAY 0 PROTOCOL_ERROR`,
		"larger than the limit, and the table is still right": `
			peer: HEADERS 1 CONNECT long=[15000] longer=[2000] a=b
			app: respond 1 431 END
			want: HEADERS 1 :status=431 END
			peer: RST 1 CANCEL
			peer: HEADERS 3 CONNECT a=b
			app: head 3 => CONNECT a:1  [{a b}]`,
		"far larger than the limit": `
			peer: HEADERS 1 MORE CONNECT a=[15000]
			peer: CONTINUATION 1 MORE b=[16000]
			peer: CONTINUATION 1 MORE c=[16000]
			peer: CONTINUATION 1 MORE d=[16000]
			want: GOAWAY 0 ENHANCE_YOUR_CALM`,
		"malformed": `
			peer: HEADERS 1 CONNECT :path=/
			want: RST 1 PROTOCOL_ERROR
			peer: HEADERS 3 CONNECT :scheme=https
			want: RST 3 PROTOCOL_ERROR
			peer: HEADERS 5 CONNECT :protocol=websocket
			want: RST 5 PROTOCOL_ERROR
			peer: HEADERS 7 :method=CONNECT
			want: RST 7 PROTOCOL_ERROR
			peer: HEADERS 9 :method=CONNECT :authority=
			want: RST 9 PROTOCOL_ERROR
			peer: HEADERS 11 CONNECT connection=close
			want: RST 11 PROTOCOL_ERROR
			peer: HEADERS 13 CONNECT te=gzip
			want: RST 13 PROTOCOL_ERROR
			peer: HEADERS 15 CONNECT Upper=x
			want: RST 15 PROTOCOL_ERROR
			peer: HEADERS 17 a=b CONNECT
			want: RST 17 PROTOCOL_ERROR
			peer: HEADERS 19 CONNECT :authority=b:1
			want: RST 19 PROTOCOL_ERROR
			peer: HEADERS 21 CONNECT :status=200
			want: RST 21 PROTOCOL_ERROR
			peer: HEADERS 23 :method=GET :scheme=https :authority=a
			want: RST 23 PROTOCOL_ERROR
			peer: HEADERS 25 :scheme=https :authority=a :path=/
			want: RST 25 PROTOCOL_ERROR
			peer: HEADERS 27 CONNECT te=trailers
			app: head 27 => CONNECT a:1  [{te trailers}]`,
		"one stream too many": `
			peer: HEADERS 1 CONNECT
			peer: HEADERS 3 CONNECT
			peer: HEADERS 5 CONNECT
			peer: HEADERS 7 CONNECT
			want: RST 7 REFUSED_STREAM
			app: reset 1
			want: RST 1 CANCEL
			app: return 1
			peer: HEADERS 9 CONNECT
			app: streams => 3`,
	})
}

func TestStreamStates(t *testing.T) {
	cases(t, small, map[string]string{
		"half-close, the peer first": `
			peer: HEADERS 1 CONNECT
			app: respond 1 200
			want: HEADERS 1 :status=200
			peer: DATA 1 hello END
			app: read 1 6 => hello unexpected EOF
			app: read 1 1 => EOF
			app: context 1 => <nil>
			app: write 1 answer => 6
			want: DATA 1 answer
			app: closewrite 1
			want: DATA 1 END
			app: streams => 0
			app: context 1 => context canceled
			app: close 1
			want: nothing`,
		"half-close, we first": `
			peer: HEADERS 1 CONNECT
			app: respond 1 200
			want: HEADERS 1 :status=200
			app: closewrite 1
			want: DATA 1 END
			app: write 1 x => 0 write after CloseWrite
			app: closewrite 1
			want: nothing
			peer: DATA 1 hello
			app: read 1 5 => hello
			peer: DATA 1 END
			app: read 1 1 => EOF
			app: streams => 0`,
		"the request ends the stream": `
			peer: HEADERS 1 CONNECT END
			app: respond 1 200
			want: HEADERS 1 :status=200
			app: read 1 1 => EOF`,
		"DATA before the answer is kept": `
			peer: HEADERS 1 CONNECT
			peer: DATA 1 early
			app: respond 1 200
			want: HEADERS 1 :status=200
			app: read 1 5 => early`,
		"DATA after the end": `
			peer: HEADERS 1 CONNECT
			peer: DATA 1 END
			peer: DATA 1 x
			want: RST 1 STREAM_CLOSED`,
		"HEADERS after the end": `
			peer: HEADERS 1 CONNECT
			peer: DATA 1 END
			peer: HEADERS 1 a=b END
			want: RST 1 STREAM_CLOSED`,
		"late frames of a stream that we have reset": `
			peer: HEADERS 1 CONNECT
			app: reset 1
			want: RST 1 CANCEL
			peer: DATA 1 x
			peer: WINDOW 1 1
			peer: RST 1 CANCEL
			peer: HEADERS 1 a=b END
			want: nothing`,
		"trailers on a tunnel": `
			peer: HEADERS 1 CONNECT
			app: respond 1 200
			want: HEADERS 1 :status=200
			peer: HEADERS 1 a=b END
			want: RST 1 PROTOCOL_ERROR
			app: read 1 1 => stream reset: PROTOCOL_ERROR: HEADERS on a connected stream`,
		"reset by the peer": `
			peer: HEADERS 1 CONNECT
			app: respond 1 200
			want: HEADERS 1 :status=200
			peer: DATA 1 some
			peer: RST 1 INTERNAL_ERROR
			app: read 1 4 => some
			app: read 1 1 => stream reset by peer: INTERNAL_ERROR
			app: write 1 x => 0 stream reset by peer: INTERNAL_ERROR
			app: context 1 => context canceled
			app: close 1
			want: nothing`,
		"handler without an answer": `
			peer: HEADERS 1 CONNECT
			app: return 1
			want: RST 1 CANCEL`,
		"Close with nothing in flight": `
			peer: HEADERS 1 CONNECT
			app: respond 1 200
			want: HEADERS 1 :status=200
			peer: DATA 1 END
			app: close 1
			want: DATA 1 END
			want: nothing`,
		"Close while the peer still sends": `
			peer: HEADERS 1 CONNECT
			app: respond 1 200
			want: HEADERS 1 :status=200
			app: close 1
			want: DATA 1 END
			want: RST 1 NO_ERROR`,
		"padding": `
			peer: HEADERS 1 CONNECT
			peer: DATA 1 hello PADDED
			app: read 1 5 => hello
			peer: DATA 1 PADDED END
			app: read 1 1 => EOF`,
		"padding as long as the frame": `
			peer: HEADERS 1 CONNECT
			peer: RAW 0 8 1 05 0000000000
			peer: RAW 0 8 1 06 0000000000
			want: GOAWAY 1 PROTOCOL_ERROR`,
		"padding without a length": `
			peer: HEADERS 1 CONNECT
			peer: RAW 0 8 1
			want: GOAWAY 1 FRAME_SIZE_ERROR`,
	})
}

// TestRequests: what the waypoint will need and CONNECT does not.
func TestRequests(t *testing.T) {
	cases(t, small, map[string]string{
		"body and trailers both ways": `
			peer: HEADERS 1 :method=POST :scheme=https :authority=a :path=/x te=trailers
			app: head 1 => POST a /x [{te trailers}]
			peer: DATA 1 body
			peer: HEADERS 1 END sum=1
			app: read 1 5 => body unexpected EOF
			app: trailer 1 => [{sum 1}]
			app: respond 1 200 kind=text
			want: HEADERS 1 :status=200 kind=text
			app: write 1 answer => 6
			want: DATA 1 answer
			app: trail 1 grpc-status=0
			want: HEADERS 1 grpc-status=0 END
			app: streams => 0`,
		"answer without a body": `
			peer: HEADERS 1 :method=GET :scheme=https :authority=a :path=/ END
			app: respond 1 404 END
			want: HEADERS 1 :status=404 END
			app: streams => 0`,
		"trailers that end nothing": `
			peer: HEADERS 1 :method=POST :scheme=https :authority=a :path=/
			peer: HEADERS 1 a=b
			want: RST 1 PROTOCOL_ERROR`,
		"pseudo-header field in trailers": `
			peer: HEADERS 1 :method=POST :scheme=https :authority=a :path=/
			peer: HEADERS 1 END :path=/y
			want: RST 1 PROTOCOL_ERROR`,
		"trailers too large": `
			peer: HEADERS 1 :method=POST :scheme=https :authority=a :path=/
			peer: HEADERS 1 END a=[16000] b=[2000]
			want: RST 1 PROTOCOL_ERROR`,
	})
}

// TestFloods: frames that cost us more than the peer end the connection.
func TestFloods(t *testing.T) {
	cases(t, Config{MaxStreams: 10}, map[string]string{
		"PING": `
			peer: FLOOD 3000 PING 0102030405060708
			want: GOAWAY 0 ENHANCE_YOUR_CALM
			want: EOF`,
		"SETTINGS": `
			peer: FLOOD 3000 SETTINGS
			want: GOAWAY 0 ENHANCE_YOUR_CALM`,
		"acknowledgments": `
			peer: FLOOD 3000 SETTINGS ACK
			want: GOAWAY 0 ENHANCE_YOUR_CALM`,
		"malformed PRIORITY": `
			peer: FLOOD 3000 RAW 2 0 1 01
			want: GOAWAY 0 ENHANCE_YOUR_CALM`,
		"empty DATA": `
			peer: HEADERS 1 CONNECT
			app: respond 1 200
			peer: FLOOD 3000 DATA 1
			want: GOAWAY 1 ENHANCE_YOUR_CALM`,
		"padding only": `
			peer: HEADERS 1 CONNECT
			app: respond 1 200
			peer: FLOOD 3000 DATA 1 PADDED
			want: GOAWAY 1 ENHANCE_YOUR_CALM`,
		"empty CONTINUATION": `
			peer: HEADERS 1 MORE CONNECT
			peer: FLOOD 3000 CONTINUATION 1 MORE
			want: GOAWAY 0 ENHANCE_YOUR_CALM`,
		"malformed requests": `
			peer: FLOOD 3000 HEADERS $ CONNECT connection=close
			want: GOAWAY 3999 ENHANCE_YOUR_CALM`,
		"more streams than there may be": `
			peer: FLOOD 3000 HEADERS $ CONNECT
			want: GOAWAY 4019 ENHANCE_YOUR_CALM`,
		"rapid reset while the handlers hang": `
			peer: FLOOD 100 HEADERS $ CONNECT ; RST $ CANCEL
			want: GOAWAY 21 ENHANCE_YOUR_CALM
			want: EOF`,
		"reset by us while the handlers hang: no increment": `
			peer: FLOOD 100 HEADERS $ CONNECT ; RAW 8 0 $ 00000000
			want: GOAWAY 21 ENHANCE_YOUR_CALM
			app: handlers => 10
			want: EOF`,
		"reset by us while the handlers hang: window too large": `
			peer: FLOOD 100 HEADERS $ CONNECT ; WINDOW $ 0x7fffffff
			want: GOAWAY 21 ENHANCE_YOUR_CALM
			app: handlers => 10`,
		"reset by us while the handlers hang: DATA after the end": `
			peer: FLOOD 100 HEADERS $ CONNECT ; RAW 0 1 $ ; DATA $ x
			want: GOAWAY 21 ENHANCE_YOUR_CALM
			app: handlers => 10`,
		"reset by us while the handlers hang: HEADERS after the end": `
			peer: FLOOD 100 HEADERS $ CONNECT ; RAW 0 1 $ ; HEADERS $ a=b
			want: GOAWAY 21 ENHANCE_YOUR_CALM
			app: handlers => 10`,
		"reset by us while the handlers hang: malformed PRIORITY": `
			peer: FLOOD 100 HEADERS $ CONNECT ; RAW 2 0 $ 01
			want: GOAWAY 21 ENHANCE_YOUR_CALM
			app: handlers => 10`,
		"slow enough is no flood": `
			peer: FLOOD 1500 PING 0102030405060708
			pass: 11s
			peer: FLOOD 1500 PING 0102030405060708
			peer: PING 0102030405060708
			want: PING ACK 0102030405060708`,
	})
}

// TestStreamErrorsAreCostly however many streams there may be.
func TestStreamErrorsAreCostly(t *testing.T) {
	cases(t, Config{MaxStreams: 5000}, map[string]string{
		"WINDOW_UPDATE of 0": `
			peer: FLOOD 3000 HEADERS $ CONNECT ; RAW 8 0 $ 00000000
			want: GOAWAY 3999 ENHANCE_YOUR_CALM`,
		"DATA after the end": `
			peer: FLOOD 3000 HEADERS $ CONNECT ; RAW 0 1 $ ; DATA $ x
			want: GOAWAY 3999 ENHANCE_YOUR_CALM`,
		"malformed PRIORITY": `
			peer: FLOOD 3000 HEADERS $ CONNECT ; RAW 2 0 $ 01
			want: GOAWAY 3999 ENHANCE_YOUR_CALM`,
	})
}
