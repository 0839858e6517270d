package schedule

import (
	"testing"
	"time"
)

var start = time.Unix(1000, 0)

// D6: the delay doubles up to a limit, and begins anew after a success.
func TestTry(t *testing.T) {
	var try Try
	for i, seconds := range []int{1, 2, 4, 8, 10, 10} {
		want := time.Duration(seconds) * time.Second
		now := start.Add(time.Duration(i) * time.Minute)
		try.Failed(now, time.Second, 10*time.Second)
		if wait := try.Next.Sub(now); try.Delay != want || wait > try.Delay || wait < try.Delay*9/10 {
			t.Errorf("failure %d: delay %v, next after %v", i, try.Delay, wait)
		}
		if try.Failures != i+1 || !try.Failing.Equal(start) {
			t.Errorf("failure %d: %d since %v", i, try.Failures, try.Failing)
		}
	}
	try.Succeeded()
	later := start.Add(time.Hour)
	if try.Failed(later, time.Second, 10*time.Second); try.Delay != time.Second || try.Failures != 1 || !try.Failing.Equal(later) {
		t.Errorf("after a success: %+v", try)
	}
}

func TestReached(t *testing.T) {
	for _, c := range []struct {
		at   time.Time
		want bool
	}{{time.Time{}, false}, {start.Add(-1), true}, {start, true}, {start.Add(1), false}} {
		if Reached(c.at, start) != c.want {
			t.Errorf("%v: not %v", c.at, c.want)
		}
	}
}

func TestSooner(t *testing.T) {
	never, later := time.Time{}, start.Add(1)
	for _, c := range []struct{ x, y, want time.Time }{
		{never, never, never}, {never, start, start}, {start, never, start}, {start, later, start}, {later, start, start},
	} {
		if got := Sooner(c.x, c.y); !got.Equal(c.want) {
			t.Errorf("Sooner(%v, %v) = %v", c.x, c.y, got)
		}
	}
}
