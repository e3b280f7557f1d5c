package main_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// A user who searches for a line that a program has written must find it.
// Values that vary, and texts of the system, are not compared.
func TestTextsOfTroubleshootingAreInTheSources(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../docs/troubleshooting.md")
	check(t, err)
	var sources strings.Builder
	for _, top := range []string{"../client", "../cmd", "../server", "../internal", "../uds", "../deploy", "../tools/offline"} {
		check(t, filepath.WalkDir(top, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || strings.HasSuffix(path, "_test.go") || !slices.Contains([]string{".go", ".sh"}, filepath.Ext(path)) {
				return err
			}
			source, err := os.ReadFile(path)
			sources.Write(source)
			return err
		}))
	}
	system := map[string]bool{}
	for errno := range syscall.Errno(134) {
		system[errno.Error()] = true
	}
	rows := regexp.MustCompile("(?m)^\\| `(.*?)` \\|").FindAllStringSubmatch(string(text), -1)
	if len(rows) < 30 {
		t.Fatalf("%d texts", len(rows))
	}
	varies := regexp.MustCompile(`…|[0-9][0-9smh]*|: | \(E[A-Z]+\)| before `)
	for _, row := range rows {
		for _, piece := range varies.Split(row[1], -1) {
			if piece = strings.TrimSpace(piece); !system[piece] && !strings.Contains(sources.String(), piece) {
				t.Errorf("docs/troubleshooting.md: %q of %q is nowhere in the sources", piece, row[1])
			}
		}
	}
}
