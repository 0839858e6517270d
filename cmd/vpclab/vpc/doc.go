// Package vpc simulates an Amazon VPC and EC2 instances in it on one Linux
// machine, for experiments, demonstrations and tests. It needs root.
//
// A [VPC] is a network namespace with a router: a bridge a [Subnet] with the
// gateway's addresses, DHCPv4, DHCPv6 and router advertisements as EC2 sends
// them, a host far away that answers pings, and the metadata service of package
// imds on its two well-known addresses. An [Instance] is a full systemd of a
// Debian suite in a systemd-nspawn container with a network namespace of its
// own, or, for what a container cannot show, in a machine with a kernel of its own, in
// QEMU. An [ENI] is a veth pair from the container to a bridge, or a PCIe device of the
// machine with a tap on the bridge; on the bridge's side it meets the source check that EC2 makes, which drops and counts what
// does not carry the ENI's own addresses.
//
// Everything that a VPC makes is undone by [VPC.Close]. What a killed process
// left is found and removed by [RemoveStale].
//
// It is not a model of EC2's control plane: there are no calls, quotas or
// security groups; an ENI is what the test says it is.
package vpc
