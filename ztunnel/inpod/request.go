package inpod

import (
	"errors"
	"fmt"

	"google.golang.org/protobuf/proto"

	"github.com/ambit-mesh/ambit/apis/zds"
	"github.com/ambit-mesh/ambit/ztunnel/netns"
)

// request is a parsed packet: at most one of the fields is set, none means that the
// snapshot is complete.
type request struct {
	add       *Pod
	keep, del string // uid
}

// parse reads a packet and takes its files: into the Pod of an add, else closed.
func parse(p netns.Packet) (request, error) {
	q, err := parseBody(p.Body, len(p.Files))
	if err != nil {
		p.Close()
		return request{}, err
	}
	if q.add != nil {
		ns, err := netns.FromFile(p.Files[0])
		if err != nil {
			return request{}, fmt.Errorf("add %s: %w", q.add.UID, err)
		}
		q.add.NetNS = ns
	}
	return q, nil
}

// parseBody reads a packet that came with so many files.
func parseBody(body []byte, files int) (request, error) {
	var m zds.WorkloadRequest
	if err := proto.Unmarshal(body, &m); err != nil {
		return request{}, fmt.Errorf("packet: %w", err)
	}
	if _, isAdd := m.GetPayload().(*zds.WorkloadRequest_Add); !isAdd && files != 0 {
		return request{}, fmt.Errorf("packet %T with %d descriptors, want none", m.GetPayload(), files)
	}
	var q request
	switch p := m.GetPayload().(type) {
	case *zds.WorkloadRequest_Add:
		return parseAdd(p.Add, files)
	case *zds.WorkloadRequest_Keep:
		q.keep = p.Keep.GetUid()
	case *zds.WorkloadRequest_Del:
		q.del = p.Del.GetUid()
	case *zds.WorkloadRequest_SnapshotSent:
		return q, nil
	default:
		return request{}, errors.New("packet without a known payload")
	}
	if q == (request{}) {
		return request{}, fmt.Errorf("packet %T without a uid", m.GetPayload())
	}
	return q, nil
}

func parseAdd(add *zds.AddWorkload, files int) (request, error) {
	info := add.GetWorkloadInfo()
	switch {
	case add.GetUid() == "":
		return request{}, errors.New("add without a uid")
	case files != 1:
		return request{}, fmt.Errorf("add %s with %d descriptors, want the network namespace", add.GetUid(), files)
	case info == nil:
		return request{}, fmt.Errorf("%w: add %s without workload_info", ErrProtocol, add.GetUid())
	}
	return request{add: &Pod{
		UID:            add.GetUid(),
		Name:           info.GetName(),
		Namespace:      info.GetNamespace(),
		ServiceAccount: info.GetServiceAccount(),
	}}, nil
}
