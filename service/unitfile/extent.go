package unitfile

// Extent tells how far somebody else's files stand in the way of the generated ones of one link.
type Extent struct {
	// Taken is the file that takes the place of the whole .network unit, or empty.
	Taken string
	// NetworkHidden and LinkHidden are the files that hide the drop-in of the .network unit and of
	// the .link file, or empty.
	NetworkHidden, LinkHidden string
}
