# Two commands matter: "make demo" and "make test". "make help" lists the rest.
SHELL := /bin/bash
.DEFAULT_GOAL := help

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS := -s -w -X main.buildVersion=$(VERSION)
GOLANGCI := v2.12.0
VICTORIALOGS := v1.43.1
JAEGER := v1.76.0
# The builder, and the parts of otel-config/builder.yaml.
OTELCOL := v0.159.0
BENCHSTAT := v0.0.0-20260908200009-22c9c6c9d4da
# Tools that are built from source, outside the work tree: all trees have the same. What is made of this one is in bin.
TOOLS := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/sidelight-tools

.PHONY: help
help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sort | awk -F ':.*## ' '{printf "  %-16s %s\n", $$1, $$2}'

.PHONY: build
build: ## build bin/sidelight
	CGO_ENABLED=0 go build -ldflags '$(LDFLAGS)' -o bin/sidelight ./agent/cmd/sidelight

.PHONY: man
man: ## write man pages to bin/man
	CGO_ENABLED=0 go run -ldflags '$(LDFLAGS)' -tags sidelight_man ./agent/cmd/sidelight man bin/man

.PHONY: demo
demo: build ## build, then run the main job on a little world of its own (root)
	./bin/sidelight demo $(DEMO_FLAGS)

.PHONY: test
test: setup build test-cross ## install what the tests need, then run all of them (root)
	go test -count=1 -timeout 20m ./...

.PHONY: test-unit
test-unit: ## the tests that need neither root nor anything installed
	go test -short ./...

.PHONY: test-cross
test-cross: ## everything compiles for arm64 too
	GOARCH=arm64 CGO_ENABLED=0 go build -o /dev/null ./agent/cmd/sidelight

.PHONY: test-kernels
test-kernels: ## live tests on Debian's 6.1 and 6.12 (QEMU, no KVM) and on the running kernel (root); UPDATE=1 rewrites bpf/verifier.yaml
	@./.ci/setup kernels
	CGO_ENABLED=0 go build -o bin/test-kernels ./agent/cmd/sidelight/lab/vm
	./bin/test-kernels $(if $(UPDATE),-update) $(KERNELS_FLAGS)

# What bench/restart upgrades to.
.PHONY: build-other-layout
build-other-layout:
	CGO_ENABLED=0 go build -ldflags '$(LDFLAGS)' -tags sidelight_other_layout -o bin/sidelight-other-layout ./agent/cmd/sidelight

.PHONY: bench
bench: build build-other-layout ## measure what Sidelight costs against bench/budgets.yaml, a quarter of an hour (root); BENCH_FLAGS='-name baseline'
	CGO_ENABLED=0 go build -o bin/bench ./bench
	./bin/bench $(BENCH_FLAGS)

.PHONY: bench-quick
bench-quick: build build-other-layout ## the same in under five minutes, less precisely (root)
	CGO_ENABLED=0 go build -o bin/bench ./bench
	./bin/bench -quick $(BENCH_FLAGS)

.PHONY: bench-compare
bench-compare: $(TOOLS)/benchstat-$(BENCHSTAT) ## Go benchmarks of BASE=rev and of the work tree, in turns; BENCH=regexp, COUNT=n
	BENCHSTAT=$< ./bench/compare '$(BASE)' '$(or $(BENCH),.)' '$(or $(COUNT),10)'

$(TOOLS)/benchstat-$(BENCHSTAT):
	mkdir -p $(TOOLS)
	GOBIN=$(TOOLS) GOFLAGS= CGO_ENABLED=0 go install golang.org/x/perf/cmd/benchstat@$(BENCHSTAT)
	mv $(TOOLS)/benchstat $@

.PHONY: recordings
recordings: ## make the golden recordings and their expected output anew, on the running kernel (root)
	go test -count=1 -run '^TestRecordings$$' ./agent/cmd/sidelight -update

.PHONY: fuzz
fuzz: ## fuzz the decoder, the readers of recordings, of meshes and of filters for 30 s each
	go test -run '^$$' -fuzz FuzzDecode -fuzztime 30s ./agent/event
	go test -run '^$$' -fuzz FuzzPlayer -fuzztime 30s ./agent/event
	go test -run '^$$' -fuzz FuzzFrames -fuzztime 30s ./agent/event
	go test -run '^$$' -fuzz FuzzParse -fuzztime 30s -fuzzminimizetime 10x ./agent/controlplane
	go test -run '^$$' -fuzz FuzzCompile -fuzztime 30s ./collector/filter

.PHONY: setup
setup: ## install the Debian packages that tests and generation need, those that are missing
	@./.ci/setup

.PHONY: generate
generate: ## rebuild the BPF object, its Go binding and the generated documents (clang-19)
	go generate ./...

.PHONY: generate-check
generate-check: setup ## generated files are what their sources make
	@clang-19 --version | head -1
	$(MAKE) --no-print-directory generate
	@git diff --exit-code -- '*_bpfel.*' collector/meshreceiver/documentation.md collector/meshreceiver/descriptions.go || { echo 'generated files differ from what their sources make: run make generate and commit'; exit 1; }

.PHONY: dashboards
dashboards: dashboards/gen/node_modules/.package-lock.json ## generate dashboards/*.json (Node 18 or newer, npm)
	cd dashboards/gen && npm run --silent generate

