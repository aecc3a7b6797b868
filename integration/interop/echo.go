package main

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"strings"

	"github.com/ambit-mesh/ambit/apis/mesh"
	"github.com/ambit-mesh/ambit/apis/workload"
	"github.com/ambit-mesh/ambit/integration/bed"
)

const tcpPort = 9090 // of Istio's echo server, beside HTTP at port

// echo runs Istio's echo application on either side of ours.
func echo(ctx context.Context, r *report, dir string, p programs) error {
	missing := errors.Join(need("istio echo client", p.echoClient), need("istio echo server", p.echoServer))
	for _, s := range []struct {
		pair, name string
		run        func(ctx context.Context, dir string, p programs) error
	}{
		{"istio-echo/ztunnel", "hbone-http", echoClient("http://%s", port)},
		{"istio-echo/ztunnel", "hbone-tcp", echoClient("tcp://%s", tcpPort)},
		{"ztunnel/istio-echo", "hbone-http", echoServer("http://%s", port)},
		{"ztunnel/istio-echo", "hbone-tcp", echoServer("tcp://%s", tcpPort)},
		{"ztunnel/istio-echo", "double-hbone-http", doubleHBONE},
	} {
		r.run(ctx, s.pair, s.name, missing, func(ctx context.Context) error { return s.run(ctx, dir, p) })
	}
	return nil
}

// echoClient sends through an HBONE tunnel of Istio's to our port 15008.
func echoClient(format string, at uint16) func(ctx context.Context, dir string, p programs) error {
	return func(ctx context.Context, dir string, p programs) error {
		m, err := newPlace(ctx, dir, "", p.ztunnel)
		if err != nil {
			return err
		}
		defer func() { _ = m.bed.Close() }()
		stop, err := m.application(ctx, p.echoServer)
		if err != nil {
			return err
		}
		defer stop()
		cert, key, err := m.certificate(m.client)
		if err != nil {
			return err
		}
		return m.ask(ctx, p.echoClient, fmt.Sprintf(format, netip.AddrPortFrom(m.server.Addr, at)),
			"--hbone", netip.AddrPortFrom(m.server.Addr, mesh.PortHBONE).String(),
			"--hbone-client-cert", cert, "--hbone-client-key", key, "--hbone-insecure-skip-verify")
	}
}

// echoServer ends our tunnels at Istio's HBONE server, in a pod that has no
// ztunnel and is described as one that has.
func echoServer(format string, at uint16) func(ctx context.Context, dir string, p programs) error {
	return func(ctx context.Context, dir string, p programs) error {
		m, err := newPlace(ctx, dir, p.ztunnel, "")
		if err != nil {
			return err
		}
		defer func() { _ = m.bed.Close() }()
		if err := m.tell(func(w *workload.Workload, _ *workload.Service) { w.TunnelProtocol = workload.TunnelProtocol_HBONE }); err != nil {
			return err
		}
		if err := m.awaitKnown(ctx, "workloads", "HBONE", true); err != nil {
			return err
		}
		stop, err := m.terminator(ctx, p.echoServer, "--hbone")
		if err != nil {
			return err
		}
		defer stop()
		if err := m.ask(ctx, p.echoClient, fmt.Sprintf(format, netip.AddrPortFrom(m.server.Addr, at))); err != nil {
			return err
		}
		return m.logged(ctx, "spiffe://"+bed.TrustDomain+"/ns/"+namespace+"/sa/server")
	}
}

