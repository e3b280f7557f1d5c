package testkit

import (
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// ReportOptions compares the flags of a program with docs/options.md, which has
// them between two comments. With OPTIONS=write in the environment, as set by
// `make options`, it writes them there.
func ReportOptions(t *testing.T, program, flags string) {
	t.Helper()
	file := source("docs/options.md")
	text, err := os.ReadFile(file)
	Check(t, err)
	_, rest, begins := strings.Cut(string(text), "<!-- make options: "+program+" -->\n")
	old, after, ends := strings.Cut(rest, "\n<!-- end -->")
	switch {
	case !begins || !ends:
		t.Fatalf("docs/options.md has no place for %s: write the lines <!-- make options: %[1]s --> and <!-- end -->", program)
	case os.Getenv("OPTIONS") == "write":
		Check(t, os.WriteFile(file, []byte(strings.TrimSuffix(string(text), rest)+flags+"\n<!-- end -->"+after), 0o644))
	case old != flags:
		t.Errorf("docs/options.md and the flags of %s differ: run `make options` (-file +flags):\n%s", program, cmp.Diff(old, flags))
	}
}
