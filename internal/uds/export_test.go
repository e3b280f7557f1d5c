package uds

// ParseControl is what the fuzz test feeds.
var ParseControl = parseControl
