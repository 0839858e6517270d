// Package orgec2netdnetwork is the Varlink interface org.ec2netd.Network as the
// generator of the Varlink library makes it of the description in api/. Nothing but
// this file is written by hand.
package orgec2netdnetwork

// The generator writes beside the IDL, which other tools look for in api/.
//go:generate go run github.com/varlink/go/cmd/varlink-go-interface-generator ../org.ec2netd.Network.varlink
//go:generate mv ../orgec2netdnetwork.go .
//go:generate chmod 0644 orgec2netdnetwork.go
