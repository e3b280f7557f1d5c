package main

func draw(all []measurement, path string) error { _, _ = all, path; return nil }
