package uds

func peerPID(int) int { return 0 }
