package imds

import (
	"errors"
	"fmt"
	"net/netip"
	"path"
	"strconv"
	"strings"
	"time"
)

// Effect is the effect of a fault on a request.
type Effect string

// The effects.
const (
	Delay    Effect = "delay"    // answer as usual, after Fault.Delay
	Status   Effect = "status"   // answer Fault.Status with EC2's error page
	Hang     Effect = "hang"     // never answer
	Reset    Effect = "reset"    // reset the TCP connection
	Empty    Effect = "empty"    // 200 without a body
	Truncate Effect = "truncate" // 200 with half of the body that was announced
	HTML     Effect = "html"     // 200 with a web page, as a captive portal sends
	Body     Effect = "body"     // 200 with Fault.Body
	Family   Effect = "family"   // 200 with the value in the other IP family
	Inject   Effect = "inject"   // 200 with lines of a unit file after the value
	Huge     Effect = "huge"     // 200 with 1 MiB of lines
	Endless  Effect = "endless"  // 200 with lines and lines, as fast as they are read
	Header   Effect = "header"   // 200 with 1 MiB of headers
	Drip     Effect = "drip"     // 200 with a byte now and then
	Interim  Effect = "interim"  // answers of status 103, one after the other
	Surplus  Effect = "surplus"  // 200 with another answer after the end of the first
	Redirect Effect = "redirect" // 302 to another host
	Partial  Effect = "partial"  // 206 with half of the value
	Upgrade  Effect = "upgrade"  // 101, and then silence
	Unknown  Effect = "unknown"  // 200 with names that nobody knows around the lines: for listings
)

// Effects lists all effects.
func Effects() []Effect {
	return []Effect{
		Delay, Status, Hang, Reset, Empty, Truncate, HTML, Body, Family, Inject, Huge,
		Endless, Header, Drip, Interim, Surplus, Redirect, Partial, Upgrade, Unknown,
	}
}

// Failures are all ways in which the answer to one request can fail, by name: faults without a
// pattern. Tests combine them into a matrix.
func Failures() map[string]Fault {
	failures := map[string]Fault{
		"hang": {Effect: Hang}, "reset": {Effect: Reset}, "empty": {Effect: Empty}, "truncated": {Effect: Truncate},
		"HTML": {Effect: HTML}, "wrong family": {Effect: Family}, "injected": {Effect: Inject}, "1 MiB": {Effect: Huge},
		"endless": {Effect: Endless}, "header": {Effect: Header}, "drip": {Effect: Drip}, "interim": {Effect: Interim},
		"surplus": {Effect: Surplus}, "redirect": {Effect: Redirect}, "partial": {Effect: Partial}, "upgrade": {Effect: Upgrade},
	}
	for _, status := range []int{401, 403, 404, 429, 500, 503} {
		failures[strconv.Itoa(status)] = Fault{Effect: Status, Status: status}
	}
	return failures
}

// hugeSize is the minimal size of a body of the effect Huge, and of the headers of Header.
const hugeSize = 1 << 20

// dripTime is the time between two bytes of the effect Drip, and dripBytes the number of bytes
// that it announces in addition to the value.
const (
	dripTime  = 100 * time.Millisecond
	dripBytes = 500
)

// UnknownNames are the names that the effect Unknown adds around the lines of a listing: kinds of
// keys that EC2 may have one day.
var UnknownNames = []string{"Future_Key.v2", "new-directory/", "x", "odd name", "lni-0123456789abcdef0/", strings.Repeat("long", 50)}

// altered returns the body with the change of an effect.
func (f Fault) altered(body string) string {
	switch f.Effect {
	case HTML:
		return portalPage
	case Body:
		return f.Body
	case Family:
		return otherFamily(body)
	case Inject:
		return body + "\n[Match]\nName=*"
	case Unknown:
		half := len(UnknownNames) / 2
		return strings.Join(UnknownNames[:half], "\n") + "\n" + body + "\n" + strings.Join(UnknownNames[half:], "\n")
	case Huge:
		line := body + "\n"
		return strings.Repeat(line, hugeSize/len(line)+1)
	}
	return ""
}

