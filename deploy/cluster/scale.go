package main

type scaleCmd struct{}

func (c *scaleCmd) Run() error { return nil }
