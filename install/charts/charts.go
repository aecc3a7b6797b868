// Package charts embeds the Helm charts, so that ambitctl installs what helm
// would install from this folder, and the CRDs that are one of their files. It
// holds data only; install/installer knows what to do with it.
//
// CRDs is written by make gen from the istio.io/api module. The folders of chart
// ambient link to the other charts; links are not embedded, so here it is what
// joins their values and no more.
package charts

import "embed"

// FS has one folder for each chart.
//
//go:embed base istiod cni ztunnel ambient
//go:embed istiod/templates/_helpers.tpl cni/templates/_helpers.tpl ztunnel/templates/_helpers.tpl
var FS embed.FS

// CRDs is a multi-document YAML stream of Istio's CustomResourceDefinitions.
//
//go:embed base/files/crd-all.gen.yaml
var CRDs []byte
