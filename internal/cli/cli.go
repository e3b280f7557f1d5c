// Package cli is what the two programs have alike on the command line: parsing,
// help, exit statuses, the format of the log.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"

	"github.com/alecthomas/kong"

	"github.com/udsecho/udsecho/internal/transcript"
)

// Std is the process's three files.
type Std struct {
	In       io.Reader
	Out, Err io.Writer
}

// Main runs the command that the arguments name, one of the fields of the
// struct that commands points to; every flag has a variable of the environment
// too, UDS_ and its name. The command's Run may take a context, which the first
// of signals ends, and a [Std]. From then on a second signal has its usual
// effect. Main returns the exit status: 0, 1 for failure, 2 for usage; the one
// line that says why goes to standard error.
func Main(name, description string, commands any, signals []os.Signal, options ...kong.Option) int {
	ctx, stop := signal.NotifyContext(context.Background(), signals...)
	defer stop()
	defer context.AfterFunc(ctx, stop)()

	std := Std{os.Stdin, os.Stdout, os.Stderr}
	options = append(options, values...)
	options = append(options,
		kong.Name(name),
		kong.Description(description),
		kong.DefaultEnvars("UDS"),
		kong.Vars{"version": name + " " + Version},
		kong.BindTo(ctx, (*context.Context)(nil)),
		kong.Bind(std),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true}),
		kong.Help(help),
	)
	parser, err := kong.New(commands, options...)
	if err != nil {
		panic(err) // the struct is declared wrongly, whatever the user typed
	}
	status := 2
	parsed, err := parser.Parse(os.Args[1:])
	if err == nil {
		status = 1
		err = parsed.Run()
	}
	if err == nil {
		return 0
	}
	text := transcript.Escape(err.Error())
	if status == 2 {
		text += " (see " + helpOf(name, err) + ")"
	}
	fmt.Fprintf(std.Err, "%s: %s\n", name, text)
	return status
}

// Version is the version of both programs and both images.
const Version = "0.1.0"

// helpOf is how to ask for help on the command that was called wrongly.
func helpOf(name string, err error) string {
	var wrong *kong.ParseError
	if errors.As(err, &wrong) {
		if c := wrong.Context.Selected(); c != nil && c != wrong.Context.Model.DefaultCmd {
			name += " " + c.Name
		}
	}
	return name + " --help"
}

// help shows the default command's flags too where no command is named, as
// these are what most people look for.
func help(options kong.HelpOptions, ctx *kong.Context) error {
	if err := kong.DefaultHelpPrinter(options, ctx); err != nil || ctx.Selected() != nil || ctx.Model.DefaultCmd == nil {
		return err
	}
	byDefault, err := kong.Trace(ctx.Kong, []string{ctx.Model.DefaultCmd.Name})
	if err != nil {
		return err
	}
	fmt.Fprintln(ctx.Stdout)
	return kong.DefaultHelpPrinter(options, byDefault)
}
