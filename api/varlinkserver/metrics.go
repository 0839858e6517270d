package varlinkserver

import (
	"context"

	"github.com/varlink/go/varlink"

	"ec2netd/api"
	"ec2netd/service/metrics"
)

// metricsInterface is io.systemd.Metrics. The library's generator does not support a value
// that is either a number or a string.
type metricsInterface struct {
	options *Options
}

// VarlinkGetName implements the library's interface.
func (*metricsInterface) VarlinkGetName() string { return api.MetricsInterface }

// VarlinkGetDescription implements the library's interface.
func (*metricsInterface) VarlinkGetDescription() string { return api.MetricsVarlink }

// VarlinkDispatch runs one call.
func (m *metricsInterface) VarlinkDispatch(ctx context.Context, call varlink.Call, method string) (err error) {
	defer m.options.recovered(method, &err)
	switch {
	case method != "List" && method != "Describe":
		return call.ReplyMethodNotFound(ctx, method)
	case !call.WantsMore():
		return replyExpectedMore(ctx, &call)
	case method == "List":
		return replyEach(ctx, &call, m.options.Agent.Metrics())
	}
	return replyEach(ctx, &call, metrics.Families())
}

// replyEach sends a reply for each value.
func replyEach[T any](ctx context.Context, call *varlink.Call, all []T) error {
	if len(all) == 0 {
		return call.ReplyError(ctx, api.MetricsInterface+".NoSuchMetric", nil)
	}
	for i := range all {
		call.Continues = i < len(all)-1
		if err := call.Reply(ctx, all[i]); err != nil {
			return err
		}
	}
	return nil
}
