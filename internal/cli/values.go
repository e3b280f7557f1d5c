package cli

import (
	"fmt"
	"reflect"
	"strconv"
	"strings"

	"github.com/alecthomas/kong"

	"github.com/udsecho/udsecho/internal/addr"
)

// values read arguments byte for byte. Kong's own mappers pass them through
// JSON, which replaces bytes that are not UTF-8; a path or a message may
// contain any bytes.
var values = []kong.Option{
	kong.KindMapper(reflect.String, kong.MapperFunc(func(ctx *kong.DecodeContext, target reflect.Value) error {
		s, err := pop(ctx)
		target.SetString(s)
		return err
	})),
	kong.TypeMapper(reflect.TypeFor[addr.Addr](), kong.MapperFunc(func(ctx *kong.DecodeContext, target reflect.Value) error {
		s, err := pop(ctx)
		if err != nil {
			return err
		}
		a, err := addr.ParseAddr(s)
		target.Set(reflect.ValueOf(a))
		return err
	})),
	// A list is separated by commas; a comma in a path is written \,
	kong.TypeMapper(reflect.TypeFor[[]addr.Addr](), kong.MapperFunc(func(ctx *kong.DecodeContext, target reflect.Value) error {
		s, err := pop(ctx)
		if err != nil || s == "" {
			return err
		}
		const comma = "\x00" // a byte that no argument can contain
		for i, part := range strings.Split(strings.ReplaceAll(s, `\,`, comma), ",") {
			if i > 0 {
				part = strings.TrimLeft(part, " ")
			}
			a, err := addr.ParseAddr(strings.ReplaceAll(part, comma, ","))
			if err != nil {
				return err
			}
			target.Set(reflect.Append(target, reflect.ValueOf(a)))
		}
		return nil
	})),
	// Kong treats an empty list like a missing flag. Then a list of users that
	// was left empty by mistake would admit all users.
	kong.TypeMapper(reflect.TypeFor[[]uint32](), kong.MapperFunc(func(ctx *kong.DecodeContext, target reflect.Value) error {
		s, err := pop(ctx)
		if err != nil {
			return err
		}
		for part := range strings.SplitSeq(s, ",") {
			id, err := strconv.ParseUint(strings.TrimSpace(part), 10, 32)
			if err != nil {
				return fmt.Errorf("%q is not a user or group number; write one, 10002 for example", part)
			}
			target.Set(reflect.Append(target, reflect.ValueOf(uint32(id))))
		}
		return nil
	})),
}

func pop(ctx *kong.DecodeContext) (string, error) {
	token, err := ctx.Scan.PopValue("value")
	if err != nil {
		return "", err
	}
	return fmt.Sprint(token.Value), nil
}
