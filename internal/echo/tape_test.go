package echo

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
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
	tape := newTape(iotest.OneByteReader(strings.NewReader("0123456789")), maxKept)
	first := tape.rewound()
	readTape(t, first, "012345")
	tape.forget(2)
	second := tape.rewound()
	readTape(t, second, "2345")
	if _, err := first.Read(make([]byte, 1)); err != io.ErrClosedPipe {
		t.Errorf("the first reader continues: %v", err)
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
		t.Error("echoed bytes are still due")
	}
}

func TestTapeExpectsWhatWasReadAndNoMore(t *testing.T) {
	t.Parallel()
	tape := newTape(strings.NewReader("0123456789"), maxKept)
	readTape(t, tape.rewound(), "012")
	for p, want := range map[string]bool{"": true, "0": true, "012": true, "0123": false, "02": false} {
		if tape.expects([]byte(p)) != want {
			t.Errorf("expects %q: %v", p, !want)
		}
	}
}

// Bytes that were echoed before the reader read them are not read again.
func TestTapeSkipsWhatIsBackBeforeItIsRead(t *testing.T) {
	t.Parallel()
	tape := newTape(strings.NewReader("0123456789"), maxKept)
	readTape(t, tape.rewound(), "0123456789")
	second := tape.rewound()
	readTape(t, second, "01")
	tape.forget(5)
	readTape(t, second, "56789")
}

// A reader left behind in the input loses no bytes, and the readers after it
// end as soon as there is another.
func TestTapeKeepsWhatAReaderLeftBehindGets(t *testing.T) {
	t.Parallel()
	in, typed := io.Pipe()
	tape := newTape(in, maxKept)
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
	tape := newTape(io.MultiReader(strings.NewReader("012"), iotest.ErrReader(gone)), maxKept)
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
	tape := newTape(iotest.DataErrReader(strings.NewReader("012")), maxKept)
	for range 2 {
		if b, err := io.ReadAll(tape.rewound()); string(b) != "012" || err != nil {
			t.Errorf("read %q, %v", b, err)
		}
	}
}

// The bytes not echoed are limited: a reader waits, and continues when there
// is room.
func TestTapeThatIsFullWaitsForWhatComesBack(t *testing.T) {
	t.Parallel()
	const limit = 100 << 10
	want := make([]byte, 10*limit+1)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(want)
	tape := newTape(bytes.NewReader(want), limit)
	r := tape.rewound()
	sent := make(chan []byte)
	go func() {
		defer close(sent)
		for {
			p := make([]byte, 7000)
			n, err := r.Read(p)
			if err != nil {
				return
			}
			sent <- p[:n]
		}
	}()
	var got []byte
	back := 0
	for {
		for len(got)-back < limit && len(got) < len(want) {
			got = append(got, <-sent...)
		}
		if len(got)-back > limit {
			t.Fatalf("%d bytes are in flight, more than %d", len(got)-back, limit)
		}
		next := got[back:min(len(got), back+30000)]
		if len(next) == 0 {
			break
		}
		if !tape.expects(next) {
			t.Fatalf("bytes %d to %d are not expected", back, back+len(next))
		}
		tape.forget(len(next))
		back += len(next)
	}
	<-sent
	if !bytes.Equal(got, want) {
		t.Errorf("%d bytes were read, and they are others", len(got))
	}
}

func TestTapeThatIsFullEndsTheReaderBefore(t *testing.T) {
	t.Parallel()
	tape := newTape(strings.NewReader("0123456789"), 4)
	first := tape.rewound()
	readTape(t, first, "0123")
	ended := make(chan error)
	go func() {
		_, err := first.Read(make([]byte, 1))
		ended <- err
	}()
	second := tape.rewound()
	if err := <-ended; err != io.ErrClosedPipe {
		t.Errorf("the first reader continues: %v", err)
	}
	readTape(t, second, "0123")
	tape.forget(3)
	readTape(t, second, "456")
	readTape(t, tape.rewound(), "3456")
}
