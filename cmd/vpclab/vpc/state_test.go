package vpc

import (
	"fmt"
	"os"
	"testing"

	"golang.org/x/sync/errgroup"
)

// TestClaimDuringRemoveStale creates labs while others look for stale ones: a lab that
// is still being created must not be removed.
func TestClaimDuringRemoveStale(t *testing.T) {
	dir := t.TempDir()
	var g errgroup.Group
	for i := range 8 {
		g.Go(func() error {
			for j := range 50 {
				if removed, err := RemoveStale(t.Context(), dir); err != nil || len(removed) > 0 {
					return fmt.Errorf("removed %v, %w", removed, err)
				}
				path, lock, err := claim(t.Context(), dir, fmt.Sprintf("lab%d-%d", i, j), "none")
				if err != nil {
					return err
				}
				if _, err := readRecord(path); err != nil {
					return err
				}
				if err := os.RemoveAll(path); err != nil {
					return err
				}
				lock.Close()
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		t.Error(err)
	}
}