// doubleHBONE makes the server the gateway of another network, in which the
// service lives: spec/ztunnel.md §2.5.5. Istio's server calls the name that the
// inner tunnel asks for, so the service is called as its pod calls itself.
func doubleHBONE(ctx context.Context, dir string, p programs) error {
	m, err := newPlace(ctx, dir, p.ztunnel, "")
	if err != nil {
		return err
	}
	defer func() { _ = m.bed.Close() }()
	gateway := &workload.GatewayAddress{
		Destination:   &workload.GatewayAddress_Address{Address: &workload.NetworkAddress{Address: m.server.Addr.AsSlice()}},
		HboneMtlsPort: mesh.PortHBONE,
	}
	const name = "localhost"
	ports := &workload.PortList{Ports: []*workload.Port{{ServicePort: port, TargetPort: port}}}
	remote := &workload.Workload{
		Uid: "remote//Pod/" + namespace + "/remote", Name: "remote", Namespace: namespace, ServiceAccount: "server", ClusterId: "remote",
		Network: "remote", NetworkGateway: gateway, TunnelProtocol: workload.TunnelProtocol_HBONE, Status: workload.WorkloadStatus_HEALTHY,
		Services: map[string]*workload.PortList{namespace + "/" + name: ports},
	}
	service := &workload.Service{
		Name: name, Namespace: namespace, Hostname: name, Ports: ports.GetPorts(),
		Addresses:       []*workload.NetworkAddress{{Address: netip.MustParseAddr(vip).AsSlice()}},
		SubjectAltNames: []string{"spiffe://" + bed.TrustDomain + "/ns/" + namespace + "/sa/server"},
	}
	end := m.server.Workload()
	end.TunnelProtocol = workload.TunnelProtocol_HBONE
	if err := m.bed.SetWorkloads(m.client.Workload(), end, remote); err != nil {
		return err
	}
	if err := m.bed.SetServices(service); err != nil {
		return err
	}
	if err := m.awaitKnown(ctx, "workloads", `"remote"`, true); err != nil {
		return err
	}
	stop, err := m.terminator(ctx, p.echoServer, "--double-hbone")
	if err != nil {
		return err
	}
	defer stop()
	err = m.ask(ctx, p.echoClient, "http://"+netip.AddrPortFrom(netip.MustParseAddr(vip), port).String())
	if err != nil && strings.Contains(err.Error(), "tls: no application protocol") {
		// As of 2026-08, its inner server's http.Server.Protocols leaves out HTTP/2
		// over TLS, so that "h2", which the inner tunnel needs, is refused.
		return fmt.Errorf("h2 in the inner tunnel of Istio's echo server (the outer one was opened): %w: %w", errMissing, err)
	}
	return err
}

// application runs Istio's echo server as an ordinary application.
func (p *place) application(ctx context.Context, program string, args ...string) (stop func(), err error) {
	c := exec.CommandContext(ctx, program, append([]string{"--port", fmt.Sprint(port), "--tcp", fmt.Sprint(tcpPort), "--metrics", "0"}, args...)...)
	var out strings.Builder
	c.Stdout, c.Stderr = &out, &out
	if err := p.server.Start(c); err != nil {
		return nil, err
	}
	stop = func() {
		_ = c.Process.Kill()
		_ = c.Wait() // it was killed
	}
	// From within the pod, where nothing is captured.
	err = poll(ctx, func() error {
		conn, err := p.server.Dial(ctx, netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), tcpPort))
		if err == nil {
			_ = conn.Close()
		}
		return err
	})
	if err != nil {
		stop()
		return nil, fmt.Errorf("%w; its log:\n%s", err, out.String())
	}
	return stop, nil
}

// terminator runs Istio's echo server as the end of tunnels, too.
func (p *place) terminator(ctx context.Context, program, flag string) (stop func(), err error) {
	cert, key, err := p.certificate(p.server)
	if err != nil {
		return nil, err
	}
	at := fmt.Sprint(mesh.PortHBONE)
	return p.application(ctx, program, flag, at, "--tls", at, "--crt", cert, "--key", key)
}

// ask runs Istio's echo client in the client's pod.
func (p *place) ask(ctx context.Context, program, url string, args ...string) error {
	out, err := p.client.Exec(ctx, program, append([]string{url, "--count", "3", "--timeout", "20s"}, args...)...)
	if err == nil && !strings.Contains(out, "All 3 requests succeeded") {
		err = errors.New("not all requests succeeded")
	}
	if err != nil {
		return fmt.Errorf("%w:\n%s%s", err, out, p.tails())
	}
	return nil
}

// tails is the last of what the ztunnels said.
func (p *place) tails() string {
	var text strings.Builder
	for node, z := range p.ztunnels {
		log, _ := z.Log()
		lines := strings.Split(strings.TrimSpace(log), "\n")
		fmt.Fprintf(&text, "ztunnel of %s:\n%s\n", node.Name, strings.Join(lines[max(0, len(lines)-5):], "\n"))
	}
	return text.String()
}

// certificate writes files with a certificate for a pod's identity.
func (p *place) certificate(pod *bed.Pod) (cert, key string, err error) {
	c, err := p.bed.Certificate(pod.Namespace, pod.ServiceAccount)
	if err != nil {
		return "", "", err
	}
	der, err := x509.MarshalPKCS8PrivateKey(c.PrivateKey)
	if err != nil {
		return "", "", err
	}
	if cert, err = file(p.bed.Dir(), pod.Name+"-cert.pem", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Certificate[0]})); err != nil {
		return "", "", err
	}
	key, err = file(p.bed.Dir(), pod.Name+"-key.pem", pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
	return cert, key, err
}
