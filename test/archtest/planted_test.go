package archtest

import (
	"strings"
	"testing"
)

// Each rule must see a planted defect and must leave its innocent neighbour
// alone: a rule that finds nothing looks like a clean tree.
func TestRulesFindPlantedDefects(t *testing.T) {
	tests := []struct {
		name, path, text string
		rule             func(tree) []string
		want             string // empty: nothing is found
	}{
		{"role imports role", "client/a/a.go", `package a; import _ "` + module + `/broker/b"`, layerFindings, "client may not import broker/b"},
		{"platform imports proto", "platform/a/a.go", `package a; import _ "` + module + `/proto/ids"`, layerFindings, "platform may not import proto/ids"},
		{"leaf imports leaf", "platform/a/a.go", `package a; import _ "` + module + `/platform/b"`, layerFindings, "platform may not import platform/b"},
		{"fake imports its leaf", "platform/a/atest/a.go", `package atest; import _ "` + module + `/platform/a"`, layerFindings, ""},
		{"netstack imports platform", "netstack/a/a.go", `package a; import _ "` + module + `/platform/tun"`, layerFindings, "may not import"},
		{"role imports netstack", "client/a/a.go", `package a; import _ "` + module + `/netstack/link"`, layerFindings, ""},
		{"program imports harness", "client/a/a.go", `package a; import _ "` + module + `/test/netlab"`, layerFindings, "client may not import test/netlab"},
		{"test imports harness", "client/a/a_test.go", `package a; import _ "` + module + `/test/netlab"`, layerFindings, ""},
		{"new top folder", "lib/a.go", `package lib`, layerFindings, "without a layer"},
		{"quic outside its home", "client/a/a.go", `package a; import _ "github.com/quic-go/quic-go/http3"`, homeFindings, "has its home in netstack/carrier/quic"},
		{"quic at home", "netstack/carrier/quic/a.go", `package quic; import _ "github.com/quic-go/quic-go"`, homeFindings, ""},
		{"kong in a main", "broker/cmd/postern-broker/main.go", `package main; import _ "github.com/alecthomas/kong"`, homeFindings, ""},
		{"kong in a leaf", "broker/a/a.go", `package a; import _ "github.com/alecthomas/kong"`, homeFindings, "has its home"},
		{"unknown dependency", "broker/a/a.go", `package a; import _ "example.org/x"`, homeFindings, "has no home"},
		{"test library in code", "broker/a/a.go", `package a; import _ "go.uber.org/goleak"`, homeFindings, "has its home in _test"},
		{"util", "client/util/a.go", `package util`, nameFindings, "says nothing"},
		{"init", "client/a/a.go", `package a; func init() {}`, initFindings, "init outside cmd"},
		{"init method", "client/a/a.go", `package a; type T int; func (T) init() {}`, initFindings, ""},
		{"sleep", "client/a/a_test.go", `package a; import "time"; func f() { time.Sleep(1) }`, sleepFindings, "time.Sleep"},
		{"renamed sleep", "client/a/a_test.go", `package a; import clock "time"; func f() { clock.Sleep(1) }`, sleepFindings, "time.Sleep"},
		{"other sleep", "client/a/a_test.go", `package a; func f(bed B) { bed.Sleep(1) }`, sleepFindings, ""},
		{"allocation proof", "client/a/a_test.go", `package a; import x "testing"; func TestNoAllocation(t *x.T) { x.AllocsPerRun(1, nil) }`, proofFindings, ""},
		{"allocation proof by another name", "client/a/a_test.go", `package a; import x "testing"; func TestIsFast(t *x.T) { x.AllocsPerRun(1, nil) }`, proofFindings, `"TestIsFast"`},
		{"no comment", "client/a/a.go", "package a", commentFindings, "no package comment"},
		{"comment", "client/a/a.go", "// Package a is.\npackage a", commentFindings, ""},
		{"background", "client/a/a.go", `package a; import "context"; var c = context.Background()`, noBackground, "cuts the caller"},
		{"background in main", "client/cmd/x/a.go", `package main; import "context"; var c = context.Background()`, noBackground, ""},
		{"log key", "client/a/a.go", `package a; import "log/slog"; func f(l *slog.Logger) { l.Info("m", "wrongkey", 1) }`, onlyErr, `"wrongkey"`},
		{"log key behind an attribute", "client/a/a.go", `package a; import "log/slog"; func f(l *slog.Logger) { l.Info("m", slog.Int("err", 1), "wrongkey", 1) }`, onlyErr, `"wrongkey"`},
		{"attribute key", "client/a/a.go", `package a; import "log/slog"; var a = slog.String("wrongkey", "v")`, onlyErr, `"wrongkey"`},
		{"known log key", "client/a/a.go", `package a; import "log/slog"; func f(l *slog.Logger) { l.With("err", "wrongkey").Info("wrongkey") }`, onlyErr, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := strings.Join(tt.rule(tree{parse(t, tt.path, tt.text)}), "\n")
			if tt.want == "" && got != "" || !strings.Contains(got, tt.want) {
				t.Errorf("found %q, want %q", got, tt.want)
			}
		})
	}
}

func noBackground(all tree) []string { return backgroundFindings(all, nil) }
func onlyErr(all tree) []string      { return keyFindings(all, []string{"err"}) }
