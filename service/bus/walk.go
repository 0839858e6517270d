package bus

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"unicode/utf8"
)

const (
	// maxDepth bounds the nesting of values that godbus decodes, containers and variants
	// together. The deepest values that the daemon reads are properties of a systemd unit:
	// a variant of an array of structs in a map.
	maxDepth = 16
	// maxSpecDepth is the limit of the specification, for values that are only skipped.
	maxSpecDepth = 64
	// maxSteps bounds the work on one header, which has at most 64 KiB. No legitimate
	// header has a thousand values.
	maxSteps = 1 << 16
	// maxArray is the specification's limit.
	maxArray = 1 << 26
)

// walker steps through values in the D-Bus wire format. b begins at a multiple of eight.
// No method reads beyond b, whatever its content.
type walker struct {
	b     []byte
	at    int
	order binary.ByteOrder
	// steps counts values; a limit other than zero bounds them.
	steps, limit int
	// fds is set after an index of a file descriptor.
	fds bool
	// deep is set after a value that is nested too deeply.
	deep bool
}

// align skips padding, and reports whether the data contains all of it.
func (w *walker) align(n int) bool {
	w.at = (w.at + n - 1) &^ (n - 1)
	if w.at > len(w.b) {
		w.at = len(w.b)
		return false
	}
	return true
}

func (w *walker) uint32() (uint32, bool) {
	if !w.align(4) || len(w.b)-w.at < 4 {
		return 0, false
	}
	w.at += 4
	return w.order.Uint32(w.b[w.at-4:]), true
}

// text reads a string or an object path.
func (w *walker) text() (string, bool) {
	n, ok := w.uint32()
	if !ok || uint64(n)+1 > uint64(len(w.b)-w.at) {
		return "", false
	}
	text := w.b[w.at : w.at+int(n)]
	w.at += int(n) + 1
	if w.b[w.at-1] != 0 || bytes.IndexByte(text, 0) >= 0 || !utf8.Valid(text) {
		return "", false
	}
	return string(text), true
}

// signature reads a signature, which may be invalid.
func (w *walker) signature() (string, bool) {
	if len(w.b)-w.at < 1 {
		return "", false
	}
	n := int(w.b[w.at])
	if len(w.b)-w.at < n+2 || w.b[w.at+1+n] != 0 {
		return "", false
	}
	text := string(w.b[w.at+1 : w.at+1+n])
	w.at += n + 2
	return text, true
}

// sizeOf returns the size, and so the alignment, of a type of fixed size; 0 for others.
func sizeOf(kind byte) int {
	switch kind {
	case 'y':
		return 1
	case 'n', 'q':
		return 2
	case 'b', 'i', 'u', 'h':
		return 4
	case 'x', 't', 'd':
		return 8
	}
	return 0
}

// alignmentOf returns the alignment of a type.
func alignmentOf(kind byte) int {
	switch kind {
	case '(', '{':
		return 8
	case 's', 'o', 'a':
		return 4
	case 'g', 'v':
		return 1
	}
	return max(1, sizeOf(kind))
}

// value skips one value of a valid single type, with at most depth nested containers. It
// reports whether the value is well-formed.
func (w *walker) value(kind string, depth int) bool {
	if w.steps++; w.limit > 0 && w.steps > w.limit {
		return false
	}
	if !w.align(alignmentOf(kind[0])) {
		return false
	}
	switch kind[0] {
	case 'h':
		w.fds = true
		_, ok := w.uint32()
		return ok
	case 'b':
		v, ok := w.uint32()
		return ok && v <= 1
	case 's', 'o':
		_, ok := w.text()
		return ok
	case 'g':
		text, ok := w.signature()
		return ok && validSignature(text)
	case 'v', 'a', '(', '{':
		if depth == 0 {
			w.deep = true
			return false
		}
		return w.container(kind, depth-1)
	default:
		n := sizeOf(kind[0])
		if n == 0 || len(w.b)-w.at < n {
			return false
		}
		w.at += n
		return true
	}
}

