package metadata_test

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"ec2netd/cmd/vpclab/imds"
	"ec2netd/service/kernel"
	"ec2netd/service/metadata"
)

// TestDump: a dump gives the views that the service gives, and holds nothing else.
func TestDump(t *testing.T) { // H6
	service, client, paths := start(t)
	service.AddFault(imds.Fault{Pattern: "network/interfaces/macs/02:00:00:00:01:99/ipv6s", Effect: imds.Status, Status: 503})
	broken := secondary()
	broken.MAC, broken.ID, broken.DeviceNumber = "02:00:00:00:01:99", "eni-0123456789abcdef9", 2
	broken.PublicIPv4 = []netip.Addr{netip.MustParseAddr("198.51.100.9")}
	service.PutInterface(broken, imds.Propagation{})
	var seen []string
	spy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		seen = append(seen, r.URL.Path)
		service.ServeHTTP(w, r)
	}))
	defer spy.Close()
	paths[0].Endpoint = spy.URL
	dump, err := client.ReadDump(t.Context(), paths)
	if err != nil {
		t.Fatal(err)
	}
	// As it is after a round trip through a file.
	text, err := json.Marshal(dump)
	if err != nil {
		t.Fatal(err)
	}
	var read metadata.Dump
	if err := json.Unmarshal(text, &read); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{secondaryMAC, broken.MAC}, read.MACs()); diff != "" {
		t.Error(diff)
	}
	instance, err := read.Instance()
	if err != nil || instance != (metadata.Instance{ID: "i-0123456789abcdef0", PrimaryMAC: primaryMAC}) {
		t.Errorf("%+v, %v", instance, err)
	}
	eni, err := read.ENI(secondaryMAC)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(wanted(), *eni, same...); diff != "" {
		t.Error(diff)
	}
	if _, err := read.ENI(broken.MAC); err == nil || !strings.Contains(err.Error(), "503") || metadata.KindOf(err) == metadata.NotFound {
		t.Errorf("a key that could not be read: %v", err)
	}
	if _, err := read.ENI("02:00:00:00:01:77"); err == nil || !strings.Contains(err.Error(), "does not list") {
		t.Errorf("an ENI that is not there: %v", err)
	}
	for key := range read.Keys {
		if !strings.HasPrefix(key, "network/interfaces/macs/") && key != "mac" && key != "instance-id" && key != "instance-type" && key != "local-hostname" {
			t.Errorf("the dump has %s", key)
		}
	}
	for _, path := range seen {
		below, ok := strings.CutPrefix(path, "/latest/meta-data/")
		if path == "/latest/api/token" || (ok && !strings.HasPrefix(below, "iam") && !strings.Contains(below, "ipv4-associations")) {
			continue
		}
		t.Errorf("asked for %s", path)
	}
}

// TestDumpIsParsed: a dump is no way round the checks.
func TestDumpIsParsed(t *testing.T) { // D4
	const dir = "network/interfaces/macs/" + secondaryMAC + "/"
	whole := func() metadata.Dump {
		return metadata.Dump{Keys: map[string]string{
			"mac": primaryMAC, "instance-id": "i-0123456789abcdef0",
			dir + "interface-id": "eni-0123456789abcdef1", dir + "device-number": "1",
			dir + "local-ipv4s": "10.0.1.20", dir + "subnet-ipv4-cidr-block": "10.0.1.0/24",
		}}
	}
	good := whole()
	if _, err := good.ENI(secondaryMAC); err != nil {
		t.Fatal(err)
	}
	for key, value := range map[string]string{
		"interface-id": "eni-1\n[Network]", "device-number": "-1", "local-ipv4s": "10.0.1.20\n[Route]", "subnet-ipv4-cidr-block": "10.0.1.1/24",
	} {
		d := whole()
		d.Keys[dir+key] = value
		if _, err := d.ENI(secondaryMAC); metadata.KindOf(err) != metadata.Malformed || !strings.Contains(err.Error(), key) {
			t.Errorf("%s=%q: %v", key, value, err)
		}
		delete(d.Keys, dir+key)
		if _, err := d.ENI(secondaryMAC); err == nil {
			t.Errorf("without %s there is a view", key)
		}
	}
	d := whole()
	d.Keys["mac"] = "../../user-data"
	if _, err := d.Instance(); metadata.KindOf(err) != metadata.Malformed {
		t.Errorf("mac: %v", err)
	}
	if _, err := d.ENI("../../../user-data"); err == nil {
		t.Error("a MAC address that is none gives a view")
	}
}

