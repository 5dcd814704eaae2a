# `make test` runs everything that CI runs. `make help` lists the rest.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.NOTPARALLEL:
.DEFAULT_GOAL := help

TARGET := $(abspath $(or $(CARGO_TARGET_DIR),target))
TOOLS := $(TARGET)/tools
CLIENT_TOOLS := $(TARGET)/clients
BINARY := $(TARGET)/release/jobwire
BASELINE := proto/baseline.binpb
# Bytes. The binary must stay below it.
MAX_SIZE := 26214400
# kill -9 so often; SEED=n repeats the draws that were printed for n.
KILLS ?= 50
STEPS := tools fmt-check clippy proto-lint proto-breaking deny cargo-test postgres-test postgres14-test release-check kills transcripts readme clients-test

export PATH := $(TOOLS)/bin:$(PATH)

.PHONY: help test $(STEPS) clients clients-tools build fmt advisories fuzz proto-baseline peers

help: ## List the targets
	@sed -nE 's/^([a-z0-9-]+):.*## (.*)/\1|\2/p' $(MAKEFILE_LIST) | while IFS='|' read -r name text; do \
		printf '  %-15s %s\n' "$$name" "$$text"; done

test: ## Everything CI runs, step by step with times
	@begin=$$SECONDS; \
	for step in $(STEPS); do \
		printf '\n==== %s\n' "$$step"; \
		start=$$SECONDS; \
		$(MAKE) --no-print-directory "$$step" || { \
			printf '==== %s FAILED after %s s: `make %s` repeats it\n' "$$step" $$((SECONDS - start)) "$$step"; exit 1; }; \
		printf '==== %s: %s s\n' "$$step" $$((SECONDS - start)); \
	done; \
	printf '\n==== all steps passed in %s s\n' $$((SECONDS - begin))

tools: ## Install what is missing for the steps below
	@tools/install.sh $(TOOLS)

fmt-check: ## Is the code formatted?
	cargo fmt --check

clippy: ## Lints, warnings are errors
	cargo clippy --locked --all-targets -- -D warnings

proto-lint: ## buf lint, STANDARD
	buf lint

proto-breaking: ## Does the contract break callers built against the last landing?
	buf breaking --against $(BASELINE)
	@buf build --exclude-source-info -o - | cmp -s - $(BASELINE) || \
		echo 'The contract differs from its baseline: run `make proto-baseline` before this lands.'

deny: ## Bans, licences and sources of dependencies
	cargo deny --locked check bans licenses sources

cargo-test: ## Unit, integration and documentation tests
	cargo test --locked

# What is about the files of the embedded store has no meaning there.
postgres-test: ## The tests of the services again, on PostgreSQL
	JOBWIRE_TEST_STORE=postgres cargo test --locked --test it -- \
		batch:: calls:: changes:: end_to_end:: health:: limits:: list:: result:: states:: stop:: stream_submit:: submit:: \
		watch:: watch_ends:: watch_hints:: workers:: \
		--skip limits::a_damaged_job_is_not_handed_out --skip limits::a_disk_that_is_nearly_full_takes_no_jobs_but_serves

# What is drawn at random and what the planner does has been tested on the other one.
postgres14-test: ## The tests of the store again, on the oldest PostgreSQL that is served
	tools/on-postgres14.sh $(TOOLS) cargo test --locked --lib --test it -- store::postgres:: migrate:: replicas:: roles:: \
		--skip random --skip plans --skip kill::

release-check: ## Build the release binary and check its size
	@start=$$SECONDS; cargo build --locked --release; seconds=$$((SECONDS - start)); \
	size=$$(wc -c < $(BINARY)); \
	printf 'jobwire: %s bytes (at most %s), built in %s s\n' "$$size" $(MAX_SIZE) "$$seconds"; \
	[ "$$size" -lt $(MAX_SIZE) ] || { echo 'The binary is too large: `cargo bloat --release --crates` shows what fills it.'; exit 1; }

kills: ## Kill the release binary again and again: KILLS=2000 for long, SEED=n to repeat, STORE=postgres for several
	JOBWIRE_BIN=$(BINARY) JOBWIRE_TEST_KILLS=$(KILLS) $(if $(SEED),JOBWIRE_TEST_SEED=$(SEED)) \
		cargo test --locked --test it kill::$(if $(filter postgres,$(STORE)),replicas,embedded):: -- --nocapture

transcripts: ## The contract's transcripts with the real grpcurl
	JOBWIRE_BIN=$(BINARY) tests/transcripts.sh

readme: ## Run the tour of the README
	JOBWIRE_BIN=$(BINARY) tests/readme_tour.sh README.md

clients-tools:
	@tools/install-clients.sh $(CLIENT_TOOLS)

clients-test: clients-tools ## Tests of the client libraries, alone and against the real server
	cargo build --locked --example conformance
	clients/test.sh $(CLIENT_TOOLS) $(BINARY) $(TARGET)/debug/examples/conformance

clients: clients-tools ## Generate the code of the client libraries from proto/
	tools/generate-clients.sh $(CLIENT_TOOLS)

build: ## The release binary
	cargo build --locked --release

fmt: ## Format the code
	cargo fmt

peers: ## Measure jobwire beside other job services, ten minutes once they are installed
	benches/peers/run.sh --write docs/benchmarks.md

advisories: ## Known vulnerabilities in dependencies; needs the network
	cargo deny --locked check advisories

fuzz: ## Fuzz what parses bytes from outside: SECONDS=60 each, TARGETS="cursor submit" for some
	tools/fuzz.sh $(or $(SECONDS),60) $(TARGET) $(TARGETS)

proto-baseline: ## Record the contract as landed; refuses what would break callers
	@if [ -e $(BASELINE) ]; then buf breaking --against $(BASELINE); fi
	buf build --exclude-source-info -o $(BASELINE)
