// Package crds is the custom resource definitions that the mesh's users write
// objects of: Istio's, which chart base installs and against which istiod
// validates manifests, and the Gateway API's, which ambitctl installs where they
// are absent.
package crds

import (
	"embed"
	"errors"
	"io/fs"

	"github.com/ambit-mesh/ambit/install/charts"
)

// Istio is a multi-document YAML stream of apiextensions.k8s.io/v1
// CustomResourceDefinitions.
var Istio = charts.CRDs

// The Gateway API's definitions are not ours to commit: the build copies them
// from the sigs.k8s.io/gateway-api module into this folder.
//
//go:embed gatewayapi
var gatewayAPI embed.FS

// ErrNoGatewayAPI says that this program was built without the build step that
// copies the Gateway API's definitions.
var ErrNoGatewayAPI = errors.New("this program was built without the Gateway API's definitions")

// GatewayAPI returns the standard channel of the Gateway API as a multi-document
// YAML stream, or ErrNoGatewayAPI.
func GatewayAPI() ([]byte, error) {
	body, err := gatewayAPI.ReadFile("gatewayapi/crds.yaml")
	if errors.Is(err, fs.ErrNotExist) {
		return nil, ErrNoGatewayAPI
	}
	return body, err
}
