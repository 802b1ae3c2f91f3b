# The two commands of the README: `make demo` and `make test`.

CARGO_TARGET_DIR ?= $(CURDIR)/target
export CARGO_TARGET_DIR
export WASMK_GUESTS := $(CARGO_TARGET_DIR)/guests
export WASMK_TEST_VENV := $(CARGO_TARGET_DIR)/test-venv

.PHONY: demo build dist test test-setup test-crashes lint licences ledger bench help

help: ## list these commands
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | column -t -s '	'

demo: ## build wasmk, start it, deploy a function and call it
	@tools/setup demo
	@tools/demo

build: ## the release program
	cargo build --release --locked --bin wasmk

dist: ## the program as it is handed out: smaller, quicker, slow to build
	cargo build --profile dist --locked --bin wasmk

test-setup: ## what the tests need: programs, guests, Python clients
	@tools/setup test
	@tools/build-test-guests

test: test-setup ## everything the tests need, then all tests
	cargo test --locked --workspace --no-fail-fast

test-crashes: ## thousands of simulated crashes of the store; a failure names the seed that repeats it
	STORE_CRASH_SEEDS=4000 cargo test --locked -p wasmk-store --lib no_crash -- --nocapture

lint: ## formatting and clippy, warnings denied
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings

licences: ## licences of dependencies, and crates that are banned
	@tools/licences

ledger: ## how many features are proven by a test, per area
	@cargo run -q --locked -p wasmk-tests --bin ledger

bench: ## the figures, beside what was promised
	@tools/build-test-guests >/dev/null
	cargo bench --locked --workspace --bench program --bench store --bench objects --bench scheduler --bench fleet \
	  --bench engine --bench gateway --bench functions --bench api --bench access --bench node
