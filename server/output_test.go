package main_test

import (
	"os"
	"strings"
	"testing"

	"github.com/udsecho/udsecho/internal/testkit"
)

func TestF62StandardOutputThatCannotBeWritten(t *testing.T) {
	t.Parallel()
	d := dir(t)
	server := serve(t, d, "--listen", "s", "--listen", "files:f")
	check(t, os.WriteFile(d+"/file", []byte("content"), 0o600))
	for _, args := range [][]string{
		{"server", "--version"},
		{"server", "--help"},
		{"server", "healthcheck", "--help"},
		{"client", "--version"},
		{"client", "--help"},
		{"client", "forward", "--help"},
		{"client", "--log-level", "error", "--connect", "s", "hello"},
		{"client", "--log-level", "error", "--connect", "s", "-"},
		{"client", "--log-level", "error", "--connect", "s", "--hex", "hello"},
		{"client", "--log-level", "error", "--connect", "s", "--no-echo", "hello"},
		{"client", "pair", "--log-level", "error", "hello"},
		{"client", "send-file", "--log-level", "error", "--connect", "files:f", "file"},
		{"client", "share", "--log-level", "error", "--connect", "files:f", "file"},
		{"client", "inspect", "s"},
		{"client", "inspect", "--format", "json", "s"},
		{"client", "bench", "--connect", "s", "--rounds", "1", "--duration", "10ms"},
		{"client", "bench", "--connect", "s", "--rounds", "1", "--duration", "10ms", "--json", "-"},
	} {
		full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
		check(t, err)
		p := testkit.Prepare(t, d, args...)
		p.Cmd.Stdin, p.Cmd.Stdout = strings.NewReader("hello"), full
		p.Start(t)
		if status := p.Status(t); status != 1 || strings.Count(p.Err.String(), "\n") != 1 {
			t.Errorf("%q: exit status %d, error %q", args, status, &p.Err)
		}
		wantWords(t, p.Err.String(), args[0]+": ", "no space left on device")
		check(t, full.Close())
	}
	check(t, os.Remove(d+"/file"))
	server.Stop(t)
}

func TestF62LimitOfOpenFilesThatIsTooLow(t *testing.T) {
	t.Parallel()
	d := dir(t)
	for _, command := range []string{"server", "client forward --connect t"} {
		name, _, _ := strings.Cut(command, " ")
		status, stdout, stderr := run(t, d, "", "sh", "-c", "ulimit -n 10; exec "+testkit.Program(command)+" --listen s")
		if status != 1 || stdout != "" || strings.Count(stderr, "\n") != 1 {
			t.Errorf("%s: exit status %d, output %q, error %q", command, status, stdout, stderr)
		}
		wantWords(t, stderr, name+": the limit of open files is 10: raise it (ulimit -n) to ")
		wantFiles(t, d)
	}
}
