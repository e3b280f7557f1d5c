package testkit

import (
	"go/ast"
	gobuild "go/build"
	"go/parser"
	"go/token"
	"go/types"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// noProse is what a comment shows of a program or a command line, and where a
// link of the web leads.
var noProse = regexp.MustCompile(`(?m)^\t.*$|^\[[^]]*\]: .*$`)

const module = "github.com/udsecho/udsecho/"

// A goDir is what the Go files of one directory contain, for all systems.
type goDir struct {
	names    map[string]bool   // Name, and Type.Method or Type.field
	imports  map[string]string // paths by name
	comments map[string]string // by file
}

func parseDir(t *testing.T, dir string) *goDir {
	t.Helper()
	d := &goDir{map[string]bool{}, map[string]string{}, map[string]string{}}
	files, err := filepath.Glob(dir + "/*.go")
	Check(t, err)
	for _, name := range files {
		f, comments := parseFile(t, name)
		d.comments[name] = comments
		for _, i := range f.Imports {
			path := strings.Trim(i.Path.Value, `"`)
			d.imports[path[strings.LastIndexByte(path, '/')+1:]] = path
		}
		for _, decl := range f.Decls {
			d.declare(decl)
		}
	}
	return d
}

func parseFile(t *testing.T, name string) (f *ast.File, comments string) {
	t.Helper()
	f, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.ParseComments|parser.SkipObjectResolution)
	Check(t, err)
	for _, c := range f.Comments {
		comments += noProse.ReplaceAllString(c.Text(), "") + "\n"
	}
	return f, comments
}

func (d *goDir) declare(decl ast.Decl) {
	if f, ok := decl.(*ast.FuncDecl); ok {
		name := f.Name.Name
		if f.Recv != nil { // *Type, Type or Type[T]
			name = regexp.MustCompile(`\w+`).FindString(types.ExprString(f.Recv.List[0].Type)) + "." + name
		}
		d.names[name] = true
		return
	}
	for _, spec := range decl.(*ast.GenDecl).Specs {
		switch s := spec.(type) {
		case *ast.ValueSpec:
			for _, n := range s.Names {
				d.names[n.Name] = true
			}
		case *ast.TypeSpec:
			d.names[s.Name.Name] = true
			ast.Inspect(s.Type, func(n ast.Node) bool {
				if f, ok := n.(*ast.Field); ok {
					for _, n := range f.Names {
						d.names[s.Name.Name+"."+n.Name] = true
					}
				}
				return true
			})
		}
	}
}

// walk visits the files of this source tree.
func walk(t *testing.T, visit func(path, name string)) {
	t.Helper()
	root := source("")
	Check(t, filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if err == nil && e.IsDir() && path != root && e.Name()[0] == '.' {
			return fs.SkipDir
		}
		if err == nil && e.Type().IsRegular() {
			visit(path, e.Name())
		}
		return err
	}))
}

func TestDocLinksLeadToNames(t *testing.T) {
	t.Parallel()
	dirs := map[string]*goDir{}
	of := func(dir string) *goDir {
		if dirs[dir] == nil {
			dirs[dir] = parseDir(t, dir)
		}
		return dirs[dir]
	}
	link := regexp.MustCompile(`(?m)(?:^|[ (])\[\*?([A-Za-z]\w*)(?:\.(\w+))?(?:\.(\w+))?\]`)
	walk(t, func(path, name string) {
		if filepath.Ext(name) != ".go" {
			return
		}
		here := of(filepath.Dir(path))
		for _, m := range link.FindAllStringSubmatch(here.comments[path], -1) {
			d, name := here, strings.TrimSuffix(m[1]+"."+m[2], ".")
			if there, ok := here.imports[m[1]]; ok && m[2] != "" {
				dir, ok := strings.CutPrefix(there, module)
				if dir = source(dir); !ok {
					p, err := gobuild.Import(there, filepath.Dir(path), gobuild.FindOnly)
					Check(t, err)
					dir = p.Dir
				}
				d, name = of(dir), strings.TrimSuffix(m[2]+"."+m[3], ".")
			}
			if !d.names[name] {
				t.Errorf("%s: %s leads nowhere", path, strings.TrimSpace(m[0]))
			}
		}
	})
	// Words of English follow "package", too.
	known := map[string]bool{"can": true, "is": true, "of": true, "receive": true, "that": true, "whose": true}
	for dir, d := range dirs {
		known[filepath.Base(dir)] = true
		for name := range d.imports {
			known[name] = true
		}
	}
	for _, d := range dirs {
		for path, text := range d.comments {
			for _, m := range regexp.MustCompile(`(?i)\bpackage\s(\w+)`).FindAllStringSubmatch(text, -1) {
				if strings.HasPrefix(path, source("")) && !known[m[1]] {
					t.Errorf("%s names package %s, which does not exist", path, m[1])
				}
			}
		}
	}
}

