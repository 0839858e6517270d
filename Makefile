# ec2netd: see README.md. "make help" lists the targets.

PREFIX     ?= /usr
SYSCONFDIR ?= /etc
DESTDIR    ?=
GO         ?= go
BUILD      := build
# Where install takes the programs from; make packages has those of another machine.
BIN        := $(BUILD)/bin
VERSION    := $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
LDFLAGS    := -s -w -X main.version=$(VERSION)
# Position-independent, so that the kernel loads them anywhere. They link with no library; the
# loader of glibc, which relocates them, is all that they need of the system.
GOBUILD    := CGO_ENABLED=0 $(GO) build -buildmode=pie -trimpath -buildvcs=false -ldflags '$(LDFLAGS)'
PROGRAMS   := ec2netd ec2netctl vpclab
STAGE      := $(abspath $(BUILD)/stage)
# How long the tests of one package may take.
TIMEOUT    := 80m

# The linter is a tool of the build machine, pinned here and not a dependency.
GOLANGCI_LINT_VERSION := v2.15.0
GOLANGCI_LINT         := $(abspath $(BUILD)/tools/golangci-lint)

# What looks for known vulnerabilities, the same way. It takes the database from vuln.go.dev,
# or from GOVULNDB: a URL, file:///DIRECTORY for a copy (see go.dev/doc/security/vuln/database).
GOVULNCHECK_VERSION := v1.9.0
GOVULNCHECK         := $(abspath $(BUILD)/tools/govulncheck)
GOVULNDB            ?=

# What runs the tests on real systemd, the same way. A test that fails runs once more, on a
# machine that may have been busy: how it failed stays in the output. Three that fail are no
# chance, and neither is one that fails twice. RERUNS=0 takes each failure for one.
GOTESTSUM_VERSION := v1.13.0
GOTESTSUM         := $(abspath $(BUILD)/tools/gotestsum)
RERUNS            := 1
# How many labs run side by side. An instance waits for most of its time.
LABS              := $(shell expr $$(nproc) + 1)

# What makes the packages, the same way.
NFPM_VERSION := v2.45.2
NFPM         := $(abspath $(BUILD)/tools/nfpm)
PACKAGES     := $(BUILD)/packages
ARCHES       := amd64 arm64
# Who makes the packages, for whoever publishes them to say. The name of the default is
# one that nobody can have (RFC 2606).
export MAINTAINER ?= The ec2netd authors <ec2netd@ec2netd.example>
export HOMEPAGE   ?=
# The version of the packages: that of the tag, or one that sorts before the next release,
# which the changelog names.
export SOURCE_DATE_EPOCH ?= $(shell git log -1 --format=%ct 2>/dev/null || echo 0)
NEXT_VERSION    := $(shell sed -n 's/^- semver: //p;T;q' units/packages/changelog.yaml)
PACKAGE_VERSION := $(or $(shell git describe --tags --exact-match --match 'v[0-9]*' 2>/dev/null | sed 's/^v//'),$(NEXT_VERSION)~git$(shell date -u -d @$(SOURCE_DATE_EPOCH) +%Y%m%d%H%M%S).$(shell git rev-parse --short=7 HEAD 2>/dev/null || echo unknown))

# What `make demo` and the tests need on Debian besides Go.
# qemu, which is large, only for machines.
MACHINES      = $(MACHINE)$(EC2NETD_LONG)
HOST_PACKAGES = mmdebstrap systemd-container nftables iproute2 dbus-daemon man-db groff-base mandoc $(if $(MACHINES),qemu-system-x86 e2fsprogs)
HOST_TOOLS    = mmdebstrap systemd-nspawn nft ip dbus-daemon man groff mandoc $(if $(MACHINES),qemu-system-x86_64 mke2fs)

# Where shells look for completions; for zsh, what Debian has too.
BASH_COMPLETIONS := $(PREFIX)/share/bash-completion/completions
FISH_COMPLETIONS := $(PREFIX)/share/fish/vendor_completions.d
ZSH_COMPLETIONS  := $(PREFIX)/share/zsh/site-functions $(PREFIX)/share/zsh/vendor-completions

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: build
build: ## build the programs, which need no library, into build/bin
	@mkdir -p $(BUILD)/bin
	@set -e; for p in $(PROGRAMS); do $(GOBUILD) -o $(BUILD)/bin/$$p ./cmd/$$p; done

