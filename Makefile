# ec2netd: see README.md. "make help" lists the targets.

PREFIX     ?= /usr
SYSCONFDIR ?= /etc
DESTDIR    ?=
GO         ?= go
BUILD      := build
# Where install takes the programs from; packages-ARCH has those of another machine.
BIN        := $(BUILD)/bin
# Where shells look for completions; for zsh, what Debian has too.
BASH_COMPLETIONS := $(PREFIX)/share/bash-completion/completions
FISH_COMPLETIONS := $(PREFIX)/share/fish/vendor_completions.d
ZSH_COMPLETIONS  := $(PREFIX)/share/zsh/site-functions $(PREFIX)/share/zsh/vendor-completions

VERSION    := $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
# Position-independent, so that the kernel loads them anywhere. They link with no library; the
# loader of glibc, which relocates them, is all that they need of the system.
GOBUILD    := CGO_ENABLED=0 $(GO) build -buildmode=pie -trimpath -buildvcs=false -ldflags '-s -w -X main.version=$(VERSION)'
STAGE      := $(abspath $(BUILD)/stage)

# How long the tests of one package may take.
TIMEOUT    := 80m
# How often one or two tests on real systemd that fail run again; the machine may have been busy.
RERUNS     := 1
# How many labs run side by side. An instance waits for most of its time.
LABS       := $(shell expr 2 \* $$(nproc))
# How long each fuzzer runs, and the life of an instance. One seed always gives the same steps.
FUZZTIME   := 60s
SOAK_TIME  ?= 20m
SOAK_SEED  := $(or $(SOAK_SEED),$(shell date +%s))

PACKAGES   := $(BUILD)/packages
ARCHES     := amd64 arm64
# Who makes the packages, for whoever publishes them to say. The name of the default is
# one that nobody can have (RFC 2606).
export MAINTAINER ?= The ec2netd authors <ec2netd@ec2netd.example>
export HOMEPAGE   ?=
export SOURCE_DATE_EPOCH ?= $(shell git log -1 --format=%ct 2>/dev/null || echo 0)
PACKAGE_VERSION   := $(shell SOURCE_DATE_EPOCH=$(SOURCE_DATE_EPOCH) units/packages/version.sh)

# Tools of the build machine, pinned here and no dependencies of the module.
TOOLS := $(abspath $(BUILD)/tools)
$(TOOLS)/golangci-lint: module := github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0
$(TOOLS)/govulncheck:   module := golang.org/x/vuln/cmd/govulncheck@v1.9.0
$(TOOLS)/gotestsum:     module := gotest.tools/gotestsum@v1.13.0
$(TOOLS)/nfpm:          module := github.com/goreleaser/nfpm/v2/cmd/nfpm@v2.45.2

.PHONY: help build check test unit integration fuzz test-long soak neighbours stock demo bench host-packages \
  lint vulncheck generate stage packages stage-packages check-packages install uninstall clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

build: ## build the programs, which need no library, into build/bin
	@$(GOBUILD) -o $(BUILD)/bin/ ./cmd/ec2netd ./cmd/ec2netctl ./cmd/vpclab

$(TOOLS)/%:
	GOBIN=$(TOOLS) $(GO) install $(module)

check: lint ## for everyday work: lint, and the unit tests without -race
	$(GO) test -short -count=1 -timeout $(TIMEOUT) ./...

test integration: MACHINE := 1
test: host-packages unit integration ## all tests: unit and, as root, integration on systemd 252, 257 and 262

# Without -count=1 the go command notes each file that a test opens, to keep the result: 0.7 GB for
# service/agent, which took minutes to write and to read.
unit: ## tests that need neither root nor a network
	$(GO) test -race -short -count=1 -timeout $(TIMEOUT) ./...

# What the tests on systemd install.
LABTEST = EC2NETD_STAGE=$(STAGE) EC2NETD_PACKAGES=$(abspath $(PACKAGES)/test)
integration: host-packages stage stage-packages $(TOOLS)/gotestsum ## tests on real systemd 252, 257 and 262 in the simulated VPC (root)
	$(LABTEST) $(TOOLS)/gotestsum --format standard-verbose --rerun-fails=$(RERUNS) --rerun-fails-max-failures=2 --packages './cmd/... ./service/e2e' -- \
	  -count=1 -timeout $(TIMEOUT) -p 1 -parallel $(LABS) -run '^TestLab'

fuzz: ## each fuzzer for a minute (FUZZTIME)
	@GO='$(GO)' BUILD='$(BUILD)' FUZZTIME=$(FUZZTIME) .ci/fuzz

test-long: export EC2NETD_LONG := 1
test-long: TIMEOUT := 5h
test-long: test fuzz ## as test, with the fuzzers, the whole matrices and long runs (root)

soak: host-packages stage ## the life of an instance by chance, on each systemd (root; SOAK_TIME, SOAK_SEED)
	@echo 'To have these steps again: make soak SOAK_SEED=$(SOAK_SEED) SOAK_TIME=$(SOAK_TIME)'
	EC2NETD_STAGE=$(STAGE) EC2NETD_SOAK=$(SOAK_TIME) EC2NETD_SEED=$(SOAK_SEED) $(GO) test -count=1 -timeout 0 -parallel 3 -run '^TestLabSoak$$' -v ./service/e2e/

