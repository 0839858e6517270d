package systemd

import (
	"os"
	"path/filepath"
	"testing"
)

// H5: the advice to start ec2netd works where its units are masked too.
func TestCommands(t *testing.T) {
	root := t.TempDir()
	for _, dir := range []string{"etc", "run"} {
		if err := os.MkdirAll(filepath.Join(root, dir, "systemd/system/"+MetricsSocket), 0o755); err != nil {
			t.Fatal(err) // a directory is no mask
		}
	}
	files := UnitFiles{Root: root}
	if files.AnyMasked(Daemon, Socket, MetricsSocket) {
		t.Error("nothing is masked")
	}
	if got := files.StartCommand(); got != "systemctl enable --now ec2netd.socket ec2netd.service" {
		t.Errorf("to start: %s", got)
	}
	if got := files.EnableCommand(Networkd); got != "systemctl enable systemd-networkd.service" {
		t.Errorf("to enable: %s", got)
	}
	if err := os.Symlink(os.DevNull, filepath.Join(root, "etc/systemd/system", Socket)); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "run/systemd/system", Daemon), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	const enable = "systemctl unmask ec2netd.socket && systemctl unmask --runtime ec2netd.service && systemctl enable ec2netd.socket ec2netd.service"
	if got := files.EnableCommand(Socket, Daemon); got != enable {
		t.Errorf("to enable: %s", got)
	}
	if got := files.StartCommand(); got != enable+" && systemctl stop ec2netd.socket && systemctl restart ec2netd.service" {
		t.Errorf("to start: %s", got)
	}
}
