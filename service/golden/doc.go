// Package golden freezes what ec2netd does, from the outside: which files it generates in a
// given world, and which states it publishes while something fails.
//
// It has tests only. A world is a file in testdata/worlds: the metadata as ec2netctl
// dump-metadata prints them, links, configuration and unit files of others. The golden file
// beside it has the generated files on each version of systemd. A fault is a list of steps in
// faults_test.go; its golden file in testdata/faults has the published state after each.
//
// The tests survive a refactoring of the daemon. They use what users and other programs see:
// metadata, links of the kernel, files on disk, and the state as Describe tells it. Only
// adapter_test.go knows how the daemon is built out of its packages, and only it may change with
// them. A refactoring that changes a golden file changes behaviour.
//
// The tests neither replace those on a real systemd nor say what is right: they say what is.
package golden
