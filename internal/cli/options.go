package cli

import (
	"fmt"
	"regexp"
	"strings"

	"github.com/alecthomas/kong"
)

// Options returns the commands of a program and their flags as Markdown, for
// docs/options.md. The arguments are those of [Main].
func Options(name string, commands any) string {
	var b strings.Builder
	for _, command := range parserOf(name, commands).Model.Leaves(true) {
		fmt.Fprintf(&b, "\n## %s\n\n`%s %s`: %s\n\n", command.FullPath(), name, command.Summary(), command.Help)
		b.WriteString("| flag | variable | default | meaning |\n|---|---|---|---|\n")
		for _, v := range command.Positional {
			row(&b, v.Summary(), "", v)
		}
		for _, f := range command.Flags {
			row(&b, f.String(), "`"+strings.Join(f.Envs, "`, `")+"`", f.Value)
		}
	}
	return b.String()
}

func row(b *strings.Builder, flag, variable string, v *kong.Value) {
	help, byDefault := describe(v)
	fmt.Fprintf(b, "| `%s` | %s | %s | %s |\n", flag, variable, byDefault, help)
}

var inWords = regexp.MustCompile(`^(.*) \(default: (.*)\)\.$`)

// describe returns the help of a flag or an argument without its default, and
// the default: the one that ends the help, or else the value.
func describe(v *kong.Value) (help, byDefault string) {
	if m := inWords.FindStringSubmatch(v.Help); m != nil {
		return m[1] + ".", m[2]
	}
	return v.Help, v.Default
}

// withDefault formats the help of a flag or an argument for --help.
func withDefault(v *kong.Value) string {
	shown := *v
	if help, byDefault := describe(v); byDefault != "" {
		shown.Help = strings.TrimSuffix(help, ".") + " (default: " + byDefault + ")."
	}
	return kong.DefaultHelpValueFormatter(&shown)
}
