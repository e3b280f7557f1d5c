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

	"github.com/google/go-cmp/cmp"
)

// docs/options.md contains every command, with every flag and its variable,
// and nothing else.
func TestOptionsAreThoseOfTheHelp(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../docs/options.md")
	check(t, err)
	documented := map[string][]string{}
	for _, section := range strings.Split(string(text), "\n## ")[1:] {
		heading, body, _ := strings.Cut(section, "\n")
		var options []string
		for row := range strings.Lines(body) {
			cells := strings.Split(row, " | ")
			if !strings.HasPrefix(row, "| `--") || len(cells) < 2 {
				continue
			}
			flags := regexp.MustCompile("`(--[a-z-]+)").FindAllStringSubmatch(cells[0], -1)
			variables := regexp.MustCompile("`(UDS_[A-Z_]+)`").FindAllStringSubmatch(cells[1], -1)
			if len(flags) != len(variables) {
				t.Errorf("docs/options.md, %s: as many variables as flags have to be in the row %s", heading, row)
				continue
			}
			for i := range flags {
				options = append(options, flags[i][1]+" "+variables[i][1])
			}
		}
		if options != nil {
			slices.Sort(options)
			for command := range strings.SplitSeq(heading, ", ") {
				documented[command] = options
			}
		}
	}
	d := dir(t)
	helped := map[string][]string{}
	for _, program := range []string{"server", "client"} {
		_, help, _ := run(t, d, "", program, "--help")
		_, list, _ := strings.Cut(help, "\nCommands:\n")
		list, _, _ = strings.Cut(list, "\nRun ")
		for _, command := range regexp.MustCompile(`(?m)^  ([a-z-]+)`).FindAllStringSubmatch(list, -1) {
			_, help, _ := run(t, d, "", program, command[1], "--help")
			var options []string
			for _, flag := range regexp.MustCompile(`(?m)^ {6}--([a-z-]+)`).FindAllStringSubmatch(help, -1) {
				variable := "UDS_" + strings.ToUpper(strings.ReplaceAll(flag[1], "-", "_"))
				if !strings.Contains(help, "$"+variable+")") {
					t.Errorf("the help of %s %s does not name %s", program, command[1], variable)
				}
				options = append(options, "--"+flag[1]+" "+variable)
			}
			slices.Sort(options)
			helped[program+" "+command[1]] = options
		}
	}
	if diff := cmp.Diff(helped, documented); diff != "" {
		t.Errorf("--help and docs/options.md (-help +options.md):\n%s", diff)
	}
}

// A user who searches for a line that a program has written must find it.
// Values that vary, and texts of the system, are not compared.
func TestTextsOfTroubleshootingAreInTheSources(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../docs/troubleshooting.md")
	check(t, err)
	var sources strings.Builder
	for _, top := range []string{"../client", "../server", "../internal", "../uds", "../deploy", "../images"} {
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
	varies := regexp.MustCompile(`…|[0-9][0-9smh]*|: | \(E[A-Z]+\)`)
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
