package identity

import (
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"fmt"
	"slices"

	jose "github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/cryptosigner"
	"github.com/zitadel/oidc/v3/pkg/oidc"
	"github.com/zitadel/oidc/v3/pkg/op"
)

// SigningKey returns the current key for the library.
func (o opStorage) SigningKey(ctx context.Context) (op.SigningKey, error) {
	k, err := o.s.cfg.Keys.SigningKey(ctx)
	if err != nil {
		return nil, fmt.Errorf("signing key: %w", err)
	}
	alg, err := algorithmOf(k.Signer.Public())
	return joseKey{id: k.ID, key: cryptosigner.Opaque(k.Signer), alg: alg}, err
}

// SignatureAlgorithms lists what the current keys use.
func (o opStorage) SignatureAlgorithms(ctx context.Context) ([]jose.SignatureAlgorithm, error) {
	keys, err := o.KeySet(ctx)
	if err != nil {
		return nil, err
	}
	var algs []jose.SignatureAlgorithm
	for _, k := range keys {
		algs = append(algs, k.Algorithm())
	}
	slices.Sort(algs)
	return slices.Compact(algs), nil
}

// KeySet returns the public keys under which tokens count.
func (o opStorage) KeySet(ctx context.Context) ([]op.Key, error) {
	keys, err := o.s.cfg.Keys.VerifyKeys(ctx)
	if err != nil {
		return nil, fmt.Errorf("verify keys: %w", err)
	}
	var set []op.Key
	for _, k := range keys {
		alg, err := algorithmOf(k.Public)
		if err != nil {
			return nil, err
		}
		set = append(set, joseKey{id: k.ID, key: k.Public, alg: alg})
	}
	return set, nil
}

// joseKey shows a key to the library, as signing and as public key.
type joseKey struct {
	id  string
	key any
	alg jose.SignatureAlgorithm
}

func (k joseKey) ID() string                                  { return k.id }
func (k joseKey) Key() any                                    { return k.key }
func (k joseKey) Use() string                                 { return oidc.KeyUseSignature }
func (k joseKey) Algorithm() jose.SignatureAlgorithm          { return k.alg }
func (k joseKey) SignatureAlgorithm() jose.SignatureAlgorithm { return k.alg }

func algorithmOf(public any) (jose.SignatureAlgorithm, error) {
	switch public.(type) {
	case ed25519.PublicKey:
		return jose.EdDSA, nil
	case *ecdsa.PublicKey:
		return jose.ES256, nil
	default:
		return "", fmt.Errorf("unsupported token key %T", public)
	}
}
