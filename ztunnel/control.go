package ztunnel

import (
	"context"
	"encoding/json"
	"fmt"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/ambit-mesh/ambit/apis/mesh"
	"github.com/ambit-mesh/ambit/apis/spiffe"
	"github.com/ambit-mesh/ambit/ztunnel/config"
	"github.com/ambit-mesh/ambit/ztunnel/identity"
	"github.com/ambit-mesh/ambit/ztunnel/telemetry"
	"github.com/ambit-mesh/ambit/ztunnel/xds"
)

// connect makes the clients of istiod. xDS and CA share a connection when they
// are one server.
func (z *Ztunnel) connect() error {
	toXDS := xds.DialConfig{
		Address: z.cfg.XDSAddress, RootCertPath: z.cfg.XDSRoot, TokenPath: z.cfg.TokenPath, ClusterID: z.cfg.ClusterID, AltHostname: z.cfg.XDSAltName,
	}
	toCA := xds.DialConfig{
		Address: z.cfg.CAAddress, RootCertPath: z.cfg.CARoot, TokenPath: z.cfg.TokenPath, ClusterID: z.cfg.ClusterID, AltHostname: z.cfg.CAAltName,
	}
	conn, err := xds.Dial(toXDS)
	if err != nil {
		return fmt.Errorf("xds: %w", err)
	}
	z.istiod = append(z.istiod, conn)
	node, err := node(z.cfg)
	if err != nil {
		z.disconnect()
		return err
	}
	z.xds = xds.New(xds.Config{Conn: conn, Node: node, Log: z.part("xds"), Types: []xds.Type{
		{URL: mesh.TypeAddress, Apply: func(u xds.Update) map[string]error { return z.store.ApplyAddresses(u.Resources, u.Removed) }},
		{URL: mesh.TypeAuthorization, Apply: func(u xds.Update) map[string]error { return z.store.ApplyAuthorizations(u.Resources, u.Removed) }},
	}})
	z.metrics.Observe(telemetry.XDSStats{
		Messages:     func() map[string]uint64 { return z.xds.Stats().Messages },
		Bytes:        func() map[string]uint64 { return z.xds.Stats().Bytes },
		Terminations: func() map[string]uint64 { return z.xds.Stats().Terminations },
	})
	if toCA != toXDS {
		if conn, err = xds.Dial(toCA); err != nil {
			z.disconnect()
			return fmt.Errorf("ca: %w", err)
		}
		z.istiod = append(z.istiod, conn)
	}
	ca := identity.NewCA(identity.CAConfig{Conn: conn, TTL: z.cfg.SecretTTL, Impersonate: true})
	z.identities = identity.NewCache(identity.CacheConfig{Fetch: ca.Fetch, Log: z.part("identity")})
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
