package config

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// spanPart is a number and a unit of systemd.time(7).
var spanPart = regexp.MustCompile(`^([0-9]+(?:\.[0-9]+)?)\s*([a-zA-Z]*)\s*`)

var spanUnits = map[string]time.Duration{
	"":  time.Second,
	"s": time.Second, "sec": time.Second, "second": time.Second, "seconds": time.Second,
	"ms": time.Millisecond, "msec": time.Millisecond,
	"m": time.Minute, "min": time.Minute, "minute": time.Minute, "minutes": time.Minute,
	"h": time.Hour, "hr": time.Hour, "hour": time.Hour, "hours": time.Hour,
	"d": 24 * time.Hour, "day": 24 * time.Hour, "days": 24 * time.Hour,
}

// parseSpan parses a time span of systemd.time(7), up to days: "90", "1min 30s",
// "0.5h". A number without a unit is in seconds.
func parseSpan(text string) (time.Duration, error) {
	var total time.Duration
	rest := strings.TrimSpace(text)
	for rest != "" {
		part := spanPart.FindStringSubmatch(rest)
		if part == nil {
			return 0, fmt.Errorf("%q is not a time span like 60 or 1min 30s", text)
		}
		unit, ok := spanUnits[part[2]]
		if !ok {
			return 0, fmt.Errorf("%q has the unknown unit %q", text, part[2])
		}
		number, err := strconv.ParseFloat(part[1], 64)
		if err != nil || number*float64(unit) > float64(1<<62) {
			return 0, fmt.Errorf("%q is too long a time span", text)
		}
		total += time.Duration(number * float64(unit))
		if total < 0 {
			return 0, fmt.Errorf("%q is too long a time span", text)
		}
		rest = rest[len(part[0]):]
	}
	return total, nil
}
