// Package filter holds what a rule does to a request or response besides
// choosing where it goes, one file per filter. Filters are compiled once, never
// change, and work on the codec's heads; they do no I/O.
package filter
