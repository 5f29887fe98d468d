package archtest

import (
	_ "embed"
	"fmt"
	"go/ast"
	"go/token"
	"slices"
	"strconv"
	"strings"
	"testing"
)

//go:embed logkeys.txt
var logKeys string

// logCalls gives, for each logging method, where its key-value list starts.
func logCalls() map[string]int {
	return map[string]int{
		"Debug": 1, "Info": 1, "Warn": 1, "Error": 1, "With": 0,
		"DebugContext": 2, "InfoContext": 2, "WarnContext": 2, "ErrorContext": 2, "Log": 3,
	}
}

// attrFuncs are the functions of slog that take a key first.
func attrFuncs() []string {
	return []string{"Any", "Bool", "Duration", "Float64", "Group", "Int", "Int64", "String", "Time", "Uint64"}
}

// usedKeys gives each key that the code logs with one place of use. Without types
// a logger is known by its method and a file that imports log/slog.
func usedKeys(all tree) map[string]string {
	used := map[string]string{}
	for _, f := range all {
		local, ok := f.localName("log/slog")
		if f.isTest() || f.top() == "test" || !ok {
			continue
		}
		ast.Inspect(f.ast, func(n ast.Node) bool {
			if call, ok := n.(*ast.CallExpr); ok {
				for _, key := range keysOf(call, local) {
					used[key] = f.at(call.Pos())
				}
			}
			return true
		})
	}
	return used
}

func keysOf(call *ast.CallExpr, slogName string) []string {
	sel, ok := call.Fun.(*ast.SelectorExpr)
	if !ok {
		return nil
	}
	if id, ok := sel.X.(*ast.Ident); ok && id.Name == slogName && slices.Contains(attrFuncs(), sel.Sel.Name) {
		return literalsAt(call.Args, 0, len(call.Args))
	}
	start, ok := logCalls()[sel.Sel.Name]
	if !ok || len(call.Args) < start {
		return nil
	}
	if start > 0 {
		if _, isMessage := literal(call.Args[start-1]); !isMessage {
			return nil // another kind of method with the same name
		}
	}
	return literalsAt(call.Args[start:], 0, 2)
}

// literalsAt gives the string literals at first, first+step and so on; an
// attribute between them takes one place and is read as a call of its own.
func literalsAt(args []ast.Expr, first, step int) []string {
	var keys []string
	for i := first; i < len(args); {
		key, ok := literal(args[i])
		if !ok {
			i++
			continue
		}
		keys = append(keys, key)
		i += step
	}
	return keys
}

func literal(e ast.Expr) (string, bool) {
	lit, ok := e.(*ast.BasicLit)
	if !ok || lit.Kind != token.STRING {
		return "", false
	}
	s, err := strconv.Unquote(lit.Value)
	return s, err == nil
}

func keyFindings(all tree, list []string) []string {
	var found []string
	for key, place := range usedKeys(all) {
		if !slices.Contains(list, key) {
			found = append(found, fmt.Sprintf("%s: log key %q is not in test/archtest/logkeys.txt; use a known word or add it", place, key))
		}
	}
	return found
}

func TestLogKeysComeFromTheList(t *testing.T) {
	list := strings.Fields(logKeys)
	if !slices.IsSorted(list) || len(slices.Compact(slices.Clone(list))) != len(list) {
		t.Error("logkeys.txt is not sorted or has a word twice")
	}
	report(t, keyFindings(readTree(t), list))
}
