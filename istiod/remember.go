package istiod

import (
	"fmt"
	"path/filepath"

	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/ambit-mesh/ambit/apis/manifest"
	"github.com/ambit-mesh/ambit/istiod/model"
	"github.com/ambit-mesh/ambit/istiod/status"
)

// statusStore is where statuses are kept.
func (i *Istiod) statusStore() *manifest.Store {
	return manifest.NewStore(filepath.Join(i.cfg.StateDir, "status"))
}

// remember reads which waypoints have been ready in an earlier life of istiod:
// their Gateways' statuses have a host name. Traffic must not go around one of
// them because istiod starts while its pod is away (DESIGN.md §9.2). What
// cannot be read is an error: to start without it could open a bypass.
func (i *Istiod) remember() error {
	stored, err := i.statusStore().List()
	if err != nil {
		return fmt.Errorf("waypoints that have been ready: %w", err)
	}
	for _, o := range stored {
		key := manifest.KeyOf(o)
		if key.Group != gatewayv1.GroupName || key.Kind != "Gateway" {
			continue
		}
		for _, address := range status.Addresses(o) {
			if address.Type != nil && *address.Type == gatewayv1.HostnameAddressType {
				i.views.remembered[model.Key(key.Namespace, key.Name)] = address.Value
			}
		}
	}
	return nil
}

// tidy removes once what is left of objects that went while istiod was away. It
// waits until every file and every Gateway has been taken: a waypoint must not
// be removed, or forgotten, because the file of its Gateway has a typing error.
func (i *Istiod) tidy() {
	if i.tidied || len(i.untaken) > 0 {
		return
	}
	i.tidied = true
	i.statuses.Synced()
	i.generated.sweep(func(gateway string) bool { _, ok := i.deployments.Get(gateway); return ok })
}
