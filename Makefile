# Every target does its own set-up: a fresh checkout with python3 (3.11 or later) and make is enough.

# Names of tests to run instead of all: make test T=tests.test_config
T ?=
# What to tell make bench: make bench ARGS="--only latency"
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help demo test lint prove bench docs venv compiler clean

help: ## show this list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 14

demo: venv ## run a relay and carry real traffic through it
	@.venv/bin/zrc-relay demo

test: venv $(if $(T),,compiler) ## ruff, mypy, the suite, and the way of a packet compiled
	@.venv/bin/python scripts/run_tests.py $(T)

lint: venv ## ruff and mypy only
	@status=0; for tool in "ruff check ." mypy; do .venv/bin/python -m $$tool || status=1; done; exit $$status

prove: venv compiler ## what is long or measured; prints its figures
	@.venv/bin/python scripts/prove.py

bench: venv compiler ## measure the relay beside others and write docs/performance.md; ARGS=--quick takes two minutes
	@.venv/bin/python -m bench.run $(ARGS)

docs: venv ## write the pages and files that are generated
	@for script in scripts/generate_*.py; do .venv/bin/python "$$script" || exit 1; done

venv: ## make .venv or bring it up to date
	@scripts/setup_venv.sh

compiler: venv # what "make test" compiles with, if it is missing and can be had
	@scripts/setup_venv.sh --compiler

clean: ## remove everything that these targets made
	rm -rf .venv bench/.build build dist *.egg-info .mypy_cache .ruff_cache .hypothesis _trial_temp*
	find . -name __pycache__ -prune -exec rm -rf {} +
	rm -f twisted/plugins/dropin.cache
