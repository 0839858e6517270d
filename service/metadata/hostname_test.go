package metadata

import (
	"strings"
	"testing"
)

func TestParseHostname(t *testing.T) { // I6
	long := strings.Repeat("a", 63)
	for body, want := range map[string]string{
		"ip-10-0-0-10.ec2.internal":             "ip-10-0-0-10.ec2.internal",
		"ip-10-0-0-10.ec2.internal\n":           "ip-10-0-0-10.ec2.internal",
		"ip-10-0-0-10.a.example b.example":      "ip-10-0-0-10.a.example",
		"i-0123456789abcdef0.ec2.internal.":     "i-0123456789abcdef0.ec2.internal",
		long + ".example":                       long,
		"":                                      "",
		"a\nb":                                  "",
		"-a":                                    "",
		"a..b":                                  "",
		"a_b":                                   "",
		"a/../b":                                "",
		" a":                                    "",
		long + "aa":                             "",
		"<html>":                                "",
		"ip-10-0-0-10\x00.ec2.internal":         "",
		"ip-10-0-0-10.ec2.internal\r":           "",
		strings.Repeat("a", 40) + "." + "ü.com": "",
	} {
		got, err := parseHostname(body)
		if got != want || (err != nil) != (want == "") {
			t.Errorf("%q: %q, %v", body, got, err)
		}
	}
}
