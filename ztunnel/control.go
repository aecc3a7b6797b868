package ztunnel

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/ambit-mesh/ambit/apis/mesh"
	"github.com/ambit-mesh/ambit/apis/spiffe"
	"github.com/ambit-mesh/ambit/ztunnel/config"
	"github.com/ambit-mesh/ambit/ztunnel/identity"
	"github.com/ambit-mesh/ambit/ztunnel/mtls"
	"github.com/ambit-mesh/ambit/ztunnel/netns"
	"github.com/ambit-mesh/ambit/ztunnel/telemetry"
	"github.com/ambit-mesh/ambit/ztunnel/xds"
)

// connect makes the clients of istiod, as far as there are any. xDS and CA share
// a connection when they are one server.
func (z *Ztunnel) connect() error {
	c := z.cfg
	if c.XDSAddress != "" {
		conn, err := z.dial(c.XDSAddress, c.XDSRoot, c.XDSAltName, c.XDSHeaders)
		if err != nil {
			return fmt.Errorf("xds: %w", err)
		}
		if err := z.subscribe(conn); err != nil {
			return err
		}
	}
	fetch := func(context.Context, spiffe.ID) (*mtls.Certificate, error) { return nil, errNoCA }
	if c.CAAddress != "" {
		conn, err := z.dialCA()
		if err != nil {
			return fmt.Errorf("ca: %w", err)
		}
		shared := c.Mode == config.Shared
		fetch = identity.NewCA(identity.CAConfig{Conn: conn, TTL: c.SecretTTL, Impersonate: shared, AnyIdentity: !shared}).Fetch
	}
	z.identities = identity.NewCache(identity.CacheConfig{Fetch: fetch, Log: z.part("identity")})
	return nil
}

var errNoCA = errors.New("there is no certificate authority (CA_ADDRESS is empty)")

// dialCA uses the connection for xDS if it goes to the same server in the same
// way.
func (z *Ztunnel) dialCA() (*xds.Conn, error) {
	c := z.cfg
	if len(z.istiod) > 0 && c.CAAddress == c.XDSAddress && c.CARoot == c.XDSRoot && c.CAAltName == c.XDSAltName && maps.Equal(c.CAHeaders, c.XDSHeaders) {
		return z.istiod[0], nil
	}
	return z.dial(c.CAAddress, c.CARoot, c.CAAltName, c.CAHeaders)
}

func (z *Ztunnel) dial(address, root, altName string, headers map[string]config.Secret) (*xds.Conn, error) {
	c := z.cfg
	plain := map[string]string{}
	for name, value := range headers {
		plain[name] = string(value)
	}
	d := xds.DialConfig{
		Address: address, RootCertPath: root, AltHostname: altName, Headers: plain,
		TokenPath: c.TokenPath, Token: string(c.Token), ClusterID: c.ClusterID, Secure: mtls.Policy{TLS12: c.TLS12, PQC: c.PQC}.Apply,
	}
	if c.Mode == config.Dedicated && c.PacketMark != 0 {
		d.Connect = z.connectMarked
	}
	conn, err := xds.NewConn(d)
	if err != nil {
		return nil, err
	}
	z.istiod = append(z.istiod, conn)
	return conn, nil
}

// connectMarked opens a connection that the redirection of our own namespace
// leaves alone.
func (z *Ztunnel) connectMarked(ctx context.Context, address string) (net.Conn, error) {
	to, err := netip.ParseAddrPort(address)
	if err != nil {
		return nil, err
	}
	conn, err := (*netns.NS)(nil).Dial(ctx, to, netns.DialOptions{Mark: z.cfg.PacketMark})
	if err != nil {
		return nil, err
	}
	return conn, conn.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: 300 * time.Second, Interval: 75 * time.Second, Count: 9})
}

// subscribe makes the xDS client.
func (z *Ztunnel) subscribe(conn *xds.Conn) error {
	node, err := node(z.cfg)
	if err != nil {
		return err
	}
	addresses := xds.Type{
		URL: mesh.TypeAddress, OnDemand: z.cfg.XDSOnDemand,
		Apply: func(u xds.Update) map[string]error { return z.store.ApplyAddresses(u.Resources, u.Removed) },
	}
	if addresses.OnDemand {
		z.demand = &demand{store: z.store, timeout: demandTimeout}
		addresses.Apply = z.demand.apply
	}
	z.xds = xds.New(xds.Config{Conn: conn, Node: node, Log: z.part("xds"), Types: []xds.Type{
		addresses,
		{URL: mesh.TypeAuthorization, Apply: func(u xds.Update) map[string]error { return z.store.ApplyAuthorizations(u.Resources, u.Removed) }},
	}})
	if z.demand != nil {
		z.demand.client = z.xds
	}
	z.metrics.Observe(telemetry.XDSStats{
		Messages:     func() map[string]uint64 { return z.xds.Stats().Messages },
		Bytes:        func() map[string]uint64 { return z.xds.Stats().Bytes },
		Terminations: func() map[string]uint64 { return z.xds.Stats().Terminations },
	})
	return nil
}

func (z *Ztunnel) disconnect() {
	for _, c := range z.istiod {
		_ = c.Close() // it is only ever closed once
	}
}

// node says who we are, spec/ztunnel.md §4.2.
func node(cfg *config.Config) (*corev3.Node, error) {
	ip := cfg.InstanceIP
	if ip == "" {
		ip = "1.1.1.1"
	}
	fields := map[string]any{"NAME": cfg.PodName, "NAMESPACE": cfg.PodNamespace, "INSTANCE_IPS": ip, "NODE_NAME": cfg.NodeName}
	for key, value := range cfg.Metadata {
		fields[key] = value
	}
	for key, raw := range cfg.RawMetadata {
		var v any
		if err := json.Unmarshal(raw, &v); err != nil {
			return nil, fmt.Errorf("ISTIO_METAJSON_%s: %w", key, err)
		}
		fields[key] = v
	}
	metadata, err := structpb.NewStruct(fields)
	if err != nil {
		return nil, fmt.Errorf("node metadata: %w", err)
	}
	return &corev3.Node{
		Id:       fmt.Sprintf("%s~%s~%s.%s~%s.svc.cluster.local", mesh.NodeTypeZtunnel, ip, cfg.PodName, cfg.PodNamespace, cfg.PodNamespace),
		Metadata: metadata,
	}, nil
}

// prefetch keeps the certificates of the node's workloads requested before the
// first connection needs one, and drops those that no workload uses any more.
func (z *Ztunnel) prefetch(ctx context.Context) error {
	known := map[spiffe.ID]bool{}
	for {
		changed := z.store.Changed()
		now := z.store.Snapshot().LocalIdentities()
		for id := range now {
			if !known[id] {
				z.identities.Prefetch(id)
			}
		}
		for id := range known {
			if !now[id] {
				z.identities.Forget(id)
			}
		}
		known = now
		select {
		case <-changed:
		case <-ctx.Done():
			return nil
		}
	}
}
