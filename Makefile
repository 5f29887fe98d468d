# Postern: every task of a developer and of the public CI. `make help` lists them.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

GO       ?= go
TOOLBIN  := $(CURDIR)/.cache/bin
VERSION  ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
FUZZTIME ?= 10s

# Each main stands in <role>/cmd/<name> and becomes bin/<name>.
MAINS    := $(wildcard */cmd/*/main.go)
BINARIES := $(patsubst %/main.go,./%,$(MAINS))

# Whole-product tests: they need root, namespaces and real programs, and run
# without the race detector because they measure time.
SYSTEM   := /test/(system|scenario|netns)(/|$$)
NOTUNIT  := /test/(system|scenario|netns|bench)(/|$$)
# Packages whose tests prove that a path allocates nothing: such a test has Alloc in its
# name (test/archtest). The race detector allocates by itself, so they run without it too.
PROOFS    = grep -rl --include='*_test.go' --exclude-dir='.*' 'testing\.AllocsPerRun(' * | xargs -n1 dirname | sort -u | sed 's|^|./|'
# Prints what go test prints, and fails with CI=true when a test was skipped.
JUDGE    := $(GO) run ./test/judge
CROSS    := linux/amd64 linux/arm64 darwin/amd64 darwin/arm64 windows/amd64 windows/arm64

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: build
build: ## build the programs into ./bin
	@mkdir -p bin
	@for main in $(BINARIES); do \
		echo "build bin/$$(basename $$main)"; \
		CGO_ENABLED=0 $(GO) build -trimpath -ldflags='-s -w -X main.version=$(VERSION)' -o bin/ $$main; \
	done

.PHONY: demo
demo: build ## show the product on this machine; ONCE=1 ends by itself
	@./bin/postern-broker demo $(if $(ONCE),--once) $(if $(PROXY),--proxy)

.PHONY: deps
deps:
	@.ci/deps

.PHONY: test
test: deps ## run all tests; with CI=true a skip fails
	@echo "== unit tests, race detector on"
	@CGO_ENABLED=1 $(GO) test -json -race -shuffle=on -timeout 10m $$($(GO) list ./... | grep -vE '$(NOTUNIT)') | $(JUDGE)
	@echo "== allocation proofs, race detector off"
	@CGO_ENABLED=0 $(GO) test -json -count=1 -timeout 5m -run Alloc $$($(PROOFS)) | $(JUDGE) -ran
	@echo "== system tests"
	@CGO_ENABLED=0 $(GO) test -json -count=1 -p 1 -timeout 20m $$($(GO) list ./... | grep -E '$(SYSTEM)') | $(JUDGE) -ran

.PHONY: check
check: fmt vet lint arch generated cross benchonce ## everything but the tests that must hold before a change goes in

.PHONY: fmt
fmt:
	@bad=$$(gofmt -l $$(git ls-files -co --exclude-standard '*.go')); \
		if [ -n "$$bad" ]; then echo "gofmt these files:"; echo "$$bad"; exit 1; fi

.PHONY: vet
vet:
	@$(GO) vet ./...

.PHONY: lint
lint: $(TOOLBIN)/golangci-lint ## run the linters named in .golangci.yml
	@$(TOOLBIN)/golangci-lint run ./...

.PHONY: arch
arch:
	@$(GO) test -count=1 ./test/archtest

.PHONY: generate
generate: $(TOOLBIN)/buf $(TOOLBIN)/protoc-gen-go $(TOOLBIN)/protoc-gen-connect-go ## generate code from proto/
	@cd proto && PATH="$(TOOLBIN):$$PATH" buf generate

.PHONY: generated
generated: $(TOOLBIN)/buf $(TOOLBIN)/protoc-gen-go $(TOOLBIN)/protoc-gen-connect-go
	@PATH="$(TOOLBIN):$$PATH" .ci/generated

.PHONY: cross
cross: ## build everything for linux, darwin and windows on amd64 and arm64
	@for target in $(CROSS); do \
		echo "cross $$target"; \
		export CGO_ENABLED=0 GOOS=$${target%/*} GOARCH=$${target#*/}; \
		$(GO) build ./...; \
		for main in $(BINARIES); do $(GO) build -trimpath -o .cache/cross/$$target/ $$main; done; \
	done
	@for os in darwin windows; do CGO_ENABLED=0 GOOS=$$os GOARCH=arm64 $(GO) vet ./...; done

.PHONY: benchonce
benchonce:
	@$(GO) test -run '^$$' -bench . -benchtime=1x $$($(GO) list ./... | grep -v '/test/')

.PHONY: bench
bench: ## measure the product against its references, into test/bench/latest.json
	@POSTERN_BENCH=1 $(GO) test -count=1 -v -timeout 60m ./test/bench/...

.PHONY: fuzz
fuzz: ## run every fuzz target for FUZZTIME (10s)
	@FUZZTIME=$(FUZZTIME) .ci/fuzz

.PHONY: mutants
mutants: ## remove each guarded line and see its test fail; ONLY=name for some
	@$(GO) run ./test/mutants $(if $(ONLY),-only '$(ONLY)')

.PHONY: clean
clean: ## remove everything that make built
	@rm -rf bin .cache

# Tools come from .ci/tools/go.mod; the two code generators come from go.mod, so
# that generated code and its runtime always have the same version.
$(TOOLBIN)/buf: .ci/tools/go.mod
	@echo "build tool buf (minutes, once)"
	@cd .ci/tools && $(GO) build -trimpath -o $@ github.com/bufbuild/buf/cmd/buf

$(TOOLBIN)/golangci-lint: .ci/tools/go.mod
	@echo "build tool golangci-lint (minutes, once)"
	@cd .ci/tools && $(GO) build -trimpath -o $@ github.com/golangci/golangci-lint/v2/cmd/golangci-lint

$(TOOLBIN)/protoc-gen-go: go.mod
	@$(GO) build -trimpath -o $@ google.golang.org/protobuf/cmd/protoc-gen-go

$(TOOLBIN)/protoc-gen-connect-go: go.mod
	@$(GO) build -trimpath -o $@ connectrpc.com/connect/cmd/protoc-gen-connect-go
