// Package backup writes the whole state of the broker into one encrypted file while the
// broker runs, and brings it back. The command line uses it: Create for `backup`, Restore
// and then Recover for `restore`. It must not be used to copy a part of the state.
//
//	file    = "postern-backup-1\n" | header (one line of JSON) | chunks
//	header  = {"kdf":"argon2id"|"key-file", "salt":..., parameters}
//	chunk   = AES-256-GCM of at most 64 KiB, nonce = 0(3) counter(8) last(1)
//	content = lines of JSON: manifest, then for each table its columns and its rows, then an end
//
// The file key is HKDF-SHA256 over the stretched passphrase or the key file, with the salt,
// bound to the header; so one key encrypts one file and the counter may start at zero (the
// STREAM construction). Whoever changes, cuts or reorders anything gets ErrDamaged.
//
// Nothing here is kept between calls; the functions may run at the same time.
package backup