.PHONY: test
test: host-packages unit integration ## all tests: unit and, as root, integration on systemd 252, 257 and 262

.PHONY: unit
unit: ## tests that need neither root nor a network
# Without -count=1 the go command notes each file that a test opens, to keep the result: 0.7 GB for
# service/agent, which took minutes to write and to read.
	$(GO) test -race -short -count=1 -timeout $(TIMEOUT) ./...

.PHONY: integration
integration: host-packages stage stage-packages $(GOTESTSUM) ## tests on real systemd 252, 257 and 262 in the simulated VPC (root)
	EC2NETD_STAGE=$(STAGE) EC2NETD_PACKAGES=$(abspath $(PACKAGES)/test) \
	  $(GOTESTSUM) --format standard-verbose --rerun-fails=$(RERUNS) --rerun-fails-max-failures=2 --packages ./cmd/... -- -count=1 -timeout $(TIMEOUT) -p 1 -parallel $(LABS) -run '^TestLab'

$(GOTESTSUM):
	GOBIN=$(patsubst %/,%,$(dir $(abspath $@))) $(GO) install gotest.tools/gotestsum@$(GOTESTSUM_VERSION)

# How long each fuzzer runs. Their seeds run with the unit tests. Now and then the go command
# (1.26) takes the end of that time for a failure of the fuzzer, where its time and the
# workers end in the same moment: that is none if no input failed.
FUZZTIME := 60s
.PHONY: fuzz
fuzz: ## each fuzzer for a minute (FUZZTIME)
	@set -e; mkdir -p $(BUILD); for p in $$($(GO) list ./...); do for f in $$($(GO) test -list '^Fuzz' $$p | grep '^Fuzz' || :); do \
	  echo "$$p $$f"; $(GO) test -run '^$$' -fuzz "^$$f\$$" -fuzztime $(FUZZTIME) $$p >$(BUILD)/fuzz.log 2>&1 || failed=$$?; cat $(BUILD)/fuzz.log; \
	  test -z "$$failed" || { grep -q '^ *context deadline exceeded$$' $(BUILD)/fuzz.log && ! grep -q 'Failing input' $(BUILD)/fuzz.log; } || exit "$$failed"; failed=; done; done

.PHONY: test-long
test-long: export EC2NETD_LONG := 1
test-long: TIMEOUT := 5h
test-long: test fuzz ## as test, with the fuzzers, the whole matrices and long runs (root)

# How long the life of an instance is, and which: one seed has the same steps each time,
# and TestLabSoak has the first few of seed 1.
SOAK_TIME ?= 20m
SOAK_SEED := $(or $(SOAK_SEED),$(shell date +%s))
.PHONY: soak
soak: host-packages stage ## the life of an instance by chance, on each systemd (root; SOAK_TIME, SOAK_SEED)
	@echo 'To have these steps again: make soak SOAK_SEED=$(SOAK_SEED) SOAK_TIME=$(SOAK_TIME)'
	EC2NETD_STAGE=$(STAGE) EC2NETD_SOAK=$(SOAK_TIME) EC2NETD_SEED=$(SOAK_SEED) $(GO) test -count=1 -timeout 0 -parallel 3 -run '^TestLabSoak$$' -v ./cmd/ec2netd/

# A matrix alone, the lines of a test; how it came about is in the file.
define matrix
@rm -f $(BUILD)/$@.ok
@{ EC2NETD_LONG=1 EC2NETD_STAGE=$(STAGE) EC2NETD_PACKAGES=$(abspath $(PACKAGES)/test) $(GO) test -count=1 -timeout 60m -parallel $(LABS) -run '^$(1)$$' -v ./cmd/ec2netd/ 2>&1 && echo ok >$(BUILD)/$@.ok; } | \
  tee $(BUILD)/$@.log | sed -un 's/^ *\(\(bookworm\|trixie\|sid\)  .*\)/\1/p'
@test -e $(BUILD)/$@.ok || { echo 'Failed: see $(BUILD)/$@.log'; exit 1; }; rm $(BUILD)/$@.ok
endef

.PHONY: neighbours
neighbours: host-packages stage stage-packages ## what other software keeps beside ec2netd: a line for each package, event and systemd (root)
	$(call matrix,TestLabNeighbours)

.PHONY: stock
stock: host-packages stage stage-packages ## ec2netd on stock images, from the first boot to its removal: a line for each image, step and systemd (root)
	$(call matrix,TestLabStock)

