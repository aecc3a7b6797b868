package ca

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
)

// Limits of what a stranger may have us parse and compute.
const (
	maxCSRBytes = 32 << 10
	minRSABits  = 2048
	maxRSABits  = 8192
)

// publicKey reads a certificate request and returns its public key, after the
// request's signature has proved that the private one is at hand.
func publicKey(csrPEM string) (crypto.PublicKey, error) {
	if len(csrPEM) > maxCSRBytes {
		return nil, &Refusal{ReasonCSR, fmt.Errorf("request of %d bytes", len(csrPEM))}
	}
	block, rest := pem.Decode([]byte(csrPEM))
	if block == nil || block.Type != "CERTIFICATE REQUEST" || len(bytes.TrimSpace(rest)) > 0 {
		return nil, &Refusal{ReasonCSR, errors.New("not exactly one PEM block CERTIFICATE REQUEST")}
	}
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, &Refusal{ReasonCSR, err}
	}
	// The key comes first: verifying with an absurd one costs us.
	if err := strong(csr.PublicKey); err != nil {
		return nil, &Refusal{ReasonCSRKey, err}
	}
	switch csr.SignatureAlgorithm {
	case x509.SHA1WithRSA, x509.ECDSAWithSHA1, x509.DSAWithSHA1:
		return nil, &Refusal{ReasonCSRSignature, fmt.Errorf("signature algorithm %s", csr.SignatureAlgorithm)}
	default: // CheckSignature knows the others
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, &Refusal{ReasonCSRSignature, err}
	}
	return csr.PublicKey, nil
}

func strong(key crypto.PublicKey) error {
	switch key := key.(type) {
	case *rsa.PublicKey:
		if bits := key.N.BitLen(); bits < minRSABits || bits > maxRSABits {
			return fmt.Errorf("RSA key of %d bits, want %d to %d", bits, minRSABits, maxRSABits)
		}
	case *ecdsa.PublicKey:
		switch key.Curve {
		case elliptic.P256(), elliptic.P384(), elliptic.P521():
		default:
			return fmt.Errorf("curve %s", key.Curve.Params().Name)
		}
	case ed25519.PublicKey:
	default:
		return fmt.Errorf("key of type %T", key)
	}
	return nil
}

func parseCertificates(data []byte) ([]*x509.Certificate, error) {
	var certs []*x509.Certificate
	for len(bytes.TrimSpace(data)) > 0 {
		block, rest := pem.Decode(data)
		if block == nil {
			return nil, errors.New("what follows is not PEM")
		}
		if block.Type != pemCertificate {
			return nil, fmt.Errorf("PEM block %q", block.Type)
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		certs, data = append(certs, cert), rest
	}
	if len(certs) == 0 {
		return nil, errors.New("none")
	}
	return certs, nil
}

// parseKey reads a key in any of the encodings that Istio's Secrets hold. Its
// errors never show any of it.
func parseKey(data []byte) (crypto.Signer, error) {
	block, _ := pem.Decode(data)
	if block == nil {
		return nil, errors.New("not PEM")
	}
	var key any
	var err error
	switch block.Type {
	case pemPrivateKey:
		key, err = x509.ParsePKCS8PrivateKey(block.Bytes)
	case "EC PRIVATE KEY":
		key, err = x509.ParseECPrivateKey(block.Bytes)
	case "RSA PRIVATE KEY":
		key, err = x509.ParsePKCS1PrivateKey(block.Bytes)
	default:
		return nil, fmt.Errorf("PEM block %q", block.Type)
	}
	if err != nil {
		return nil, fmt.Errorf("PEM block %q does not parse", block.Type)
	}
	switch key := key.(type) {
	case *rsa.PrivateKey:
		return key, strong(key.Public())
	case *ecdsa.PrivateKey:
		return key, strong(key.Public())
	default:
		return nil, fmt.Errorf("key of type %T, want RSA or ECDSA", key)
	}
}
