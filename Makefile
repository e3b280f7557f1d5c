.DEFAULT_GOAL := help
.PHONY: help engine demo test stress soak crash faults options model platforms fuzz bench bench-peers bench-forward images cluster-demo kubernetes-demo kubernetes-test kubernetes-existing kubernetes-scale lint vuln sbom fmt tidy clean examples bench-examples recording documents

FUZZTIME ?= 60s
SOAK ?= 5m
SCALE ?= 10 100 1000
# As the components' own build sets it: the API server reports it to clients.
KUBERNETES_VERSION = -s -w $(foreach v,gitVersion=$(KUBERNETES) gitMajor=1 gitMinor=$(word 2,$(subst ., ,$(KUBERNETES))),-X k8s.io/component-base/version.$v)
KUBERNETES = $(shell sed -n 's|^.*k8s.io/kubernetes \(v[0-9.]*\).*|\1|p' deploy/lab/kubernetes/go.mod)

# The tools have a go.mod of their own, which a workspace does not allow.
TOOL = GOWORK=off go tool -modfile=tools/go.mod
# Both modules, see go.work.
ALL = ./... ./uds/...

# Two packages at a time, on any machine: tests wait for events, but what they start
# shares the processors. The race detector needs a C compiler, and would wait a second
# at the end of each package for more reports.
GOTEST = GORACE=atexit_sleep_ms=0 $$($(TOOL) -n gotestsum) --format $$([ -t 1 ] && echo testname || echo pkgname) -- -p 2 -count=1 -timeout 40m \
	$$([ "$$(go env CGO_ENABLED)" = 0 ] || echo -race)

help: # this list
	@awk -F ':.*# ' '/^[a-z-]+:.*# / { printf "  make %-19s %s\n", $$1, $$2 }' Makefile

demo: # the stack, both transcripts, the socket file; takes everything down again
	@integration/demo.sh

test: engine # every test; what single tests need is installed (as root on Debian or Ubuntu), or they are skipped and named
	@tools/need.sh --tests
	@$(GOTEST) $(ALL)
	@$(GOTEST) -tags uds_portable ./uds

stress: engine # with the counts of docs/faults.csv: the tests that make test runs shorter, or not at all
	@tools/need.sh --stress
	@tools/need.sh docker-compose 'docker compose'
	@STRESS=1 $(GOTEST) $$(tools/stressed.sh)

engine:
	@tools/offline/base.sh -q || { echo 'make: these tests run containers; without an engine: go test -short ./...' >&2; exit 1; }

soak: # 50 clients and one fault after another, for SOAK; a ledger of every byte
	SOAK=$(SOAK) go test -race -count=1 -v -timeout 0 -run '^TestSoak$$' ./server

crash: # a start, both sides of a takeover and of a transfer, killed at every system call
	@cd server && CRASH=all go test -count=1 -timeout 0 -run 'DeathAtAnySystemCall'

faults: # docs/faults.csv, as the tests that show its rows see it now
	STRESS=1 FAULTS=write go test -count=1 -timeout 30m -run '^TestF[0-9]' ./client ./cmd/... ./internal/... ./server ./uds/... ./integration
	go test -count=1 -run EveryRow ./internal/testkit

options: # docs/options.md, from the flags of the programs
	OPTIONS=write go test -count=1 -p 1 -run '^TestOptions' ./server ./client ./cmd/uds

model: # the takeover's protocol, in every order of steps, deaths and signals
	@tools/model.sh

platforms: # other machines: 32-bit and arm64 Linux, macOS, Windows
	@tools/platforms.sh

fuzz: # whatever reads what a peer sent or a user typed, FUZZTIME each
	@tools/fuzz.sh $(FUZZTIME)

bench: # Unix socket or TCP? in containers: tables, bench.json, bench.png
	@bench/run.sh

bench-peers: # our server beside C and others that one could pick
	@bench/peers.sh

bench-forward: # uds forward beside socat and systemd-socket-proxyd
	@bench/forward.sh

documents: engine # every command of the documents, from top to bottom, in a fresh clone
	@integration/documents.sh

recording: # docs/demo.svg, the animated picture of the README
	@tools/recording.sh

bench-examples: # a PHP page and a SELECT 1: through a socket or through TCP?
	@examples/bench/run.sh

