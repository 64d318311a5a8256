# Immutable. `make` lists the targets.

export CGO_ENABLED ?= 0

TOOL := go tool -modfile=tools/go.mod
TEST := $(TOOL) gotestsum --format pkgname-and-test-fails --format-hide-empty-pkg --hide-summary output --
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
FUZZTIME ?= 30s
BENCH ?= .
COUNT ?= 6

.PHONY: help
help: ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

# What npm brings: the embedded ClickHouse and the protobuf compiler.
node_modules/.package-lock.json: package.json package-lock.json
	npm ci --no-progress
	@touch $@

.PHONY: deps
deps: node_modules/.package-lock.json ## fetch what the build and the tests need
	go mod download

# Programs of the production shape that only tests run here: the compose file's gateway, and the promtool of its Prometheus
# without the service discoveries of clouds, which are most of its code.
bin/caddy: deploy/gateway/go.mod deploy/gateway/go.sum
	cd deploy/gateway && go build -o ../../$@ github.com/caddyserver/caddy/v2/cmd/caddy
	@touch $@

bin/promtool: deploy/prometheus/go.mod deploy/prometheus/go.sum
	cd deploy/prometheus && go build -tags remove_all_sd,enable_dns_sd -o ../../$@ github.com/prometheus/prometheus/cmd/promtool
	@touch $@

.PHONY: programs
programs: bin/caddy bin/promtool ## build what tests run of the production shape (minutes, the first time)

.PHONY: build
build: ## build bin/immutable
	go build -trimpath -ldflags '-s -w -X main.version=$(VERSION)' -o bin/immutable ./cmd/immutable

.PHONY: run
run: deps build ## start everything in one process, with its data in ./data
	@exec bin/immutable up --data ./data

.PHONY: test
test: deps programs ## run the whole suite
	$(TEST) -timeout 20m ./...
	cd internal/e2e/independent && go test -timeout 10m ./...

.PHONY: quick
quick: deps ## run what takes seconds: what a developer runs all day
	$(TEST) -short -timeout 5m ./...

.PHONY: race
race: deps ## run the quick tests under the race detector (needs a C compiler)
	CGO_ENABLED=1 $(TEST) -race -short -timeout 20m ./...

.PHONY: lint
lint: deps ## check style and architecture (golangci-lint, protobuf, formatting)
	$(TOOL) golangci-lint run ./...
	cd schemas && ../node_modules/@bufbuild/buf-linux-x64/bin/buf lint
	cd bench && go vet ./...
	cd internal/e2e/independent && go vet ./...

.PHONY: fmt
fmt: ## format everything
	$(TOOL) golangci-lint fmt ./...

.PHONY: fuzz
fuzz: ## run every fuzz target for FUZZTIME (30s)
	@set -e; grep -rlE '^func Fuzz' --include='*_test.go' . | sort | while read -r file; do \
		grep -oE '^func Fuzz[A-Za-z0-9_]+' "$$file" | sed 's/func //' | while read -r target; do \
			echo "== $$target"; \
			go test -run '^$$' -fuzz "^$$target$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 10x "./$$(dirname "$$file")" < /dev/null; \
		done; \
	done

.PHONY: bench
bench: deps ## measure: prints a table of ratios (docs/benchmarks)
	cd bench && go run . -count $(COUNT) -run '$(BENCH)'

.PHONY: soak
soak: deps programs ## run the long tests: a million events, random kills and schedules, each check disabled (docs/soak)
	IMMUTABLE_SOAK=1 $(TEST) -timeout 3h -count 1 -p 1 ./internal/e2e/... ./processor/...

.PHONY: gen
gen: deps ## generate code from schemas/
	go generate ./...

.PHONY: tidy
tidy: ## tidy the modules
	go mod tidy
	cd tools && go mod tidy
	cd bench && go mod tidy
	cd internal/e2e/independent && go mod tidy
	cd deploy/gateway && go mod tidy
	cd deploy/prometheus && go mod tidy

.PHONY: clean
clean: ## remove what was built, but no data
	rm -rf bin
