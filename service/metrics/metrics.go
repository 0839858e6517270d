// Package metrics defines the metrics that the daemon provides for monitoring: their
// names, their meaning, and how they follow from the agent's counters. Varlink serves them
// as io.systemd.Metrics, and ec2netctl prints them for Prometheus.
package metrics

import (
	"maps"
	"slices"
	"time"

	"ec2netd/service/state"
)

// Prefix of all names: the name of the service, and of its socket in /run/systemd/report.
const Prefix = "org.ec2netd."

// Type is the type of a metric, in the terms of io.systemd.Metrics.
type Type string

// The types.
const (
	// Counter only grows while the daemon runs.
	Counter Type = "counter"
	// Gauge can go up and down.
	Gauge Type = "gauge"
	// String is a word.
	String Type = "string"
)

// Family describes the metrics of one name.
type Family struct {
	Name        string `json:"name"`
	Description string `json:"description"`
	Type        Type   `json:"type"`
}

// Metric is one value.
type Metric struct {
	Name string `json:"name"`
	// Value is a number, or a string for the type String.
	Value any `json:"value"`
	// Object is the name of the link to which the value belongs, empty for all.
	Object string `json:"object,omitempty"`
	// Fields distinguish metrics of the same name: result, or eni (an ENI ID, or a MAC
	// address while the ID is not known).
	Fields map[string]string `json:"fields,omitempty"`
}

// Numbers are the counters since the daemon started.
type Numbers struct {
	// Requests counts ended requests to the metadata service by result, including zeros.
	// RequestTime is the time that they took.
	Requests    map[string]uint64
	RequestTime time.Duration
	// Reads counts reads of the instance or of an ENI, each of one or more requests, by
	// result, including zeros. The result of a look at a part of an ENI that found nothing
	// new is "unchanged".
	Reads map[string]uint64
	// Reloads of networkd.
	Reloads uint64
	// Attachments counts the ENIs that were attached while the daemon ran and have become
	// configured. AttachmentTime is the time that all of them took together, and Took the
	// time of each, by the index of its link.
	Attachments    uint64
	AttachmentTime time.Duration
	Took           map[int]time.Duration
}

// Names of the families.
const (
	stateName          = Prefix + "State"
	requestsName       = Prefix + "MetadataRequests"
	requestSecondsName = Prefix + "MetadataRequestSeconds"
	readsName          = Prefix + "MetadataReads"
	lastSuccessName    = Prefix + "MetadataLastSuccessTimestampSeconds"
	reloadsName        = Prefix + "NetworkdReloads"
	attachmentsName    = Prefix + "Attachments"
	attachSecondsName  = Prefix + "AttachmentSeconds"
	interfaceStateName = Prefix + "InterfaceState"
	interfaceTookName  = Prefix + "InterfaceAttachmentSeconds"
)

// Families returns all families, in the order of [Metrics].
func Families() []Family {
	return []Family{
		{stateName, "State of the daemon as ec2netctl status has it", String},
		{requestsName, "Requests to the metadata service that have ended, by result", Counter},
		{requestSecondsName, "Time that the requests to the metadata service took", Counter},
		{readsName, "Reads of the metadata of the instance or of an ENI, and looks at a part of it (unchanged), each of one or more requests, by result", Counter},
		{lastSuccessName, "When a read of the metadata was last complete, in seconds since 1970", Gauge},
		{reloadsName, "Reloads of systemd-networkd", Counter},
		{attachmentsName, "ENIs that came while the daemon ran and have become configured", Counter},
		{attachSecondsName, "Time that those ENIs took from their coming until they were configured", Counter},
		{interfaceStateName, "State of an ENI as ec2netctl status has it", String},
		{interfaceTookName, "Time that an ENI which came while the daemon ran took until it was configured", Gauge},
	}
}

// Metrics returns the values, grouped by family. s is the current state.
func Metrics(n Numbers, s *state.State) []Metric {
	var all []Metric
	one := func(name string, value any) { all = append(all, Metric{Name: name, Value: value}) }
	byResult := func(name string, counts map[string]uint64) {
		for _, result := range slices.Sorted(maps.Keys(counts)) {
			all = append(all, Metric{Name: name, Value: counts[result], Fields: map[string]string{"result": result}})
		}
	}
	ofInterface := func(name string, i *state.Interface, value any) {
		all = append(all, Metric{Name: name, Value: value, Object: i.Name, Fields: map[string]string{"eni": i.ID()}})
	}
	one(stateName, string(s.State))
	byResult(requestsName, n.Requests)
	one(requestSecondsName, n.RequestTime.Seconds())
	byResult(readsName, n.Reads)
	if !s.Metadata.LastSuccess.IsZero() {
		one(lastSuccessName, s.Metadata.LastSuccess.Unix())
	}
	one(reloadsName, n.Reloads)
	one(attachmentsName, n.Attachments)
	one(attachSecondsName, n.AttachmentTime.Seconds())
	for i := range s.Interfaces {
		ofInterface(interfaceStateName, &s.Interfaces[i], string(s.Interfaces[i].State))
	}
	for i := range s.Interfaces {
		if took, ok := n.Took[s.Interfaces[i].Ifindex]; ok {
			ofInterface(interfaceTookName, &s.Interfaces[i], took.Seconds())
		}
	}
	return all
}
