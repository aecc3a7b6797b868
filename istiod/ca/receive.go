package ca

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"google.golang.org/grpc"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"
	securityv1 "istio.io/api/security/v1alpha1"
)

// maxRequestBytes is a request with the largest CSR, and room for the rest.
const maxRequestBytes = maxCSRBytes + 4<<10

// messageStream is what gRPC's stream can do below its limit for messages, which
// is one for all methods and is made for what a reconnecting ztunnel says. A test
// notices when a new version of gRPC has it no more.
type messageStream interface {
	ReadMessageHeader(header []byte) error
	Read(n int) (mem.BufferSlice, error)
}

// receive reads the request in the form of gRPC over HTTP/2: a byte for its
// compression, four for its length, then the message. Any pod may call, so one
// that is too large is not read.
func receive(ctx context.Context) (*securityv1.IstioCertificateRequest, error) {
	stream, ok := grpc.ServerTransportStreamFromContext(ctx).(messageStream)
	if !ok {
		return nil, errors.New("gRPC has no stream to read messages from")
	}
	var header [5]byte
	if err := stream.ReadMessageHeader(header[:]); err != nil {
		return nil, &Refusal{ReasonCSR, fmt.Errorf("no request: %w", err)}
	}
	size := binary.BigEndian.Uint32(header[1:])
	switch {
	case header[0] != 0:
		return nil, &Refusal{ReasonCSR, errors.New("request is compressed")}
	case size > maxRequestBytes:
		return nil, &Refusal{ReasonCSR, fmt.Errorf("request of %d bytes", size)}
	}
	data, err := stream.Read(int(size))
	if err != nil {
		return nil, &Refusal{ReasonCSR, fmt.Errorf("request: %w", err)}
	}
	defer data.Free()
	req := &securityv1.IstioCertificateRequest{}
	if err := proto.Unmarshal(data.Materialize(), req); err != nil {
		return nil, &Refusal{ReasonCSR, fmt.Errorf("request: %w", err)}
	}
	return req, nil
}
