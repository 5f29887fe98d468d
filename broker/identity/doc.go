// Package identity answers who a person is. It is an OpenID provider for Postern's own
// clients, with the pages on which people sign in, and it is the only relying party towards
// any external issuer. However somebody proved who they are (password, external issuer,
// device code), the tokens come from one place: opstorage.go.
//
//	client --code+PKCE / device code--> Service (op) --login page--> password (argon2id)
//	                                                  \--redirect--> external issuer (go-oidc)
//	client <--tokens bound to its device key--
//	broker: Verifier.Verify(token, key of the TLS peer) -> Identity
//
// Tokens are bound: a client must ask for exactly one scope "postern:device:<hex KeyID>"; the
// access token carries that key in the claim cnf.postern_key and the Verifier refuses it from
// any other peer. A stolen token is worth nothing without the device's key.
//
// One-time codes (owner, invitation) are shown as links with the code in the fragment, so
// that no proxy, log or Referer ever holds one. The pages have no JavaScript and a server
// never receives a fragment, so the page asks to paste what stands behind the #; terminals
// print link and code separately. Codes have 100 random bits, are stored hashed, work once
// and for hours only, and are taken only together with a complete form.
//
// A sign-in under way belongs to the browser that started it: the id in the address is
// useless without that browser's cookie, so nobody can send a started sign-in to a victim and
// collect the result. The cookie is named by the scheme of Config.URL; a loopback proxy in
// front of the pages must pass cookies on as they are.
//
// A wrong password, an unknown user and a disabled user give the same text, and unknown users
// cost the same argon2id work as known ones. Too many attempts give a text of their own, for
// logins that do not exist too.
//
// The package must not decide about apps or sessions, and holds no keys: signing and sealing
// come in as interfaces. zitadel/oidc and go-oidc are imported here and nowhere else.
//
// A Service is safe for concurrent use. All state that must survive is in Store; throttling
// counters and key caches live in memory, per broker. Run removes expired records.
package identity