// TestDumpWithoutService: no dump is better than an empty one.
func TestDumpWithoutService(t *testing.T) { // H6
	for _, status := range []int{403, 404, 500} {
		service := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(status) }))
		client := metadata.NewClient(metadata.Options{Timeout: time.Second})
		if dump, err := client.ReadDump(t.Context(), []metadata.Path{{Endpoint: service.URL}}); err == nil {
			t.Errorf("%d gives %+v", status, dump)
		}
		client.CloseIdle()
		service.Close()
	}
}

func TestWay(t *testing.T) { // D2
	link := func(index int, mac string, addresses ...string) kernel.Link {
		l := kernel.Link{Index: index, MAC: mac, Name: "ens" + string(rune('0'+index))}
		for _, a := range addresses {
			l.Addresses = append(l.Addresses, kernel.Address{Prefix: netip.MustParsePrefix(a), Global: true})
		}
		return l
	}
	links := []kernel.Link{
		link(2, "02:00:00:00:00:02", "10.0.0.2/24"),
		link(3, "02:00:00:00:00:03", "10.0.0.3/24", "2001:db8::3/64"),
		link(4, "02:00:00:00:00:04", "169.254.7.7/32", "2001:db8::4/64"),
		link(5, "02:00:00:00:00:05"),
		link(6, "02:00:00:00:00:06", "10.0.0.6/24"),
		link(7, "02:00:00:00:00:07", "10.0.0.7/24"),
	}
	names := func(paths []metadata.Path) (all []string) {
		for _, p := range paths {
			all = append(all, p.String())
		}
		return all
	}
	const four, six = metadata.EndpointIPv4 + " over ", metadata.EndpointIPv6 + " over "
	for _, c := range []struct {
		way          metadata.Way
		mac, primary string
		links        []kernel.Link
		want         []string
	}{
		{metadata.Way{}, "02:00:00:00:00:03", "02:00:00:00:00:02", links, []string{four + "ens3", four + "ens2", four + "ens6", six + "ens3", six + "ens4"}},
		{metadata.Way{}, "", "02:00:00:00:00:06", links, []string{four + "ens6", four + "ens2", four + "ens3", six + "ens3", six + "ens4"}},
		{metadata.Way{Imdsd: "/s"}, "", "", links[:1], []string{four + "ens2", "systemd-imdsd at /s", "systemd-imdsd at /s"}},
		{metadata.Way{Imdsd: "/s"}, "", "", links[3:4], nil},
		{metadata.Way{Endpoint: "http://192.0.2.1", Imdsd: "/s"}, "", "", links, []string{"http://192.0.2.1"}},
	} {
		if diff := cmp.Diff(c.want, names(c.way.Paths(c.links, c.mac, c.primary))); diff != "" {
			t.Errorf("%+v: %s", c, diff)
		}
	}
	anywhere := []string{metadata.EndpointIPv4, metadata.EndpointIPv6, "systemd-imdsd at /s"}
	if diff := cmp.Diff(anywhere, names(metadata.Way{Imdsd: "/s"}.PathsAnywhere(links[3:4], ""))); diff != "" {
		t.Errorf("no ENI has an address: %s", diff)
	}
	if got := (metadata.Way{Imdsd: "/s"}).PathsAnywhere(links[:1], ""); len(got) == 0 || got[0].Device != "ens2" {
		t.Errorf("an ENI has an address: %v", got)
	}
}
