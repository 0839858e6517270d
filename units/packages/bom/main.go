// Bom says what the programs of a package are made of: their Go modules, each with its
// licence, as text for people and as SPDX for programs. "make packages" runs it; what it
// writes depends on the programs and their sources alone.
//
// It finds modules in the programs and their sources in the module cache. It looks for
// nothing else: what it cannot find out is an error, not a gap in a list.
package main

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

func main() {
	if err := run(context.Background()); err != nil {
		fmt.Fprintf(os.Stderr, "bom: %v\n", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	about := about{}
	root := flag.String("root", "", "what the package has, with the programs in it")
	licences := flag.String("licences", "", "file to write the licences to")
	spdx := flag.String("spdx", "", "file to write the SPDX document to")
	flag.StringVar(&about.version, "version", "", "version of the package")
	flag.StringVar(&about.maintainer, "maintainer", "", "who makes the package: Name <address>")
	flag.Parse()
	seconds, err := strconv.ParseInt(os.Getenv("SOURCE_DATE_EPOCH"), 10, 64)
	if err != nil {
		return fmt.Errorf("the time of the document, SOURCE_DATE_EPOCH: %w", err)
	}
	about.created = time.Unix(seconds, 0)
	// Name <address> is Name (address) in SPDX.
	about.maintainer = strings.NewReplacer("<", "(", ">", ")").Replace(about.maintainer)

	var programs []*program
	for _, name := range flag.Args() {
		p, err := readProgram(ctx, *root, name)
		if err != nil {
			return err
		}
		programs = append(programs, p)
	}
	modules, err := combine(programs)
	if err != nil {
		return err
	}
	var document bytes.Buffer
	if err := writeSPDX(&document, about, programs, modules); err != nil {
		return err
	}
	for file, text := range map[string]string{*licences: licenceText(modules), *spdx: document.String()} {
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}
