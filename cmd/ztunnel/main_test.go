package main

import (
	"bytes"
	"strings"
	"testing"

	"github.com/ambit-mesh/ambit/ztunnel/config"
)

// TestHelpListsEveryVariable: what is honoured can be looked up without the source.
func TestHelpListsEveryVariable(t *testing.T) {
	var out bytes.Buffer
	c := command()
	c.SetOut(&out)
	c.SetArgs([]string{"--help"})
	if err := c.ExecuteContext(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, g := range config.Variables {
		for _, v := range g.Variables {
			if !strings.Contains(out.String(), "  "+v.Name+" ") || !strings.Contains(out.String(), v.Meaning) {
				t.Errorf("help lacks %s", v.Name)
			}
		}
	}
}

func TestUnknownCommandFails(t *testing.T) {
	c := command()
	c.SetArgs([]string{"serve"})
	if err := c.ExecuteContext(t.Context()); err == nil {
		t.Error("an unknown command is no error")
	}
}
