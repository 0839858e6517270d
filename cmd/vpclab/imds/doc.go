// Package imds is a simulated EC2 instance metadata service: an [http.Handler]
// over a tree of keys that can be changed while it runs.
//
// It answers as EC2 does: IMDSv2 only, with tokens that expire; directory listings with
// and without a trailing slash; bodies without a final newline; a 404 with EC2's error
// page for unknown keys. Three things can modify the answers: propagation (a key takes
// a while to appear, or waits for a [Server.Reveal]), overrides (any text as the value
// of a key) and faults (any failure of a request). Every request is logged, so that a
// test can count the requests of a client.
//
// It is not a network service: package vpc opens the two well-known endpoints
// inside a network namespace and serves this handler on them.
//
// The behaviour follows the "Instance metadata and user data" chapter of the
// Amazon EC2 User Guide.
package imds
