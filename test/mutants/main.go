// Command mutants shows that the invariants of DESIGN section 8 are guarded: each
// patch beside it removes one guarded line, and the test that its header names
// must then fail.
//
// It works on a copy of the tree in a temporary directory, so the checkout is
// never touched. `make mutants` runs it. It runs one mutant after the other;
// system tests share the machine.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"text/tabwriter"
	"time"
)

func main() {
	only := flag.String("only", "", "run only the mutants whose name matches this expression")
	root := flag.String("root", ".", "the checkout to test")
	keep := flag.Bool("v", false, "print the output of the tests")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, *root, *only, *keep); err != nil {
		fmt.Fprintln(os.Stderr, "mutants:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, root, only string, verbose bool) error {
	match, err := regexp.Compile(only)
	if err != nil {
		return fmt.Errorf("-only: %w", err)
	}
	mutants, err := readAll(filepath.Join(root, "test", "mutants"), match)
	if err != nil {
		return err
	}
	if len(mutants) == 0 {
		return fmt.Errorf("no mutant matches %q", only)
	}
	tree, err := copyTree(ctx, root)
	if err != nil {
		return err
	}
	defer os.RemoveAll(tree)
	b := &bench{tree: tree, passed: map[string]error{}}
	if verbose {
		b.output = os.Stderr
	}
	return b.all(ctx, mutants, os.Stdout)
}

// all runs the mutants and prints the table, one line as soon as it is known.
func (b *bench) all(ctx context.Context, mutants []mutant, out io.Writer) error {
	bad := 0
	for _, m := range mutants {
		start := time.Now()
		verdict, err := "killed", b.try(ctx, m)
		if err != nil {
			verdict = "NOT KILLED: " + err.Error()
			bad++
		}
		w := tabwriter.NewWriter(out, 34, 8, 2, ' ', 0)
		fmt.Fprintf(w, "%s\tinvariant %s\t%s\t%s\t%s\n", m.name, m.invariant, m.test, time.Since(start).Round(time.Second/10), verdict)
		if err := w.Flush(); err != nil {
			return err
		}
	}
	if bad > 0 {
		return fmt.Errorf("%d of %d mutants were not killed", bad, len(mutants))
	}
	fmt.Fprintf(out, "%d mutants, all killed\n", len(mutants))
	return nil
}
