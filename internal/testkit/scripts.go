package testkit

import (
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"
)

// A script is the state of a running script.
type script struct {
	t         testing.TB
	ts        *testscript.TestScript
	processes map[string]*Process
	given     []string // what its directory held at the start
}

// as is a program of the scripts: as UID PROGRAM [ARGUMENT...] is the program of
// another user.
const as = `#!/bin/sh
uid=$1
shift
exec setpriv --reuid="$uid" --regid="$uid" --clear-groups "$@"
`

// Scripts runs the scripts in a directory, each as a parallel subtest: package
// testscript describes their language, and [commands] what is added to it. A
// script begins in a directory of its own, whose path is short because sun_path
// is, and finds the programs that Main has built.
func Scripts(t *testing.T, dir string) {
	t.Parallel()
	added := map[string]func(*testscript.TestScript, bool, []string){}
	for name, c := range commands {
		added[name] = func(ts *testscript.TestScript, neg bool, args []string) {
			if neg || len(args) < c.least {
				ts.Fatalf("usage: %s %s", name, c.usage)
			}
			s := ts.Value("script").(*script)
			s.ts = ts
			c.run(s, args)
		}
	}
	testscript.Run(t, testscript.Params{Dir: dir, WorkdirRoot: Dir(t), Cmds: added, Setup: func(env *testscript.Env) error {
		env.Setenv("PATH", bin+":"+env.Getenv("PATH"))
		env.Setenv("UID", strconv.Itoa(os.Geteuid()))
		env.Setenv("GID", strconv.Itoa(os.Getegid()))
		// Not in use, as all of 127.0.0.0/8 is this host.
		env.Setenv("LOOPBACK", fmt.Sprintf("127.%d.%d.%d:7000", 1+rand.IntN(254), rand.IntN(256), 1+rand.IntN(254)))
		s := &script{t: env.T().(testing.TB), processes: map[string]*Process{}}
		s.given = names(s.t, env.WorkDir)
		env.Values["script"] = s
		return nil
	}})
}

// commands are what scripts have in addition to testscript's own. NAME is that
// of a process which start has started.
var commands = map[string]struct {
	usage string
	least int // number of arguments
	run   func(s *script, args []string)
}{
	// A process is named after its program, or by the last word; $NAME is then
	// its process id. It is killed at the end of the script.
	"start": {"PROGRAM [ARGUMENT...] [&NAME&]", 1, func(s *script, args []string) { s.start(args) }},
	// It starts a server and waits until it serves.
	"serve": {"[ARGUMENT...] [&NAME&]", 0, func(s *script, args []string) {
		s.start(append([]string{"server"}, args...)).Err.Await(s.t, 1, "waiting for a ")
	}},
	// The standard error has the words that often, and may have them more often.
	"await":    {"NAME WORDS [COUNT]", 2, func(s *script, args []string) { s.await(&s.process(args[0]).Err, args[1:]) }},
	"awaitout": {"NAME WORDS [COUNT]", 2, func(s *script, args []string) { s.await(&s.process(args[0]).Out, args[1:]) }},
	// The standard input is a pipe, which is open until it is closed.
	"send": {"NAME TEXT", 2, func(s *script, args []string) {
		_, err := io.WriteString(s.process(args[0]).In, args[1])
		s.ts.Check(err)
	}},
	"close": {"NAME", 1, func(s *script, args []string) { s.ts.Check(s.process(args[0]).In.Close()) }},
	// Afterwards, a process that gets STOP has stopped.
	"signal": {"NAME SIGNAL", 2, func(s *script, args []string) {
		if p := s.process(args[0]); args[1] == "STOP" {
			p.Pause(s.t)
		} else {
			p.Signal(s.t, unix.SignalNum("SIG"+args[1]))
		}
	}},
	// The end is an exit status, or a signal in words; the commands stdout, stderr
	// and cmp then look at the output.
	"end":       {"NAME END", 2, func(s *script, args []string) { s.end(args[0], args[1]) }},
	"terminate": {"NAME", 1, func(s *script, args []string) { s.process(args[0]).Signal(s.t, unix.SIGTERM); s.end(args[0], "0") }},
	"status":    {"STATUS PROGRAM [ARGUMENT...]", 2, func(s *script, args []string) { s.status(args[0], args[1:]) }},
	// The only output is one line on the standard error, which contains the words,
	// and after a usage error (2) where there is help.
	"fails": {"STATUS WORDS PROGRAM [ARGUMENT...]", 3, func(s *script, args []string) {
		s.status(args[0], args[2:])
		stderr := s.ts.ReadFile("stderr")
		if line, rest, _ := strings.Cut(stderr, "\n"); s.ts.ReadFile("stdout") != "" || rest != "" || line == stderr ||
			!strings.Contains(line, args[1]) || args[0] == "2" && !strings.HasSuffix(line, " --help)") {
			s.ts.Fatalf("it does not write one line with %q", args[1])
		}
	}},
	// It repeats a program until it succeeds.
	"until": {"PROGRAM [ARGUMENT...]", 1, func(s *script, args []string) {
		Await(s.t, func() error { return s.ts.Exec(args[0], args[1:]...) })
	}},
	// The current directory has these files and no others, besides those of the
	// script.
	"files": {"[FILE...]", 0, func(s *script, args []string) {
		got := slices.DeleteFunc(names(s.t, s.ts.MkAbs(".")), func(name string) bool { return slices.Contains(s.given, name) })
		if slices.Sort(args); !slices.Equal(got, args) {
			s.ts.Fatalf("the directory holds %q, not %q", got, args)
		}
	}},
	"socket": {"MODE PATH", 2, func(s *script, args []string) {
		info, err := os.Lstat(s.ts.MkAbs(args[1]))
		s.ts.Check(err)
		if got := fmt.Sprintf("%#o", info.Mode().Perm()); info.Mode().Type() != os.ModeSocket || got != args[0] {
			s.ts.Fatalf("%s is %v", args[1], info.Mode())
		}
	}},
	"need":      {"PROGRAM PACKAGE", 2, func(s *script, args []string) { Need(s.t, args[0], args[1]) }},
	"namespace": {"OPTION...", 1, func(s *script, args []string) { NeedNamespace(s.t, args...) }},
	"root": {"REASON", 1, func(s *script, args []string) {
		NeedRoot(s.t, args[0])
		Need(s.t, "setpriv", "util-linux") // see as
	}},
}

