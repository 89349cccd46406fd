.PHONY: install check test slow bench-smoke

install:
	pip install -e '.[dev]'

check:
	ruff check
	ruff format --check
	mypy
	lint-imports

test:
	pytest

slow:
	pytest -m "slow and not gpu"

bench-smoke:
	storyv-lite bench
