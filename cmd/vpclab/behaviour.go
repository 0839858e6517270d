package main

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"ec2netd/cmd/vpclab/vpc"
)

// A setting is a flag of "up" and "set", and a part of the VPC's behaviour.
type setting struct {
	name, value, usage string
	set                func(b *vpc.Behaviour, values []string) error
}

// settings are all settings. They are applied in this order: the profile comes first.
func settings() []setting {
	return []setting{
		{"profile", "name", "behave like EC2 (ec2), or without any delay (instant); default: " + vpc.DefaultProfile,
			one(profile, func(b *vpc.Behaviour) *vpc.Behaviour { return b })},
		{"mtu", "bytes", "MTU of the VPC's side of each link, 9001 on EC2; the instance's side comes up with 1500",
			one(strconv.Atoi, func(b *vpc.Behaviour) *int { return &b.MTU })},
		{"dhcp-mtu", "bytes", "DHCP option 26, the MTU; 0: none",
			one(strconv.Atoi, func(b *vpc.Behaviour) *int { return &b.DHCP.MTU })},
		{"dhcp-hostname", "bool", "DHCP option 12, the host name",
			one(strconv.ParseBool, func(b *vpc.Behaviour) *bool { return &b.DHCP.Hostname })},
		{"dns", "addresses", "DHCP option 6, and for IPv6 23; none: those of Amazon",
			several(netip.ParseAddr, func(b *vpc.Behaviour) *[]netip.Addr { return &b.DHCP.DNS })},
		{"domain", "names", "DHCP option 15; several are one text with spaces, as on EC2",
			several(anyText, func(b *vpc.Behaviour) *[]string { return &b.DHCP.Domains })},
		{"search", "names", "DHCP option 119, which EC2 never sends",
			several(anyText, func(b *vpc.Behaviour) *[]string { return &b.DHCP.Search })},
		{"ntp", "addresses", "DHCP option 42, and for IPv6 56; on EC2 169.254.169.123, where the DHCP options set has it",
			several(netip.ParseAddr, func(b *vpc.Behaviour) *[]netip.Addr { return &b.DHCP.NTP })},
		{"dhcpv4-lifetime", "duration", "lifetime of DHCPv4 leases",
			one(time.ParseDuration, func(b *vpc.Behaviour) *time.Duration { return &b.Lifetimes.DHCPv4 })},
		{"dhcpv6", "mode", "DHCPv6 leases all of an ENI's addresses (all), or the first one only (first)",
			one(dhcpv6Mode, func(b *vpc.Behaviour) *vpc.DHCPv6Mode { return &b.DHCPv6 })},
		{"dhcpv6-preferred", "duration", "preferred lifetime of DHCPv6 leases; they are renewed after half of it",
			one(time.ParseDuration, func(b *vpc.Behaviour) *time.Duration { return &b.Lifetimes.DHCPv6Preferred })},
		{"dhcpv6-valid", "duration", "valid lifetime of DHCPv6 leases",
			one(time.ParseDuration, func(b *vpc.Behaviour) *time.Duration { return &b.Lifetimes.DHCPv6Valid })},
		{"ra-delay", "range", "time until the router answers a solicitation; 0-500ms in RFC 4861",
			one(vpc.ParseRange, func(b *vpc.Behaviour) *vpc.Range { return &b.RADelay })},
		{"ra-interval", "duration", "time between router advertisements; 0: none but those solicited",
			one(time.ParseDuration, func(b *vpc.Behaviour) *time.Duration { return &b.Lifetimes.AdvertiseEvery })},
		{"ra-lifetime", "duration", "lifetime of the router; 0: it is no default router",
			one(time.ParseDuration, func(b *vpc.Behaviour) *time.Duration { return &b.Lifetimes.Router })},
		{"metadata-latency", "duration", "latency of the metadata service",
			one(time.ParseDuration, func(b *vpc.Behaviour) *time.Duration { return &b.Metadata.Latency })},
		{"metadata-jitter", "duration", "how much the latency varies, up or down",
			one(time.ParseDuration, func(b *vpc.Behaviour) *time.Duration { return &b.Metadata.Jitter })},
		{"metadata-split", "bool", "send headers and body apart: 40 ms more on a kept connection",
			one(strconv.ParseBool, func(b *vpc.Behaviour) *bool { return &b.Metadata.Split })},
		{"listed-after", "range", "time from an ENI's link until the metadata list it",
			one(vpc.ParseRange, func(b *vpc.Behaviour) *vpc.Range { return &b.Propagation.Listed })},
		{"secondaries-after", "range", "time from there until secondary addresses and prefixes are listed",
			one(vpc.ParseRange, func(b *vpc.Behaviour) *vpc.Range { return &b.Propagation.Secondaries })},
		{"number-after", "range", "time for which the device number of a listed ENI reads 0",
			one(vpc.ParseRange, func(b *vpc.Behaviour) *vpc.Range { return &b.Propagation.DeviceNumber })},
		{"late-number-after", "range", "the same for the ENIs that are late",
			one(vpc.ParseRange, func(b *vpc.Behaviour) *vpc.Range { return &b.Propagation.LateDeviceNumber })},
		{"late-number-chance", "chance", "how many ENIs are late, from 0 to 1",
			one(parseFloat, func(b *vpc.Behaviour) *float64 { return &b.Propagation.LateChance })},
	}
}

func parseFloat(text string) (float64, error) { return strconv.ParseFloat(text, 64) }

func anyText(text string) (string, error) { return text, nil }

