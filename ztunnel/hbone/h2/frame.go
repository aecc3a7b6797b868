package h2

import (
	"encoding/binary"
	"strconv"
)

// A FrameType is a frame's type, §6.
type FrameType uint8

// The types, https://www.rfc-editor.org/rfc/rfc9113#section-6
const (
	FrameData         FrameType = 0x0
	FrameHeaders      FrameType = 0x1
	FramePriority     FrameType = 0x2
	FrameReset        FrameType = 0x3
	FrameSettings     FrameType = 0x4
	FramePushPromise  FrameType = 0x5
	FramePing         FrameType = 0x6
	FrameGoAway       FrameType = 0x7
	FrameWindowUpdate FrameType = 0x8
	FrameContinuation FrameType = 0x9
)

const (
	flagEndStream  = 0x1
	flagAck        = 0x1
	flagEndHeaders = 0x4
	flagPadded     = 0x8
	flagPriority   = 0x20
)

// preface is what every client sends first, §3.4.
const preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

const (
	frameHeaderLen = 9
	minFrameSize   = 16 << 10 // that every endpoint takes, §4.2
	maxFrameSize   = 1<<24 - 1
	maxWindow      = 1<<31 - 1
	maxStreamID    = 1<<31 - 1
	defaultWindow  = 65535 // of streams and connection before any SETTINGS, §6.9.2
	defaultTable   = 4096  // of HPACK, §6.5.2
)

// Settings, https://www.rfc-editor.org/rfc/rfc9113#section-6.5.2
const (
	settingTableSize     = 0x1
	settingPush          = 0x2
	settingMaxStreams    = 0x3
	settingInitialWindow = 0x4
	settingMaxFrameSize  = 0x5
	settingMaxHeaderList = 0x6
	settingLen           = 6
)

// An ErrCode is why a stream or connection ends, §7.
type ErrCode uint32

// The codes, https://www.rfc-editor.org/rfc/rfc9113#section-7
const (
	NoError            ErrCode = 0x0
	Protocol           ErrCode = 0x1
	Internal           ErrCode = 0x2
	FlowControl        ErrCode = 0x3
	SettingsTimeout    ErrCode = 0x4
	StreamClosed       ErrCode = 0x5
	FrameSize          ErrCode = 0x6
	RefusedStream      ErrCode = 0x7
	Cancel             ErrCode = 0x8
	Compression        ErrCode = 0x9
	Connect            ErrCode = 0xa
	EnhanceYourCalm    ErrCode = 0xb
	InadequateSecurity ErrCode = 0xc
	HTTP11Required     ErrCode = 0xd
)

var codeNames = [...]string{
	"NO_ERROR", "PROTOCOL_ERROR", "INTERNAL_ERROR", "FLOW_CONTROL_ERROR", "SETTINGS_TIMEOUT", "STREAM_CLOSED",
	"FRAME_SIZE_ERROR", "REFUSED_STREAM", "CANCEL", "COMPRESSION_ERROR", "CONNECT_ERROR", "ENHANCE_YOUR_CALM",
	"INADEQUATE_SECURITY", "HTTP_1_1_REQUIRED",
}

func (c ErrCode) String() string {
	if int(c) < len(codeNames) {
		return codeNames[c]
	}
	return "code " + strconv.FormatUint(uint64(c), 10)
}

// A frameHeader is the nine octets before a frame's payload, §4.1.
type frameHeader struct {
	length int
	typ    FrameType
	flags  uint8
	stream uint32
}

func (h frameHeader) has(flag uint8) bool { return h.flags&flag != 0 }

// parseFrameHeader reads a header from the first octets of p.
//
// "R: A reserved 1-bit field. ... MUST be ignored when receiving"
// https://www.rfc-editor.org/rfc/rfc9113#section-4.1
func parseFrameHeader(p []byte) frameHeader {
	_ = p[frameHeaderLen-1]
	return frameHeader{
		length: int(p[0])<<16 | int(p[1])<<8 | int(p[2]),
		typ:    FrameType(p[3]), flags: p[4],
		stream: binary.BigEndian.Uint32(p[5:]) & maxStreamID,
	}
}

func appendFrameHeader(b []byte, h frameHeader) []byte {
	return append(b, byte(h.length>>16), byte(h.length>>8), byte(h.length), byte(h.typ), h.flags,
		byte(h.stream>>24), byte(h.stream>>16), byte(h.stream>>8), byte(h.stream))
}

type setting struct {
	id    uint16
	value uint32
}

func appendSettings(b []byte, settings ...setting) []byte {
	b = appendFrameHeader(b, frameHeader{length: settingLen * len(settings), typ: FrameSettings})
	for _, s := range settings {
		b = binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint16(b, s.id), s.value)
	}
	return b
}

func appendSettingsAck(b []byte) []byte {
	return appendFrameHeader(b, frameHeader{typ: FrameSettings, flags: flagAck})
}

func appendPing(b []byte, ack bool, data [8]byte) []byte {
	h := frameHeader{length: len(data), typ: FramePing}
	if ack {
		h.flags = flagAck
	}
	return append(appendFrameHeader(b, h), data[:]...)
}

func appendWindowUpdate(b []byte, stream, more uint32) []byte {
	b = appendFrameHeader(b, frameHeader{length: 4, typ: FrameWindowUpdate, stream: stream})
	return binary.BigEndian.AppendUint32(b, more)
}

func appendReset(b []byte, stream uint32, code ErrCode) []byte {
	b = appendFrameHeader(b, frameHeader{length: 4, typ: FrameReset, stream: stream})
	return binary.BigEndian.AppendUint32(b, uint32(code))
}

func appendGoAway(b []byte, last uint32, code ErrCode) []byte {
	b = appendFrameHeader(b, frameHeader{length: 8, typ: FrameGoAway})
	return binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(b, last), uint32(code))
}

// appendBlock appends an encoded header block as HEADERS and CONTINUATION.
// Every peer takes frames of minFrameSize: no need to ask for its limit.
func appendBlock(b []byte, stream uint32, block []byte, end bool) []byte {
	h := frameHeader{typ: FrameHeaders, stream: stream}
	if end {
		h.flags = flagEndStream
	}
	for {
		part := block[:min(len(block), minFrameSize)]
		if block = block[len(part):]; len(block) == 0 {
			h.flags |= flagEndHeaders
		}
		h.length = len(part)
		b = append(appendFrameHeader(b, h), part...)
		if len(block) == 0 {
			return b
		}
		h.typ, h.flags = FrameContinuation, 0
	}
}

// appendData appends payload as DATA frames of at most limit bytes.
func appendData(b []byte, stream uint32, payload []byte, end bool, limit int) []byte {
	for {
		part := payload[:min(len(payload), limit)]
		payload = payload[len(part):]
		h := frameHeader{length: len(part), typ: FrameData, stream: stream}
		if end && len(payload) == 0 {
			h.flags = flagEndStream
		}
		b = append(appendFrameHeader(b, h), part...)
		if len(payload) == 0 {
			return b
		}
	}
}
