package uds

// ParseControl is what the fuzz test feeds.
var ParseControl = parseControl

// Connects tries what a client does that finds out what is at a path.
var Connects = connects