// Comments and documents name the files and packages that there are.
func TestPathsInCommentsAndDocumentsExist(t *testing.T) {
	t.Parallel()
	inTree := regexp.MustCompile("(?m)(?:^|[\\s(\"'`])((?:bench|client|cmd|deploy|docs|examples|integration|internal|server|tools|uds)/[\\w./*-]*[\\w*])")
	document := regexp.MustCompile(`\.(md|pml|sh|ya?ml)$|^(Makefile|Dockerfile)$`)
	walk(t, func(path, name string) {
		text := ""
		if filepath.Ext(name) == ".go" {
			_, text = parseFile(t, path)
		} else if document.MatchString(name) {
			content, err := os.ReadFile(path)
			Check(t, err)
			text = string(content)
		}
		for _, m := range inTree.FindAllStringSubmatch(text, -1) {
			found, err := filepath.Glob(source(m[1]))
			if Check(t, err); found == nil {
				t.Errorf("%s names %s, which does not exist", path, m[1])
			}
		}
	})
}

// A link in a document leads to a file of the tree and, behind a #, to a heading.
func TestLinksOfDocumentsLeadToHeadings(t *testing.T) {
	t.Parallel()
	link := regexp.MustCompile(`\]\(([^)#:\s]*)(?:#([^)\s]+))?\)`)
	heading := regexp.MustCompile(`(?m)^#+ (.*)$`)
	dropped := regexp.MustCompile(`[^\p{L}\p{N} _-]`)
	documents, err := filepath.Glob("../../*.md")
	Check(t, err)
	for _, pattern := range []string{"docs/*.md", "examples/*/*.md", "bench/*.md"} {
		more, err := filepath.Glob("../../" + pattern)
		Check(t, err)
		documents = append(documents, more...)
	}
	for _, document := range documents {
		text, err := os.ReadFile(document)
		Check(t, err)
		for _, m := range link.FindAllStringSubmatch(string(text), -1) {
			target := document
			if m[1] != "" {
				target = filepath.Join(filepath.Dir(document), m[1])
			}
			if _, err := os.Stat(target); err != nil {
				t.Errorf("%s: %v", document, err)
				continue
			}
			if m[2] == "" {
				continue
			}
			text, err := os.ReadFile(target)
			Check(t, err)
			found := false
			for _, h := range heading.FindAllStringSubmatch(string(text), -1) {
				found = found || strings.ReplaceAll(dropped.ReplaceAllString(strings.ToLower(h[1]), ""), " ", "-") == m[2]
			}
			if !found {
				t.Errorf("%s: no heading #%s in %s", document, m[2], target)
			}
		}
	}
}

// Documents name functions that exist in the directory that the name links to.
func TestNamesInDocumentsExist(t *testing.T) {
	t.Parallel()
	link := regexp.MustCompile(`\[` + "`" + `(\w+(?:\.\w+)?)` + "`" + `\]\(([^)#]+)/\w+\.go\)`)
	found := 0
	walk(t, func(path, name string) {
		if filepath.Ext(name) != ".md" {
			return
		}
		text, err := os.ReadFile(path)
		Check(t, err)
		for _, m := range link.FindAllStringSubmatch(string(text), -1) {
			if strings.HasSuffix(m[1], ".go") {
				continue
			}
			found++
			dir := filepath.Join(filepath.Dir(path), m[2])
			exported := strings.TrimPrefix(m[1], filepath.Base(dir)+".") // uds.Listen
			if names := parseDir(t, dir).names; !names[m[1]] && !names[exported] {
				t.Errorf("%s: %s has no %s", path, dir, m[1])
			}
		}
	})
	if found == 0 {
		t.Error("no document names a function")
	}
}
