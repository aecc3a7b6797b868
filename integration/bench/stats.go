package main

import (
	"math"
	"slices"
	"time"
)

// median is the middle value, or the mean of the middle two; NaN of none.
func median(values []float64) float64 {
	if len(values) == 0 {
		return math.NaN()
	}
	sorted := slices.Sorted(slices.Values(values))
	middle := len(sorted) / 2
	if len(sorted)%2 == 1 {
		return sorted[middle]
	}
	return (sorted[middle-1] + sorted[middle]) / 2
}

// percentile is the smallest value that at least p of the values do not exceed;
// 0 of none. It sorts its argument.
func percentile(values []time.Duration, p float64) time.Duration {
	if len(values) == 0 {
		return 0
	}
	slices.Sort(values)
	return values[min(len(values)-1, max(0, int(math.Ceil(p*float64(len(values))))-1))]
}

// ratios divides round by round. Rounds in which either is missing or nothing
// are left out.
func ratios(values, others []float64) []float64 {
	var out []float64
	for i := range min(len(values), len(others)) {
		if r := values[i] / others[i]; !math.IsNaN(r) && !math.IsInf(r, 0) {
			out = append(out, r)
		}
	}
	return out
}
