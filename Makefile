# Everything here is one line that can be typed as well: bin/test does the work.
.PHONY: check test model sim net ci demo bench wheel lock clean

check:  ## lint, types, import directions, house rules
	bin/test tidy
test:   ## what a newcomer should see pass, under 10 minutes
	bin/test
model:  ## every exhaustive run and every mutant, under 10 minutes; MODEL=--write writes the tables into the docs
	bin/model $(MODEL)
sim:    ## SEED=17 replays one simulated run of a whole cluster; without it, all of tests/sim
	$(if $(SEED),bin/sim $(SEED) $(if $(MUTANT),--mutant $(MUTANT)),bin/test sim)
net:    ## real faults on real clusters in network namespaces: everything (root); bin/test has the quick part
	bin/test --all net
ci:     ## what CI runs
	bash .ci/run
demo:   ## three nodes, one killed, the gap measured
	bin/demo
bench:  ## BENCH=failover|switchover|throughput|footprint|coldstart
	bin/bench $(or $(BENCH),failover)
wheel:  ## dist/*.whl
	uv build --wheel
lock:   ## after a change of dependencies
	uv lock --default-index https://pypi.org/simple
clean:
	rm -rf .venv dist build .hypothesis .mypy_cache .ruff_cache