neighbours: host-packages stage stage-packages ## what other software keeps beside ec2netd: a line for each package, event and systemd (root)
	@$(LABTEST) GO='$(GO)' .ci/matrix TestLabNeighbours $(BUILD)/$@.log -parallel $(LABS)

stock: host-packages stage stage-packages ## ec2netd on stock images, from the first boot to its removal: a line for each image, step and systemd (root)
	@$(LABTEST) GO='$(GO)' .ci/matrix TestLabStock $(BUILD)/$@.log -parallel $(LABS)

demo: host-packages stage ## the main job in the simulated VPC, step by step; MACHINE=1 on a kernel of its own (root)
	$(BUILD)/bin/vpclab demo --suite $(or $(SUITE),trixie) $(if $(MACHINE),--machine) --install-root $(STAGE)

bench: host-packages stage ## all figures on each systemd, as a table and in build/bench.json; a quarter of an hour (root)
	EC2NETD_STAGE=$(STAGE) EC2NETD_BENCH=$(abspath $(BUILD)/bench.json) $(GO) test -count=1 -timeout 60m -p 1 -run '^$$' -bench '^BenchmarkLab$$' -benchtime 1x ./service/e2e/

host-packages: ## install what the lab and the tests need besides Go (root, Debian); MACHINE=1 with QEMU
	@MACHINE='$(MACHINE)' cmd/vpclab/host-packages.sh

lint: $(TOOLS)/golangci-lint ## gofmt, go vet, golangci-lint
	@unformatted=$$(gofmt -l $$(git ls-files '*.go')); test -z "$$unformatted" || { echo "gofmt would change: $$unformatted"; exit 1; }
	$(GO) vet ./...
	$(TOOLS)/golangci-lint run ./...

vulncheck: $(TOOLS)/govulncheck ## whether a known vulnerability is in what the programs call (GOVULNDB)
	@GOVULNDB='$(GOVULNDB)' .ci/vulncheck $(TOOLS)/govulncheck

generate: ## regenerate the Varlink code from its interface description
	$(GO) generate ./...

stage: build
	@rm -rf $(STAGE)
	@$(MAKE) --no-print-directory install DESTDIR=$(STAGE) PREFIX=/usr >/dev/null

packages: $(addprefix packages-,$(ARCHES)) ## build the deb and the rpm for amd64 and arm64 into build/packages
	@ls $(PACKAGES)/*.deb $(PACKAGES)/*.rpm

# The packages have what install puts into a root. Only the programs are of the other
# machine: what install runs of them to make files is of this one.
PACK := GO='$(GO)' NFPM=$(TOOLS)/nfpm units/packages/pack.sh
packages-%: build $(TOOLS)/nfpm
	@rm -rf $(PACKAGES)/$*
	@GOOS=linux GOARCH=$* $(GOBUILD) -o $(PACKAGES)/$*/bin/ ./cmd/ec2netd ./cmd/ec2netctl
	@umask 022; $(MAKE) --no-print-directory install DESTDIR=$(abspath $(PACKAGES)/$*/root) PREFIX=/usr SYSCONFDIR=/etc BIN=$(PACKAGES)/$*/bin >/dev/null
	@find $(PACKAGES)/$*/root/usr/share/man -type f ! -name '*.gz' -exec gzip -9n {} +
	@$(PACK) $* $(PACKAGES)/$*/root '$(PACKAGE_VERSION)' $(PACKAGES)

# Two versions for the tests, of what the tests install otherwise.
stage-packages: stage $(TOOLS)/nfpm
	@set -e; for n in 1 2; do $(PACK) $$($(GO) env GOARCH) $(STAGE) 0.0.$$n $(PACKAGES)/test/$$n; done

check-packages: packages ## that packages are reproducible, and what lintian and rpmlint say of them
	@units/packages/check.sh $(PACKAGES) $(BUILD)/again TOOLS=$(TOOLS) VERSION='$(VERSION)' PACKAGE_VERSION='$(PACKAGE_VERSION)'

# units/install/files.list says which files these are.
INSTALL = DESTDIR='$(DESTDIR)' PREFIX='$(PREFIX)' SYSCONFDIR='$(SYSCONFDIR)' BIN='$(BIN)' EC2NETCTL='$(BUILD)/bin/ec2netctl' \
  BASH_COMPLETIONS='$(BASH_COMPLETIONS)' FISH_COMPLETIONS='$(FISH_COMPLETIONS)' ZSH_COMPLETIONS='$(ZSH_COMPLETIONS)' units/install/install.sh

install: build ## install into DESTDIR with PREFIX (/usr); enable with systemctl preset
	@$(INSTALL) install

uninstall: ## remove what install put there, the configuration in /etc excepted
	@$(INSTALL) uninstall

clean: ## remove what was built
	rm -rf $(BUILD)
