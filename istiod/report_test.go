package istiod

import (
	"context"
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	grpcstatus "google.golang.org/grpc/status"
	networkingv1 "istio.io/client-go/pkg/apis/networking/v1"
	"sigs.k8s.io/yaml"

	"github.com/ambit-mesh/ambit/apis/manifest"
	"github.com/ambit-mesh/ambit/istiod/authn"
	"github.com/ambit-mesh/ambit/istiod/collection"
	"github.com/ambit-mesh/ambit/istiod/source"
)

// What the source finds in an object and what istiod does are one condition:
// neither hides the other, and each goes by itself.
func TestWarningsJoinNotices(t *testing.T) {
	i := oddIstiod(t)
	object := &networkingv1.VirtualService{}
	object.Namespace, object.Name, object.Generation = "shop", "v", 7
	i.objects.Graph.Update(func(tx *collection.Tx) { i.objects.VirtualServices.Set(tx, object) })
	key := manifest.Key{Group: groupNetworking, Kind: "VirtualService", Namespace: "shop", Name: "v"}
	entry := &networkingv1.ServiceEntry{}
	entry.Namespace, entry.Name = "shop", "e"
	i.objects.Graph.Update(func(tx *collection.Tx) { i.objects.ServiceEntries.Set(tx, entry) })
	entryKey := manifest.Key{Group: groupNetworking, Kind: "ServiceEntry", Namespace: "shop", Name: "e"}
	policyKey := policyKey("p")
	i.report(source.Report{Warnings: []source.Invalid{
		{Key: key, Generation: 7, Field: "spec.colour", Reason: "unknown field"},
		{Key: entryKey, Field: "spec.colour", Reason: "unknown field"},
		{Key: policyKey, Generation: 3, Field: "spec.colour", Reason: "unknown field"},
	}})

	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- i.statuses.Run(ctx) }()
	store := manifest.NewStore(filepath.Join(i.cfg.StateDir, "status"))
	await := func(key manifest.Key, check func(text string) string) {
		t.Helper()
		(&control{t: t}).eventually(key.String(), func() string {
			o, err := store.Get(key)
			if err != nil {
				return check("")
			}
			text, err := yaml.Marshal(o.Object)
			if err != nil {
				return err.Error()
			}
			return check(string(text))
		})
	}
	says := func(parts ...string) func(string) string {
		return func(text string) string {
			for _, part := range parts {
				if !strings.Contains(text, part) {
					return "no " + part + " in " + text
				}
			}
			return ""
		}
	}
	await(key, says("spec.colour", "delegation", "observedGeneration: 7"))
	await(entryKey, says("spec.colour", "not supported yet"))
	await(policyKey, says("spec.colour", "observedGeneration: 3"))

	i.report(source.Report{Unwarned: []manifest.Key{key, entryKey, policyKey}})
	for key, own := range map[manifest.Key]string{key: "delegation", entryKey: "not supported yet"} {
		await(key, func(text string) string {
			if strings.Contains(text, "colour") {
				return text
			}
			return says(own)(text)
		})
	}
	await(policyKey, func(text string) string { return text }) // nothing is left to say
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// That nobody can be asked about a token is not the caller's fault, and no
// caller learns why.
func TestCallersAreToldWhatToDo(t *testing.T) {
	i := oddIstiod(t)
	ctx := metadata.NewIncomingContext(t.Context(), metadata.Pairs("authorization", "Bearer x"))
	for reason, want := range map[authn.Reason]codes.Code{
		authn.ReasonUnavailable: codes.Unavailable,
		authn.ReasonReview:      codes.Unauthenticated,
		authn.ReasonExpired:     codes.Unauthenticated,
	} {
		i.platform.verify = func(context.Context, string) (authn.Caller, error) {
			return authn.Caller{}, &authn.Error{Reason: reason, Err: errors.New("secret detail")}
		}
		_, err := i.authenticate(ctx)
		told, ok := errors.AsType[interface {
			error
			GRPCStatus() *grpcstatus.Status
		}](err)
		if !ok || told.GRPCStatus().Code() != want || strings.Contains(told.GRPCStatus().Message(), "secret detail") {
			t.Errorf("%s: told %v, want %s and no details", reason, told, want)
		}
	}
}
