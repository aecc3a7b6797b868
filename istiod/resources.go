package istiod

import (
	"fmt"
	"slices"
	"strconv"

	"github.com/cespare/xxhash/v2"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/ambit-mesh/ambit/apis/mesh"
	securityapi "github.com/ambit-mesh/ambit/apis/security"
	"github.com/ambit-mesh/ambit/istiod/collection"
	"github.com/ambit-mesh/ambit/istiod/model"
	"github.com/ambit-mesh/ambit/istiod/translate"
	"github.com/ambit-mesh/ambit/istiod/xds"
)

// resources are collections of messages, ready to be sent.
type resources []*collection.Derived[xds.Resource]

// pack marshals a message. The same message gives the same bytes, and so the
// same version, in every istiod.
func pack(typeURL, name string, message proto.Message) xds.Resource {
	value, err := proto.MarshalOptions{Deterministic: true}.Marshal(message)
	if err != nil { // only for text that is not UTF-8, which JSON cannot bring here
		panic(fmt.Sprintf("marshal %s %s: %v", typeURL, name, err))
	}
	return xds.Resource{
		TypeURL: typeURL, Name: name, Version: strconv.FormatUint(xxhash.Sum64(value), 16),
		Body: &anypb.Any{TypeUrl: typeURL, Value: value},
	}
}

func resourceKey(r xds.Resource) string { return r.TypeURL + " " + r.Name }

func sameResource(a, b xds.Resource) bool {
	return a.Version == b.Version && slices.Equal(a.Aliases, b.Aliases) && slices.Equal(a.Scopes, b.Scopes)
}

func resourceOptions() collection.Options[xds.Resource] {
	return collection.Options[xds.Resource]{Key: resourceKey, Equal: sameResource}
}

// workloadResources makes the messages for ztunnel. Reads the joined views,
// produces Address and Authorization.
func (v *views) workloadResources(g *collection.Graph) resources {
	address := func(name string, aliases []string, message proto.Message) []xds.Resource {
		r := pack(mesh.TypeAddress, name, message)
		r.Aliases = aliases
		return []xds.Resource{r}
	}
	workload := func(_ *collection.Context, w model.Workload) []xds.Resource {
		return address(w.UID, translate.WorkloadAliases(w), translate.WorkloadAddress(w))
	}
	return resources{
		collection.Derive(g, "service addresses", v.boundServices, resourceOptions(),
			func(c *collection.Context, s model.BoundService) []xds.Resource {
				m := v.mesh(c)
				return address(s.Key(), translate.ServiceAliases(s, m), translate.ServiceAddress(s, m))
			}),
		collection.Derive(g, "workload addresses", v.workloads, resourceOptions(), workload),
		collection.Derive(g, "endpoint addresses", v.endpointWorkloads, resourceOptions(), workload),
		collection.Derive(g, "authorizations", v.policies, resourceOptions(),
			func(c *collection.Context, p model.Policy) []xds.Resource {
				return authorization(translate.Authorization(p, v.mesh(c).RootNamespace).Message)
			}),
		collection.Derive(g, "peer authorizations", v.peers, resourceOptions(),
			func(c *collection.Context, p model.PeerAuthentication) []xds.Resource {
				root := v.mesh(c).RootNamespace
				return authorization(translate.PeerPolicy(p, v.peersFor(c, p.Name.Namespace, root), root))
			}),
		collection.Derive(g, "static authorizations", v.meshes, resourceOptions(),
			func(c *collection.Context, m model.Mesh) []xds.Resource {
				if len(collection.All(c, v.peers)) == 0 {
					return nil
				}
				return authorization(translate.StaticStrict(m.RootNamespace))
			}),
	}
}

func authorization(message *securityapi.Authorization) []xds.Resource {
	if message == nil {
		return nil
	}
	r := pack(mesh.TypeAuthorization, message.GetNamespace()+"/"+message.GetName(), message)
	r.Scopes = []string{ztunnelScope} // whom a policy concerns is nobody else's business
	return []xds.Resource{r}
}

// publish carries every batch of the graph to the store in one step, so that a
// policy and the workload that names it arrive together.
func (r resources) publish(g *collection.Graph, store *xds.Store) {
	set := map[string]xds.Resource{}
	removed := map[string]xds.Ref{}
	for _, from := range r {
		collection.Sink(from, func(events []collection.Event[xds.Resource]) {
			for _, event := range events {
				if event.New != nil {
					set[event.Key] = *event.New
					delete(removed, event.Key)
				} else if _, moved := set[event.Key]; !moved {
					removed[event.Key] = xds.Ref{TypeURL: event.Old.TypeURL, Name: event.Old.Name}
				}
			}
		})
	}
	g.AfterBatch(func() {
		if len(set)+len(removed) == 0 {
			return
		}
		sets := make([]xds.Resource, 0, len(set))
		for _, resource := range set {
			sets = append(sets, resource)
		}
		refs := make([]xds.Ref, 0, len(removed))
		for _, ref := range removed {
			refs = append(refs, ref)
		}
		store.Update(sets, refs)
		clear(set)
		clear(removed)
	})
}
