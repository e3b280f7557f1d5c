# The images of the server, the client and the tool uds:
#
#     docker build --target server -t udsecho-server .
#     docker build --target client -t udsecho-client .
#     docker build --target tools -t udsecho-tools .        the tool alone
#     docker build --target toolbox -t udsecho-toolbox .    with a shell

# GO_IMAGE and BASE_IMAGE: see tools/offline/base.sh if no registry can be reached.
ARG GO_IMAGE=golang:1.26-alpine
ARG BASE_IMAGE=busybox:1.37-musl

# The packages of other modules that the programs import. The libraries' stages start
# from these lists, so a change in the source that imports nothing new compiles this
# project alone. With -e no module is needed here.
FROM ${GO_IMAGE} AS imports
WORKDIR /src
COPY . .
RUN mkdir -p /imports/uds && cp go.* /imports && cp uds/go.mod uds/go.sum /imports/uds && \
    list() { GOPROXY=off go list -e -deps -f '{{if not .Standard}}{{.ImportPath}}{{end}}' "$@" | grep -v ^github.com/udsecho/ | sort; } && \
    list ./server ./client >/imports/list && list ./cmd/uds >/imports/list-tools

# Without DWARF from the compiler, which -s leaves out at the end.
FROM ${GO_IMAGE} AS libraries
WORKDIR /src
COPY --from=imports /imports .
RUN CGO_ENABLED=0 go build -trimpath -gcflags=all=-dwarf=false $(cat list)

FROM libraries AS build
COPY . .
RUN CGO_ENABLED=0 go build -trimpath -gcflags=all=-dwarf=false -ldflags=-s -o /out/ ./server ./client

# /run/uds is for the server's sockets, /run/clients for those that datagram
# clients bind. A new named volume takes owner, mode and contents from here. So both
# images make the directories alike, and leave them empty. The set-group-id bit gives
# new files the group that server and clients share.
FROM ${BASE_IMAGE} AS base
RUN mkdir -p /run/uds /run/clients && \
    chown 10001:10000 /run/uds && chown 10002:10000 /run/clients && \
    chmod 2770 /run/uds /run/clients
WORKDIR /run/uds

# The exec form of ENTRYPOINT: the program is process 1 and gets the signals itself.
FROM base AS server
COPY --from=build /out/server /usr/local/bin/
USER 10001:10000
ENTRYPOINT ["/usr/local/bin/server"]

FROM base AS client
COPY --from=build /out/client /usr/local/bin/
USER 10002:10000
ENTRYPOINT ["/usr/local/bin/client"]

# Last, as a builder without BuildKit builds every stage before the one it wants.
FROM libraries AS build-tools
RUN CGO_ENABLED=0 go build -trimpath -gcflags=all=-dwarf=false $(cat list-tools)
COPY . .
RUN CGO_ENABLED=0 go build -trimpath -gcflags=all=-dwarf=false -ldflags=-s -o /out/ ./cmd/uds

# The tool alone, also for other images: COPY --from=udsecho-tools /uds /
FROM scratch AS tools
COPY --from=build-tools /out/uds /
ENTRYPOINT ["/uds"]

# The tool with a shell beside it.
FROM base AS toolbox
COPY --from=build-tools /out/uds /usr/local/bin/
USER 10002:10000
ENTRYPOINT ["/usr/local/bin/uds"]
