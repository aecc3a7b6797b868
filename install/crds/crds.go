// Package crds embeds the custom resource definitions that the mesh's users
// write: those of Istio, generated from the istio.io/api module by make gen.
// istiod validates manifests against them, the installer applies them.
package crds

import _ "embed"

// Istio is a multi-document YAML stream of apiextensions.k8s.io/v1
// CustomResourceDefinitions.
//
//go:embed istio.yaml
var Istio []byte
