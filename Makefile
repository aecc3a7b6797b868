# make help lists what can be done here. Everything that a target needs, it
# builds or fetches through the Go module proxy; Go itself, a C compiler (for
# the race detector), git and make are all that must be there.

export GOTOOLCHAIN := auto

BIN := $(CURDIR)/bin
# What the demo needs, and what a cluster needs besides.
DEMO    := ./cmd/istiod ./cmd/ztunnel ./cmd/ambit-cni ./cmd/waypoint ./integration/lab/cmd/lab ./integration/demo \
           $(wildcard ./install/samples/bookinfo/cmd/*)
CLUSTER := ./cmd/ambitctl ./integration/cluster/cmd/cluster ./integration/clustertest

TESTFLAGS ?=
HUB       ?= ambit-mesh
TAG       ?= 1
ARCHS     ?= amd64,arm64
NODES     ?= 2

.DEFAULT_GOAL := help
.PHONY: build gatewayapi demo test lint gen images cluster-up cluster-down cluster-test conformance bench interop help

gobuild = @mkdir -p $(BIN) && CGO_ENABLED=0 go -C integration/tools run ./gobuild ../.. -o bin/

images = go run ./install/images/cmd/images --out bin/images --hub $(HUB) --tag $(TAG)
arch   = $(shell go env GOARCH)

build: gatewayapi ## build all programs into bin/
	$(gobuild) $(DEMO) $(CLUSTER)

# The Gateway API's definitions, which ambitctl carries, are not ours to commit.
gatewayapi:
	@cd "$$(go mod download -json sigs.k8s.io/gateway-api | sed -n 's/.*"Dir": "\(.*\)".*/\1/p')/config/crd/standard" && \
	  for f in *.yaml; do echo ---; cat "$$f"; done > $(CURDIR)/install/crds/gatewayapi/crds.yaml.new
	@cd install/crds/gatewayapi && if cmp -s crds.yaml.new crds.yaml; then rm crds.yaml.new; else mv crds.yaml.new crds.yaml; fi

demo: ## show the mesh at work, in network namespaces on this machine (KEEP=1 keeps it up)
	$(gobuild) $(DEMO)
	@$(BIN)/demo $(if $(KEEP),--keep)

test: gatewayapi ## run all tests, with the race detector; says what was skipped and why
	go -C integration/tools run ./testreport ../.. -race -shuffle=on $(TESTFLAGS) ./...
	go -C integration/tools run ./testreport ../conformance -race -shuffle=on $(TESTFLAGS) . ./cmd/...
	go -C integration/tools run ./testreport ../cluster/parts/runc -race -shuffle=on $(TESTFLAGS) ./noseccomp

images: build ## build the container images into bin/images (HUB, TAG, ARCHS, SET; PUSH=1 pushes)
	@$(images) --arch $(ARCHS) $(if $(SET),--set $(SET)) $(if $(PUSH),--push)

cluster-up: build ## start a Kubernetes of NODES=2 nodes on this machine, built from Go modules; needs root
	@$(BIN)/cluster up --nodes $(NODES)
	@$(images) --arch $(arch)
	@$(BIN)/cluster load $(BIN)/images/*

cluster-down: ## end that Kubernetes, and those of tests; nothing of them is left
	$(gobuild) ./integration/cluster/cmd/cluster
	@$(BIN)/cluster down && $(BIN)/cluster --name api down

# Tests of what talks to an API server, each line with a new one of its own: some
# begin without any definitions, and all leave some. The cluster's own tests start
# theirs.
cluster-test: cluster-up ## prove the mesh on that Kubernetes (KEEP=1 leaves it installed)
	go test -count=1 -tags cluster -run TestUp ./integration/cluster
	$(call apitest,./istiod/source ./istiod/status)
	$(call apitest,./istiod)
	$(call apitest,./install/installer)
	@$(BIN)/clustertest $(if $(KEEP),--keep)

apitest = @$(BIN)/cluster --name api up --control-plane-only && trap '$(BIN)/cluster --name api down' EXIT && \
  AMBIT_TEST_KUBECONFIG=$$($(BIN)/cluster --name api kubeconfig) go test -count=1 -p 1 -tags cluster -run TestCluster $(1)

conformance: cluster-up ## run the Gateway API suite for meshes there (UPDATE=1 adds to expected.txt what passes; TEST=A,B)
	@$(images) --arch $(arch) --set conformance
	CGO_ENABLED=0 go -C integration/conformance build -o $(BIN)/conformance ./cmd/conformance
	@$(BIN)/conformance --root $(CURDIR) --version "$$(git describe --always --dirty)" $(if $(UPDATE),--update) $(if $(TEST),--test $(TEST)) $(if $(KEEP),--keep)

bench: ## measure ztunnel beside direct TCP and a net/http CONNECT proxy (QUICK=1; PEER=path adds a ztunnel; RESULTS=dir)
	$(gobuild) ./cmd/ztunnel ./integration/bench ./integration/bench/baseline
	@$(BIN)/bench $(if $(QUICK),--quick) $(if $(PEER),--peer $(PEER)) $(if $(RESULTS),--results $(RESULTS))

interop: ## run our ztunnel with parts of others: Istio's echo, nghttp2 if installed, its ztunnel (PEER=path)
	$(gobuild) ./cmd/ztunnel
	CGO_ENABLED=0 go -C integration/interop/upstream build -o $(BIN)/upstream/ istio.io/istio/pkg/test/echo/cmd/client istio.io/istio/pkg/test/echo/cmd/server
	CGO_ENABLED=0 go -C integration/interop build -o $(BIN)/interop .
	@$(if $(PEER),PEER=$(PEER)) $(BIN)/interop

lint: ## run the linters, pinned in integration/tools
	CGO_ENABLED=0 go tool -modfile=integration/tools/go.mod golangci-lint run --build-tags cluster ./...
	cd integration/tools && CGO_ENABLED=0 go tool golangci-lint run --config ../../.golangci.yml ./...
	for module in conformance interop; do \
	  (cd integration/$$module && CGO_ENABLED=0 go tool -modfile=../tools/go.mod golangci-lint run --config ../../.golangci.yml ./...) || exit 1; done

gen: ## generate code and CRDs again from their sources
	go -C integration/tools run ./protogen ../..
	go list -m -f '{{.Version}} {{.Dir}}' istio.io/api | { read -r version dir && \
	  echo "# Copyright Istio Authors. Licensed under the Apache License, Version 2.0 (LICENSE)." && \
	  echo "# From istio.io/api $$version, kubernetes/customresourcedefinitions.gen.yaml:" && \
	  cat "$$dir/kubernetes/customresourcedefinitions.gen.yaml"; } > install/charts/base/files/crd-all.gen.yaml

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
