# Everything a person or CI does here. Each target makes its own environment in .venv first.
PYTHON ?= python3
BIN := .venv/bin
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: quickstart test test-slow test-clients lint format benchmark clean

# torch first: its pinned CPU build is small, and what follows then finds it there.
.venv/installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[quickstart,dev]"
	touch $@

quickstart: .venv/installed        ## watch a reranker learn, on real text; writes runs/quickstart/report.html
	$(BIN)/rerank quickstart

test: .venv/installed              ## the default suite, a few minutes on two cores
	$(BIN)/python -m pytest

test-slow: .venv/installed         ## the tests that take longer
	$(BIN)/python -m pytest -m slow

test-clients: .venv/installed      ## real clients of other people against a real server; ten minutes, 2 GB
	$(BIN)/python tests/clients/run.py --jobs 2
	$(BIN)/python tests/clients/frameworks.py

DATA ?= ../shared/data
SETS := scifact cacm vaswani semeval2016-cqa-answers birco-doris-mae xquad-r-de

benchmark: .venv/installed         ## the README's table: six collections, the quickstart's models, two first stages
	test -d runs/quickstart/model || $(BIN)/rerank quickstart
	$(BIN)/rerank bench local:$(DATA) $(addprefix --set ,$(SETS)) --judged-pool semeval2016-cqa-answers \
	  --judged-pool birco-doris-mae --model light=runs/quickstart/model/light \
	  --model cross-encoder=runs/quickstart/model/cross-encoder -f bm25 -f dense --out runs/bench-local
	$(BIN)/python benchmarks/record.py runs/bench-local
	$(BIN)/python benchmarks/readme.py

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	rm -rf build && $(BIN)/python -m pip install --quiet --no-deps --target build/wheel .
	cd build/wheel && ../../$(BIN)/mypy --config-file ../../pyproject.toml -p rerank

format: .venv/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv .clients build dist *.egg-info
