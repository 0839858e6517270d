// Package vpc simulates an Amazon VPC and EC2 instances in it on one Linux
// machine, for experiments, demonstrations and tests. It needs root.
//
// A [VPC] is a network namespace with a router: one bridge per [Subnet] with the gateway's addresses, DHCPv4, DHCPv6 and
// router advertisements as EC2 sends them, a remote host that answers pings, and the metadata service of package imds on its
// two well-known addresses. An [Instance] is a full systemd of a Debian suite in a systemd-nspawn container with its own
// network namespace, or, for tests that a container does not permit, in a QEMU machine with its own kernel. An [ENI] is a veth
// pair from the container to a bridge, or a PCIe device of the machine with a tap on the bridge. On the bridge's side EC2's
// source check drops and counts packets without the ENI's own addresses.
//
// [VPC.Close] removes everything that a VPC has created. [RemoveStale] finds and removes the remains of a killed process.
//
// The package does not model EC2's control plane: there are no calls, quotas or security groups; a test defines its ENIs.
package vpc
