package cli

import (
	"os"
	"strings"
	"testing"
)

func TestHelpHasDefaultAndVariable(t *testing.T) {
	t.Parallel()
	var flags struct {
		Chunk    int  `default:"16" help:"Size of one receive."`
		Sndbuf   int  `default:"0" help:"Send buffer (default: the system's)."`
		Takeover bool `help:"Take the sockets over."`
	}
	for _, f := range parserOf("server", &flags).Model.Flags[1:] { // the first is --help
		want := map[string]string{
			"chunk":    "Size of one receive (default: 16) ($UDS_CHUNK).",
			"sndbuf":   "Send buffer (default: the system's) ($UDS_SNDBUF).",
			"takeover": "Take the sockets over ($UDS_TAKEOVER).",
		}[f.Name]
		if help := withDefault(f.Value); help != want {
			t.Errorf("--%s: %q, want %q", f.Name, help, want)
		}
	}
}

func TestReleaseIsTheChangelogsFirst(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../../CHANGELOG.md")
	if err != nil {
		t.Fatal(err)
	}
	if _, first, _ := strings.Cut(string(text), "\n## "); !strings.HasPrefix(first, release+"\n") && !strings.HasPrefix(first, release+",") {
		t.Errorf("CHANGELOG.md begins with %.20q, the programs' release is %s", first, release)
	}
}
