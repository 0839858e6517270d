package doctor

import (
	"cmp"
	"context"
	"os"
	"slices"
	"sync"
	"time"

	"ec2netd/service/metadata"
)

// Probe is one way to the metadata service that was tried.
type Probe struct {
	Path metadata.Path
	Took time.Duration
	// Error says why the service does not answer, empty if it does.
	Error string
}

func (p Probe) answered() bool { return p.Error == "" }

// probeAll tries each way to the metadata service. systemd-imdsd, which a call starts, is asked only
// where no direct way gives an answer.
func probeAll(ctx context.Context, paths []metadata.Path, instance, userAgent string) []Probe {
	direct := slices.DeleteFunc(slices.Clone(paths), func(p metadata.Path) bool { return p.Socket != "" })
	probes := make([]Probe, len(direct))
	var all sync.WaitGroup
	for i, p := range direct {
		all.Go(func() { probes[i] = probeOne(ctx, p, instance, userAgent) })
	}
	all.Wait()
	if slices.ContainsFunc(probes, Probe.answered) {
		return probes
	}
	for _, p := range paths {
		if _, err := os.Stat(p.Socket); p.Socket != "" && err == nil {
			return append(probes, probeOne(ctx, p, instance, userAgent))
		}
	}
	return probes
}

// probeOne tries one way. It has a client of its own: with one client the ways would share a token, and
// all would wait for it if the way that asks for it hangs.
func probeOne(ctx context.Context, path metadata.Path, instance, userAgent string) Probe {
	client := metadata.NewClient(metadata.Options{UserAgent: userAgent})
	defer client.CloseIdle()
	client.SetInstance(instance)
	p, began := Probe{Path: path}, time.Now()
	if err := client.Probe(ctx, path); err != nil {
		p.Error = err.Error()
	}
	p.Took = time.Since(began)
	return p
}

// metadataService judges each way to the metadata service.
func metadataService(f *Facts) []Finding {
	command := "aws ec2 describe-instances"
	if id := f.Daemon.instance(); id != "" {
		command += " --instance-ids " + id
	}
	advice := "see the metadata options of the instance (" + command + ", MetadataOptions: HttpEndpoint must be enabled) and packet filters"
	if f.Probes == nil {
		return []Finding{metadataOfDaemon(&f.Daemon, advice)}
	}
	if len(f.Probes) == 0 {
		return []Finding{problem(MetadataService, "see networkctl status", "no ENI has an address to ask the metadata service from")}
	}
	answered := slices.ContainsFunc(f.Probes, Probe.answered)
	var all []Finding
	for _, p := range f.Probes {
		switch {
		case p.answered():
			all = append(all, ok(MetadataService, "%s answers in %d ms", p.Path, p.Took.Milliseconds()))
		case answered && p.Path.Endpoint == metadata.EndpointIPv6:
			all = append(all, ok(MetadataService, "%s does not answer, and need not: %s", p.Path, p.Error))
		case answered:
			all = append(all, warning(MetadataService, "nothing, as long as another way answers; else "+advice, "%s", p.Error))
		default:
			all = append(all, problem(MetadataService, advice, "%s", p.Error))
		}
	}
	return all
}

// metadataOfDaemon judges what the daemon says of the metadata service, for an ordinary user.
func metadataOfDaemon(d *Daemon, advice string) Finding {
	switch {
	case d.State == nil:
		return warning(MetadataService, "run ec2netctl doctor as root", "nobody could be asked whether the metadata service answers")
	case d.State.Metadata.LastError != "":
		return problem(MetadataService, advice+"; ec2netctl doctor tries each way as root", "%s", d.State.Metadata.LastError)
	default:
		return ok(MetadataService, "%s answers ec2netd; as root each way is tried", cmp.Or(d.State.Metadata.Endpoint, "the service"))
	}
}