func (s *script) start(args []string) *Process {
	name := args[0]
	if last := args[len(args)-1]; strings.HasPrefix(last, "&") && strings.HasSuffix(last, "&") {
		name, args = strings.Trim(last, "&"), args[:len(args)-1]
	}
	p := Prepare(s.t, s.ts.MkAbs("."), args...)
	p.Cmd.Env = append(p.Cmd.Env, "PATH="+s.ts.Getenv("PATH"))
	p.Start(s.t)
	s.processes[name] = p
	s.ts.Setenv(name, strconv.Itoa(p.Pid()))
	s.ts.Defer(func() { s.ts.Logf("[%s]\n%s%s", name, &p.Out, &p.Err) })
	return p
}

func (s *script) status(want string, args []string) {
	status := "0"
	if err := s.ts.Exec(args[0], args[1:]...); err != nil {
		status = strings.TrimPrefix(err.Error(), "exit status ")
	}
	if status != want {
		s.ts.Fatalf("exit status %s, want %s", status, want)
	}
}

func (s *script) process(name string) *Process {
	p := s.processes[name]
	if p == nil {
		s.ts.Fatalf("no process %q was started", name)
	}
	return p
}

func (s *script) await(x *Text, args []string) {
	n := 1
	if len(args) > 1 {
		var err error
		n, err = strconv.Atoi(args[1])
		s.ts.Check(err)
	}
	x.Await(s.t, n, args[0])
}

func (s *script) end(name, want string) {
	p := s.process(name)
	p.Status(s.t)
	_, err := fmt.Fprint(s.ts.Stdout(), &p.Out)
	s.ts.Check(err)
	_, err = fmt.Fprint(s.ts.Stderr(), &p.Err)
	s.ts.Check(err)
	if end := p.Cmd.ProcessState.String(); !strings.HasSuffix(end, " "+want) {
		s.ts.Fatalf("%s ends with %s, not %s", name, end, want)
	}
}

// names returns the names of the files in a directory, sorted.
func names(t testing.TB, d string) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(d)
	Check(t, err)
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}
