package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
)

// mutant is one patch with its header:
//
//	# invariant: 2
//	# packages: ./connector/serve
//	# test: TestServe/refuses_a_foreign_device
//	# why: the comparison of the identity key is gone
//	diff --git a/... b/...
type mutant struct {
	name      string // file name without .patch
	file      string // absolute
	invariant string
	packages  []string
	test      string
	why       string
}

// readAll gives the matching patches in order of their names.
func readAll(dir string, match *regexp.Regexp) ([]mutant, error) {
	files, err := filepath.Glob(filepath.Join(dir, "*.patch"))
	if err != nil {
		return nil, err
	}
	var all []mutant
	for _, file := range files {
		name := strings.TrimSuffix(filepath.Base(file), ".patch")
		if !match.MatchString(name) {
			continue
		}
		m, err := read(file)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", filepath.Base(file), err)
		}
		m.name = name
		all = append(all, m)
	}
	return all, nil
}

func read(file string) (mutant, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return mutant{}, err
	}
	m, err := parseHeader(string(text))
	if err != nil {
		return mutant{}, err
	}
	m.file, err = filepath.Abs(file)
	return m, err
}

func parseHeader(text string) (mutant, error) {
	header, _, found := strings.Cut("\n"+text, "\ndiff --git ")
	if !found {
		return mutant{}, errors.New("no diff in the patch")
	}
	fields := map[string]string{}
	for line := range strings.Lines(header) {
		line = strings.TrimSpace(line)
		if line == "" {
			continue
		}
		key, value, ok := strings.Cut(strings.TrimPrefix(line, "#"), ":")
		key, value = strings.TrimSpace(key), strings.TrimSpace(value)
		if !strings.HasPrefix(line, "#") || !ok || value == "" {
			return mutant{}, fmt.Errorf("header line %q is not \"# key: value\"", line)
		}
		fields[key] = value
	}
	m := mutant{
		invariant: fields["invariant"], packages: strings.Fields(strings.ReplaceAll(fields["packages"], ",", " ")),
		test: fields["test"], why: fields["why"],
	}
	if m.invariant == "" || len(m.packages) == 0 || m.test == "" || m.why == "" {
		return mutant{}, errors.New("the header needs invariant, packages, test and why")
	}
	return m, nil
}

// pattern turns a test's name into the argument of -run that runs it alone.
func (m mutant) pattern() string {
	parts := strings.Split(m.test, "/")
	for i, p := range parts {
		parts[i] = "^" + regexp.QuoteMeta(p) + "$"
	}
	return strings.Join(parts, "/")
}
