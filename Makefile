PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin

.PHONY: install serve test test-slow check secrets dashboards rules format bench compare outcome outcome-quick proto lock clean

install: $(VENV)/.installed

# The lock is complete, so nothing is resolved: torchattacks' pin on an old requests binds nobody.
$(VENV)/.installed: requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-deps -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

serve: install
	$(BIN)/lgm serve

test: install
	$(BIN)/python -m pytest -m "not slow" --numprocesses 2 --dist loadfile --no-loadscope-reorder

test-slow: install
	$(BIN)/python -m pytest -m "hypothesis and not slow" --hypothesis-profile searching
	$(BIN)/python -m pytest -m slow

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/hadolint Dockerfile
	$(BIN)/yamllint --strict docker-compose.yml deploy
	$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec docker-compose.yml
	@command -v promtool || echo "rules are not checked: promtool is not there (apt-get install prometheus)"
	! command -v promtool || promtool check config deploy/prometheus/prometheus.yml
	! command -v promtool || promtool test rules deploy/prometheus/rules_test.yml

# Passwords for docker compose, made once; readable by you alone.
secrets: .env

.env:
	umask 077 && $(PYTHON) -c 'import secrets; \
		[print(f"{name}={secrets.token_hex(24)}") for name in ("POSTGRES_PASSWORD", "GRAFANA_PASSWORD")]' > $@

# Grafana's, from deploy/grafana/build.py.
dashboards: install
	$(BIN)/python deploy/grafana/build.py

# Prometheus' as the operator takes them, from deploy/prometheus/rules.yml.
rules: install
	$(BIN)/python deploy/prometheus/build.py

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: install
	$(BIN)/python -m tests.benchmarks.loss
	$(BIN)/python -m tests.benchmarks.screening
	$(BIN)/python -m tests.benchmarks.inference_protocol

# Every loss and question on a tenth of MNIST: meant for an hour on two cores. Goes on where it was interrupted.
compare: install
	$(BIN)/lgm compare model/comparisons/quick.toml

# About ten minutes; OPTIONS=--quick takes under three. Needs wrk (apt-get install wrk, brew install wrk) and LGM_DATA_DIR.
RIVALS ?= .venv-rivals
SITE   := import sysconfig; print(sysconfig.get_path("purelib"))

.PHONY: bench-serve
bench-serve: install $(RIVALS)/.installed
	$(BIN)/python -m tests.benchmarks.serving --rivals $(RIVALS) $(OPTIONS)

# The servers to compare with, in versions that get on with each other, not with ours. What they lack (torch and
# what else the work needs) is found behind their own packages, in the main environment.
$(RIVALS)/.installed: tests/benchmarks/serving/rivals.txt
	$(PYTHON) -m venv --clear $(RIVALS)
	$(RIVALS)/bin/python -m pip install --quiet --no-deps -r $<
	$(BIN)/python -c '$(SITE)' > "$$($(RIVALS)/bin/python -c '$(SITE)')/behind.pth"
	touch $@

# Hours: trains every network that is missing, for three seeds. CIFAR10= names its folder of images.
outcome: install
	$(BIN)/python -m tests.benchmarks.outcome $(if $(CIFAR10),--cifar10 $(CIFAR10))

# Minutes: the shipped bundle alone, on fewer images.
outcome-quick: install
	$(BIN)/python -m tests.benchmarks.outcome --quick

.PHONY: screenshots
# Needs Chromium (apt-get install chromium) and LGM_DATA_DIR.
screenshots: install
	$(BIN)/python -m tests.screenshots

proto: install
	cd service/inference_protocol && $(abspath $(BIN))/python -m grpc_tools.protoc --proto_path=. \
		--descriptor_set_out=open_inference.binpb open_inference.proto

lock:
	$(BIN)/uv pip compile pyproject.toml --universal --python-version 3.11 \
		--extra train --extra eval --extra parquet --extra timm --extra grpc --extra export --extra postgresql --extra s3 --extra tracing --extra scale --extra dev \
		--no-annotate --no-header --quiet --output-file requirements.lock
	$(BIN)/uv pip compile tests/benchmarks/serving/rivals.in --universal --python-version 3.11 \
		--no-annotate --no-header --quiet --output-file tests/benchmarks/serving/rivals.txt

clean:
	rm -rf $(VENV) $(RIVALS) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
