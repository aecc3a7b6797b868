module github.com/ambit-mesh/ambit/integration/cluster/parts/pause

go 1.26.0

toolchain go1.27.4
