package main

import (
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
)

// series holds the values of the rounds, by row and system.
type series map[string]map[string][]float64

func (s series) add(row, system string, value float64) {
	if s[row] == nil {
		s[row] = map[string][]float64{}
	}
	s[row][system] = append(s[row][system], value)
}

// report writes a line for each row of system and what it is compared with, in
// the order of rows and others:
//
//	bench <name> <value> <unit> <ratio> vs <baseline> goal <goal> <ok|short>
//
// A row without anything to compare with has one line, and "-" where something
// is missing. It returns how many goals were not reached.
func (s series) report(w io.Writer, rows []row, system string, others []string) (short int) {
	for _, r := range rows {
		values := s[r.name][system]
		if len(values) == 0 {
			continue
		}
		start := fmt.Sprintf("bench %s %s %s", r.name, figure(median(values)), r.unit)
		lines := 0
		if goal, ok := r.goals[limit]; ok {
			verdict := r.verdict(median(values), goal)
			fmt.Fprintf(w, "%s %s vs %s goal %s %s\n", start, figure(median(values)/goal), limit, r.bound(goal)+r.unit, verdict)
			lines, short = 1, short+btoi(verdict == missed)
		}
		for _, other := range others {
			ratio := median(ratios(values, s[r.name][other]))
			if math.IsNaN(ratio) {
				continue
			}
			goalText, verdict := "-", "-"
			if goal, ok := r.goals[other]; ok {
				goalText, verdict = r.bound(goal), r.verdict(ratio, goal)
			}
			fmt.Fprintf(w, "%s %s vs %s goal %s %s\n", start, figure(ratio), other, goalText, verdict)
			lines, short = lines+1, short+btoi(verdict == missed)
		}
		if lines == 0 {
			fmt.Fprintf(w, "%s - vs - goal - -\n", start)
		}
	}
	return short
}

const (
	reached = "ok"
	missed  = "short"
)

func (r row) verdict(value, goal float64) string {
	if (r.less && value <= goal) || (!r.less && value >= goal) {
		return reached
	}
	return missed
}

func (r row) bound(goal float64) string {
	if r.less {
		return "<=" + figure(goal)
	}
	return ">=" + figure(goal)
}

// table writes the median of every system, so that a reader sees more than
// ratios, and how far the rounds of the first lie apart.
func (s series) table(w io.Writer, rows []row, systems []string) {
	fmt.Fprintf(w, "%-18s %-6s", "", "")
	for _, name := range systems {
		fmt.Fprintf(w, " %12s", name)
	}
	fmt.Fprintf(w, "  %s: least..most\n", systems[0])
	for _, r := range rows {
		own := s[r.name][systems[0]]
		if len(own) == 0 {
			continue
		}
		fmt.Fprintf(w, "%-18s %-6s", r.name, r.unit)
		for _, name := range systems {
			fmt.Fprintf(w, " %12s", figure(median(s[r.name][name])))
		}
		fmt.Fprintf(w, "  %s..%s\n", figure(slices.Min(own)), figure(slices.Max(own)))
	}
}

// figure writes a number with three significant digits, "-" for none.
func figure(v float64) string {
	switch abs := math.Abs(v); {
	case math.IsNaN(v) || math.IsInf(v, 0):
		return "-"
	case abs >= 100:
		return strconv.FormatFloat(v, 'f', 0, 64)
	case abs >= 10:
		return strconv.FormatFloat(v, 'f', 1, 64)
	case abs >= 1:
		return strconv.FormatFloat(v, 'f', 2, 64)
	default:
		return strconv.FormatFloat(v, 'f', 3, 64)
	}
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}
