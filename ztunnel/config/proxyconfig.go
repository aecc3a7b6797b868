package config

import (
	"fmt"
	"maps"
	"math"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// proxyConfig is what is read of Istio's ProxyConfig (spec/ztunnel.md §9.1).
// Its other fields are for other proxies.
type proxyConfig struct {
	DiscoveryAddress string            `yaml:"discoveryAddress"`
	ProxyAdminPort   uint16            `yaml:"proxyAdminPort"`
	StatsPort        uint16            `yaml:"statsPort"`
	Concurrency      *int              `yaml:"concurrency"`
	ProxyMetadata    map[string]string `yaml:"proxyMetadata"`
}

// proxyConfig reads the mesh's file, and PROXY_CONFIG over it.
func (e *env) proxyConfig(mesh []byte) proxyConfig {
	var file struct {
		DefaultConfig proxyConfig `yaml:"defaultConfig"`
	}
	if err := yaml.Unmarshal(mesh, &file); err != nil {
		e.fail(meshFile, err)
	}
	pc := file.DefaultConfig
	metadata := pc.ProxyMetadata
	pc.ProxyMetadata = nil
	if err := yaml.Unmarshal([]byte(e.get("PROXY_CONFIG")), &pc); err != nil {
		e.fail("PROXY_CONFIG", err)
	}
	merged := map[string]string{}
	for _, m := range []map[string]string{metadata, pc.ProxyMetadata} {
		for key, value := range maps.All(m) {
			merged[strings.TrimPrefix(key, "ISTIO_META_")] = value
		}
	}
	pc.ProxyMetadata = merged
	return pc
}

// threads returns how many threads carry traffic, spec/ztunnel.md §9.3. cpus
// is how many the machine has.
func (e *env) threads(pc proxyConfig, cpus int) int {
	limit, request := e.cpus("ZTUNNEL_RESOURCE_CPU_LIMIT"), e.cpus("ZTUNNEL_RESOURCE_CPU_REQUEST")
	hint := e.cpus("ZTUNNEL_CPU_LIMIT")
	for _, n := range []int{limit, hint} {
		if n > 0 {
			cpus = n
			break
		}
	}
	text := e.get("ZTUNNEL_WORKER_THREADS")
	e.looked["GOMAXPROCS"] = true
	switch {
	case text != "":
		return e.threadsOf(text, cpus)
	case pc.Concurrency != nil && *pc.Concurrency == 0:
		return cpus
	case pc.Concurrency != nil:
		return max(*pc.Concurrency, 1)
	case limit > 0:
		return max(limit, request)
	case e.get("GOMAXPROCS") != "":
		return cpus // the Go runtime has read it
	}
	return max((cpus+3)/4, request, 2)
}

// threadsOf reads a count, or a percentage of the CPUs; 0 is all of them.
func (e *env) threadsOf(text string, cpus int) int {
	const name = "ZTUNNEL_WORKER_THREADS"
	number, percent := strings.CutSuffix(text, "%")
	n, err := strconv.ParseUint(number, 10, 16)
	switch {
	case err != nil:
		e.fail(name, fmt.Errorf("%q is neither a number nor a percentage", text))
	case percent:
		return max(int(math.Ceil(float64(n)*float64(cpus)/100)), 1)
	case n == 0:
		return cpus
	}
	return max(int(n), 1)
}

// cpus reads a quantity of CPUs such as 2, 1.5 or 500m, rounded up; 0 if it is
// not set.
func (e *env) cpus(name string) int {
	text := e.get(name)
	if text == "" {
		return 0
	}
	number, milli := strings.CutSuffix(text, "m")
	n, err := strconv.ParseFloat(number, 64)
	if err != nil || n < 0 || n > 1e6 || math.IsNaN(n) {
		e.fail(name, fmt.Errorf("%q is not a number of CPUs such as 2, 1.5 or 500m", text))
		return 0
	}
	if milli {
		n /= 1000
	}
	return int(math.Ceil(n))
}
