package uds

// ParseControl exports parseControl for the fuzz test.
var ParseControl = parseControl

// MapsAll exports mapsAll, to read maps that this process's namespace does not
// have.
var MapsAll = mapsAll

// Connects exports connects, which tries to connect to a path as a client.
var Connects = connects
