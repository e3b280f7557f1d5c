package files

// Hang occupies all goroutines that may close files, as files of a file system
// that does not answer would, until end is called.
func (s *Handler) Hang() (end func()) {
	hang := make(chan struct{})
	for owner := range int64(100) { // more than there are closers
		s.closers.Close(1_000_000+owner, func() { <-hang })
	}
	return func() { close(hang) }
}
