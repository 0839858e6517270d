package plan

import (
	"slices"
	"testing"

	"ec2netd/service/dropin"
	"ec2netd/service/kernel"
	"ec2netd/service/unitfile"
)

// G2: the .link file that holds besides the generated one, with its drop-ins.
func TestPolicy(t *testing.T) {
	unit := func(path, content string, dropIns ...string) unitfile.Unit {
		u := unitfile.Unit{Path: path, Texts: []unitfile.Text{{Path: path, Source: path, Content: content}}}
		for _, d := range dropIns {
			u.Texts = append(u.Texts, unitfile.Text{Path: d, Source: d, Content: "[Link]\nMTUBytes=1400\n"})
		}
		return u
	}
	const etc, lib = "/etc/systemd/network/", "/usr/lib/systemd/network/"
	eks := etc + "99-default.link.d/eks.conf"
	standard := unit(DefaultPolicy, "[Match]\nOriginalName=*\n", eks)
	masked := unitfile.Unit{Path: etc + "99-default.link", Masked: true}
	other := unit(etc+"80-other.link", "[Match]\nMACAddress=02:00:00:00:01:99\n")
	late := unit(etc+"80-late.link", "[Match]\nMACAddress=02:00:00:00:01:11\n")
	kernelName := unit(etc+"80-eth.link", "[Match]\nOriginalName=eth*\n")
	own := unit(etc+"70-ens6.link", "[Match]\nOriginalName=*\n", etc+"70-ens6.link.d/x.conf")
	for name, test := range map[string]struct {
		units   []unitfile.Unit
		applied string
		want    string
		dropIns []string
		bytes   int
	}{
		"none":                      {nil, "", NoPolicy, nil, 0},
		"none listed":               {nil, DefaultPolicy, DefaultPolicy, nil, 0},
		"default":                   {[]unitfile.Unit{standard}, DefaultPolicy, DefaultPolicy, []string{eks}, 1400},
		"default masked":            {[]unitfile.Unit{masked}, Directory + "/70-ens6.link", NoPolicy, nil, 0},
		"of another link":           {[]unitfile.Unit{other, standard}, DefaultPolicy, DefaultPolicy, []string{eks}, 1400},
		"added later":               {[]unitfile.Unit{other, late, standard}, Directory + "/70-ens6.link", late.Path, nil, 0},
		"by a name that is unknown": {[]unitfile.Unit{kernelName, standard}, Directory + "/70-ens6.link", DefaultPolicy, []string{eks}, 1400},
		"which udevd has applied":   {[]unitfile.Unit{kernelName, standard}, kernelName.Path, kernelName.Path, nil, 0},
		"of the generated name":     {[]unitfile.Unit{own, standard}, own.Path, own.Path, nil, 1400},
	} {
		link := Link{Link: kernel.Link{Name: "ens6", MAC: "02:00:00:00:01:11", Driver: "ena"}, LinkDropIns: []string{"stale"}}
		link.TakePolicy(test.units, test.applied)
		if link.LinkFile != test.want || !slices.Equal(link.LinkDropIns, test.dropIns) || link.Bytes != test.bytes {
			t.Errorf("%s: %s, %q, %d bytes", name, link.LinkFile, link.LinkDropIns, link.Bytes)
		}
	}
	link := ens6
	link.TakePolicy([]unitfile.Unit{standard}, DefaultPolicy)
	var targets []string
	for _, file := range linkFiles(&ENI{Link: link}) {
		targets = append(targets, file.Path+" "+file.Target)
	}
	if want := []string{LinkDropIn("ens6") + " ", LinkPath("ens6") + ".d/eks.conf " + eks, LinkPath("ens6") + " " + DefaultPolicy}; !slices.Equal(targets, want) {
		t.Errorf("files %q, want %q", targets, want)
	}
}

// G1: names that links lack, and no other link has.
func TestLackingNames(t *testing.T) {
	content := func(mac string, names ...string) string {
		text := "# Written by ec2netd, see ec2netd(8).\n[Match]\nMACAddress=" + mac + "\n[Link]\n"
		for _, name := range names {
			text += "AlternativeName=" + name + "\n"
		}
		return text
	}
	files := map[string]string{
		"ens6": content("02:00:00:00:01:11", "eni-1", "device-number-1", "ens7"),
		"ens7": content("02:00:00:00:01:12", "eni-2", "device-number-2"),
		"ens8": content("02:00:00:00:01:99", "eni-9"), // of the ENI that had the name before
		"ens9": "[Match]\nMACAddress=02:00:00:00:01:14\n[Link]\nAlternativeName=mine\n",
	}
	links := []kernel.Link{
		{Name: "ens6", MAC: "02:00:00:00:01:11", Altnames: []string{"eni-1"}},
		{Name: "ens7", MAC: "02:00:00:00:01:12", Altnames: []string{"device-number-1"}},
		{Name: "ens8", MAC: "02:00:00:00:01:13"},
		{Name: "ens9", MAC: "02:00:00:00:01:14"},
	}
	got := LackingNames(links, func(link string) *dropin.Link { return dropin.ParseLink(files[link]) })
	if want := []Name{{"ens7", "eni-2"}, {"ens7", "device-number-2"}}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}
