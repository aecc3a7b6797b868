package images

import (
	"fmt"
	"slices"
	"strings"
)

// Set is a group of images that are wanted together.
type Set string

// The sets.
const (
	Mesh        Set = "product"     // what runs on a cluster with ambit
	Bookinfo    Set = "bookinfo"    // the sample
	Conformance Set = "conformance" // what the Gateway API conformance suite's manifests name
)

// Sets are all sets.
var Sets = []Set{Mesh, Bookinfo, Conformance}

// Recipe is how an image of this repository is made: from which programs, and
// as whom it runs.
type Recipe struct {
	// Name is below the hub: bookinfo/reviews. With _ for / it is the
	// directory of the layout.
	Name        string
	Set         Set
	Description string
	// Reference is the full name of an image that must be called like another
	// project's, whatever the hub and tag are; such an image is not pushed.
	Reference string
	// Module is the directory of the Go module that Packages are built in,
	// from the root of the repository.
	Module string
	// Packages are main packages; the first is the entrypoint.
	Packages []string
	// Folder is where the programs are in the image.
	Folder string
	// User is uid:gid. A number needs no /etc/passwd, and it lets the kubelet
	// see that runAsNonRoot is obeyed.
	User string
	// Copies are files of the module that has the first package: from path in
	// the module to path in the image.
	Copies map[string]string
	Source string // URL of the source code
}

// Users of the images. 1337 is the user of Istio's proxies and istiod, which
// policies of clusters may know.
const (
	rootUser  = "0:0"
	meshUser  = "1337:1337"
	otherUser = "1000:1000"
)

const (
	programFolder = "/usr/local/bin"
	ourSource     = "https://github.com/ambit-mesh/ambit"
	suiteModule   = "integration/conformance/images"
	suiteSource   = "https://github.com/kubernetes-sigs/gateway-api-conformance-images"
	suiteHub      = "registry.k8s.io/gateway-api/conformance/"
	echoBasic     = "sigs.k8s.io/gateway-api-conformance-images/echo-basic"
	istioEcho     = "istio.io/istio/pkg/test/echo/cmd/"
)

// Recipes is the table of our images.
var Recipes = []Recipe{
	program("istiod", meshUser, "the control plane: configuration, identities and waypoints"),
	program("ztunnel", rootUser, "the node proxy: mTLS and L4 policy for the pods of a node"),
	program("ambit-cni", rootUser, "the node agent: enrols the pods of a node in the mesh"),
	program("waypoint", meshUser, "the L7 proxy: routes, policies and retries of services"),

	bookinfo("productpage", "shows a book"),
	bookinfo("details", "knows what a book is"),
	bookinfo("ratings", "knows how many stars reviewers give"),
	bookinfo("reviews", "shows reviews, v2 and v3 with stars"),
	bookinfo("client", "makes requests"),

	conformance("echo-basic", "v0.1.0", suiteSource, echoBasic),
	// The suite asks for v0.2.0 for its UDP server only, which v0.1.0 has too.
	// The label says which version is inside.
	conformance("echo-basic-udp", "v0.2.0", suiteSource, echoBasic),
	echoAdvanced(),
}

func program(name, user, description string) Recipe {
	return Recipe{
		Name: name, Set: Mesh, Description: "ambit " + name + ", " + description, Module: ".",
		Packages: []string{"./cmd/" + name}, Folder: programFolder, User: user, Source: ourSource,
	}
}

func bookinfo(name, does string) Recipe {
	return Recipe{
		Name: "bookinfo/" + name, Set: Bookinfo, Description: "bookinfo sample: " + name + " " + does, Module: ".",
		Packages: []string{"./install/samples/bookinfo/cmd/" + name}, Folder: programFolder, User: otherUser, Source: ourSource,
	}
}

// conformance is an image that echoes requests. Its program and user are where
// the suite's own image has them.
func conformance(name, tag, source string, packages ...string) Recipe {
	repository := strings.TrimSuffix(name, "-udp")
	return Recipe{
		Name: name, Set: Conformance, Description: "Gateway API conformance: " + repository,
		Reference: suiteHub + repository + ":" + tag, Module: suiteModule,
		Packages: packages, Folder: "/", User: "65532:65532", Source: source,
	}
}

// echoAdvanced is Istio's echo application: a server, and the client that the
// suite runs in its pods to make requests. Certificate and key are those of
// Istio's own image, valid until 2296.
func echoAdvanced() Recipe {
	r := conformance("echo-advanced", "v0.1.0", "https://github.com/istio/istio", istioEcho+"server", istioEcho+"client")
	r.Folder, r.User = programFolder, "1338:1338"
	r.Copies = map[string]string{
		"tests/testdata/certs/dns/cert-chain.pem": "/cert.crt",
		"tests/testdata/certs/dns/key.pem":        "/cert.key",
	}
	return r
}

// Dir is the name of the directory of the image's layout.
func (r Recipe) Dir() string { return strings.ReplaceAll(r.Name, "/", "_") }

// Select returns the recipes with these names and those of these sets, in the
// order of the table.
func Select(names []string, sets []Set) ([]Recipe, error) {
	var known []string
	for _, r := range Recipes {
		known = append(known, r.Name)
	}
	for _, name := range names {
		if !slices.Contains(known, name) {
			return nil, fmt.Errorf("no image %q; there are %s", name, strings.Join(known, ", "))
		}
	}
	for _, set := range sets {
		if !slices.Contains(Sets, set) {
			return nil, fmt.Errorf("no set of images %q; there are %v", set, Sets)
		}
	}
	var selected []Recipe
	for _, r := range Recipes {
		if slices.Contains(names, r.Name) || slices.Contains(sets, r.Set) {
			selected = append(selected, r)
		}
	}
	return selected, nil
}
