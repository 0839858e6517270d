package labtest

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"ec2netd/cmd/vpclab/vpc"
)

// MaskFile masks a file by a link to /dev/null before the first boot.
func MaskFile(o *vpc.InstanceOptions, file string) {
	install := o.Install
	o.Install = func(root string) error {
		if err := install(root); err != nil {
			return err
		}
		path := filepath.Join(root, file)
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return os.Symlink(Masked, path)
	}
}

// Refreshing has the daemon look at the metadata every two seconds. It is an option of [Boot].
func Refreshing(o *vpc.InstanceOptions) {
	o.Files["/etc/ec2netd.conf.d/test.conf"] = "[Metadata]\nRefreshSec=2\n"
}
