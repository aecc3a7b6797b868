// Package local reads workloads, services and policies from a YAML document, for
// a ztunnel without a control plane or besides one (LOCAL_XDS_PATH and
// LOCAL_XDS, spec/ztunnel.md §4.7 and App. B.2). The document becomes the
// messages that istiod sends, and they take the same way into a workload.Store.
//
// A document counts as a whole: one that cannot be read, or that the store
// would refuse a part of, changes nothing. The caller reads files and decides
// when; a [Source] is used by one goroutine at a time, but for its Dump.
package local

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync/atomic"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/ambit-mesh/ambit/apis/mesh"
	"github.com/ambit-mesh/ambit/apis/security"
	api "github.com/ambit-mesh/ambit/apis/workload"
	"github.com/ambit-mesh/ambit/ztunnel/workload"
)

// A Document is what a file says.
type Document struct {
	Workloads []*api.Workload
	Services  []*api.Service
	Policies  []*security.Authorization
}

// Parse reads a document. Names that it does not know, and a second document
// after the first, are errors. JSON is YAML, too.
func Parse(text []byte) (*Document, error) {
	var in document
	d := yaml.NewDecoder(bytes.NewReader(text))
	d.KnownFields(true)
	if err := d.Decode(&in); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	if err := d.Decode(new(document)); !errors.Is(err, io.EOF) {
		return nil, errors.New("more than one document")
	}
	var out Document
	for i, w := range in.Workloads {
		m, err := w.message()
		if err != nil {
			return nil, fmt.Errorf("workload %d (%s): %w", i, w.UID, err)
		}
		out.Workloads = append(out.Workloads, m)
	}
	for i, s := range in.Services {
		m, err := s.message()
		if err != nil {
			return nil, fmt.Errorf("service %d (%s/%s): %w", i, s.Namespace, s.Hostname, err)
		}
		out.Services = append(out.Services, m)
	}
	for i, p := range in.Policies {
		m, err := p.message()
		if err != nil {
			return nil, fmt.Errorf("policy %d (%s/%s): %w", i, p.Namespace, p.Name, err)
		}
		out.Policies = append(out.Policies, m)
	}
	return &out, nil
}

// resources are messages as xDS delivers them, by name.
type resources map[string]*discoveryv3.Resource

func (r resources) add(name, url string, m proto.Message) error {
	if _, twice := r[name]; twice {
		return fmt.Errorf("%s is there twice", name)
	}
	data, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	r[name] = &discoveryv3.Resource{Name: name, Resource: &anypb.Any{TypeUrl: url, Value: data}}
	return nil
}

// resources returns the document's addresses and policies.
func (d *Document) resources() (addresses, policies resources, err error) {
	addresses, policies = resources{}, resources{}
	for _, w := range d.Workloads {
		err = errors.Join(err, addresses.add(w.GetUid(), mesh.TypeAddress, &api.Address{Type: &api.Address_Workload{Workload: w}}))
	}
	for _, s := range d.Services {
		err = errors.Join(err, addresses.add(s.GetNamespace()+"/"+s.GetHostname(), mesh.TypeAddress, &api.Address{Type: &api.Address_Service{Service: s}}))
	}
	for _, p := range d.Policies {
		err = errors.Join(err, policies.add(p.GetNamespace()+"/"+p.GetName(), mesh.TypeAuthorization, p))
	}
	return addresses, policies, err
}

// since returns what is new in r after old, and what is gone, by name.
func (r resources) since(old resources) (changed []*discoveryv3.Resource, removed []string) {
	for _, name := range slices.Sorted(maps.Keys(r)) {
		if before := old[name]; before == nil || !bytes.Equal(before.GetResource().GetValue(), r[name].GetResource().GetValue()) {
			changed = append(changed, r[name])
		}
	}
	for _, name := range slices.Sorted(maps.Keys(old)) {
		if r[name] == nil {
			removed = append(removed, name)
		}
	}
	return changed, removed
}

// A Source keeps a store at what the newest good document says.
type Source struct {
	store               *workload.Store
	cluster             string
	addresses, policies resources
	dump                atomic.Pointer[workload.Dump]
}

// NewSource returns a source that has applied nothing yet. Workloads that name
// no cluster are in cluster.
func NewSource(store *workload.Store, cluster string) *Source {
	s := &Source{store: store, cluster: cluster}
	s.dump.Store(new(workload.NewStore("", "").Snapshot().Dump()))
	return s
}

// Dump shows the document that is in force.
func (s *Source) Dump() workload.Dump { return *s.dump.Load() }

// Set puts a document in force. On an error nothing has changed.
//
// Policies come before the workloads that name them, and go after them, so that
// no connection is held for a policy that is in the document.
func (s *Source) Set(text []byte) error {
	doc, err := Parse(text)
	if err != nil {
		return err
	}
	for _, w := range doc.Workloads {
		w.ClusterId = cmp.Or(w.GetClusterId(), s.cluster)
	}
	addresses, policies, err := doc.resources()
	if err != nil {
		return err
	}
	trial := workload.NewStore("", "")
	if err := apply(trial, addresses, policies, nil, nil); err != nil {
		return err
	}
	err = apply(s.store, addresses, policies, s.addresses, s.policies)
	s.addresses, s.policies = addresses, policies
	s.dump.Store(new(trial.Snapshot().Dump()))
	return err
}

func apply(store *workload.Store, addresses, policies, oldAddresses, oldPolicies resources) error {
	changed, gone := policies.since(oldPolicies)
	if err := refused(store.ApplyAuthorizations(changed, nil)); err != nil {
		return err
	}
	if err := refused(store.ApplyAddresses(addresses.since(oldAddresses))); err != nil {
		return err
	}
	return refused(store.ApplyAuthorizations(nil, gone))
}

// refused makes one error of what a store does not take.
func refused(why map[string]error) error {
	if len(why) == 0 {
		return nil
	}
	parts := make([]string, 0, len(why))
	for _, name := range slices.Sorted(maps.Keys(why)) {
		parts = append(parts, fmt.Sprintf("%s: %v", name, why[name]))
	}
	return errors.New(strings.Join(parts, "; "))
}
