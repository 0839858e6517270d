package labtest

import (
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
	"time"

	"ec2netd/cmd/vpclab/vpc"
)

// Patience is the limit of every wait. Waits are on conditions: it is never used up
// by a test that passes.
const Patience = 60 * time.Second

// EachSuite runs a test on systemd 252, 257 and 262, side by side with other tests: an
// instance waits for most of its time.
func EachSuite(t *testing.T, test func(t *testing.T, suite string)) {
	t.Helper()
	t.Parallel()
	for _, suite := range vpc.Suites {
		t.Run(suite.Name, func(t *testing.T) {
			t.Parallel()
			test(t, suite.Name)
		})
	}
}

// OneSuite runs a test of what does not depend on systemd on one of them, and with
// EC2NETD_LONG=1 on all.
func OneSuite(t *testing.T, test func(t *testing.T, suite string)) {
	t.Helper()
	if Long() {
		EachSuite(t, test)
		return
	}
	t.Parallel()
	test(t, "trixie")
}

// Long reports whether the long matrices run whole rather than by a sample: with EC2NETD_LONG=1.
func Long() bool { return os.Getenv("EC2NETD_LONG") != "" }

// Luck returns the chance of a test, which is the same each time unless EC2NETD_SEED says another
// number.
func Luck(t testing.TB) *rand.Rand {
	t.Helper()
	return rand.New(rand.NewPCG(vpc.ChanceForTest(t), 0))
}

// Seeded returns a chance that is another one each time, for a test that kills or detaches at random.
// A test that fails says how to repeat it.
func Seeded(t *testing.T) *rand.Rand {
	t.Helper()
	seed := uint64(time.Now().UnixNano())
	if text := os.Getenv("EC2NETD_SEED"); text != "" {
		given, err := strconv.ParseUint(text, 10, 64)
		if err != nil {
			t.Fatalf("EC2NETD_SEED: %v", err)
		}
		seed = given
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("repeat it with EC2NETD_SEED=%d", seed)
		}
	})
	return rand.New(rand.NewPCG(seed, 0))
}
