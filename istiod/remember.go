package istiod

import "maps"

// remember learns which waypoints have been ready in an earlier life of istiod.
func (i *Istiod) remember() error {
	remembered, err := i.platform.remembered()
	if err != nil {
		return err
	}
	maps.Copy(i.views.remembered, remembered)
	return nil
}

// tidy removes once what is left of objects that went while istiod was away. It
// waits until every file and every Gateway has been taken: a waypoint must not
// be removed, or forgotten, because the file of its Gateway has a typing error.
func (i *Istiod) tidy() {
	if i.tidied.Load() || len(i.untaken) > 0 {
		return
	}
	i.tidied.Store(true)
	i.statuses.Synced()
	i.generated.note(taskSweep, "")
}
