package settings

import (
	"encoding"
	"errors"
	"fmt"
	"reflect"
	"strings"

	"go.yaml.in/yaml/v3"
)

// KeyError says that a file or the environment names a setting that does not
// exist.
type KeyError struct {
	// Line is the line in the file, zero for the environment.
	Line int
	// Key is the unknown key with its parents, "listen.tpc", or the variable.
	Key string
	// Nearest is the known key that looks most like it, empty if none does.
	Nearest string
}

// Error names place, key and the nearest known key.
func (e *KeyError) Error() string {
	var b strings.Builder
	if e.Line > 0 {
		fmt.Fprintf(&b, "line %d: ", e.Line)
	}
	fmt.Fprintf(&b, "unknown setting %q", e.Key)
	if e.Nearest != "" {
		fmt.Fprintf(&b, ", did you mean %q?", e.Nearest)
	}
	return b.String()
}

var (
	yamlUnmarshaler = reflect.TypeFor[yaml.Unmarshaler]()
	textUnmarshaler = reflect.TypeFor[encoding.TextUnmarshaler]()
)

// readsItself tells whether values of t are decoded by their own method.
func readsItself(t reflect.Type) bool {
	p := reflect.PointerTo(t)
	return p.Implements(yamlUnmarshaler) || p.Implements(textUnmarshaler)
}

// check walks the file beside the type and refuses what the type does not have.
func check(n *yaml.Node, t reflect.Type, path string, depth int) error {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	switch {
	case depth > maxDepth:
		return fmt.Errorf("line %d: nested deeper than %d", n.Line, maxDepth)
	case n.Kind == yaml.AliasNode || n.Anchor != "":
		return fmt.Errorf("line %d: anchors and aliases are not supported", n.Line)
	case n.Kind == yaml.SequenceNode && (t.Kind() == reflect.Slice || t.Kind() == reflect.Array):
		return checkList(n, t.Elem(), path, depth)
	case n.Kind == yaml.MappingNode && t.Kind() == reflect.Map:
		return checkMap(n, t.Elem(), path, depth)
	case n.Kind == yaml.MappingNode && t.Kind() == reflect.Struct && !readsItself(t):
		return checkStruct(n, t, path, depth)
	default:
		return checkRest(n, depth)
	}
}

// checkRest walks what has no keys of ours, for depth and aliases only.
func checkRest(n *yaml.Node, depth int) error {
	for _, c := range n.Content {
		if err := check(c, reflect.TypeFor[string](), "", depth+1); err != nil {
			return err
		}
	}
	return nil
}

func checkList(n *yaml.Node, elem reflect.Type, path string, depth int) error {
	for i, c := range n.Content {
		if err := check(c, elem, fmt.Sprintf("%s[%d]", path, i), depth+1); err != nil {
			return err
		}
	}
	return nil
}

func checkMap(n *yaml.Node, elem reflect.Type, path string, depth int) error {
	return pairs(n, func(key, value *yaml.Node) error {
		return check(value, elem, join(path, key.Value), depth+1)
	})
}

func checkStruct(n *yaml.Node, t reflect.Type, path string, depth int) error {
	known, err := fieldsOf(t)
	if err != nil {
		return err
	}
	return pairs(n, func(key, value *yaml.Node) error {
		f, ok := known[key.Value]
		if !ok {
			near := nearest(key.Value, known)
			if near != "" {
				near = join(path, near)
			}
			return &KeyError{Line: key.Line, Key: join(path, key.Value), Nearest: near}
		}
		return check(value, f.Type, join(path, key.Value), depth+1)
	})
}

func pairs(n *yaml.Node, visit func(key, value *yaml.Node) error) error {
	for i := 0; i+1 < len(n.Content); i += 2 {
		key := n.Content[i]
		if key.Kind != yaml.ScalarNode || key.Tag == "!!merge" {
			return fmt.Errorf("line %d: a key must be a plain word", key.Line)
		}
		if err := visit(key, n.Content[i+1]); err != nil {
			return err
		}
	}
	return nil
}

// fieldsOf gives the settings of a struct by their key.
func fieldsOf(t reflect.Type) (map[string]reflect.StructField, error) {
	known := make(map[string]reflect.StructField, t.NumField())
	for i := range t.NumField() {
		f := t.Field(i)
		if !f.IsExported() {
			continue
		}
		key, _, _ := strings.Cut(f.Tag.Get("yaml"), ",")
		if key == "-" {
			continue
		}
		if key == "" {
			return nil, fmt.Errorf("settings: field %s.%s has no yaml tag", t, f.Name)
		}
		if _, twice := known[key]; twice {
			return nil, errors.New("settings: key " + key + " stands twice in " + t.String())
		}
		known[key] = f
	}
	return known, nil
}

func join(path, key string) string {
	if path == "" {
		return key
	}
	return path + "." + key
}

// nearest gives the known key that needs the fewest changes, if these are few
// for its length.
func nearest[V any](key string, known map[string]V) string {
	best, bestDistance := "", len(key)/2+2
	for k := range known {
		d := distance(strings.ToLower(key), strings.ToLower(k))
		if d < bestDistance || d == bestDistance && best != "" && k < best {
			best, bestDistance = k, d
		}
	}
	return best
}

// maxCompared bounds the words that are compared letter by letter.
const maxCompared = 64

// distance counts the insertions, deletions, replacements and swaps of
// neighbours between a and b (optimal string alignment).
func distance(a, b string) int {
	if len(a) > maxCompared || len(b) > maxCompared {
		return maxCompared
	}
	var before []int
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := 1; i <= len(a); i++ {
		next := make([]int, len(b)+1)
		next[0] = i
		for j := 1; j <= len(b); j++ {
			next[j] = min(next[j-1]+1, row[j]+1, row[j-1]+differ(a[i-1], b[j-1]))
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				next[j] = min(next[j], before[j-2]+1)
			}
		}
		before, row = row, next
	}
	return row[len(b)]
}

func differ(a, b byte) int {
	if a == b {
		return 0
	}
	return 1
}
