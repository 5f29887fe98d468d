package admincli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

// printer writes answers for people or for programs.
type printer struct {
	out  io.Writer
	json bool
	now  time.Time
}

// show prints msg as JSON if that was asked for, else what human writes.
func (p printer) show(msg proto.Message, human func(w io.Writer)) error {
	var buf bytes.Buffer
	if p.json {
		raw, err := protojson.MarshalOptions{EmitUnpopulated: true}.Marshal(msg)
		if err != nil {
			return err
		}
		// protojson varies its white space on purpose; scripts compare output.
		if err := json.Indent(&buf, raw, "", "  "); err != nil {
			return err
		}
		buf.WriteByte('\n')
	} else {
		human(&buf)
	}
	_, err := p.out.Write(buf.Bytes())
	return err
}

// table shows msg as rows; none is the sentence for an empty one.
func (p printer) table(msg proto.Message, none string, t *table) error {
	return p.show(msg, func(w io.Writer) { t.write(w, none) })
}

// table is aligned text in columns.
type table struct {
	head []string
	rows [][]string
}

func columns(head ...string) *table { return &table{head: head} }

// add appends a row with one cell for each column.
func (t *table) add(cells ...string) {
	row := make([]string, len(cells))
	for i, c := range cells {
		if row[i] = clean(c); row[i] == "" {
			row[i] = "-"
		}
	}
	t.rows = append(t.rows, row)
}

func (t *table) write(w io.Writer, none string) {
	if len(t.rows) == 0 {
		fmt.Fprintln(w, none)
		return
	}
	widths := t.widths()
	for _, row := range append([][]string{t.head}, t.rows...) {
		fmt.Fprintln(w, strings.TrimRight(align(row, widths), " "))
	}
}

func (t *table) widths() []int {
	widths := make([]int, len(t.head))
	for _, row := range append([][]string{t.head}, t.rows...) {
		for i, c := range row {
			widths[i] = max(widths[i], utf8.RuneCountInString(c))
		}
	}
	return widths
}

func align(row []string, widths []int) string {
	var b strings.Builder
	for i, c := range row {
		b.WriteString(c + strings.Repeat(" ", widths[i]-utf8.RuneCountInString(c)+2))
	}
	return b.String()
}

// pairs writes "name  value" lines; lines with an empty value are left out.
func pairs(w io.Writer, nameValue ...string) {
	width := 0
	for i := 0; i < len(nameValue); i += 2 {
		width = max(width, len(nameValue[i]))
	}
	for i := 0; i+1 < len(nameValue); i += 2 {
		if v := clean(nameValue[i+1]); v != "" {
			fmt.Fprintf(w, "%-*s  %s\n", width, nameValue[i], v)
		}
	}
}

// clean makes text safe for a terminal: what a device or a connector calls itself must not
// move the cursor or hide a line.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\n' || r == '\t':
			return ' '
		case unicode.IsControl(r) || unicode.Is(unicode.Bidi_Control, r) || r == utf8.RuneError:
			return '?'
		default:
			return r
		}
	}, s)
}

// cleanLines is clean for text of several lines.
func cleanLines(s string) string {
	lines := strings.Split(strings.TrimRight(s, "\n"), "\n")
	for i, l := range lines {
		lines[i] = clean(l)
	}
	return strings.Join(lines, "\n")
}

const day = 24 * time.Hour

// ago says when something was.
func (p printer) ago(ms int64) string {
	if ms == 0 {
		return "never"
	}
	d := p.now.Sub(time.UnixMilli(ms))
	switch {
	case d < 10*time.Second:
		return "now"
	case d > 30*day:
		return time.UnixMilli(ms).UTC().Format(time.DateOnly)
	default:
		return span(d) + " ago"
	}
}

// until says when something will be.
func (p printer) until(ms int64) string {
	if ms == 0 {
		return "never"
	}
	if d := time.UnixMilli(ms).Sub(p.now); d > 0 {
		return "in " + span(d)
	}
	return "over"
}

// at is the exact time, for records.
func at(ms int64) string {
	if ms == 0 {
		return ""
	}
	return time.UnixMilli(ms).UTC().Format("2006-01-02 15:04:05Z")
}

// span names a length of time by its largest unit.
func span(d time.Duration) string {
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%d s", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%d min", int(d.Minutes()))
	case d < 2*day:
		return fmt.Sprintf("%d h", int(d.Hours()))
	default:
		return fmt.Sprintf("%d days", int(d/day))
	}
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

// count is "1 grant", "3 grants".
func count(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}
