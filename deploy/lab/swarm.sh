#!/bin/bash
# Runs the stack of deploy/swarm.yaml on three nodes of this machine: a Docker
# Engine for each, in namespaces of its own, joined to one swarm. Deploys it,
# updates it and kills an engine under load, and prints who echoed whom. As root:
#
#     make cluster-demo
# shellcheck source=deploy/lab/lab.sh
. "$(dirname "$0")/lab.sh"
instead='sudo make cluster-demo; or take the one node that you have: make images && docker swarm init && docker stack deploy --resolve-image never -c deploy/swarm.yaml udsecho'
nodes=(node-1 node-2 node-3)

on() { docker --host "unix:///proc/${pid[$1]}/root/run/docker.sock" "${@:2}"; } # on NODE COMMAND...
manager() { on node-1 "$@"; }

containers() { # containers NODE SERVICE [-a]: their ids
	on "$1" ps -q "${@:3}" --no-trunc --filter "label=com.docker.swarm.service.name=udsecho_$2"
}

collect() {
	local id
	for id in $(containers "$1" client -a); do
		on "$1" logs --timestamps --tail 10 "$id" >"$logs/$1.$id" 2>/dev/null
	done
}

deploy() { # deploy VARIABLE=VALUE
	say "docker stack deploy -c deploy/swarm.yaml, with $1"
	local said
	said=$(export PAUSE=0.02 "${1?}" && manager stack deploy --resolve-image never -c deploy/swarm.yaml udsecho 2>&1) || die "$said"
}

state() { # state NODE WANTED, as the manager sees it
	[ "$(manager node ls --filter "name=$1" --format '{{.Status}}')" = "$2" ]
}

updated() {
	[ "$(manager service inspect --format '{{.UpdateStatus.State}}' udsecho_server)" = completed ]
}

healed() { # healed NODE
	state "$1" Ready && [ -n "$(containers "$1" server)" ] && [ -n "$(containers "$1" client)" ]
}

# served_by prints the name of the server that answered NODE's client. The client's
# message is the name of its node.
served_by() { # served_by NODE
	on "$1" logs "$(containers "$1" server)" 2>&1 | sed -n "s/.*\"identity\":\"\([^\"]*\)\".*\"message\":\"received '$1'\".*/\1/p" | sort -u
}

demo() {
	local node before begin updating update others victim=node-3 down kill healing heal token bad=0
	local -A server=()
	set_up
	docker save -o "$lab/images.tar" udsecho-server:latest udsecho-client:latest
	cp deploy/lab/daemon.json "$lab"

	say "starting ${#nodes[@]} nodes, each with an engine of its own, as one swarm"
	for node in "${nodes[@]}"; do
		start_node "${node#node-}"
		tell "$node" engine "$group/$node" --config-file "$lab/daemon.json"
	done
	for node in "${nodes[@]}"; do
		await "start the engine of $node" on "$node" version
		on "$node" load -q -i "$lab/images.tar" >/dev/null
		if [ "$node" = node-1 ]; then
			manager swarm init --advertise-addr 10.77.0.1 >/dev/null
			token=$(manager swarm join-token -q worker)
		else
			on "$node" swarm join --token "$token" 10.77.0.1:2377 >/dev/null
		fi
	done
	for node in "${nodes[@]}"; do await "join $node" state "$node" Ready; done

	deploy UDS_LOG_LEVEL=info
	more 20 "${nodes[@]}"
	for node in "${nodes[@]}"; do server[$node]=$(served_by "$node"); done

	say "rolling update of the servers, node by node, while the clients go on"
	before=$(count "${nodes[@]}") begin=$SECONDS
	deploy UDS_LOG_LEVEL=warn
	await "update the servers" updated
	updating=$((SECONDS - begin))
	more 20 "${nodes[@]}"
	update=$(since "$before" "${nodes[@]}")

	say "killing the engine of $victim (SIGKILL)"
	others=(node-1 node-2)
	before=$(count "${others[@]}") heal=$(count "$victim") begin=$SECONDS
	tell "$victim" crash dockerd containerd
	await "wait for the swarm to miss $victim" state "$victim" Down
	more 20 "${others[@]}"
	down=$((SECONDS - begin)) kill=$(since "$before" "${others[@]}")

	say "starting it again"
	begin=$SECONDS
	tell "$victim" engine "$group/$victim" --config-file "$lab/daemon.json"
	await "wait for $victim to heal" healed "$victim"
	more 20 "$victim"
	healing=$((SECONDS - begin)) heal=$(since "$heal" "$victim")

	row node server client echoes failures
	for node in "${nodes[@]}"; do
		# shellcheck disable=SC2046 # two numbers
		row "$node" "${server[$node]}" "$(containers "$node" client | cut -c 1-12)" $(count "$node")
		[ "${server[$node]}" = "$node" ] || bad=1
	done
	echo "rolling update: ${#nodes[@]} servers in $updating s; ${update% *} echoes meanwhile, ${update#* } failed"
	echo "engine of $victim killed for $down s: on the other nodes ${kill% *} echoes, ${kill#* } failed"
	echo "$victim healed $healing s after its engine came back; there ${heal% *} echoes since the kill, ${heal#* } failed"
	if [ $((${update#* } + ${kill#* } + bad)) -gt 0 ]; then
		for node in "${nodes[@]}"; do
			for id in $(containers "$node" client -a); do on "$node" logs "$id" 2>&1 >/dev/null | tail -n 5 >&2; done
		done
		die "echoes failed, or were another node's: see above"
	fi
}

if [ -n "${UDSECHO_LAB-}" ]; then
	demo
else
	root "$instead"
	for program in docker:docker-cli dockerd:docker.io containerd:containerd runc:runc; do
		need "${program%:*}" "${program#*:}"
	done
	tools/images.sh
	enter "$instead" "$self"
fi
