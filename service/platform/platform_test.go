package platform

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The data of EC2 instances of each kind, and of other machines. The first ones are from AWS's
// documentation on identifying instances.
func TestNotEC2(t *testing.T) {
	for name, test := range map[string]struct {
		identity Identity
		// wants is a part of the reason, empty for an EC2 instance.
		wants string
	}{
		"Nitro":              {Identity{SystemVendor: "Amazon EC2", BIOSVendor: "Amazon EC2", ChassisVendor: "Amazon EC2", ProductUUID: "ec2f58b1-6b2a-1b2c-9d3e-0123456789ab"}, ""},
		"Graviton":           {Identity{SystemVendor: "Amazon EC2", BIOSVendor: "Amazon EC2"}, ""},
		"renamed by someone": {Identity{SystemVendor: "ACME", BIOSVendor: "Amazon EC2"}, ""},
		"Xen HVM": {
			Identity{SystemVendor: "Xen", BIOSVendor: "Xen", ProductVersion: "4.11.amazon", ProductUUID: "EC2E1916-9099-7CAF-FD21-012345ABCDEF", HypervisorUUID: "ec2e1916-9099-7caf-fd21-012345abcdef"}, "",
		},
		"Xen, little endian":           {Identity{SystemVendor: "Xen", ProductUUID: "45E12AEC-DCD1-B213-94ED-012345ABCDEF"}, ""},
		"Xen, UUID not to be read":     {Identity{SystemVendor: "Xen", ProductVersion: "4.2.amazon"}, ""},
		"Xen PV, without DMI":          {Identity{HypervisorUUID: "EC2E1916-9099-7CAF-FD21-012345ABCDEF"}, ""},
		"Xen of somebody else":         {Identity{SystemVendor: "Xen", BIOSVendor: "Xen", ProductVersion: "4.17", ProductUUID: "11111111-9099-7caf-fd21-012345abcdef"}, `"Xen"`},
		"QEMU":                         {Identity{SystemVendor: "QEMU", BIOSVendor: "SeaBIOS", ProductUUID: "76c9a2b8-2b9b-4f6e-a7a5-0123456789ab"}, `"QEMU"`},
		"a UUID that looks like one":   {Identity{SystemVendor: "Dell Inc.", ProductUUID: "ec2f58b1-6b2a-1b2c-9d3e-0123456789ab"}, `"Dell Inc."`},
		"an Amazon that is not EC2":    {Identity{SystemVendor: "Amazon"}, `"Amazon"`},
		"a version of somebody's":      {Identity{SystemVendor: "ACME", ProductVersion: "amazon"}, `"ACME"`},
		"nothing":                      {Identity{}, "neither"},
		"a UUID with the two part way": {Identity{SystemVendor: "Xen", ProductUUID: "00ec2000-dcd1-b213-94ed-012345abcdef"}, `"Xen"`},
		"a short UUID":                 {Identity{SystemVendor: "Xen", ProductUUID: "45e12aec"}, `"Xen"`},
	} {
		got := test.identity.NotEC2()
		if (got == "") != (test.wants == "") || !strings.Contains(got, test.wants) {
			t.Errorf("%s: %q, want %q", name, got, test.wants)
		}
	}
}

func TestRead(t *testing.T) {
	root := t.TempDir()
	if got := Read(root); got != (Identity{}) {
		t.Errorf("of nothing: %+v", got)
	}
	write := func(file, text string) {
		t.Helper()
		path := filepath.Join(root, file)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o400); err != nil {
			t.Fatal(err)
		}
	}
	want := Identity{
		SystemVendor: "Amazon EC2", BIOSVendor: "bios", ChassisVendor: "chassis", ProductVersion: "4.11.amazon",
		ProductUUID: "ec2-a", HypervisorUUID: "ec2-b",
	}
	for file, text := range map[string]string{
		dmi + "/sys_vendor": " Amazon EC2 \n", dmi + "/bios_vendor": "bios\n", dmi + "/chassis_vendor": "chassis\n",
		dmi + "/product_version": "4.11.amazon\n", dmi + "/product_uuid": "ec2-a\n", "sys/hypervisor/uuid": "ec2-b\n",
	} {
		write(file, text)
	}
	if got := Read(root); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
}

// J2: other kinds of files do not block the daemon, fill its memory or get into the log.
func TestReadOdd(t *testing.T) {
	root := t.TempDir()
	dir := filepath.Join(root, dmi)
	if err := os.MkdirAll(filepath.Join(dir, "bios_vendor"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(filepath.Join(dir, "sys_vendor"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/dev/zero", filepath.Join(dir, "chassis_vendor")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "product_version"), []byte("a\x1b[31mb\xff\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "product_uuid"), []byte(strings.Repeat("x", 1<<20)), 0o644); err != nil {
		t.Fatal(err)
	}
	read := make(chan Identity, 1)
	go func() { read <- Read(root) }()
	select {
	case got := <-read:
		version := got.ProductVersion
		got.ProductVersion = ""
		if got != (Identity{}) || strings.TrimSpace(version) != "a [31mb" {
			t.Errorf("%+v, version %q", got, version)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("it waits for a FIFO")
	}
}

// TestReadPage: a kernel for arm64 with pages of 64 KiB reports 64 KiB for each file of sysfs.
func TestReadPage(t *testing.T) {
	root := t.TempDir()
	vendor := filepath.Join(root, dmi, "sys_vendor")
	if err := os.MkdirAll(filepath.Dir(vendor), 0o755); err != nil {
		t.Fatal(err)
	}
	page := append([]byte(amazon+"\n"), make([]byte, 64<<10-len(amazon)-1)...)
	if err := os.WriteFile(vendor, page, 0o644); err != nil {
		t.Fatal(err)
	}
	if got := Read(root).NotEC2(); got != "" {
		t.Errorf("an instance with large pages: %s", got)
	}
}
