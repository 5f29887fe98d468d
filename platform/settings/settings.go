// Package settings reads the configuration of a role: one YAML file, overridden
// by environment variables, decoded strictly into the role's own struct.
//
// The mains use it before anything on the host changes. It knows no key of any
// role, reads no environment by itself and applies nothing. An unknown key is an
// error that names the line and the nearest key, because a setting that silently
// does nothing is how a door stays open.
//
// All functions are pure but [Read] and [ReadChosen], and safe for concurrent use.
package settings

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"reflect"
	"strings"

	"go.yaml.in/yaml/v3"
)

// MaxFile bounds a configuration file; real ones have a few kilobytes.
const MaxFile = 1 << 20

// maxDepth bounds the nesting of a file.
const maxDepth = 32

// Source is where the settings of one role come from.
type Source struct {
	// Role is the word in POSTERN_<ROLE>_<KEY>, for example "broker".
	Role string
	// Name is the file's name in messages.
	Name string
	// Data is the content of the file; empty means every setting has its default.
	Data []byte
	// Environ is the environment in the form of [os.Environ], from main.
	Environ []string
	// Reserved are the variables with the role's prefix that main reads itself,
	// such as POSTERN_CONNECTOR_TOKEN.
	Reserved []string
}

// Validator is implemented by a configuration that can judge itself. The error
// names the field.
type Validator interface{ Validate() error }

// ReadChosen reads the file that the operator named, which must exist, or the standard one,
// which need not. It returns which of them it read.
func ReadChosen(named, standard string) (path string, data []byte, err error) {
	if named == "" {
		data, err = Read(standard)
		return standard, data, err
	}
	if _, err := os.Stat(named); err != nil {
		return named, nil, fmt.Errorf("read configuration: %w", err)
	}
	data, err = Read(named)
	return named, data, err
}

// Read gives the content of a configuration file. A missing file is an empty one.
func Read(path string) ([]byte, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, MaxFile+1))
	if err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	if len(data) > MaxFile {
		return nil, fmt.Errorf("read configuration: %s is longer than %d bytes", path, MaxFile)
	}
	return data, nil
}

// Load sets dst, a pointer to a struct that holds the defaults, from the file and
// then from the environment, and asks it to validate itself. Fields need a yaml
// tag. On error dst is not to be used.
func Load(src Source, dst any) error {
	v := reflect.ValueOf(dst)
	if v.Kind() != reflect.Pointer || v.IsNil() || v.Elem().Kind() != reflect.Struct {
		return fmt.Errorf("settings: %T is no pointer to a struct", dst)
	}
	if err := fromFile(src, dst); err != nil {
		return err
	}
	if err := fromEnviron(src, v.Elem()); err != nil {
		return err
	}
	if val, ok := dst.(Validator); ok {
		if err := val.Validate(); err != nil {
			return fmt.Errorf("%s: %w", src.name(), err)
		}
	}
	return nil
}

func (s Source) name() string {
	if s.Name == "" {
		return "configuration"
	}
	return s.Name
}

func fromFile(src Source, dst any) error {
	if len(src.Data) > MaxFile {
		return fmt.Errorf("%s: longer than %d bytes", src.name(), MaxFile)
	}
	dec := yaml.NewDecoder(strings.NewReader(string(src.Data)))
	var doc yaml.Node
	err := dec.Decode(&doc)
	if errors.Is(err, io.EOF) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("%s: %w", src.name(), err)
	}
	var second yaml.Node
	if err := dec.Decode(&second); !errors.Is(err, io.EOF) {
		return fmt.Errorf("%s: more than one document", src.name())
	}
	root := doc.Content[0]
	if isNull(root) {
		return nil
	}
	if err := check(root, reflect.TypeOf(dst).Elem(), "", 0); err != nil {
		return fmt.Errorf("%s: %w", src.name(), err)
	}
	if err := root.Decode(dst); err != nil {
		return fmt.Errorf("%s: %w", src.name(), err)
	}
	return nil
}

func isNull(n *yaml.Node) bool { return n.Kind == yaml.ScalarNode && n.Tag == "!!null" }
