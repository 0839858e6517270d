// Package e2e has the tests that boot real systemd in the simulated VPC of cmd/vpclab: a test says
// what the VPC does, and looks at the kernel, networkd's log and the API, with the helpers of
// cmd/vpclab/labtest. A file has one subject, and the helpers that only this subject needs. The package
// has no code of its own.
package e2e
