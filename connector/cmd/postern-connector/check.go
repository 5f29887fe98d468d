package main

// checkCmd, statusCmd and serviceCmd come next.
type (
	checkCmd   struct{}
	statusCmd  struct{}
	serviceCmd struct{}
)

// Run is not reached yet.
func (checkCmd) Run(*env) error   { return nil }
func (statusCmd) Run(*env) error  { return nil }
func (serviceCmd) Run(*env) error { return nil }
