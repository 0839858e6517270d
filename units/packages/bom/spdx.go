package main

import (
	"crypto/sha1"
	"crypto/sha256"
	"fmt"
	"io"
	"path"
	"regexp"
	"strings"
	"time"

	spdxjson "github.com/spdx/tools-golang/json"
	"github.com/spdx/tools-golang/spdx"
	"github.com/spdx/tools-golang/spdx/v2/common"
	"github.com/spdx/tools-golang/spdxlib"
)

const noAssertion = "NOASSERTION"

// about is what a document says of the package and of itself.
type about struct {
	version, maintainer string
	created             time.Time
}

// notIdentifier is what an SPDX identifier may not have.
var notIdentifier = regexp.MustCompile(`[^A-Za-z0-9.-]+`)

func identifier(kind, name string) common.ElementID {
	return common.ElementID(kind + "-" + notIdentifier.ReplaceAllString(strings.Trim(name, "/"), "-"))
}

// writeSPDX writes an SPDX 2.3 document in JSON: the package, its programs, and the modules
// that each is linked with.
func writeSPDX(w io.Writer, a about, programs []*program, modules []*module) error {
	const of = common.ElementID("Package-ec2netd")
	ref := func(id common.ElementID) common.DocElementID { return common.DocElementID{ElementRefID: id} }
	document := &spdx.Document{
		SPDXVersion: spdx.Version, DataLicense: spdx.DataLicense, SPDXIdentifier: "DOCUMENT",
		DocumentName: "ec2netd-" + a.version,
		CreationInfo: &spdx.CreationInfo{
			Created:  a.created.UTC().Format(time.RFC3339),
			Creators: []common.Creator{{CreatorType: "Organization", Creator: a.maintainer}, {CreatorType: "Tool", Creator: "ec2netd-bom"}},
		},
		Packages: []*spdx.Package{{
			PackageName: "ec2netd", PackageSPDXIdentifier: of, PackageVersion: a.version, PrimaryPackagePurpose: "APPLICATION",
			PackageSupplier:         &common.Supplier{SupplierType: "Organization", Supplier: a.maintainer},
			PackageDownloadLocation: noAssertion, PackageLicenseConcluded: "Apache-2.0", PackageLicenseDeclared: "Apache-2.0", PackageCopyrightText: noAssertion,
		}},
		Relationships: []*spdx.Relationship{{RefA: ref("DOCUMENT"), Relationship: common.TypeRelationshipDescribe, RefB: ref(of)}},
	}
	for _, m := range modules {
		url := "pkg:golang/" + m.path + "@" + m.version
		p := &spdx.Package{
			PackageName: m.path, PackageSPDXIdentifier: identifier("Module", m.path), PackageVersion: m.version, PrimaryPackagePurpose: "LIBRARY",
			PackageDownloadLocation: noAssertion, PackageLicenseConcluded: m.licence, PackageLicenseDeclared: m.licence, PackageCopyrightText: noAssertion,
			PackageExternalReferences: []*spdx.PackageExternalReference{{
				Category: common.CategoryPackageManager, RefType: common.TypePackageManagerPURL, Locator: url,
			}},
		}
		if m.sum != "" {
			p.PackageSourceInfo = "go.sum: " + m.sum
		}
		document.Packages = append(document.Packages, p)
	}
	contents := sha256.New()
	for _, program := range programs {
		id := identifier("File", program.name)
		contents.Write(program.content)
		document.Files = append(document.Files, &spdx.File{
			FileName: "." + path.Clean("/"+program.name), FileSPDXIdentifier: id, FileTypes: []string{"BINARY"},
			Checksums: []common.Checksum{
				{Algorithm: common.SHA1, Value: fmt.Sprintf("%x", sha1.Sum(program.content))},
				{Algorithm: common.SHA256, Value: fmt.Sprintf("%x", sha256.Sum256(program.content))},
			},
			LicenseConcluded: noAssertion, FileCopyrightText: noAssertion,
		})
		document.Relationships = append(document.Relationships, &spdx.Relationship{RefA: ref(of), Relationship: common.TypeRelationshipContains, RefB: ref(id)})
		for _, m := range program.modules {
			document.Relationships = append(document.Relationships,
				&spdx.Relationship{RefA: ref(id), Relationship: common.TypeRelationshipStaticLink, RefB: ref(identifier("Module", m.path))})
		}
	}
	// A name of its own for each content, and the same for the same one: a UUID of version 8 (RFC 9562).
	fmt.Fprintln(contents, a.version, a.created.Unix())
	u := contents.Sum(nil)[:16]
	u[6], u[8] = u[6]&0x0f|0x80, u[8]&0x3f|0x80
	document.DocumentNamespace = fmt.Sprintf("urn:uuid:%x-%x-%x-%x-%x", u[:4], u[4:6], u[6:8], u[8:10], u[10:])
	if err := spdxlib.ValidateDocument(document); err != nil {
		return fmt.Errorf("the SPDX document is wrong: %w", err)
	}
	return spdxjson.Write(document, w, spdxjson.Indent("  "), spdxjson.EscapeHTML(false))
}
