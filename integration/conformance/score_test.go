package conformance

import (
	"context"
	"strings"
	"testing"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"
	confv1 "sigs.k8s.io/gateway-api/conformance/apis/v1"
	"sigs.k8s.io/gateway-api/conformance/tests"
	"sigs.k8s.io/gateway-api/conformance/utils/suite"
	"sigs.k8s.io/gateway-api/pkg/consts"
	"sigs.k8s.io/gateway-api/pkg/features"
)

func test(name string, names ...features.FeatureName) suite.ConformanceTest {
	return suite.ConformanceTest{ShortName: name, Features: names}
}

func TestCount(t *testing.T) {
	profiles := []suite.ConformanceProfile{
		{Name: "MESH-A", CoreFeatures: sets.New[features.FeatureName]("Mesh", "A"), ExtendedFeatures: sets.New[features.FeatureName]("MeshX")},
		{Name: "MESH-B", CoreFeatures: sets.New[features.FeatureName]("Mesh", "B")},
	}
	all := []suite.ConformanceTest{
		test("Both", "Mesh"),
		test("CoreA", "Mesh", "A"),
		test("ExtendedA", "Mesh", "A", "MeshX"),
		test("InNoProfile", "Mesh", "A", "Other"),
		test("CoreB", "Mesh", "B"),
	}
	for _, tc := range []struct {
		name   string
		passed []string
		want   string
	}{
		{"nothing", nil, `
conformance: MESH-A core 0/2 extended 0/1
conformance: MESH-B core 0/2
conformance: mesh tests 0/5`},
		{"a test of both profiles counts in both", []string{"Both"}, `
conformance: MESH-A core 1/2 extended 0/1
conformance: MESH-B core 1/2
conformance: mesh tests 1/5`},
		{"a test of no profile counts among all", []string{"InNoProfile"}, `
conformance: MESH-A core 0/2 extended 0/1
conformance: MESH-B core 0/2
conformance: mesh tests 1/5`},
		{"everything", []string{"Both", "CoreA", "CoreB", "ExtendedA", "InNoProfile"}, `
conformance: MESH-A core 2/2 extended 1/1
conformance: MESH-B core 2/2
conformance: mesh tests 5/5`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got := strings.Join(Count(all, profiles, sets.New(tc.passed...)).Lines(), "\n")
			if want := strings.TrimSpace(tc.want); got != want {
				t.Errorf("got\n%s\nwant\n%s", got, want)
			}
		})
	}
}

// Every test of a mesh runs with the features declared, and no other does.
func TestDeclaredFeaturesSelectTheTestsOfAMesh(t *testing.T) {
	declared := sets.New(Features()...)
	mesh := sets.New[string]()
	for _, test := range Tests() {
		mesh.Insert(test.ShortName)
	}
	if len(mesh) == 0 {
		t.Fatal("the suite has no test of a mesh")
	}
	for _, test := range tests.ConformanceTests {
		if runs := declared.HasAll(test.Features...); runs != mesh.Has(test.ShortName) {
			t.Errorf("%s, which needs %v: runs is %v, is a test of a mesh is %v", test.ShortName, test.Features, runs, !runs)
		}
	}
	for _, profile := range Profiles() {
		if missing := profile.CoreFeatures.Union(profile.ExtendedFeatures).Difference(declared); len(missing) > 0 {
			t.Errorf("%s: not declared: %v", profile.Name, sets.List(missing))
		}
	}
}

// The suite reports the tests by the rule that Count follows. It runs here with
// tests that do nothing.
func TestCountAgreesWithTheSuite(t *testing.T) {
	var idle []suite.ConformanceTest
	passed := sets.New[string]()
	for _, test := range Tests() {
		test.Manifests, test.Test = nil, func(*testing.T, *suite.ConformanceTestSuite) {}
		idle = append(idle, test)
		passed.Insert(test.ShortName)
	}
	var opts suite.ConformanceOptions
	opts.Client, opts.RestConfig = crdLister{}, &rest.Config{Host: "127.0.0.1:1"}
	opts.SupportedFeatures = Features()
	for _, profile := range Profiles() {
		opts.ConformanceProfiles = append(opts.ConformanceProfiles, profile.Name)
	}
	s, err := suite.NewConformanceTestSuite(opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Run("run", func(t *testing.T) {
		if err := s.Run(t, idle); err != nil {
			t.Fatal(err)
		}
	})
	report, err := s.Report()
	if err != nil {
		t.Fatal(err)
	}
	scores := Count(Tests(), Profiles(), passed)
	if err := scores.CheckReport(report); err != nil {
		t.Error(err)
	}

	passed.Delete("MeshBasic") // which is core to both
	err = Count(Tests(), Profiles(), passed).CheckReport(report)
	for _, want := range []string{"MESH-HTTP core", "MESH-GRPC core"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("a report with one more test passed: got error %v, want one about %s", err, want)
		}
	}
	if err := scores.CheckReport(&confv1.ConformanceReport{}); err == nil {
		t.Error("a report without profiles is taken for right")
	}
}

// crdLister is a client of a cluster that has the suite's version of the
// Gateway API, and nothing else.
type crdLister struct{ client.Client }

func (crdLister) List(_ context.Context, list client.ObjectList, _ ...client.ListOption) error {
	list.(*apiextensionsv1.CustomResourceDefinitionList).Items = []apiextensionsv1.CustomResourceDefinition{{
		Annotations: map[string]string{consts.BundleVersionAnnotation: consts.BundleVersion, consts.ChannelAnnotation: "standard"},
	}}
	return nil
}

func TestSelect(t *testing.T) {
	all := []string{"C", "A", "B"}
	got, err := Select(all, []string{"B", "C"})
	if err != nil || strings.Join(got, " ") != "C B" {
		t.Errorf("got %v, %v, want the two names in the order of the suite", got, err)
	}
	if _, err := Select(all, []string{"A", "D"}); err == nil || !strings.Contains(err.Error(), `"D"`) {
		t.Errorf("got error %v, want one that names D", err)
	}
}
