// Package conformance says what the Gateway API conformance suite asks of a
// mesh and how a run is judged. It is pure: it takes the tests and profiles as
// the suite defines them, the outcomes of a run and the list of tests that are
// expected to pass, and says the score and whether the run is as it must be.
//
// It talks to no cluster: the suite itself runs as the Go test in gatewayapi,
// and cmd/conformance prepares the cluster, starts that test and judges it with
// this package. The suite is sigs.k8s.io/gateway-api/conformance, described at
// https://gateway-api.sigs.k8s.io/concepts/conformance/.
package conformance

import (
	"fmt"
	"slices"

	"k8s.io/apimachinery/pkg/util/sets"
	"sigs.k8s.io/gateway-api/conformance/tests"
	"sigs.k8s.io/gateway-api/conformance/utils/suite"
	"sigs.k8s.io/gateway-api/pkg/features"
)

// Namespaces are those that the suite makes for its mesh tests.
var Namespaces = []string{suite.MeshNamespace, suite.MeshConsumerNamespace}

// WaypointName is the name of the waypoint of each of Namespaces, which all
// their Services use.
const WaypointName = "waypoint"

// NamespaceLabels are the labels by which Namespaces join the mesh.
var NamespaceLabels = map[string]string{
	"istio.io/dataplane-mode": "ambient",
	"istio.io/use-waypoint":   WaypointName,
}

// Profiles are the profiles that a mesh can conform to, in the order in which
// they are reported.
func Profiles() []suite.ConformanceProfile {
	return []suite.ConformanceProfile{suite.MeshHTTPConformanceProfile, suite.MeshGRPCConformanceProfile}
}

// Tests are the suite's tests of a mesh: those that need the feature Mesh.
// Some are in no profile, because they need a feature of routes that the
// profiles of meshes do not name.
func Tests() []suite.ConformanceTest {
	return meshTests(tests.ConformanceTests)
}

func meshTests(all []suite.ConformanceTest) []suite.ConformanceTest {
	var mesh []suite.ConformanceTest
	for _, test := range all {
		if slices.Contains(test.Features, features.SupportMesh) {
			mesh = append(mesh, test)
		}
	}
	return mesh
}

// Features are those that the mesh declares: all that its profiles know, and
// all that any of its tests needs, so that none is skipped.
func Features() []features.FeatureName {
	declared := features.SetsToNamesSet(features.MeshCoreFeatures, features.MeshExtendedFeatures)
	for _, profile := range Profiles() {
		declared = declared.Union(profile.CoreFeatures).Union(profile.ExtendedFeatures)
	}
	for _, test := range Tests() {
		declared.Insert(test.Features...)
	}
	return sets.List(declared)
}

// Select returns the tests of those names, in the order in which they run.
func Select(all, names []string) ([]string, error) {
	if unknown := sets.New(names...).Delete(all...); len(unknown) > 0 {
		return nil, fmt.Errorf("the suite has no test of a mesh of the name %q; it has %q", sets.List(unknown), all)
	}
	return slices.DeleteFunc(slices.Clone(all), func(name string) bool { return !slices.Contains(names, name) }), nil
}
