package settings

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// fromEnviron applies POSTERN_<ROLE>_<KEY>; a nested key joins its words with an
// underscore, a list is separated by commas.
func fromEnviron(src Source, v reflect.Value) error {
	prefix := "POSTERN_" + upper(src.Role) + "_"
	known := map[string]reflect.Value{}
	if err := variables(prefix, v, known); err != nil {
		return err
	}
	set := map[string]string{}
	for _, e := range src.Environ {
		name, value, ok := strings.Cut(e, "=")
		if ok && strings.HasPrefix(name, prefix) && !slices.Contains(src.Reserved, name) {
			set[name] = value
		}
	}
	for _, name := range slices.Sorted(maps.Keys(set)) {
		field, ok := known[name]
		if !ok {
			return fmt.Errorf("environment: %w", &KeyError{Key: name, Nearest: nearest(name, known)})
		}
		if err := assign(field, set[name]); err != nil {
			// The value is left out: it may be a secret.
			return fmt.Errorf("environment: %s: not a valid %s", name, field.Type())
		}
	}
	return nil
}

// variables collects the settings that one variable can hold.
func variables(prefix string, v reflect.Value, into map[string]reflect.Value) error {
	fields, err := fieldsOf(v.Type())
	if err != nil {
		return err
	}
	for key, f := range fields {
		name, field := prefix+upper(key), v.FieldByIndex(f.Index)
		if field.Kind() == reflect.Struct && !readsItself(field.Type()) {
			if err := variables(name+"_", field, into); err != nil {
				return err
			}
			continue
		}
		if !fitsVariable(field.Type()) {
			continue
		}
		if _, twice := into[name]; twice {
			return fmt.Errorf("settings: two keys have the variable %s", name)
		}
		into[name] = field
	}
	return nil
}

func fitsVariable(t reflect.Type) bool {
	switch {
	case readsItself(t):
		return true
	case t.Kind() == reflect.Slice:
		return t.Elem().Kind() != reflect.Slice && fitsVariable(t.Elem())
	default:
		return t.Kind() != reflect.Struct && t.Kind() != reflect.Map && t.Kind() != reflect.Pointer &&
			t.Kind() != reflect.Interface
	}
}

// assign decodes text as YAML would, without letting it become more than one
// value.
func assign(field reflect.Value, text string) error {
	if field.Kind() == reflect.Slice && !readsItself(field.Type()) {
		return assignList(field, text)
	}
	fresh := reflect.New(field.Type())
	if err := scalar(text, field.Type()).Decode(fresh.Interface()); err != nil {
		return err
	}
	field.Set(fresh.Elem())
	return nil
}

func assignList(field reflect.Value, text string) error {
	list := reflect.MakeSlice(field.Type(), 0, 0)
	for item := range strings.SplitSeq(text, ",") {
		item = strings.TrimSpace(item)
		if item == "" {
			continue
		}
		elem := reflect.New(field.Type().Elem()).Elem()
		if err := assign(elem, item); err != nil {
			return err
		}
		list = reflect.Append(list, elem)
	}
	field.Set(list)
	return nil
}

// scalar makes a YAML scalar; for text it is text, also when it looks like a
// number.
func scalar(text string, t reflect.Type) *yaml.Node {
	n := &yaml.Node{Kind: yaml.ScalarNode, Value: text}
	if t.Kind() == reflect.String {
		n.Tag = "!!str"
	}
	return n
}

func upper(key string) string {
	return strings.ToUpper(strings.NewReplacer("-", "_", ".", "_").Replace(key))
}
