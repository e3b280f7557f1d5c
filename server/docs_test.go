package main_test

import (
	"io/fs"
	"maps"
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

func TestLinksOfTheDocumentsLeadSomewhere(t *testing.T) {
	t.Parallel()
	documents, err := filepath.Glob("../docs/*.md")
	check(t, err)
	documents = append(documents, "../README.md", "../SECURITY.md", "../CONTRIBUTING.md")
	anchors := map[string]map[string]bool{}
	texts := map[string]string{}
	for _, document := range documents {
		text, err := os.ReadFile(document)
		check(t, err)
		// Text in a code block is neither a heading nor a link.
		texts[document] = regexp.MustCompile("(?s)```.*?```").ReplaceAllString(string(text), "")
		anchors[document] = map[string]bool{}
		for _, heading := range regexp.MustCompile(`(?m)^#+ (.*)$`).FindAllStringSubmatch(texts[document], -1) {
			words := regexp.MustCompile(`[^a-z0-9 _-]`).ReplaceAllString(strings.ToLower(heading[1]), "")
			anchors[document][strings.ReplaceAll(words, " ", "-")] = true
		}
	}
	for _, document := range slices.Sorted(maps.Keys(texts)) {
		for _, link := range regexp.MustCompile(`\]\(([^)\s]+)\)`).FindAllStringSubmatch(texts[document], -1) {
			if strings.Contains(link[1], "://") {
				continue
			}
			file, anchor, _ := strings.Cut(link[1], "#")
			path := document
			if file != "" {
				path = filepath.Join(filepath.Dir(document), file)
			}
			if _, err := os.Stat(path); err != nil {
				t.Errorf("%s: %v", document, err)
			}
			if anchor != "" && !anchors[path][anchor] {
				t.Errorf("%s: %s has no such heading", document, link[1])
			}
		}
	}
}