// container skips a variant, an array, a struct or an entry of a map, which may contain
// depth more levels of containers.
func (w *walker) container(kind string, depth int) bool {
	switch kind[0] {
	case 'v':
		inner, ok := w.signature()
		return ok && isSingle(inner) && w.value(inner, depth)
	case 'a':
		n, ok := w.uint32()
		if !ok || n > maxArray || !w.align(alignmentOf(kind[1])) || uint64(n) > uint64(len(w.b)-w.at) {
			return false
		}
		end := w.at + int(n)
		if size := sizeOf(kind[1]); size > 0 && kind[1] != 'b' && kind[1] != 'h' {
			w.at = end
			return int(n)%size == 0
		}
		for w.at < end {
			if !w.value(kind[1:], depth) {
				return false
			}
		}
		return w.at == end
	default:
		for rest := kind[1 : len(kind)-1]; rest != ""; {
			n := single(rest)
			if n == 0 || !w.value(rest[:n], depth) {
				return false
			}
			rest = rest[n:]
		}
		return true
	}
}

// Reasons why a body cannot be passed on.
var (
	errBody = errors.New("its arguments are malformed")
	errDeep = fmt.Errorf("its arguments are nested more than %d levels deep", maxDepth)
	errFDs  = errors.New("it has file descriptors, which this connection does not take")
)

// checkBody returns why godbus must not decode the body, or nil.
func (m *message) checkBody() error {
	if m.unixFDs > 0 {
		return errFDs
	}
	if !validSignature(m.signature) {
		return errBody
	}
	w := walker{b: m.body, order: m.order}
	for rest := m.signature; rest != ""; {
		n := single(rest)
		ok := w.value(rest[:n], maxDepth)
		switch {
		case w.deep:
			return errDeep
		case w.fds:
			return errFDs
		case !ok:
			return errBody
		}
		rest = rest[n:]
	}
	if w.at != len(m.body) {
		return errBody
	}
	return nil
}

// validSignature reports whether s is a list of types, which may be empty.
func validSignature(s string) bool {
	if len(s) > maxName {
		return false
	}
	for s != "" {
		n := single(s)
		if n == 0 {
			return false
		}
		s = s[n:]
	}
	return true
}

// isSingle reports whether s is one complete type, as in a variant.
func isSingle(s string) bool { return s != "" && single(s) == len(s) }

// single returns the length of the complete type at the beginning of s, or 0 if there is
// none. It applies the specification's limits of 32 nested arrays and 32 nested structs.
func single(s string) int { return singleIn(s, 32, 32) }

func singleIn(s string, arrays, structs int) int {
	if s == "" {
		return 0
	}
	switch s[0] {
	case 'y', 'b', 'n', 'q', 'i', 'u', 'x', 't', 'd', 's', 'o', 'g', 'v', 'h':
		return 1
	case 'a':
		if arrays == 0 || len(s) < 2 {
			return 0
		}
		if s[1] != '{' {
			if n := singleIn(s[1:], arrays-1, structs); n > 0 {
				return n + 1
			}
			return 0
		}
		if structs == 0 || len(s) < 5 || sizeOf(s[2]) == 0 && s[2] != 's' && s[2] != 'o' && s[2] != 'g' {
			return 0
		}
		n := singleIn(s[3:], arrays-1, structs-1)
		if n == 0 || len(s) < n+4 || s[3+n] != '}' {
			return 0
		}
		return n + 4
	case '(':
		if structs == 0 {
			return 0
		}
		at := 1
		for at < len(s) && s[at] != ')' {
			n := singleIn(s[at:], arrays, structs-1)
			if n == 0 {
				return 0
			}
			at += n
		}
		if at < 2 || at >= len(s) {
			return 0
		}
		return at + 1
	}
	return 0
}
