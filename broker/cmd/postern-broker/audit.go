package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/postern-zt/postern/broker"
	"github.com/postern-zt/postern/broker/audit"
	"github.com/postern-zt/postern/netstack/control"
	"github.com/postern-zt/postern/proto/chain"
	"github.com/postern-zt/postern/proto/ids"
)

// maxKeysFile bounds a file of audit keys.
const maxKeysFile = 1 << 20

// auditCmd checks the tamper-evident record.
type auditCmd struct {
	Verify auditVerifyCmd `cmd:"" help:"Check every chain for changed and missing records."`
	Keys   auditKeysCmd   `cmd:"" help:"Print the public keys by which an exported audit is checked elsewhere."`
}

// auditVerifyCmd checks the database, or an exported file, here or anywhere.
type auditVerifyCmd struct {
	File string `help:"Exported audit instead of the database, - for stdin." placeholder:"FILE"`
	Keys string `help:"With --file away from the broker: what 'audit keys' printed." placeholder:"FILE"`
	Pin  string `help:"With --keys: the broker's URL, or the pin in it, that the keys must belong to." placeholder:"PIN"`
	// ConnectorKey and Head are what others know; the broker cannot change those.
	ConnectorKey []string `help:"The identity key that a connector shows in 'postern-connector status': all of its records must be signed with it. Repeat it." placeholder:"CONNECTOR=KEY" sep:"none"`
	Head         []string `help:"A head that a client or a connector remembers, from its 'status --json': it must still be there. Repeat it." placeholder:"WRITER:NUMBER:HASH" sep:"none"`
	JSON         bool     `name:"json" help:"Print JSON."`
	place
}

// Help shows examples.
func (auditVerifyCmd) Help() string {
	return "Examples:\n    postern-broker audit verify\n    postern-broker audit verify --file audit.jsonl --keys keys.pem --pin 3f1c...\n" +
		"    postern-broker audit verify --connector-key con_7f...=9b04..."
}

// Run verifies; a break is an error.
func (c *auditVerifyCmd) Run(e *env) error {
	report, err := c.verify(e)
	if err != nil {
		return err
	}
	if err := c.print(e.out, report); err != nil {
		return err
	}
	if !report.OK() {
		return fmt.Errorf("the audit does not verify: %w", report.Breaks[0])
	}
	return nil
}

func (c *auditVerifyCmd) verify(e *env) (audit.Report, error) {
	if c.File == "" && (c.Keys != "" || c.Pin != "") || c.Keys == "" && c.Pin != "" {
		return audit.Report{}, errors.New("--pin belongs to --keys, and --keys to --file")
	}
	expect, err := c.expect()
	if err != nil {
		return audit.Report{}, err
	}
	if c.File == "" {
		return c.online(e, func(m *broker.Maintenance) (audit.Report, error) { return m.VerifyAudit(e.ctx, expect) })
	}
	in := os.Stdin
	if c.File != "-" {
		f, err := os.Open(c.File)
		if err != nil {
			return audit.Report{}, err
		}
		defer f.Close()
		in = f
	}
	if c.Keys != "" {
		return c.elsewhere(e, in, expect)
	}
	return c.online(e, func(m *broker.Maintenance) (audit.Report, error) { return m.VerifyAuditFile(e.ctx, in, expect) })
}

// expect reads what others know of the audit.
func (c *auditVerifyCmd) expect() (audit.Trust, error) {
	expect := audit.Trust{Pinned: make(map[ids.ConnectorID]ids.KeyID)}
	for _, text := range c.ConnectorKey {
		name, hash, _ := strings.Cut(text, "=")
		id, err := ids.Parse[ids.ConnectorID](name)
		if err != nil {
			return expect, fmt.Errorf("--connector-key %q: %w", text, err)
		}
		if expect.Pinned[id], err = ids.ParseKeyID(hash); err != nil {
			return expect, fmt.Errorf("--connector-key %q: %w", text, err)
		}
	}
	for _, text := range c.Head {
		h, err := chain.ParseHead(text)
		if err != nil {
			return expect, fmt.Errorf("--head %q: %w", text, err)
		}
		expect.Remembered = append(expect.Remembered, h)
	}
	return expect, nil
}

