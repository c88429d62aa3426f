# Every target sets up .venv first where that is still to do. Arguments pass through ARGS:
#   make test ARGS="-k packaging"
.DEFAULT_GOAL := help
.PHONY: help setup demo demo-detection test lint format bench doctor clean
ARGS ?=
WITH_ENV = @python=$$(bash tools/setup_env.sh) &&

help:  ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /|/' \
		| while IFS='|' read -r name what; do printf '  make %-14s %s\n' "$$name" "$$what"; done

setup:  ## the environment in .venv
	@bash tools/setup_env.sh

demo:  ## train, evaluate and picture a small model on rendered scenes
	@bash tools/run_demo.sh $(ARGS)

demo-detection:  ## the same with boxes and masks
	@DEMO=detection bash tools/run_demo.sh $(ARGS)

test:  ## the tests
	@bash tools/run_tests.sh $(ARGS)

lint:  ## ruff, and which room may import which; changes nothing
	$(WITH_ENV) "$$python" -m ruff check . && "$$(dirname "$$python")/lint-imports"

format:  ## ruff, mending what it can
	$(WITH_ENV) "$$python" -m ruff check --fix .

bench:  ## side-by-side benchmarks, short form
	$(WITH_ENV) "$$python" -m benchmarks $(ARGS)

doctor:  ## versions, what was mended, what is wrong and how to mend it
	$(WITH_ENV) "$$python" -m visattn_dense.doctor $(ARGS)

clean:  ## caches and build output; keeps .venv, data and work_dirs
	@rm -rf build dist *.egg-info .pytest_cache .ruff_cache .import_linter_cache
	@find . -path ./.venv -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +
