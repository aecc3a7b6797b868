package main

import (
	"strings"
	"testing"
)

func TestRefusedBeforeAnythingIsBuilt(t *testing.T) {
	for args, want := range map[string]string{
		"pilot":                                   `no image "pilot"; there are istiod, `,
		"--set all":                               `no set of images "all"; there are [product bookinfo conformance]`,
		"--arch amd64,mips waypoint":              `architecture "mips": there are amd64, arm64`,
		"--arch arm64,arm64 waypoint":             `architecture "arm64" given twice`,
		"--arch= waypoint":                        "no architecture",
		"--hub Team waypoint":                     `hub "Team" and tag "1" do not make a name`,
		"--hub http://r.example.com/x waypoint":   `"http:" is not a registry`,
		"--tag a/b waypoint":                      `tag "a/b" do not make a name`,
		"--push waypoint":                         `--push: the hub "ambit-mesh" names no registry`,
		"--push --hub localhost:1/x echo-basic":   "--push: echo-basic has the fixed name registry.k8s.io/gateway-api/conformance/echo-basic:v0.1.0",
		"--push --hub team/images --set bookinfo": `--push: the hub "team/images" names no registry`,
	} {
		t.Run(args, func(t *testing.T) {
			c := command()
			c.SetArgs(append(strings.Fields(args), "--out", t.TempDir()))
			c.SetErr(t.Output())
			if err := c.ExecuteContext(t.Context()); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("error %v, want one with %q", err, want)
			}
		})
	}
}

func TestWhatIsBuilt(t *testing.T) {
	for _, test := range []struct {
		names, sets []string
		want        int
	}{
		{nil, nil, 9},
		{[]string{"istiod"}, nil, 1},
		{[]string{"istiod"}, []string{"product", "bookinfo"}, 9},
		{nil, []string{"conformance"}, 3},
	} {
		recipes, err := (&options{sets: test.sets}).recipes(test.names)
		if err != nil || len(recipes) != test.want {
			t.Errorf("%v and sets %v: %d images, %v, want %d", test.names, test.sets, len(recipes), err, test.want)
		}
	}
}
