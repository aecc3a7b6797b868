package main

import (
	"context"
	"fmt"
	"net/netip"
	"strings"

	"github.com/ambit-mesh/ambit/apis/mesh"
)

// nghttp runs nghttp2's client at our port 15008. It cannot open tunnels: what
// it shows is that SETTINGS, HEADERS, PING, DATA and GOAWAY of an independent
// implementation are understood, and a request that is no CONNECT is answered.
func nghttp(ctx context.Context, r *report, dir string, p programs) error {
	const pair = "nghttp2/ztunnel"
	missing := need("nghttp (Debian: nghttp2-client)", p.nghttp)
	for _, s := range []struct {
		name string
		args []string
	}{
		{"get-is-answered", nil},
		{"many-streams", []string{"--multiply", "50"}},
		{"small-windows", []string{"--window-bits", "16", "--connection-window-bits", "16"}},
		{"padding-and-no-priority", []string{"--padding", "255", "--no-dep"}},
		{"post-with-body", []string{"--data", p.ztunnel, "--timeout", "20s"}},
	} {
		r.run(ctx, pair, s.name, missing, func(ctx context.Context) error { return nghttpOnce(ctx, dir, p, s.args) })
	}
	return nil
}

func nghttpOnce(ctx context.Context, dir string, p programs, args []string) error {
	m, err := newPlace(ctx, dir, "", p.ztunnel)
	if err != nil {
		return err
	}
	defer func() { _ = m.bed.Close() }()
	cert, key, err := m.certificate(m.client)
	if err != nil {
		return err
	}
	url := "https://" + netip.AddrPortFrom(m.server.Addr, mesh.PortHBONE).String() + "/"
	args = append(append([]string{"--verbose", "--no-verify-peer", "--cert", cert, "--key", key}, args...), url)
	out, err := m.client.Exec(ctx, p.nghttp, args...)
	if err == nil && !strings.Contains(out, ":status: 4") {
		err = fmt.Errorf("no answer with a status 4xx")
	}
	if err == nil && (strings.Contains(out, "PROTOCOL_ERROR") || strings.Contains(out, "FLOW_CONTROL_ERROR")) {
		err = fmt.Errorf("an HTTP/2 error")
	}
	if err != nil {
		return fmt.Errorf("%w:\n%s", err, out)
	}
	return nil
}
