package testkit

import (
	"encoding/csv"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// A row of docs/faults.csv has figures, or states why not. docs/faults.md has a
// row for each of them, with the same test.
func TestEveryRowIsShownOrStatesWhyNot(t *testing.T) {
	if os.Getenv("FAULTS") == "write" {
		t.Log("the rows are being written")
		return
	}
	f, err := os.Open(source("docs/faults.csv"))
	Check(t, err)
	defer func() { _ = f.Close() }()
	rows, err := csv.NewReader(f).ReadAll()
	Check(t, err)
	text, err := os.ReadFile(source("docs/faults.md"))
	Check(t, err)
	explained := map[string][]string{} // id to tests
	for _, cells := range regexp.MustCompile(`(?m)^\| (F\d+) \| [^|]+ \| [^|]+ \| `+"`(.*)`"+` \|$`).FindAllSubmatch(text, -1) {
		explained[string(cells[1])] = append(explained[string(cells[1])], string(cells[2]))
	}
	tests := testNames(t)
	for i, row := range rows[1:] {
		id, test := fmt.Sprintf("F%d", i+1), row[4]
		if row[0] != id { // so would be all that follow
			t.Fatalf("docs/faults.csv: the row of %s is %q", id, row)
		}
		if slices.Contains(row, "") || !regexp.MustCompile(`^\d+$`).MatchString(row[1]) {
			t.Errorf("docs/faults.csv: the row of %s is %q", id, row)
		}
		if !tests[test] || !regexp.MustCompile(id+`\D`).MatchString(test) {
			t.Errorf("docs/faults.csv: %s: there is no test %s", id, test)
		}
		if !slices.Equal(explained[id], []string{test}) {
			t.Errorf("docs/faults.md: the rows of %s name the tests %q, not %s", id, explained[id], test)
		}
	}
	// Every row of the document was found, and no other fault is explained.
	if n := strings.Count(string(text), "\n| F"); n != len(rows)-1 || len(explained) != n {
		t.Errorf("docs/faults.md has %d rows for %d faults, of %d", n, len(explained), len(rows)-1)
	}
}

// testNames returns the tests of faults of all packages.
func testNames(t *testing.T) map[string]bool {
	t.Helper()
	names := map[string]bool{}
	for _, pattern := range []string{"*/*_test.go", "*/*/*_test.go"} {
		files, err := filepath.Glob(source(pattern))
		Check(t, err)
		for _, file := range files {
			text, err := os.ReadFile(file)
			Check(t, err)
			for _, found := range regexp.MustCompile(`(?m)^func (TestF\d+\w*)\(`).FindAllSubmatch(text, -1) {
				names[string(found[1])] = true
			}
		}
	}
	return names
}
