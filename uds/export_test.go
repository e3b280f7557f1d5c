package uds

// ParseControl is what the fuzz test feeds.
var ParseControl = parseControl

// MapsAll reads what this process's namespace does not have.
var MapsAll = mapsAll

// Connects tries what a client does that finds out what is at a path.
var Connects = connects
