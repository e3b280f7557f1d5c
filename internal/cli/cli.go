// Package cli holds what the programs share on the command line: parsing,
// help, exit statuses, the format of the log.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"regexp"
	"runtime/debug"
	"slices"
	"strings"

	"github.com/alecthomas/kong"
	"golang.org/x/sys/unix"

	"github.com/udsecho/udsecho/internal/logtext"
)

// Std holds the three standard files of the process.
type Std struct {
	In       io.Reader
	Out, Err io.Writer
}

// Main runs the command that the arguments name, one of the fields of the
// struct that commands points to. Every flag can also be set by an environment
// variable, UDS_ and its name. The command's Run may take a context, which the
// first of signals ends, and a [Std]. After that, a second signal has its
// usual effect. Main returns the exit status: 0, 1 for failure, 2 for usage.
// It writes one line with the reason to standard error. SIGHUP, if it is one of
// signals, stays ignored if it was, by nohup(1). Otherwise it ends the process
// without a line, with the status that a shell reports for it: the process's
// caller is gone, for example a terminal's session, or ssh(1) with a ProxyCommand.
func Main(name, description string, commands any, signals []os.Signal) int {
	// If the reader of the output or of the log ends, SIGPIPE must not end this
	// process before it has removed its socket: the write fails instead.
	signal.Ignore(unix.SIGPIPE)
	signals = slices.DeleteFunc(signals, func(s os.Signal) bool { return s == unix.SIGHUP && signal.Ignored(s) })
	ctx, stop := untilSignal(signals)
	defer stop()

	std := Std{os.Stdin, os.Stdout, os.Stderr}
	texts := &noting{w: std.Out}
	parser := parserOf(name, commands,
		kong.Description(description),
		kong.Vars{"version": name + " " + Version},
		kong.BindTo(ctx, (*context.Context)(nil)),
		kong.Bind(std),
		kong.Writers(texts, std.Err),
		kong.Exit(func(status int) { // after --help and --version
			if texts.err != nil {
				status = 1
				lastLine(std.Err, "%s: write standard output: %v\n", name, texts.err)
			}
			os.Exit(status)
		}),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true}),
		kong.ValueFormatter(withDefault),
	)
	status := 2
	parsed, err := parser.Parse(os.Args[1:])
	if err == nil {
		err = mistaken(name, parsed)
	}
	if err == nil {
		status = 1
		err = parsed.Run()
	}
	switch {
	case err == nil:
		return 0
	case hungUp(ctx, err):
		return hangup
	case texts.err != nil: // of --help
		status, err = 1, fmt.Errorf("write standard output: %w", texts.err)
	}
	err = withCure(err, os.Args[1:])
	text := noValue.ReplaceAllString(logtext.Escape(err.Error()), "the value is missing")
	if status == 2 {
		text += " (see " + helpOf(name, err) + ")"
	}
	lastLine(std.Err, "%s: %s\n", name, text)
	return status
}

// parserOf panics if the struct is declared wrongly; user input cannot cause this.
func parserOf(name string, commands any, options ...kong.Option) *kong.Kong {
	return kong.Must(commands, slices.Concat(options, values, []kong.Option{kong.Name(name), kong.DefaultEnvars("UDS")})...)
}

// untilSignal returns a context that the first of signals ends. By then a second
// one has its usual effect again; with [signal.NotifyContext] that would come a
// moment later, and a signal in between would be lost.
func untilSignal(signals []os.Signal) (ctx context.Context, stop func()) {
	ctx, cancel := context.WithCancelCause(context.Background())
	first := make(chan os.Signal, 1)
	signal.Notify(first, signals...)
	go func() {
		select {
		case s := <-first:
			signal.Stop(first)
			cancel(signalError{s})
		case <-ctx.Done():
		}
	}()
	return ctx, func() { signal.Stop(first); cancel(nil) }
}

type signalError struct{ os.Signal }

func (e signalError) Error() string { return e.String() + " signal received" }

const hangup = 128 + int(unix.SIGHUP)

// hungUp reports whether err is the end of ctx by SIGHUP.
func hungUp(ctx context.Context, err error) bool {
	cause, ok := context.Cause(ctx).(signalError)
	return ok && errors.Is(err, cause) && cause.Signal == unix.SIGHUP
}

// noValue is what kong reports about a flag that ends the command line.
var noValue = regexp.MustCompile(`expected \S+ value but got "EOL" \(<EOL>\)`)

// noting is a writer that notes the first error: kong does not look at it.
type noting struct {
	w   io.Writer
	err error
}

func (n *noting) Write(p []byte) (int, error) {
	m, err := n.w.Write(p)
	if n.err == nil {
		n.err = err
	}
	return m, err
}

// Version is the version of the programs: what `go install` or a build in a
// checkout has recorded, or else, as in the images, the release that
// CHANGELOG.md begins with.
var Version = version()

const release = "v0.2.0"

func version() string {
	if info, ok := debug.ReadBuildInfo(); ok && strings.HasPrefix(info.Main.Version, "v") {
		return info.Main.Version
	}
	return release
}

// helpOf returns how to get help on the command that was called wrongly.
func helpOf(name string, err error) string {
	var wrong *kong.ParseError
	if errors.As(err, &wrong) {
		c := wrong.Context.Selected()
		if c == nil {
			c = wrong.Context.Model.DefaultCmd
		}
		if c != nil {
			name += " " + c.Name
		}
	}
	return name + " --help"
}
