package metadata_test

import (
	"net/http/httptest"
	"testing"
	"time"

	"ec2netd/cmd/vpclab/imds"
	"ec2netd/service/metadata"
)

// BenchmarkLook is a look at an ENI in which nothing has changed, as it is made each 15 s
// by default: two requests over the connection of the last look. The service is in this
// process too.
func BenchmarkLook(b *testing.B) {
	service := imds.New(imds.Options{})
	service.SetInstance(imds.Instance{ID: "i-0123456789abcdef0", MAC: primaryMAC})
	service.PutInterface(secondary(), imds.Propagation{})
	server := httptest.NewServer(service)
	defer server.Close()
	client := metadata.NewClient(metadata.Options{UserAgent: "ec2netd/test", Timeout: time.Second})
	paths := []metadata.Path{{Endpoint: server.URL}}
	known, err := client.ReadENI(b.Context(), paths, metadata.Wanted{MAC: secondaryMAC})
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if view, err := client.ReadENI(b.Context(), paths, metadata.Wanted{MAC: secondaryMAC, Known: known, Look: metadata.InTurn, Turn: 1, Often: 4}); err != nil || view != known {
			b.Fatal(view, err)
		}
	}
}