examples: # the small echo, nginx and PHP, PostgreSQL, X11, a sandbox with one door, gRPC, clients in five languages: runs and tests examples/
	@examples/run.sh

images: # udsecho-server and udsecho-client, which deploy/ runs, and udsecho-tools
	@tools/images.sh

cluster-demo: # three nodes on this machine, as root: who echoes whom, an update, a killed engine
	@deploy/lab/swarm.sh

kubernetes-demo: .bin/kubernetes/kubelet # the same with three nodes of Kubernetes, and more faults
	@deploy/lab/kubernetes.sh demo

kubernetes-test: # the demonstration, tried and counted for docs/faults.csv, as root; `make test` leaves it out
	KUBERNETES=run go test -count=1 -v -timeout 45m -run '^TestF50' ./integration

kubernetes-existing: # the same, without the faults, on the cluster that kubectl reaches (KUBECONFIG)
	@deploy/lab/kubernetes.sh existing

kubernetes-scale: .bin/kubernetes/kubelet .bin/kubernetes/kwok # docs/scale.csv and .png: nodes that KWOK plays, SCALE of them
	@echo 'nodes,all Pods ready (s),update 100 % (s),update 10 % (s),update 1 (s),API server (MiB),etcd (MiB),requests a second' >.bin/scale.csv
	@for nodes in $(SCALE); do deploy/lab/kubernetes.sh scale $$nodes >>.bin/scale.csv || exit 1; done
	@mv .bin/scale.csv docs/scale.csv
	@go run ./bench/plot docs/scale.csv docs/scale.png

.bin/kubernetes/kubelet: deploy/lab/kubernetes/go.mod
	@echo 'building Kubernetes $(KUBERNETES) (5 to 10 minutes the first time)' >&2
	@cd deploy/lab/kubernetes && GOWORK=off CGO_ENABLED=0 go build -trimpath -o ../../../.bin/kubernetes/ -ldflags '$(KUBERNETES_VERSION)' tool
	@touch $@

.bin/kubernetes/kwok: deploy/lab/kwok/go.mod
	@echo 'building KWOK (a minute or two the first time)' >&2
	@cd deploy/lab/kwok && GOWORK=off CGO_ENABLED=0 go build -trimpath -ldflags '-s -w' -o ../../../.bin/kubernetes/ tool
	@touch $@

lint: # golangci-lint and shellcheck
	@tools/need.sh shellcheck
	shellcheck $$(git ls-files "*.sh") .ci/run
	$$($(TOOL) -n golangci-lint) run $(ALL)
	cd bench/peers && GOWORK=off go vet ./...

vuln: # known vulnerabilities in what the programs call
	@$$($(TOOL) -n govulncheck) $(if $(VULNDB),-db $(VULNDB)) ./server ./client ./cmd/uds || { status=$$?; \
		[ $$status -eq 3 ] || echo 'vuln: nothing was checked, see above; a copy of the database will do: make vuln VULNDB=file:///DIR' >&2; exit $$status; }

sbom: # what the programs are made of, built as in the images: every module, its version and hash
	@CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags='-s -w' -o .bin/ ./server ./client ./cmd/uds
	@cd .bin && go version -m server client uds

tidy: # go mod tidy of both modules; the root's needs the library of this tree for a moment
	cd uds && GOWORK=off go mod tidy
	go mod edit -replace github.com/udsecho/udsecho/uds=./uds
	GOWORK=off go mod tidy; status=$$?; go mod edit -dropreplace github.com/udsecho/udsecho/uds; exit $$status

fmt: # gofmt
	gofmt -w bench client cmd examples integration internal server uds

clean: # the programs, and the images that demo and test keep for the next time
	@docker image ls --format '{{.Repository}}:{{.Tag}}' --filter 'reference=udsecho-*' | xargs -r docker image rm -f # by name: an image built on them keeps their layers
	@docker image prune -f --filter label=udsecho.made-from
	@if [ -f .env ]; then grep -v '^\(GO\|BASE\|DEBIAN\)_IMAGE=udsecho-.*:local$$' .env >.env.new; mv .env.new .env; [ -s .env ] || rm .env; fi
	@find examples -name .env -type l -delete
	@rm -rf .bin