func dhcpv6Mode(text string) (vpc.DHCPv6Mode, error) { return vpc.DHCPv6Mode(text), nil }

func profile(name string) (vpc.Behaviour, error) {
	b, ok := vpc.Profiles()[name]
	if !ok {
		return b, fmt.Errorf("there is no profile %q, only ec2 and instant", name)
	}
	return b, nil
}

// one is a setting of a single value.
func one[T any](parse func(string) (T, error), where func(*vpc.Behaviour) *T) func(*vpc.Behaviour, []string) error {
	return func(b *vpc.Behaviour, values []string) error {
		if len(values) != 1 {
			return fmt.Errorf("want one value, not %d", len(values))
		}
		value, err := parse(values[0])
		if err == nil {
			*where(b) = value
		}
		return err
	}
}

// several is a setting with a list, which replaces the list of the profile.
func several[T any](parse func(string) (T, error), where func(*vpc.Behaviour) *[]T) func(*vpc.Behaviour, []string) error {
	return func(b *vpc.Behaviour, values []string) error {
		var list []T
		for _, text := range values {
			value, err := parse(text)
			if err != nil {
				return err
			}
			list = append(list, value)
		}
		*where(b) = list
		return nil
	}
}

// behaviourFlags adds a flag for each setting to a command. The returned function
// returns the flags on the command line.
func behaviourFlags(cmd *cobra.Command) func() map[string][]string {
	given := make(map[string]*settingValue)
	for _, s := range settings() {
		given[s.name] = &settingValue{kind: s.value}
		flag := cmd.Flags().VarPF(given[s.name], s.name, "", s.usage)
		if s.value == "bool" {
			flag.NoOptDefVal = "true"
		}
	}
	return func() map[string][]string {
		changed := make(map[string][]string)
		for name, v := range given {
			if v.given {
				changed[name] = v.values
			}
		}
		return changed
	}
}

// settingValue is the value of a flag: a list, separated by commas or given in several
// flags. An empty text clears it.
type settingValue struct {
	kind   string
	given  bool
	values []string
}

// Set implements [pflag.Value].
func (v *settingValue) Set(text string) error {
	v.given = true
	if text == "" {
		v.values = nil
		return nil
	}
	v.values = append(v.values, strings.Split(text, ",")...)
	return nil
}

// Type implements [pflag.Value]: the word for the value in a usage message.
func (v *settingValue) Type() string { return v.kind }

// String implements [pflag.Value].
func (v *settingValue) String() string { return strings.Join(v.values, ",") }

// change applies settings to a behaviour. It returns errTogether if each setting is
// valid but they cannot be combined.
func change(b vpc.Behaviour, changed map[string][]string) (vpc.Behaviour, error) {
	for _, s := range settings() {
		values, ok := changed[s.name]
		if !ok {
			continue
		}
		if err := s.set(&b, values); err != nil {
			return b, fmt.Errorf("--%s=%s: %w", s.name, strings.Join(values, ","), err)
		}
	}
	if err := b.Check(); err != nil {
		return b, fmt.Errorf("%w: %w", errTogether, err)
	}
	return b, nil
}

var errTogether = errors.New("no VPC behaves like that")

// forwarded returns the flags that were set on a command line, as a command line.
func forwarded(f *pflag.FlagSet, without ...string) []string {
	var args []string
	f.Visit(func(flag *pflag.Flag) {
		if slices.Contains(without, flag.Name) {
			return
		}
		args = append(args, "--"+flag.Name+"="+flag.Value.String())
	})
	return args
}

func setCommand(c *client) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "set",
		Short: "Change how the VPC behaves: DHCP options, MTU, delays, latency",
		Long: `Change how the VPC behaves from now on; "vpclab status --json" says how it does.
What is not named stays as it is. An instance learns of other DHCP options with its
next lease; other delays are those of the next attachment.

  vpclab set --metadata-latency=50ms
  vpclab set --domain=example.com,example.net --ntp=169.254.169.123
  vpclab set --number-after=7s --late-number-chance=0
  vpclab set --profile=instant`,
		Args: cobra.NoArgs,
	}
	given := behaviourFlags(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		r := setRequest{Settings: given()}
		if len(r.Settings) == 0 {
			return usageError{errors.New("what shall change? Give one of the flags")}
		}
		// Invalid words are invalid usage; the lab checks the combination.
		if _, err := change(vpc.Profiles()[vpc.DefaultProfile], r.Settings); err != nil && !errors.Is(err, errTogether) {
			return usageError{err}
		}
		return c.call(cmd.Context(), "set", r, nil)
	}
	return cmd
}

func carrierCommand(c *client) *cobra.Command {
	var r carrierRequest
	cmd := &cobra.Command{
		Use:   "carrier ENI on|off",
		Short: "Take the carrier of an ENI's link away, as an ENA reset does, or give it back",
		Long: `Take the carrier of an ENI's link away, or give it back. The link stays, unlike with
"vpclab detach". With --for it comes back by itself, and the command waits for that:

  vpclab carrier ens6 off --for 2s`,
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			r.ENI, r.On = args[0], args[1] == "on"
			switch {
			case args[1] != "on" && args[1] != "off":
				return usageError{fmt.Errorf("carrier %q: want on or off", args[1])}
			case r.For < 0 || r.On && r.For != 0:
				return usageError{fmt.Errorf("--for=%s: want how long the carrier is off", r.For)}
			}
			return c.call(cmd.Context(), "carrier", r, nil)
		},
	}
	cmd.Flags().DurationVar(&r.For, "for", 0, "how long it is off; default: until it is switched on")
	return cmd
}
