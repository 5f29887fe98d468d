package mux

// StreamsForTest counts the streams that a session remembers.
func StreamsForTest(s *Session) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.streams)
}

// HeldForTest is the memory that streams hold unread.
func HeldForTest(s *Session) int64 { return s.held.Load() }
