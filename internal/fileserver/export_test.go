package fileserver

// Hang occupies all goroutines that may close files, as files of a file system
// that does not answer would, until end is called.
func (s *Server) Hang() (end func()) {
	for range cap(s.closing) {
		s.closing <- struct{}{}
	}
	return func() {
		for range cap(s.closing) {
			<-s.closing
		}
	}
}
