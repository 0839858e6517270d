package dropin

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// Mark selects packets by their firewall mark: those whose mark equals Value in the bits of
// Mask.
type Mark struct {
	Value uint32 `json:"value"`
	Mask  uint32 `json:"mask"`
}

// wholeMark is the mask of a mark without an explicit one.
const wholeMark = 1<<32 - 1

// String returns the mark in the form of ip-rule(8).
func (m Mark) String() string {
	if m.Mask == wholeMark {
		return fmt.Sprintf("%#x", m.Value)
	}
	return fmt.Sprintf("%#x/%#x", m.Value, m.Mask)
}

// Overlaps reports whether a packet can have both marks.
func (m Mark) Overlaps(o Mark) bool { return (m.Value^o.Value)&m.Mask&o.Mask == 0 }

// ParseMark parses a mark in the form of FirewallMark= in systemd.network(5): VALUE or
// VALUE/MASK.
func ParseMark(text string) (Mark, error) {
	part := func(text string) (uint32, error) {
		number, err := strconv.ParseUint(text, 0, 32)
		if err != nil || strings.Contains(text, "_") {
			return 0, fmt.Errorf("%q is not a number from 1 to %d", text, uint32(wholeMark))
		}
		return uint32(number), nil
	}
	value, mask, masked := strings.Cut(text, "/")
	mark := Mark{Mask: wholeMark}
	var err error
	if mark.Value, err = part(value); err != nil {
		return Mark{}, err
	}
	if masked {
		if mark.Mask, err = part(mask); err != nil {
			return Mark{}, err
		}
	}
	switch {
	case mark.Value == 0:
		return Mark{}, errors.New("a firewall mark of 0 is that of packets without one, which would all leave by this ENI")
	case mark.Value&^mark.Mask != 0:
		return Mark{}, fmt.Errorf("the firewall mark %#x has bits that are not in its mask %#x", mark.Value, mark.Mask)
	}
	return mark, nil
}
