package echo

import (
	"errors"
	"io"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
)

func readTape(t *testing.T, r io.Reader, want string) {
	t.Helper()
	got := make([]byte, len(want))
	if _, err := io.ReadFull(r, got); err != nil || string(got) != want {
		t.Fatalf("read %q (%v), not %q", got, err, want)
	}
}

func TestTapeStartsAgainWithWhatIsNotBack(t *testing.T) {
	t.Parallel()
	tape := newTape(iotest.OneByteReader(strings.NewReader("0123456789")))
	first := tape.rewound()
	readTape(t, first, "012345")
	tape.forget(2)
	second := tape.rewound()
	readTape(t, second, "2345")
	if _, err := first.Read(make([]byte, 1)); err != io.ErrClosedPipe {
		t.Errorf("the first reader goes on: %v", err)
	}
	readTape(t, second, "67")
	tape.forget(6)
	third := tape.rewound()
	readTape(t, third, "89")
	if n, err := third.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Errorf("after the end: %d bytes, %v", n, err)
	}
	if due, end := tape.state(); !due || end != io.EOF {
		t.Errorf("the last bytes are due %v, the input ended with %v", due, end)
	}
	tape.forget(2)
	if due, _ := tape.state(); due {
		t.Error("bytes are due that are back")
	}
}

func TestTapeExpectsWhatWasReadAndNoMore(t *testing.T) {
	t.Parallel()
	tape := newTape(strings.NewReader("0123456789"))
	readTape(t, tape.rewound(), "012")
	for p, want := range map[string]bool{"": true, "0": true, "012": true, "0123": false, "02": false} {
		if tape.expects([]byte(p)) != want {
			t.Errorf("expects %q: %v", p, !want)
		}
	}
}

// What comes back of what the reader was still to read is not read again.
func TestTapeSkipsWhatIsBackBeforeItIsRead(t *testing.T) {
	t.Parallel()
	tape := newTape(strings.NewReader("0123456789"))
	readTape(t, tape.rewound(), "0123456789")
	second := tape.rewound()
	readTape(t, second, "01")
	tape.forget(5)
	readTape(t, second, "56789")
}

// A reader left behind in the input takes nothing away, and those after it end
// as soon as there is another.
func TestTapeKeepsWhatAReaderLeftBehindGets(t *testing.T) {
	t.Parallel()
	in, typed := io.Pipe()
	tape := newTape(in)
	var left sync.WaitGroup
	for range 10 {
		r := tape.rewound()
		left.Go(func() {
			if n, err := r.Read(make([]byte, 16)); n != 0 || err != io.ErrClosedPipe {
				t.Errorf("a reader left behind got %d bytes, %v", n, err)
			}
		})
	}
	last := tape.rewound()
	got := make(chan string)
	go func() {
		b, _ := io.ReadAll(last)
		got <- string(b)
	}()
	for _, s := range []string{"one ", "two ", "three"} {
		if _, err := io.WriteString(typed, s); err != nil {
			t.Fatal(err)
		}
	}
	_ = typed.Close()
	if s := <-got; s != "one two three" {
		t.Errorf("the last reader got %q", s)
	}
	left.Wait()
}

func TestTapeEndsWithTheErrorOfItsInput(t *testing.T) {
	t.Parallel()
	gone := errors.New("gone")
	tape := newTape(io.MultiReader(strings.NewReader("012"), iotest.ErrReader(gone)))
	for range 2 {
		r := tape.rewound()
		readTape(t, r, "012")
		if _, err := r.Read(make([]byte, 1)); err != gone {
			t.Errorf("the error is %v", err)
		}
	}
}

func TestTapeKeepsWhatComesWithTheEnd(t *testing.T) {
	t.Parallel()
	tape := newTape(iotest.DataErrReader(strings.NewReader("012")))
	for range 2 {
		if b, err := io.ReadAll(tape.rewound()); string(b) != "012" || err != nil {
			t.Errorf("read %q, %v", b, err)
		}
	}
}
