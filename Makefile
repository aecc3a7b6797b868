# make help lists what can be done here. Everything that a target needs, it
# builds or fetches through the Go module proxy; Go itself, a C compiler (for
# the race detector), git and make are all that must be there.

export GOTOOLCHAIN := auto

BIN      := $(CURDIR)/bin
PROGRAMS := ./cmd/istiod ./cmd/ztunnel ./cmd/ambit-cni ./cmd/waypoint ./integration/lab/cmd/lab ./integration/demo \
            $(wildcard ./install/samples/bookinfo/cmd/*)
TESTFLAGS ?=

.DEFAULT_GOAL := help
.PHONY: build demo test lint gen help

build: ## build all programs into bin/
	@mkdir -p $(BIN)
	@CGO_ENABLED=0 go -C integration/tools run ./gobuild ../.. -o bin/ $(PROGRAMS)

demo: build ## show the mesh at work, in network namespaces on this machine (KEEP=1 keeps it up)
	@$(BIN)/demo $(if $(KEEP),--keep)

test: ## run all tests, with the race detector; says what was skipped and why
	go -C integration/tools run ./testreport ../.. -race -shuffle=on $(TESTFLAGS) ./...

lint: ## run the linters, pinned in integration/tools
	CGO_ENABLED=0 go tool -modfile=integration/tools/go.mod golangci-lint run ./...
	cd integration/tools && CGO_ENABLED=0 go tool golangci-lint run --config ../../.golangci.yml ./...

gen: ## generate code and CRDs again from their sources
	go -C integration/tools run ./protogen ../..
	{ cat "$$(go list -m -f '{{.Dir}}' istio.io/api)/kubernetes/customresourcedefinitions.gen.yaml"; } > install/crds/istio.yaml

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
