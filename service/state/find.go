package state

import (
	"slices"
	"strconv"
	"strings"
)

// named reports whether id is one of the names by which people and programs identify an
// interface. An index is matched last, so that a link whose name consists of digits is
// found by its name.
func (i *Interface) named(id string) bool {
	if id == "" {
		return false
	}
	if id == i.ENIID || id == i.Name || strings.EqualFold(id, i.MAC) || slices.Contains(i.Altnames, id) {
		return true
	}
	index, err := strconv.Atoi(id)
	return err == nil && index > 0 && index == i.Ifindex
}
