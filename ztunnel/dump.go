package ztunnel

import (
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"runtime"
	"runtime/debug"
	"time"

	"github.com/ambit-mesh/ambit/ztunnel/identity"
	"github.com/ambit-mesh/ambit/ztunnel/inpod"
	"github.com/ambit-mesh/ambit/ztunnel/proxy"
	"github.com/ambit-mesh/ambit/ztunnel/rbac"
	"github.com/ambit-mesh/ambit/ztunnel/telemetry"
	"github.com/ambit-mesh/ambit/ztunnel/workload"
)

// The config dump, spec/ztunnel.md App. B.1: istioctl and ambitctl read it.
type dump struct {
	workload.Dump
	StaticConfig  staticDump         `json:"staticConfig"`
	Version       map[string]string  `json:"version"`
	Config        map[string]any     `json:"config"`
	Certificates  []certificateDump  `json:"certificates"`
	WorkloadState map[string]podDump `json:"workloadState"`
}

// staticDump is what the local document says, in the way of the state itself.
type staticDump struct {
	Workloads []*workload.Workload   `json:"workloads"`
	Services  []workload.ServiceDump `json:"services"`
	Policies  []*rbac.Policy         `json:"policies"`
}

type certificateDump struct {
	Identity  string     `json:"identity"`
	State     string     `json:"state"`
	CertChain []x509Dump `json:"certChain"`
	RootCerts []x509Dump `json:"rootCerts"`
}

type x509Dump struct {
	PEM            string `json:"pem"` // base64 of the PEM text
	SerialNumber   string `json:"serialNumber"`
	ValidFrom      string `json:"validFrom"`
	ExpirationTime string `json:"expirationTime"`
}

type podDump struct {
	State       string            `json:"state"`
	Connections proxy.Connections `json:"connections"`
	Info        podInfo           `json:"info"`
	// Refused are the latest connections that were refused or have failed.
	Refused []telemetry.Refused `json:"refused,omitempty"`
}

type podInfo struct {
	Name           string `json:"name"`
	Namespace      string `json:"namespace"`
	ServiceAccount string `json:"serviceAccount"`
}

func (z *Ztunnel) dump() any {
	d := dump{
		Dump:         z.store.Snapshot().Dump(),
		StaticConfig: staticDump{[]*workload.Workload{}, []workload.ServiceDump{}, []*rbac.Policy{}},
		Version: map[string]string{
			"version": version(), "gitRevision": setting("vcs.revision"), "rustVersion": runtime.Version(), "buildProfile": "release",
			"buildStatus": buildStatus(), "istioVersion": z.cfg.Version, "cryptoProvider": "go",
		},
		Config:        z.cfg.Dump(),
		Certificates:  []certificateDump{},
		WorkloadState: map[string]podDump{},
	}
	for _, e := range z.identities.Dump() {
		d.Certificates = append(d.Certificates, dumpCertificate(e))
	}
	if z.local != nil {
		static := z.local.Dump()
		d.StaticConfig = staticDump{static.Workloads, static.Services, static.Policies}
	}
	if z.agent != nil {
		for _, announced := range z.agent.Pods() {
			running, _ := announced.Proxy.(*pod)
			p := announced.Pod
			d.WorkloadState[p.UID] = running.dump(string(announced.State), podInfo{p.Name, p.Namespace, p.ServiceAccount})
		}
	} else if p := z.own.pod.Load(); p != nil {
		// There is no pod, so no uid either: the workload's name stands for it.
		state, w := inpod.StatePending, z.cfg.Workload
		if z.own.serving.Load() {
			state = inpod.StateUp
		}
		d.WorkloadState[p.name] = p.dump(string(state), podInfo{w.Name, w.Namespace, w.ServiceAccount})
	}
	return d
}

// dump shows what runs for a workload; nil is nothing.
func (p *pod) dump(state string, info podInfo) podDump {
	d := podDump{
		State: state, Info: info,
		Connections: proxy.Connections{Inbound: []proxy.Connection{}, Outbound: []proxy.Connection{}, NotYetMeshed: []proxy.Pair{}},
	}
	if p != nil && p.proxy != nil {
		d.Connections, d.Refused = p.proxy.Connections(), p.proxy.Refusals()
	}
	return d
}

func jsonText(v any) string {
	text, err := json.Marshal(v)
	if err != nil {
		return err.Error()
	}
	return string(text)
}

func dumpCertificate(e identity.Entry) certificateDump {
	d := certificateDump{Identity: e.ID.String(), State: string(e.State), CertChain: []x509Dump{}, RootCerts: []x509Dump{}}
	if e.State == identity.Unavailable && e.Err != nil {
		d.State += ": " + e.Err.Error()
	}
	if e.Certificate == nil {
		return d
	}
	for _, der := range e.Certificate.Chain {
		if c, err := x509.ParseCertificate(der); err == nil { // it was parsed before
			d.CertChain = append(d.CertChain, dumpX509(c))
		}
	}
	for _, c := range e.Certificate.Roots {
		d.RootCerts = append(d.RootCerts, dumpX509(c))
	}
	return d
}

func dumpX509(c *x509.Certificate) x509Dump {
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})
	return x509Dump{
		PEM: base64.StdEncoding.EncodeToString(text), SerialNumber: c.SerialNumber.String(),
		ValidFrom: c.NotBefore.UTC().Format(time.RFC3339), ExpirationTime: c.NotAfter.UTC().Format(time.RFC3339),
	}
}

// version returns the module version of the binary, "(devel)" for a local build.
func version() string {
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "unknown"
}

func buildStatus() string {
	if setting("vcs.modified") == "true" {
		return "Modified"
	}
	return "Clean"
}

func setting(key string) string {
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			if s.Key == key {
				return s.Value
			}
		}
	}
	return "unknown"
}

// Version returns what "ztunnel version" prints.
func Version() string { return version() + " " + setting("vcs.revision") + " " + runtime.Version() }
