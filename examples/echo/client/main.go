// Client sends a message and receives it back, 16 bytes at a time. It is the
// smallest client of package uds. The comments name the system calls.
package main

import (
	"fmt"
	"os"

	"github.com/udsecho/udsecho/uds"
)

func main() {
	if err := talk("./uds_socket", "This is the message.  It will be repeated."); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func talk(path, message string) error {
	fmt.Println("connecting to", path)
	connection, err := uds.Dial("unix", path) // socket(2), connect(2)
	if err != nil {
		return err
	}
	defer connection.Close() // close(2)
	defer fmt.Println("closing socket")
	fmt.Printf("sending '%s'\n", message)
	if _, err := connection.Write([]byte(message)); err != nil { // write(2), until all is sent
		return err
	}
	chunk := make([]byte, 16)
	for received := 0; received < len(message); {
		n, err := connection.Read(chunk) // read(2)
		if err != nil {
			return fmt.Errorf("received %d of %d bytes: %w", received, len(message), err)
		}
		received += n
		fmt.Printf("received '%s'\n", chunk[:n])
	}
	return nil
}
