package policy_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/postern-zt/postern/broker/policy"
	"github.com/postern-zt/postern/proto/ids"
)

func TestCanonicalIgnoresOrder(t *testing.T) {
	a, b := input(), input()
	a.Identity.Groups, b.Identity.Groups = []ids.GroupID{"grp_1", "grp_2"}, []ids.GroupID{"grp_2", "grp_1", "grp_2"}
	a.Identity.AMR, b.Identity.AMR = []string{"mfa", "pwd"}, []string{"pwd", "mfa"}
	b.Device.Facts[0], b.Device.Facts[1] = b.Device.Facts[1], b.Device.Facts[0]
	first, err := a.Canonical()
	if err != nil {
		t.Fatal(err)
	}
	second, err := b.Canonical()
	if diff := cmp.Diff(string(first), string(second)); err != nil || diff != "" {
		t.Errorf("canonical forms: %v, -a +b:\n%s", err, diff)
	}
}

// TestOldestInput keeps the first canonical form readable, with the decision of its day.
func TestOldestInput(t *testing.T) {
	const first = `{"app":{"class":"internal","id":"app_wiki","name":"wiki","owner":"Olga"},"context":{"source":"203.0.113.7"},` +
		`"device":{"facts":[{"expires_at":"2026-11-18T12:05:00Z","name":"client_version","observed_at":"2026-11-18T11:59:00Z","source":"client","state":"pass"},` +
		`{"expires_at":"2026-11-18T12:05:00Z","name":"os_supported","observed_at":"2026-11-18T11:59:00Z","source":"client","state":"pass"}],` +
		`"id":"dev_1","registered":true},"identity":{"amr":["pwd"],"auth_time":"2026-11-18T11:59:00Z","groups":["grp_eng"],"session":"ses_1",` +
		`"signed_in_at":"2026-11-18T11:59:00Z","user":"usr_ann"},"risk":{"score":0},"time":"2026-11-18T12:00:00Z","version":1}`
	d, err := compile(t, allow(1)).Replay([]byte(first))
	if err != nil || d.Verdict != policy.VerdictAllow {
		t.Errorf("Replay = %v %v, %v, want allow", d.Verdict, d.Reasons, err)
	}
	in, err := policy.DecodeInput([]byte(first))
	if err != nil {
		t.Fatal(err)
	}
	if again, err := in.Canonical(); err != nil || string(again) != first {
		t.Errorf("canonical form changed, %v:\n%s", err, again)
	}
}

func TestReplayRefuses(t *testing.T) {
	rev := compile(t, allow(1))
	for name, s := range map[string]string{"empty": "", "unknown field": `{"version":1,"nice":1}`, "newer": `{"version":2}`,
		"more after it": `{} {}`, "too large": strings.Repeat(" ", 1<<20)} {
		if d, err := rev.Replay([]byte(s)); err == nil || d.Verdict.Grants() {
			t.Errorf("%s: %v, %v, want an error", name, d.Verdict, err)
		}
	}
}

func TestPreview(t *testing.T) {
	bob := input()
	bob.Identity.User, bob.Identity.Groups = "usr_bob", nil
	var recorded [][]byte
	for _, in := range []policy.Input{input(), bob, input()} {
		b, err := in.Canonical()
		if err != nil {
			t.Fatal(err)
		}
		recorded = append(recorded, b)
	}
	recorded = append(recorded, []byte("garbage"))
	forEng := allow(1)
	forEng.Who = policy.Who{Groups: []ids.GroupID{"grp_eng"}}
	all, eng := compile(t, allow(1)), compile(t, forEng)
	changes, skipped := policy.Preview(all, eng, recorded)
	if len(changes) != 1 || skipped != 1 || changes[0].After.User != "usr_bob" || changes[0].Gives() {
		t.Errorf("narrowing: %+v skipped %d, want bob to lose", changes, skipped)
	}
	if changes, _ := policy.Preview(nil, eng, recorded); len(changes) != 1 || changes[0].After.User != "usr_ann" || !changes[0].Gives() {
		t.Errorf("first publication: %+v, want ann to gain", changes)
	}
	if changes, _ := policy.Preview(eng, eng, recorded); len(changes) != 0 {
		t.Errorf("no change: %+v", changes)
	}
}

func TestWhoCanWhatCan(t *testing.T) {
	forEng := allow(1)
	forEng.Who = policy.Who{Groups: []ids.GroupID{"grp_eng"}}
	rev := compile(t, forEng)
	bob := input()
	bob.Identity.User, bob.Identity.Groups = "usr_bob", nil
	who := rev.WhoCan(input().App, []policy.Input{input(), bob})
	if len(who) != 2 || who[0].Verdict != policy.VerdictAllow || who[1].Verdict != policy.VerdictDeny {
		t.Errorf("WhoCan = %+v", who)
	}
	pay := input().App
	pay.ID = "app_pay"
	what := rev.WhatCan(input(), []policy.App{input().App, pay})
	if len(what) != 2 || what[0].Verdict != policy.VerdictAllow || what[1].Verdict != policy.VerdictDeny {
		t.Errorf("WhatCan = %+v", what)
	}
}