# Of what follows there are two targets each: one for people, who may not have what it takes, and one that fails then, which is that of .ci/run.
.PHONY: check-dashboards
check-dashboards: ## dashboards/*.json are what the generator makes; queries for logs and traces parse
	@command -v npm >/dev/null || { echo 'skipped: there is no npm, so nobody knows whether the dashboards are what the generator makes'; exit 0; }; \
	$(MAKE) --no-print-directory check-dashboards-strictly

# The packages for it are many, and Debian 12's are new enough: .ci/setup dashboards.
.PHONY: check-dashboards-strictly
check-dashboards-strictly: dashboards/gen/node_modules/.package-lock.json
	cd dashboards/gen && npm run --silent check

.PHONY: victoria-logs
victoria-logs: ## build the VictoriaLogs that a test of the log panels runs, if it can be had
	@$(MAKE) --no-print-directory build-victoria-logs || echo 'skipped: VictoriaLogs cannot be built here, its test is left out'

.PHONY: build-victoria-logs
build-victoria-logs: $(TOOLS)/victoria-logs-$(VICTORIALOGS)

$(TOOLS)/victoria-logs-$(VICTORIALOGS): dashboards/backends/victorialogs/go.mod
	mkdir -p $(TOOLS)
	cd dashboards/backends/victorialogs && GOFLAGS= CGO_ENABLED=0 go build -trimpath -ldflags '-s -w' -o $@.$$$$ github.com/VictoriaMetrics/VictoriaLogs/app/victoria-logs && mv $@.$$$$ $@

.PHONY: jaeger
jaeger: ## build the Jaeger that a test of the spans runs, if it can be had
	@$(MAKE) --no-print-directory build-jaeger || echo 'skipped: Jaeger cannot be built here, its test is left out'

.PHONY: build-jaeger
build-jaeger: $(TOOLS)/jaeger-$(JAEGER)

$(TOOLS)/jaeger-$(JAEGER): dashboards/backends/jaeger/go.mod
	mkdir -p $(TOOLS)
	cd dashboards/backends/jaeger && GOFLAGS= CGO_ENABLED=0 go build -trimpath -ldflags '-s -w' -o $@.$$$$ github.com/jaegertracing/jaeger/cmd/jaeger && mv $@.$$$$ $@

# The builder resolves all versions from those in the manifest, so without the module proxy there is none.
.PHONY: otel-collector
otel-collector: ## build the collector of otel-config/builder.yaml and what its tests send to, if they can be had
	@$(MAKE) --no-print-directory build-otel-collector || echo 'skipped: the collector of otel-config/builder.yaml cannot be built here, the tests that run it are left out'
	@$(MAKE) --no-print-directory build-otel-backends || echo 'skipped: otel-config/backends cannot be built here, the tests that need them are left out'

# Always: the receiver in it is that of this work tree. Go builds anew what changed. What cannot be built is not there, rather than an older one.
COLLECTOR := bin/otelcol-sidelight
.PHONY: build-otel-collector
build-otel-collector: $(TOOLS)/otel-builder-$(OTELCOL)
	mkdir -p $(COLLECTOR) $(COLLECTOR).new
	env dist.output_path=$(COLLECTOR).new GOFLAGS=-buildvcs=false $< --config otel-config/builder.yaml && \
	mv $(COLLECTOR).new/otelcol-sidelight $(COLLECTOR)/ || { rm -f $(COLLECTOR)/otelcol-sidelight; exit 1; }

.PHONY: build-otel-backends
build-otel-backends:
	mkdir -p bin
	cd otel-config/backends && GOFLAGS=-buildvcs=false CGO_ENABLED=0 go build -trimpath -ldflags '-s -w' -o ../../bin/otel-backends.new . && \
	mv ../../bin/otel-backends.new ../../bin/otel-backends || { rm -f ../../bin/otel-backends; exit 1; }

$(TOOLS)/otel-builder-$(OTELCOL):
	mkdir -p $(TOOLS)
	GOBIN=$(TOOLS) GOFLAGS= CGO_ENABLED=0 go install -trimpath -ldflags '-s -w' go.opentelemetry.io/collector/cmd/builder@$(OTELCOL)
	mv $(TOOLS)/builder $@

dashboards/gen/node_modules/.package-lock.json: dashboards/gen/package-lock.json
	cd dashboards/gen && npm ci --no-audit --no-fund
	touch $@

.PHONY: lint
lint: setup $(TOOLS)/golangci-lint-$(GOLANGCI) ## Go and C linters, formatting, tidy go.mod
	$(TOOLS)/golangci-lint-$(GOLANGCI) run ./...
	clang-format-19 --dry-run --Werror $$(git ls-files 'bpf/*.h' 'bpf/*.c')
	@# A difference fails; a module that tests of modules of modules want and the proxy does not have does not.
	@out=$$(go mod tidy -diff 2>&1) || { echo "$$out"; ! grep -q '^diff ' <<<"$$out"; }

$(TOOLS)/golangci-lint-$(GOLANGCI):
	mkdir -p $(TOOLS)
	GOBIN=$(TOOLS) GOFLAGS= CGO_ENABLED=0 go install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(GOLANGCI)
	mv $(TOOLS)/golangci-lint $@

.PHONY: fmt
fmt: $(TOOLS)/golangci-lint-$(GOLANGCI) ## format Go and C
	$(TOOLS)/golangci-lint-$(GOLANGCI) fmt
	clang-format-19 -i $$(git ls-files 'bpf/*.h' 'bpf/*.c')

.PHONY: clean
clean: ## remove what was built
	rm -rf bin
