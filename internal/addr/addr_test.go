package addr_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/udsecho/udsecho/internal/addr"
	"github.com/udsecho/udsecho/uds/sock"
)

func TestParseAddr(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		in       string
		want     addr.Addr
		network  string
		abstract bool
	}{
		{"stream:/run/uds/s", addr.Addr{Type: addr.Stream, Path: "/run/uds/s"}, "unix", false},
		{"datagram:/run/uds/d", addr.Addr{Type: addr.Datagram, Path: "/run/uds/d"}, "unixgram", false},
		{"seqpacket:q", addr.Addr{Type: addr.Seqpacket, Path: "q"}, "unixpacket", false},
		{"files:/run/uds/f", addr.Addr{Type: addr.Files, Path: "/run/uds/f"}, "unixpacket", false},
		{"files:@name", addr.Addr{Type: addr.Files, Path: "@name"}, "unixpacket", true},
		{"./uds_socket", addr.Addr{Type: addr.Stream, Path: "./uds_socket"}, "unix", false},
		{"uds_socket", addr.Addr{Type: addr.Stream, Path: "uds_socket"}, "unix", false},
		{"/run/uds/a:b", addr.Addr{Type: addr.Stream, Path: "/run/uds/a:b"}, "unix", false},
		{"./datagram:b", addr.Addr{Type: addr.Stream, Path: "./datagram:b"}, "unix", false},
		{"stream:a:b", addr.Addr{Type: addr.Stream, Path: "a:b"}, "unix", false},
		{"stream:@name", addr.Addr{Type: addr.Stream, Path: "@name"}, "unix", true},
		{"@name", addr.Addr{Type: addr.Stream, Path: "@name"}, "unix", true},
		{"@a:b", addr.Addr{Type: addr.Stream, Path: "@a:b"}, "unix", true},
		{"datagram:@name", addr.Addr{Type: addr.Datagram, Path: "@name"}, "unixgram", true},
		{"tcp:127.0.0.1:7000", addr.Addr{Type: addr.TCP, Path: "127.0.0.1:7000"}, "tcp", false},
		{"tcp:[::1]:7000", addr.Addr{Type: addr.TCP, Path: "[::1]:7000"}, "tcp", false},
		{"tcp::7000", addr.Addr{Type: addr.TCP, Path: ":7000"}, "tcp", false},
		{"tcp:server:0", addr.Addr{Type: addr.TCP, Path: "server:0"}, "tcp", false},
		{"./tcp:7000", addr.Addr{Type: addr.Stream, Path: "./tcp:7000"}, "unix", false},
		{"with space\nand more", addr.Addr{Type: addr.Stream, Path: "with space\nand more"}, "unix", false},
	} {
		got, err := addr.ParseAddr(tt.in)
		if err != nil {
			t.Errorf("%q: %v", tt.in, err)
			continue
		}
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("%q (-want +got):\n%s", tt.in, diff)
		}
		if got.Network() != tt.network || got.Abstract() != tt.abstract {
			t.Errorf("%q: network %s, abstract %t", tt.in, got.Network(), got.Abstract())
		}
		if again, err := addr.ParseAddr(got.String()); err != nil || again != got {
			t.Errorf("%q: %q does not come back: %v, %v", tt.in, got.String(), again, err)
		}
	}
}

func TestParseAddrRejectsInvalidAddresses(t *testing.T) {
	t.Parallel()
	for in, words := range map[string]string{
		"":                             "path is empty; write stream:PATH",
		"stream:":                      "path is empty; write stream:PATH",
		"datagram:":                    "path is empty; write datagram:PATH",
		"@":                            "path is empty",
		"stream:@":                     "path is empty",
		"a\x00b":                       "NUL",
		"stream:\x00":                  "NUL",
		"unix:/run/s":                  `unknown form "unix"; write stream:PATH, datagram:PATH, seqpacket:PATH, files:PATH, tcp:HOST:PORT, or ./unix:/run/s for a path with a colon`,
		"STREAM:/run/s":                `unknown form "STREAM"`,
		":/run/s":                      `unknown form ""`,
		"/run/uds/":                    "is a directory",
		"stream:/":                     "is a directory",
		"/" + strings.Repeat("s", 107): "path is 108 bytes, sun_path holds 107",
		"@" + strings.Repeat("s", 107): "path is 108 bytes",
		"tcp:":                         `"" is not HOST:PORT; write tcp:127.0.0.1:7000`,
		"tcp:7000":                     "is not HOST:PORT",
		"tcp:localhost":                "is not HOST:PORT",
		"tcp:localhost:":               "is not HOST:PORT",
		"tcp:localhost:http":           "is not HOST:PORT",
		"udp:127.0.0.1:7000":           `unknown form "udp"`,
		"tcp:127.0.0.1:65536":          "is not HOST:PORT",
		"tcp:127.0.0.1:-1":             "is not HOST:PORT",
		"tcp:::1:7000":                 "is not HOST:PORT; write tcp:127.0.0.1:7000, or tcp:[::1]:7000",
	} {
		a, err := addr.ParseAddr(in)
		wantError(t, err, sock.ErrAddress, words)
		if a != (addr.Addr{}) {
			t.Errorf("%q is an error and %v", in, a)
		}
	}
}

func TestTypesByWhatTheyDo(t *testing.T) {
	t.Parallel()
	for typ, want := range map[addr.Type][3]bool{
		addr.Stream:    {true, false, true},
		addr.Datagram:  {true, true, false},
		addr.Seqpacket: {true, true, true},
		addr.Files:     {true, true, true},
		addr.TCP:       {false, false, true},
	} {
		if got := [3]bool{typ.Unix(), typ.Messages(), typ.Connects()}; got != want {
			t.Errorf("%s: of AF_UNIX, keeps boundaries, connects: %v, not %v", typ, got, want)
		}
	}
}

func FuzzParseAddr(f *testing.F) {
	for _, s := range []string{"stream:/run/uds/s", "./uds_socket", "datagram:@name", "seqpacket:a:b", "tcp:[::1]:7000",
		"", "@", "stream:", "unix:s", "a\x00b", "dir/", "\xff", strings.Repeat("s", 108)} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		a, err := addr.ParseAddr(s)
		if err != nil {
			if !errors.Is(err, sock.ErrAddress) || a != (addr.Addr{}) {
				t.Fatalf("%q gives %v and %v", s, a, err)
			}
			return
		}
		if again, err := addr.ParseAddr(a.String()); err != nil || again != a {
			t.Fatalf("%q gives %v, which gives %v, %v", s, a, again, err)
		}
		if !strings.HasSuffix(s, a.Path) {
			t.Fatalf("%q gives the path %q", s, a.Path)
		}
		if a.Type.Unix() && (a.Path == "" || a.Path == "@" || len(a.Path) > sock.MaxPath || strings.Contains(a.Path, "\x00")) {
			t.Fatalf("%q gives %v, which the kernel would take for another", s, a)
		}
	})
}
