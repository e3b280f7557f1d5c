package uds_test

import (
	"errors"
	"fmt"
	"os"

	"github.com/udsecho/udsecho/uds"
)

func ExampleListenConfig_Listen() {
	dir, err := os.MkdirTemp("", "uds")
	if err != nil {
		panic(err)
	}
	defer func() { _ = os.RemoveAll(dir) }()

	// The group may connect, nobody else.
	config := uds.ListenConfig{Mode: 0o660}
	socket, err := config.Listen(uds.Addr{Type: uds.Stream, Path: dir + "/s"})
	if err != nil {
		panic(err)
	}
	defer func() { _ = socket.Close() }()

	info, err := os.Lstat(socket.Addr().Path)
	if err != nil {
		panic(err)
	}
	fmt.Println(info.Mode())

	_, err = config.Listen(socket.Addr())
	fmt.Println(errors.Is(err, uds.ErrInUse))

	// Output:
	// Srw-rw----
	// true
}
