package conformance

import (
	"errors"
	"fmt"
	"slices"

	"k8s.io/apimachinery/pkg/util/sets"
	confv1 "sigs.k8s.io/gateway-api/conformance/apis/v1"
	"sigs.k8s.io/gateway-api/conformance/utils/suite"
)

// A Score says how many tests of a group passed.
type Score struct {
	Passed, Total int
}

func (s Score) String() string { return fmt.Sprintf("%d/%d", s.Passed, s.Total) }

func (s *Score) add(passed bool) {
	s.Total++
	if passed {
		s.Passed++
	}
}

// A ProfileScore is the score of one profile. Core tests need nothing but the
// profile's core features.
type ProfileScore struct {
	Name           suite.ConformanceProfileName
	Core, Extended Score
}

// Scores is what a run is worth.
type Scores struct {
	Profiles []ProfileScore
	// All counts every test of a mesh, in a profile or not.
	All Score
}

// Count scores the tests by what the profiles ask for; passed names the tests
// that passed. A test belongs to a profile if the profile knows all of its
// features, and is extended if one of them is not core: the suite's own rule
// (getConformanceProfilesForTest and isTestExtended of its package suite),
// which CheckReport compares with.
func Count(tests []suite.ConformanceTest, profiles []suite.ConformanceProfile, passed sets.Set[string]) Scores {
	var scores Scores
	for _, test := range tests {
		scores.All.add(passed.Has(test.ShortName))
	}
	for _, profile := range profiles {
		score := ProfileScore{Name: profile.Name}
		known := profile.CoreFeatures.Union(profile.ExtendedFeatures)
		for _, test := range tests {
			switch {
			case !known.HasAll(test.Features...):
			case profile.CoreFeatures.HasAll(test.Features...):
				score.Core.add(passed.Has(test.ShortName))
			default:
				score.Extended.add(passed.Has(test.ShortName))
			}
		}
		scores.Profiles = append(scores.Profiles, score)
	}
	return scores
}

// Lines are the scores as they are printed. A profile without extended tests
// has no such part.
func (s Scores) Lines() []string {
	var lines []string
	for _, p := range s.Profiles {
		line := fmt.Sprintf("conformance: %s core %v", p.Name, p.Core)
		if p.Extended.Total > 0 {
			line += fmt.Sprintf(" extended %v", p.Extended)
		}
		lines = append(lines, line)
	}
	return append(lines, fmt.Sprintf("conformance: mesh tests %v", s.All))
}

// CheckReport compares the scores with the report that the suite wrote of the
// same run, in which no test may be missing or skipped.
func (s Scores) CheckReport(report *confv1.ConformanceReport) error {
	var errs []error
	for _, want := range s.Profiles {
		i := slices.IndexFunc(report.ProfileReports, func(p confv1.ProfileReport) bool { return p.Name == string(want.Name) })
		if i < 0 {
			errs = append(errs, fmt.Errorf("%s: not in the report", want.Name))
			continue
		}
		got := report.ProfileReports[i]
		errs = append(errs, compare(want.Name, "core", want.Core, got.Core.Statistics))
		var extended confv1.Statistics
		if got.Extended != nil {
			extended = got.Extended.Statistics
		}
		errs = append(errs, compare(want.Name, "extended", want.Extended, extended))
	}
	return errors.Join(errs...)
}

func compare(profile suite.ConformanceProfileName, level string, want Score, got confv1.Statistics) error {
	if got.Passed == uint32(want.Passed) && got.Failed == uint32(want.Total-want.Passed) && got.Skipped == 0 {
		return nil
	}
	return fmt.Errorf("%s %s: the report counts %d passed, %d failed and %d skipped tests, the run %d passed of %d",
		profile, level, got.Passed, got.Failed, got.Skipped, want.Passed, want.Total)
}
