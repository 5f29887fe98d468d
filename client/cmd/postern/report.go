package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"connectrpc.com/connect"

	"github.com/postern-zt/postern/client"
	"github.com/postern-zt/postern/client/localapi"
	"github.com/postern-zt/postern/client/tunnels"
	"github.com/postern-zt/postern/platform/ipc"
	controlv1 "github.com/postern-zt/postern/proto/control/v1"
)

// The exit codes.
const (
	exitOK          = 0
	exitError       = 1
	exitUsage       = 2
	exitDenied      = 3
	exitSignedOut   = 4
	exitUnreachable = 5
)

// failure is how an error is printed and which exit code it gives.
type failure struct {
	Code    int    `json:"exit"`
	Message string `json:"error"`
	Reason  string `json:"reason,omitempty"`
	Remedy  string `json:"remedy,omitempty"`
	Contact string `json:"contact,omitempty"`
	Receipt string `json:"receipt,omitempty"`
}

// classify chooses the exit code of an error.
func classify(err error) failure {
	if r, ok := localapi.Denied(err); ok {
		return denied(r)
	}
	f := failure{Code: exitError, Message: client.Sentence(err)}
	var ce *connect.Error
	if errors.As(err, &ce) {
		f.Message = ce.Message()
	}
	switch {
	case errors.Is(err, client.ErrNotSignedIn), errors.Is(err, tunnels.ErrSignedOut), ce != nil && ce.Code() == connect.CodeFailedPrecondition:
		f.Code = exitSignedOut
	case errors.Is(err, tunnels.ErrBroker), errors.Is(err, tunnels.ErrNotGiven), errors.Is(err, ipc.ErrNotRunning), ce != nil && ce.Code() == connect.CodeUnavailable:
		f.Code = exitUnreachable
	}
	return f
}

func denied(r *controlv1.Receipt) failure {
	return failure{
		Code: exitDenied, Message: "access to " + r.GetAppName() + " is denied",
		Reason: r.GetReason(), Remedy: r.GetRemedy(), Contact: r.GetContact(), Receipt: r.GetId(),
	}
}

// report prints an error once and returns the exit code.
func (a *app) report(err error) int {
	if err == nil || errors.Is(err, context.Canceled) {
		return exitOK
	}
	f := classify(err)
	if a.JSON {
		_ = json.NewEncoder(a.errOut).Encode(f) // nowhere left to say it
		return f.Code
	}
	fmt.Fprintln(a.errOut, "postern:", f.Message)
	for _, line := range [][2]string{{"Reason:  ", f.Reason}, {"What to do: ", f.Remedy}, {"Ask:     ", f.Contact}, {"Receipt: ", f.Receipt}} {
		if line[1] != "" {
			fmt.Fprintln(a.errOut, "  "+line[0]+line[1])
		}
	}
	return f.Code
}

// print writes v as JSON with --json, else calls human.
func (a *app) print(v any, human func()) error {
	if !a.JSON {
		human()
		return nil
	}
	enc := json.NewEncoder(a.out)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}
