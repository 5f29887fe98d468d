package posture

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
	"time"
)

// maxFile bounds what is read of any file.
const maxFile = 64 << 10

// release is what /etc/os-release says.
type release struct {
	id, version, codename, pretty string
}

// system gives the facts os_version and os_supported.
func (c *Collector) system(now time.Time) (version, supported Fact) {
	rel, err := c.release()
	if err != nil {
		return unknown(OSVersion, "%v", err), unknown(OSSupported, "%v", err)
	}
	supported = supportOf(rel, now)
	version = Fact{Name: OSVersion, State: supported.State, Data: c.fullVersion(rel), Evidence: rel.pretty}
	if rel.version == "" {
		version.Data = rel.id
	}
	return version, supported
}

// fullVersion gives "debian 12.11"; Debian keeps the point release in a file of
// its own.
func (c *Collector) fullVersion(rel release) string {
	full := rel.version
	if rel.id == "debian" {
		point, err := c.read("etc/debian_version")
		if p := strings.TrimSpace(string(point)); err == nil && strings.HasPrefix(p, rel.version+".") && len(p) < 16 {
			full = p
		}
	}
	return rel.id + " " + full
}

// supportOf judges a release by the built-in table.
func supportOf(rel release, now time.Time) Fact {
	end, rolling, known := endOfSupport(rel)
	switch {
	case !known:
		return unknown(OSSupported, "no end of support known for %s %s", rel.id, rel.version)
	case rolling:
		return Fact{Name: OSSupported, State: Pass, Evidence: rel.id + " is updated without versions"}
	case now.Before(end.AddDate(0, 0, 1)):
		return Fact{Name: OSSupported, State: Pass, Data: end.Format(time.DateOnly), Evidence: fmt.Sprintf("%s %s has updates until %s", rel.id, rel.version, end.Format(time.DateOnly))}
	default:
		return Fact{Name: OSSupported, State: Fail, Data: end.Format(time.DateOnly), Evidence: fmt.Sprintf("%s %s has no updates since %s", rel.id, rel.version, end.Format(time.DateOnly))}
	}
}

func (c *Collector) release() (release, error) {
	for _, name := range []string{"etc/os-release", "usr/lib/os-release"} {
		data, err := c.read(name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return release{}, err
		}
		return parseRelease(data)
	}
	return release{}, errors.New("no os-release file")
}

// parseRelease reads os-release(5).
func parseRelease(data []byte) (release, error) {
	values := assignments(data)
	rel := release{
		id: strings.ToLower(values["ID"]), version: values["VERSION_ID"],
		codename: values["VERSION_CODENAME"], pretty: values["PRETTY_NAME"],
	}
	if !plain(rel.id) || rel.version != "" && !plain(rel.version) {
		return release{}, errors.New("os-release names no system")
	}
	if rel.pretty == "" || len(rel.pretty) > 100 {
		rel.pretty = rel.id + " " + rel.version
	}
	return rel, nil
}

func plain(s string) bool {
	return s != "" && len(s) <= 40 && strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-") == ""
}

// assignments reads lines of the form KEY="value", as the shell would.
func assignments(data []byte) map[string]string {
	values := map[string]string{}
	lines := bufio.NewScanner(bytes.NewReader(data))
	for lines.Scan() {
		line := strings.TrimSpace(lines.Text())
		key, value, ok := strings.Cut(line, "=")
		if !ok || strings.HasPrefix(line, "#") {
			continue
		}
		if len(value) >= 2 && (value[0] == '"' || value[0] == '\'') && value[len(value)-1] == value[0] {
			value = value[1 : len(value)-1]
		}
		values[key] = strings.Map(printable, value)
	}
	return values
}

// printable drops what a hostile file could do to a terminal or a log.
func printable(r rune) rune {
	if r < ' ' || r == 0x7f {
		return -1
	}
	return r
}

// read gives the content of a file below the root, up to maxFile.
func (c *Collector) read(name string) ([]byte, error) {
	f, err := c.root.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, err
	}
	if len(data) > maxFile {
		return nil, fmt.Errorf("%s is longer than %d bytes", name, maxFile)
	}
	return data, nil
}
