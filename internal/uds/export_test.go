package uds

// ParseControl is what the fuzz test feeds.
var ParseControl = parseControl

// MapsAll reads what this process's namespace does not have.
var MapsAll = mapsAll
