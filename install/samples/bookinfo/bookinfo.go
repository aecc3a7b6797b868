// Package bookinfo embeds the manifests of the sample of the same name, for the
// demo and the end-to-end tests, which run it as a user would.
package bookinfo

import "embed"

// Manifests are the files of this folder: bookinfo.yaml, curl.yaml and
// outside.yaml to begin with, and what is added to them later in networking
// and security.
//
//go:embed *.yaml networking security
var Manifests embed.FS
