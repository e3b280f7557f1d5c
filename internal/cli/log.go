package cli

import (
	"encoding/json"
	"io"
	"time"

	"github.com/rs/zerolog"
)

// LogFlags are the flags of a command that logs.
type LogFlags struct {
	LogFormat string `default:"console" enum:"plain,console,json" placeholder:"FORMAT" help:"Format of events: plain (messages only), console or json."`
	LogLevel  string `default:"info" enum:"debug,info,warn,error" placeholder:"LEVEL" help:"The lowest level of events to write: debug, info, warn or error."`
}

// Logger writes events to w: as their messages alone (plain), for people
// (console), or one JSON object a line (json). The messages are the same in
// all three. Values that vary, such as a peer or a count of bytes, are typed
// fields.
func (f LogFlags) Logger(w io.Writer) zerolog.Logger {
	level, err := zerolog.ParseLevel(f.LogLevel)
	if err != nil {
		panic(err) // the enum above allows a level that zerolog does not know
	}
	switch f.LogFormat {
	case "plain":
		return zerolog.New(plain{w}).Level(level)
	case "console":
		w = zerolog.ConsoleWriter{Out: w, NoColor: true, TimeFormat: time.TimeOnly}
	}
	return zerolog.New(w).Level(level).With().Timestamp().Logger()
}

// plain writes only the message of an event.
type plain struct{ w io.Writer }

func (p plain) Write(event []byte) (int, error) {
	var e struct{ Message string }
	if err := json.Unmarshal(event, &e); err != nil {
		return 0, err
	}
	if _, err := io.WriteString(p.w, e.Message+"\n"); err != nil {
		return 0, err
	}
	return len(event), nil
}
