package cli

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/alecthomas/kong"
)

// Commands of the tool, which are looked for in the client, too.
var toolCommands = []string{"bench", "forward", "healthcheck", "inspect", "ls", "send", "tap", "wait"}

// mistaken returns an error if the default command has got a message that was
// meant as a command or a path. The command's own name before it makes it a
// message.
func mistaken(name string, parsed *kong.Context) error {
	byDefault := parsed.Model.DefaultCmd
	if byDefault == nil || parsed.Selected() != byDefault || len(byDefault.Positional) == 0 || slices.Contains(parsed.Args, byDefault.Name) {
		return nil
	}
	word := byDefault.Positional[0].Target.String()
	if !slices.Contains(parsed.Args, word) {
		return nil // it is the default
	}
	send := fmt.Sprintf("to send it as a message: %s %s %s", name, byDefault.Name, word)
	switch {
	case word == "help" || word == "version":
		return fmt.Errorf("%[1]s is not a command, write %[2]s --%[1]s; %[3]s", word, name, send)
	case strings.HasPrefix(word, "/") || strings.HasPrefix(word, "./") || strings.HasPrefix(word, "../"):
		return fmt.Errorf("%[1]s is a path, not a message; write %[2]s --connect %[1]s MESSAGE for an echo server, or uds inspect %[1]s to look at the socket; %[3]s", word, name, send)
	}
	for _, c := range byDefault.Parent.Children {
		if !c.Hidden && near(word, c.Name) {
			return fmt.Errorf("%s is not a command, did you mean %q? %s", word, name+" "+c.Name, send)
		}
	}
	for _, c := range toolCommands {
		if word == c || near(word, c) {
			return fmt.Errorf("%s is not a command, did you mean %q? %s", word, "uds "+c, send)
		}
	}
	return nil
}

// withCure completes kong's error about a first argument that is not a command, or
// an address without its flag.
func withCure(err error, args []string) error {
	var wrong *kong.ParseError
	if !errors.As(err, &wrong) || len(args) == 0 || strings.HasPrefix(args[0], "-") {
		return err
	}
	if command := wrong.Context.Selected(); command != nil {
		var takers []string // of addresses
		for _, f := range command.Flags {
			if f.Name == "listen" || f.Name == "connect" {
				takers = append(takers, "--"+f.Name)
			}
		}
		if takers != nil && strings.HasPrefix(err.Error(), "unexpected argument ") {
			return fmt.Errorf("%w; an address comes after %s", err, strings.Join(takers, " or "))
		}
		return err
	}
	switch word := args[0]; {
	case word == "help" || word == "version":
		return fmt.Errorf("%w; write --%s", err, word)
	case strings.ContainsAny(word, "/@:"):
		return fmt.Errorf("%w; a command comes first: uds inspect %s", err, word)
	}
	return err
}

// near reports whether a word is a longer command with a letter or two wrong. A
// short command is like too many words.
func near(word, command string) bool {
	most := map[bool]int{false: 1, true: 2}[len(command) > 6]
	return len(command) > 4 && word != command && distance(word, command) <= most
}

// distance counts the letters that are missing, too many, wrong, or, as a pair,
// in the wrong order.
func distance(a, b string) int {
	rows := make([][]int, len(a)+1)
	for i := range rows {
		rows[i] = make([]int, len(b)+1)
		for j := range rows[i] {
			switch {
			case i == 0 || j == 0:
				rows[i][j] = i + j
				continue
			case a[i-1] == b[j-1]:
				rows[i][j] = rows[i-1][j-1]
			default:
				rows[i][j] = 1 + min(rows[i-1][j], rows[i][j-1], rows[i-1][j-1])
			}
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				rows[i][j] = min(rows[i][j], rows[i-2][j-2]+1)
			}
		}
	}
	return rows[len(a)][len(b)]
}
