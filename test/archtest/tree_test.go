// Package archtest checks the rules of the architecture on the source text: which
// folder may import which, where each third-party package has its home, and the
// shape that every package must have. It parses files and needs no build.
//
// When a test here fails, the code is wrong, not the test. Each rule is a pure
// function from a tree to its findings, so the rules are tested on planted
// defects as well.
package archtest

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/postern-zt/postern"

// file is one parsed Go file.
type file struct {
	path string // relative to the root, with slashes
	ast  *ast.File
	fset *token.FileSet
}

// tree is what the rules judge.
type tree []file

func (f file) dir() string     { return path.Dir(f.path) }
func (f file) top() string     { return strings.SplitN(f.path, "/", 2)[0] }
func (f file) isTest() bool    { return strings.HasSuffix(f.path, "_test.go") }
func (f file) generated() bool { return ast.IsGenerated(f.ast) }

// isFake tells whether the file belongs to the doubles of a package, <pkg>test.
func (f file) isFake() bool { return strings.HasSuffix(f.dir(), "test") }

// inCmd tells whether the file belongs to a main.
func (f file) inCmd() bool { return strings.Contains("/"+f.path, "/cmd/") }

// at names a place for a finding.
func (f file) at(pos token.Pos) string {
	return fmt.Sprintf("%s:%d", f.path, f.fset.Position(pos).Line)
}

// imports gives the import paths with their places.
func (f file) imports() map[string]token.Pos {
	all := map[string]token.Pos{}
	for _, spec := range f.ast.Imports {
		if p, err := strconv.Unquote(spec.Path.Value); err == nil {
			all[p] = spec.Pos()
		}
	}
	return all
}

// localName gives the word under which the file uses an import, if it does.
func (f file) localName(importPath string) (string, bool) {
	for _, spec := range f.ast.Imports {
		if p, _ := strconv.Unquote(spec.Path.Value); p != importPath {
			continue
		}
		if spec.Name != nil {
			return spec.Name.Name, true
		}
		return path.Base(importPath), true
	}
	return "", false
}

// callsOf gives the places where the file calls pkg.name.
func (f file) callsOf(pkg, name string) []token.Pos {
	local, ok := f.localName(pkg)
	if !ok {
		return nil
	}
	var found []token.Pos
	ast.Inspect(f.ast, func(n ast.Node) bool {
		if sel, ok := n.(*ast.SelectorExpr); ok && sel.Sel.Name == name {
			if id, ok := sel.X.(*ast.Ident); ok && id.Name == local {
				found = append(found, sel.Pos())
			}
		}
		return true
	})
	return found
}

// function gives the name of the function around a place, empty for none.
func (f file) function(pos token.Pos) string {
	for _, d := range f.ast.Decls {
		if fn, ok := d.(*ast.FuncDecl); ok && fn.Pos() <= pos && pos < fn.End() {
			return fn.Name.Name
		}
	}
	return ""
}

// readTree parses every Go file of the module.
func readTree(t *testing.T) tree {
	t.Helper()
	root := filepath.Join("..", "..")
	var all tree
	err := filepath.WalkDir(root, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if base := d.Name(); name != root && (strings.HasPrefix(base, ".") || base == "testdata" || base == "node_modules" || base == "bin") {
				return fs.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(name, ".go") {
			return nil
		}
		text, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, name)
		if err != nil {
			return err
		}
		all = append(all, parse(t, filepath.ToSlash(rel), string(text)))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(all) == 0 {
		t.Fatal("no Go files found")
	}
	return all
}

func parse(t *testing.T, name, text string) file {
	t.Helper()
	fset := token.NewFileSet()
	parsed, err := parser.ParseFile(fset, name, text, parser.ParseComments|parser.SkipObjectResolution)
	if err != nil {
		t.Fatal(err)
	}
	return file{path: name, ast: parsed, fset: fset}
}

// under tells whether name is folder or below it.
func under(name, folder string) bool {
	return name == folder || strings.HasPrefix(name, folder+"/")
}

func report(t *testing.T, findings []string) {
	t.Helper()
	slices.Sort(findings)
	for _, f := range slices.Compact(findings) {
		t.Error(f)
	}
}