.PHONY: demo
demo: host-packages stage ## the main job in the simulated VPC, step by step; MACHINE=1 on a kernel of its own (root)
	$(BUILD)/bin/vpclab demo --suite $(or $(SUITE),trixie) $(if $(MACHINE),--machine) --install-root $(STAGE)

.PHONY: bench
bench: host-packages stage ## all figures on each systemd, as a table and in build/bench.json; a quarter of an hour (root)
	EC2NETD_STAGE=$(STAGE) EC2NETD_BENCH=$(abspath $(BUILD)/bench.json) $(GO) test -count=1 -timeout 60m -p 1 -run '^$$' -bench '^BenchmarkLab$$' -benchtime 1x ./cmd/ec2netd/

.PHONY: lint
lint: $(GOLANGCI_LINT) ## gofmt, go vet, golangci-lint
	@unformatted=$$(gofmt -l $$(git ls-files '*.go')); test -z "$$unformatted" || { echo "gofmt would change: $$unformatted"; exit 1; }
	$(GO) vet ./...
	$(GOLANGCI_LINT) run ./...

$(GOLANGCI_LINT):
	GOBIN=$(patsubst %/,%,$(dir $(abspath $@))) $(GO) install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(GOLANGCI_LINT_VERSION)

# A machine that cannot reach the database must be able to run the gate, so that only warns.
# A database that somebody names must answer.
.PHONY: vulncheck
vulncheck: $(GOVULNCHECK) ## whether a known vulnerability is in what the programs call (GOVULNDB)
	@out=$$($(GOVULNCHECK) $(if $(GOVULNDB),-db '$(GOVULNDB)') ./... 2>&1) && status=0 || status=$$?; echo "$$out"; \
	case "$(GOVULNDB)$$status$$out" in \
	1*'fetching vulnerabilities: '*) echo; echo 'WARNING: NOT CHECKED for known vulnerabilities: the database at vuln.go.dev'; \
	  echo 'WARNING: does not answer. Run "make vulncheck" where it does, or with GOVULNDB=.' ;; \
	*) exit $$status ;; \
	esac

$(GOVULNCHECK):
	GOBIN=$(patsubst %/,%,$(dir $(abspath $@))) $(GO) install golang.org/x/vuln/cmd/govulncheck@$(GOVULNCHECK_VERSION)

.PHONY: generate
generate: ## regenerate the Varlink code from its interface description
	$(GO) generate ./...

.PHONY: stage
stage: build
	@rm -rf $(STAGE)
	@$(MAKE) --no-print-directory install DESTDIR=$(STAGE) PREFIX=/usr >/dev/null

.PHONY: packages
packages: $(addprefix packages-,$(ARCHES)) ## build the deb and the rpm for amd64 and arm64 into build/packages
	@ls $(PACKAGES)/*.deb $(PACKAGES)/*.rpm

# The packages have what install puts into a root. Only the programs are of the other
# machine: what install runs of them to make files is of this one.
.PHONY: packages-%
packages-%: build $(NFPM)
	@rm -rf $(PACKAGES)/$* && mkdir -p $(PACKAGES)/$*/bin
	@set -e; for p in ec2netd ec2netctl; do GOOS=linux GOARCH=$* $(GOBUILD) -o $(PACKAGES)/$*/bin/$$p ./cmd/$$p; done
	@umask 022; $(MAKE) --no-print-directory install DESTDIR=$(abspath $(PACKAGES)/$*/root) PREFIX=/usr SYSCONFDIR=/etc BIN=$(PACKAGES)/$*/bin >/dev/null
	@find $(PACKAGES)/$*/root/usr/share/man -type f ! -name '*.gz' -exec gzip -9n {} + 2>/dev/null || :
	$(call pack,$*,$(PACKAGES)/$*/root,$(PACKAGE_VERSION),$(PACKAGES))

