package plan

import (
	"slices"
	"testing"

	"ec2netd/service/dropin"
	"ec2netd/service/kernel"
)

// G1: a name goes from an ENI where the files of both say that it is another one's, and
// nowhere else.
func TestStaleNames(t *testing.T) {
	const ours = "# Written by ec2netd, see ec2netd(8).\n"
	files := map[string]string{
		"ens6": ours + "[Match]\nMACAddress=02:00:00:00:00:06\n[Link]\nAlternativeName=eni-1\nAlternativeName=device-number-2\n",
		"ens7": ours + "[Match]\nMACAddress=02:00:00:00:00:07\n[Link]\nAlternativeName=eni-2\nAlternativeName=device-number-1\nAlternativeName=both\n",
		"ens8": ours + "[Match]\nMACAddress=02:00:00:00:00:08\n[Link]\nAlternativeName=eni-3\nAlternativeName=both\n",
		"ens9": ours + "[Match]\nMACAddress=02:00:00:00:00:01\n[Link]\nAlternativeName=eni-1\n", // of one that had the name before
	}
	links := []kernel.Link{
		{Index: 2, Name: "ens5", Altnames: []string{"device-number-2"}}, // without a file: somebody else's
		{Index: 3, Name: "ens6", MAC: "02:00:00:00:00:06", Altnames: []string{"eni-1", "device-number-1", "enp0s6", "device-number-9"}},
		{Index: 4, Name: "ens7", MAC: "02:00:00:00:00:07", Altnames: []string{"eni-2", "device-number-1"}},
		{Index: 5, Name: "ens8", MAC: "02:00:00:00:00:08", Altnames: []string{"eni-2", "both"}},
		{Index: 6, Name: "ens9", MAC: "02:00:00:00:00:09", Altnames: []string{"eni-2"}},
	}
	got := StaleNames(links, func(link string) *dropin.Link { return dropin.ParseLink(files[link]) })
	if want := []Name{{"ens6", "device-number-1"}, {"ens8", "eni-2"}}; !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}
