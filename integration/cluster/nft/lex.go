package nft

import (
	"errors"
	"fmt"
	"strings"
)

// token is a word, a string or one of { } ; and the comma.
type token struct {
	text   string
	quoted bool
}

// words splits a line into tokens.
func words(line string) ([]token, error) {
	var tokens []token
	for {
		line = strings.TrimLeft(line, " \t\r")
		switch {
		case line == "" || line[0] == '#':
			return tokens, nil
		case line[0] == '"':
			text, rest, ok := strings.Cut(line[1:], `"`)
			if !ok {
				return nil, errors.New("a string does not end")
			}
			tokens, line = append(tokens, token{text, true}), rest
		default:
			n := strings.IndexAny(line, " \t\r{};,\"")
			switch n {
			case -1:
				n = len(line)
			case 0:
				n = 1
			}
			tokens, line = append(tokens, token{text: line[:n]}), line[n:]
		}
	}
}

// reader takes tokens one by one. The first error stays, and ends the line.
type reader struct {
	tokens []token
	err    error
}

func (r *reader) failf(format string, args ...any) {
	if r.err == nil {
		r.err = fmt.Errorf(format, args...)
	}
	r.tokens = nil
}

// done says that nothing is left.
func (r *reader) done() bool { return len(r.tokens) == 0 }

// next takes a word; "" when there is none.
func (r *reader) next() string {
	if r.done() {
		r.failf("something is missing at the end")
		return ""
	}
	t := r.tokens[0]
	if t.quoted {
		r.failf("unexpected string %q", t.text)
		return ""
	}
	r.tokens = r.tokens[1:]
	return t.text
}

// text takes a string in quotes.
func (r *reader) text() string {
	if r.done() || !r.tokens[0].quoted {
		r.failf("a string is missing")
		return ""
	}
	t := r.tokens[0]
	r.tokens = r.tokens[1:]
	return t.text
}

// peek says whether these words are next.
func (r *reader) peek(words ...string) bool {
	if len(r.tokens) < len(words) {
		return false
	}
	for i, word := range words {
		if r.tokens[i].quoted || r.tokens[i].text != word {
			return false
		}
	}
	return true
}

// take takes these words if they are next.
func (r *reader) take(words ...string) bool {
	if !r.peek(words...) {
		return false
	}
	r.tokens = r.tokens[len(words):]
	return true
}

// want takes a word that must be next.
func (r *reader) want(word string) {
	if !r.take(word) {
		got := "the end"
		if !r.done() {
			got = fmt.Sprintf("%q", r.tokens[0].text)
		}
		r.failf("%q is missing before %s", word, got)
	}
}
