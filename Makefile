.PHONY: demo test bench bench-peers images cluster-demo cluster-scale lint fmt clean

demo: # the stack, both transcripts, the socket file; takes everything down again
	@integration/demo.sh

test: # every test: unit, race, process, containers
	go vet ./...
	go test -race -count=1 -timeout 30m ./...

bench: # Unix socket or TCP? in containers: tables, bench.json, bench.png
	@bench/run.sh

bench-peers: # our server beside C and others that one could pick
	@bench/peers.sh

images: # udsecho-server and udsecho-client, which deploy/ runs
	@images/build.sh

cluster-demo: # three nodes on this machine, as root: who echoes whom, an update, a killed engine
	@go build -o .bin/cluster ./deploy/cluster
	@.bin/cluster demo

cluster-scale: # what nodes cost, as root: docs/scale.json, docs/scale.png
	@go build -o .bin/cluster ./deploy/cluster
	@.bin/cluster scale --json docs/scale.json --plot docs/scale.png

lint:
	go tool -modfile=tools/go.mod golangci-lint run ./...

fmt:
	gofmt -w client deploy integration internal server

clean: # the images that demo and test keep for the next time
	@docker image ls -q --filter 'reference=udsecho-*' | sort -u | xargs -r docker image rm -f
	@docker image prune -f --filter label=udsecho.stage=build
	@rm -rf .env .bin