// otherFamily replaces addresses and prefixes in a body by those of the other IP family. It also
// replaces any other line by an address, since a value without a family would be valid otherwise.
func otherFamily(body string) string {
	all := strings.Split(body, "\n")
	for n, line := range all {
		address, err := netip.ParseAddr(line)
		prefix, noPrefix := netip.ParsePrefix(line)
		switch {
		case err == nil && address.Is6():
			all[n] = fmt.Sprintf("198.51.100.%d", n+1)
		case noPrefix == nil && prefix.Addr().Is6():
			all[n] = fmt.Sprintf("198.51.%d.0/24", n)
		case noPrefix == nil:
			all[n] = fmt.Sprintf("2001:db8:%x::/64", n)
		default:
			all[n] = fmt.Sprintf("2001:db8::%x", n+1)
		}
	}
	return strings.Join(all, "\n")
}

// TokenKey is the name of requests to the token endpoint in faults, the log and the counters.
const TokenKey = "token"

// Fault makes the matching requests fail.
type Fault struct {
	// ID is given by [Server.AddFault].
	ID int `json:"id"`
	// Pattern matches the key: the path below meta-data/ without a final slash
	// ("network/interfaces/macs" for that listing), or [TokenKey]. It is a [path.Match] pattern,
	// in which "/**" at the end stands for the directory and everything below it; "**" alone
	// matches every request.
	Pattern string `json:"pattern"`
	// Effect is what happens.
	Effect Effect `json:"effect"`
	// Status is for the effect Status: 400 to 599.
	Status int `json:"status,omitempty"`
	// Body is for the effect Body.
	Body string `json:"body,omitempty"`
	// Delay is the time before any effect.
	Delay time.Duration `json:"delay,omitempty"`
	// Probability is the chance that a fault affects a matching request; 0 means always.
	Probability float64 `json:"probability,omitempty"`
	// Count is the number of affected requests after which the fault ends; 0 means no limit.
	Count int `json:"count,omitempty"`
	// Hits is the number of affected requests so far.
	Hits int `json:"hits"`
}

// Check returns an error if a fault is invalid.
func (f Fault) Check() error {
	if f.Pattern == "" {
		return errors.New("fault: no pattern; \"**\" matches every request")
	}
	if _, err := path.Match(f.Pattern, ""); err != nil {
		return fmt.Errorf("fault: pattern %q: %w", f.Pattern, err)
	}
	switch f.Effect {
	case Status:
		if f.Status < 400 || f.Status > 599 {
			return fmt.Errorf("fault on %s: status %d is not in 400…599", f.Pattern, f.Status)
		}
	case Delay:
		if f.Delay <= 0 {
			return fmt.Errorf("fault on %s: effect delay without a delay", f.Pattern)
		}
	case Hang, Reset, Empty, Truncate, HTML, Body, Family, Inject, Huge,
		Endless, Header, Drip, Interim, Surplus, Redirect, Partial, Upgrade, Unknown:
	default:
		return fmt.Errorf("fault on %s: unknown effect %q, want one of %v", f.Pattern, f.Effect, Effects())
	}
	if f.Probability < 0 || f.Probability > 1 {
		return fmt.Errorf("fault on %s: probability %v is not in 0…1", f.Pattern, f.Probability)
	}
	if f.Count < 0 || f.Delay < 0 {
		return fmt.Errorf("fault on %s: negative count or delay", f.Pattern)
	}
	return nil
}

// String returns the name of the fault in the request log.
func (f Fault) String() string {
	switch {
	case f.Effect == Status:
		return fmt.Sprintf("status %d", f.Status)
	case f.Delay > 0:
		return fmt.Sprintf("%s %s", f.Effect, f.Delay)
	}
	return string(f.Effect)
}

func (f Fault) matches(key string) bool {
	if f.Pattern == "**" {
		return true
	}
	if dir, ok := strings.CutSuffix(f.Pattern, "/**"); ok {
		depth := strings.Count(dir, "/") + 1
		parts := strings.Split(key, "/")
		if len(parts) < depth {
			return false
		}
		hit, _ := path.Match(dir, strings.Join(parts[:depth], "/"))
		return hit
	}
	hit, _ := path.Match(f.Pattern, key)
	return hit
}
