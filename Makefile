.PHONY: demo test soak bench bench-peers lint fmt clean

demo: # the stack, both transcripts, the socket file; takes everything down again
	@integration/demo.sh

test: # every test: unit, race, process, containers
	go vet ./...
	go test -race -count=1 -timeout 30m ./...

SOAK ?= 5m
soak: # 50 clients and one fault after another, for SOAK; a ledger of every byte
	SOAK=$(SOAK) go test -race -count=1 -v -timeout 0 -run '^TestSoak$$' ./server

bench: # Unix socket or TCP? in containers: tables, bench.json, bench.png
	@bench/run.sh

bench-peers: # our server beside C and others that one could pick
	@bench/peers.sh

lint:
	go tool -modfile=tools/go.mod golangci-lint run ./...

fmt:
	gofmt -w client integration internal server

clean: # the images that demo and test keep for the next time
	@docker image ls -q --filter 'reference=udsecho-*' | sort -u | xargs -r docker image rm -f
	@docker image prune -f --filter label=udsecho.stage=build
	@rm -rf .env .bin