// online verifies with the database of this host.
func (c *auditVerifyCmd) online(e *env, verify func(*broker.Maintenance) (audit.Report, error)) (_ audit.Report, err error) {
	m, err := c.open(e)
	if err != nil {
		return audit.Report{}, err
	}
	defer func() { err = errors.Join(err, m.Close()) }()
	return verify(m)
}

// elsewhere verifies with public keys alone.
func (c *auditVerifyCmd) elsewhere(e *env, in io.Reader, expect audit.Trust) (audit.Report, error) {
	pin, err := parsePin(c.Pin)
	if err != nil {
		return audit.Report{}, err
	}
	f, err := os.Open(c.Keys)
	if err != nil {
		return audit.Report{}, err
	}
	defer f.Close()
	keys, err := io.ReadAll(io.LimitReader(f, maxKeysFile))
	if err != nil {
		return audit.Report{}, err
	}
	report, found, err := broker.VerifyAuditFile(in, keys, pin, expect)
	if err == nil && c.Pin == "" && !c.JSON {
		fmt.Fprintf(e.out, "The keys belong to the broker with pin %s; compare it with the broker's URL.\n", found)
	}
	return report, err
}

// parsePin takes a pin, or a URL with one; nothing is the zero pin.
func parsePin(text string) (ids.KeyID, error) {
	if text == "" {
		return ids.KeyID{}, nil
	}
	if strings.Contains(text, "://") {
		b, err := control.ParseURL(text)
		return b.Pin, err
	}
	return ids.ParseKeyID(text)
}

func (c *auditVerifyCmd) print(w io.Writer, r audit.Report) error {
	if c.JSON {
		enc := json.NewEncoder(w)
		enc.SetIndent("", "  ")
		return enc.Encode(struct {
			OK bool `json:"ok"`
			audit.Report
		}{r.OK(), r})
	}
	for _, v := range r.Writers {
		fmt.Fprintf(w, "%s: records %d to %d, signed to %d", v.Writer, v.First, v.Head.Seq, v.Signed)
		if v.Dropped > 0 || v.Missing > 0 {
			fmt.Fprintf(w, ", %d archived, %d never arrived", v.Dropped, v.Missing)
		}
		fmt.Fprintln(w)
		if v.Connector {
			fmt.Fprintf(w, "    %s\n", ownSignature(v))
		}
	}
	for _, b := range r.Breaks {
		fmt.Fprintln(w, "BROKEN:", b)
	}
	if r.OK() {
		fmt.Fprintf(w, "The audit is whole: %d records.\n", r.Records)
	}
	return nil
}

// ownSignature says what a connector vouches for itself, and by which key.
func ownSignature(v audit.WriterReport) string {
	if v.OwnKey == "" {
		return "unsigned: only the broker vouches for these records"
	}
	text := fmt.Sprintf("signed by the connector to %d with key %s; compare it with postern-connector status", v.OwnSigned, v.OwnKey)
	if n := v.Unsigned(); n > 0 {
		text += fmt.Sprintf("; UNSIGNED: the last %d", n)
	}
	return text
}

// auditKeysCmd prints the public keys.
type auditKeysCmd struct{ place }

// Help shows an example.
func (auditKeysCmd) Help() string { return "Example:\n    postern-broker audit keys > keys.pem" }

// Run prints them as PEM.
func (c *auditKeysCmd) Run(e *env) (err error) {
	m, err := c.open(e)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, m.Close()) }()
	text, err := m.AuditKeys()
	if err != nil {
		return err
	}
	_, err = e.out.Write(text)
	return err
}
