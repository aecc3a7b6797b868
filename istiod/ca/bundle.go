package ca

import (
	"fmt"
	"slices"
)

// Keys of a Secret that holds an authority, spec/control-plane.md §7.1: ours, or
// that of the user's plugged-in authority, or one of type kubernetes.io/tls, as
// cert-manager makes them.
const (
	keyCert, keyKey, keyChain, keyRoot = "ca-cert.pem", "ca-key.pem", "cert-chain.pem", "root-cert.pem"
	keyTLSCert, keyTLSKey, keyTLSRoot  = "tls.crt", "tls.key", "ca.crt"
)

// LoadSecret reads a signer from the data of a Secret. Where the Secret names a
// root, exactly that is trusted; one without is self-signed, as NewSelfSigned
// makes it.
func LoadSecret(data map[string][]byte) (*Authority, error) {
	cert, key, chain, root := data[keyCert], data[keyKey], data[keyChain], data[keyRoot]
	names := []string{keyCert, keyKey}
	if len(cert) == 0 && len(data[keyTLSCert]) > 0 {
		cert, key, chain, root = data[keyTLSCert], data[keyTLSKey], nil, data[keyTLSRoot]
		names = []string{keyTLSCert, keyTLSKey}
	}
	switch {
	case len(cert) == 0:
		return nil, fmt.Errorf("authority: no %s", names[0])
	case len(key) == 0:
		return nil, fmt.Errorf("authority: no %s", names[1])
	case len(root) == 0 && len(chain) > 0:
		return nil, fmt.Errorf("authority: %s without %s: whom peers are to trust is not said", keyChain, keyRoot)
	case len(root) == 0:
		return Load(cert, key)
	}
	return loadRooted(cert, key, chain, root)
}

// loadRooted reads a signer whose root is given apart. The chain may hold the
// signer and the root again, as Istio's documentation has users make it.
func loadRooted(certPEM, keyPEM, chainPEM, rootPEM []byte) (*Authority, error) {
	certs, err := parseCertificates(certPEM)
	if err != nil {
		return nil, fmt.Errorf("authority: certificate: %w", err)
	}
	key, err := parseKey(keyPEM)
	if err != nil {
		return nil, fmt.Errorf("authority: key: %w", err)
	}
	roots, err := parseCertificates(rootPEM)
	if err != nil {
		return nil, fmt.Errorf("authority: root: %w", err)
	}
	if len(chainPEM) > 0 {
		chain, err := parseCertificates(chainPEM)
		if err != nil {
			return nil, fmt.Errorf("authority: chain: %w", err)
		}
		certs = append(certs, chain...)
	}
	a := &Authority{key: key, signer: certs[0], roots: roots}
	if !slices.ContainsFunc(roots, a.signer.Equal) {
		for _, cert := range certs {
			if !selfSigned(cert) && !slices.ContainsFunc(a.chain, cert.Equal) {
				a.chain = append(a.chain, cert)
			}
		}
	}
	if err := a.validate(); err != nil {
		return nil, fmt.Errorf("authority: %w", err)
	}
	return a, nil
}