# The deb and the rpm of a root, without those of another version: machine, root, version,
# directory.
define pack
	@mkdir -p $(4)/$(1) && rm -f $(4)/*_$(1).deb $(4)/*.$(RPM_ARCH_$(1)).rpm
	@$(GO) run ./units/packages/bom -root $(2) -version '$(3)' -maintainer "$$MAINTAINER" \
	  -licences $(4)/$(1)/dependencies.txt -spdx $(4)/$(1)/ec2netd.spdx.json usr/bin/ec2netctl usr/lib/ec2netd/ec2netd
	@sed "s|@maintainer@|$$MAINTAINER|" units/packages/changelog.yaml >$(4)/$(1)/changelog.yaml
	@sed 's|@changelog@|$(4)/$(1)/changelog.yaml|' units/packages/nfpm.yaml >$(4)/$(1)/nfpm.yaml
	@set -e; for p in deb rpm; do \
	  ARCH=$(1) ROOT=$(2) BOM=$(4)/$(1) PACKAGE_VERSION='$(3)' TZ=UTC $(NFPM) package --config $(4)/$(1)/nfpm.yaml --packager $$p --target $(4)/ >$(4)/$(1)/log || { cat $(4)/$(1)/log; exit 1; }; done
endef

# Two versions for the tests, of what the tests install otherwise.
.PHONY: stage-packages
stage-packages: stage $(NFPM)
	$(call pack,$(shell $(GO) env GOARCH),$(STAGE),0.0.1,$(PACKAGES)/test/1)
	$(call pack,$(shell $(GO) env GOARCH),$(STAGE),0.0.2,$(PACKAGES)/test/2)

# Other sources elsewhere, at another time and with another umask, make the same bytes.
# lintian-overrides and rpmlint.toml say what of lintian and rpmlint is let pass, and why.
.PHONY: check-packages
check-packages: packages ## that packages are reproducible, and what lintian and rpmlint say of them
	@{ command -v lintian && command -v rpmlint && command -v rpm; } >/dev/null || \
	  { apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends lintian rpmlint rpm; } >/dev/null
	@rm -rf $(BUILD)/again && mkdir -p $(BUILD)/again
	@git ls-files -z --cached --others --exclude-standard | xargs -0 cp --parents -t $(BUILD)/again
	@umask 077; TZ=Asia/Tokyo $(MAKE) --no-print-directory -C $(BUILD)/again packages NFPM=$(NFPM) VERSION='$(VERSION)' PACKAGE_VERSION='$(PACKAGE_VERSION)' >/dev/null
	@set -e; for p in $(BUILD)/again/build/packages/*.deb $(BUILD)/again/build/packages/*.rpm; do cmp $$p $(PACKAGES)/$${p##*/}; done
	lintian --allow-root --fail-on error,warning $(PACKAGES)/*.deb
	rpmlint --strict --config units/packages/rpmlint.toml $(PACKAGES)/*.rpm
	@rm -rf $(BUILD)/again

RPM_ARCH_amd64 := x86_64
RPM_ARCH_arm64 := aarch64

$(NFPM):
	GOBIN=$(patsubst %/,%,$(dir $(abspath $@))) $(GO) install github.com/goreleaser/nfpm/v2/cmd/nfpm@$(NFPM_VERSION)

# Install what is missing where apt can; say what is missing elsewhere.
.PHONY: host-packages
host-packages:
	@missing=; for t in $(HOST_TOOLS); do PATH=$$PATH:/usr/sbin:/sbin command -v $$t >/dev/null || missing="$$missing $$t"; done; \
	test -z "$$missing" || { \
	  test "$$(id -u)" = 0 && command -v apt-get >/dev/null || { \
	    echo "These tools are missing:$$missing. As root on Debian: apt-get install $(HOST_PACKAGES)"; exit 1; }; \
	  echo "Installing$$missing…"; \
	  { apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends $(HOST_PACKAGES); } >/dev/null; }

# units/install/files.list says which files these are.
INSTALL = DESTDIR='$(DESTDIR)' PREFIX='$(PREFIX)' SYSCONFDIR='$(SYSCONFDIR)' BIN='$(BIN)' EC2NETCTL='$(BUILD)/bin/ec2netctl' \
  BASH_COMPLETIONS='$(BASH_COMPLETIONS)' FISH_COMPLETIONS='$(FISH_COMPLETIONS)' ZSH_COMPLETIONS='$(ZSH_COMPLETIONS)' units/install/install.sh

.PHONY: install
install: build ## install into DESTDIR with PREFIX (/usr); enable with systemctl preset
	@$(INSTALL) install

.PHONY: uninstall
uninstall: ## remove what install put there, the configuration in /etc excepted
	@$(INSTALL) uninstall

.PHONY: clean
clean: ## remove what was built
	rm -rf $(BUILD)
