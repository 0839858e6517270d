package disk

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"
)

// J2: a file that cannot be read is told of once it was needed, until it can be read.
func TestUnread(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &Reader{Root: t.TempDir()}
		const odd, dir = "/etc/systemd/network/75-odd.network", "/etc/systemd/network/10-other.network.d"
		want := func(files ...string) {
			t.Helper()
			got := r.Unread()
			for i := range got {
				got[i] = got[i][len(r.Root):]
			}
			if !slices.Equal(got, files) {
				t.Errorf("%q, want %q", got, files)
			}
		}
		const oddText, dirText = odd + ": it is not a regular file but a FIFO", dir + ": not a directory"
		write(t, r.at(dir), "")
		if err := unix.Mkfifo(r.at(odd), 0o600); err != nil {
			t.Fatal(err)
		}
		tree := r.Tree()
		want()
		if unit := tree.Look(filepath.Base(odd)); unit.Path != odd || unit.Texts[0].Content != "" {
			t.Errorf("%+v", unit)
		}
		tree.Look("10-other.network")
		want(dirText, oddText)
		// The next tree has not been asked for it yet.
		r.Tree()
		want(dirText, oddText)
		// What is mended or gone is not told of, but for a file that has gone.
		if err := errors.Join(os.Remove(r.at(odd)), os.Remove(r.at(dir))); err != nil {
			t.Fatal(err)
		}
		r.Tree()
		want(oddText)
		write(t, r.at(odd), "[Match]\n")
		r.Tree()
		want()
		if err := errors.Join(os.Remove(r.at(odd)), os.Mkdir(r.at(odd), 0o755)); err != nil {
			t.Fatal(err)
		}
		r.Tree().Look(filepath.Base(odd))
		want(odd + ": it is not a regular file but a directory")
		if err := os.Remove(r.at(odd)); err != nil {
			t.Fatal(err)
		}
		r.Tree()
		time.Sleep(keepTime + time.Second)
		want()
	})
}
