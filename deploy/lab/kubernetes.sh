#!/bin/bash
# Runs deploy/kubernetes.yaml, unchanged, on a real Kubernetes, and prints who
# echoed whom:
#
#     kubernetes.sh demo            on three nodes of this machine, each a kubelet and
#                                   a containerd in namespaces of its own: faults,
#                                   counted under load. As root: make kubernetes-demo
#     kubernetes.sh existing        on the cluster that kubectl reaches (KUBECONFIG),
#                                   without the faults that only a lab can do
#     kubernetes.sh shell COMMAND   a command, as bash, with kubectl and three nodes
#     kubernetes.sh scale [NODES]   one row of docs/scale.csv: NODES nodes whose
#                                   kubelets are played by KWOK
# shellcheck source=deploy/lab/lab.sh
. "$(dirname "$0")/lab.sh"
bin=$PWD/.bin/kubernetes
instead='sudo make kubernetes-demo; or take a cluster that you have: make kubernetes-existing'
nodes=(node-1 node-2 node-3)
debian=$PWD/.bin/debian # packages that are unpacked, not installed
export PATH=$bin:$debian/usr/bin:$debian/usr/sbin:$PATH

k() { kubectl --namespace udsecho-demo "$@"; }

# --- the lab's cluster

# install unpacks the packages whose programs this machine lacks.
install() {
	local program packages=()
	need openssl openssl
	need docker docker-cli
	for program in etcd:etcd-server containerd:containerd runc:runc; do
		command -v "${program%:*}" >/dev/null || packages+=("${program#*:}")
	done
	cni >/dev/null || packages+=(containernetworking-plugins)
	[ "${#packages[@]}" -gt 0 ] || return 0
	tools/offline/unpack.sh "$debian" "${packages[@]}" ||
		die "the control plane and its nodes need these programs (the CNI plugins in /opt/cni/bin); or take a cluster that you have: make kubernetes-existing"
}

cni() { # the folder of the CNI plugins
	local dir
	for dir in /usr/lib/cni /opt/cni/bin "$debian/usr/lib/cni"; do
		[ ! -x "$dir/bridge" ] || [ ! -x "$dir/host-local" ] || { echo "$dir" && return; }
	done
	return 1
}

# control starts the control plane, in the lab itself.
control() {
	export KUBECONFIG=$lab/kubeconfig
	cd "$lab"
	cat >kubeconfig <<-EOF
		apiVersion: v1
		kind: Config
		clusters: [{name: lab, cluster: {server: "https://10.77.0.100:6443", insecure-skip-tls-verify: true}}]
		users: [{name: admin, user: {token: lab}}]
		contexts: [{name: lab, context: {cluster: lab, user: admin}}]
		current-context: lab
	EOF
	echo 'lab,admin,admin,system:masters' >tokens.csv # the network of the lab is its own
	openssl genrsa -out sa.key 2048 2>/dev/null
	openssl rsa -in sa.key -pubout -out sa.pub 2>/dev/null
	start etcd --data-dir etcd
	# Without WatchList, which etcd 3.4 cannot serve, and clients ask for again and again.
	start kube-apiserver --etcd-servers=http://127.0.0.1:2379 --bind-address=10.77.0.100 --advertise-address=10.77.0.100 \
		--cert-dir=certificates --token-auth-file=tokens.csv --authorization-mode=Node,RBAC \
		--service-account-issuer=https://lab --service-account-key-file=sa.pub --service-account-signing-key-file=sa.key \
		--service-cluster-ip-range=10.99.0.0/24 --kubelet-preferred-address-types=InternalIP --feature-gates=WatchList=false
	await 'start the API server' kubectl get --raw /readyz
	start kube-controller-manager --kubeconfig=kubeconfig --leader-elect=false --node-monitor-grace-period="${grace-15s}" \
		--service-account-private-key-file=sa.key --use-service-account-credentials=false ${qps:+--kube-api-qps=$qps --kube-api-burst=$qps}
	start kube-scheduler --kubeconfig=kubeconfig --leader-elect=false ${qps:+--kube-api-qps=$qps --kube-api-burst=$qps}
	cd - >/dev/null
	await 'start the controllers' kubectl get serviceaccount default
}

# join starts a node's containerd and kubelet. All their files are in the node's own
# folders.
join() { # join NODE
	local dir=$lab/etc-$1
	start_node "${1#node-}"
	mkdir -p "$dir/net"
	cat >"$dir/containerd" <<-EOF
		version = 2
		[plugins."io.containerd.grpc.v1.cri"]
		restrict_oom_score_adj = true # less than root's rights, as in a container, will do
		sandbox_image = "docker.io/library/udsecho-pause:latest"
		[plugins."io.containerd.grpc.v1.cri".containerd]
		snapshotter = "native"
		[plugins."io.containerd.grpc.v1.cri".cni]
		bin_dir = "$(cni)"
		conf_dir = "$dir/net"
	EOF
	cat >"$dir/net/10.conflist" <<-EOF
		{"cniVersion": "0.4.0", "name": "pods", "plugins": [{"type": "bridge", "bridge": "pods", "isGateway": true,
		 "ipam": {"type": "host-local", "subnet": "10.88.${1#node-}.0/24", "routes": [{"dst": "0.0.0.0/0"}]}}]}
	EOF
	cat >"$dir/kubelet" <<-EOF
		apiVersion: kubelet.config.k8s.io/v1beta1
		kind: KubeletConfiguration
		authentication: {anonymous: {enabled: true}, webhook: {enabled: false}}
		authorization: {mode: AlwaysAllow}
		containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
		cgroupDriver: cgroupfs
		cgroupRoot: /$group/$1
		failSwapOn: false
		failCgroupV1: false
		enforceNodeAllocatable: []
		evictionHard: {}
		localStorageCapacityIsolation: false
		nodeLeaseDurationSeconds: 8
		nodeStatusUpdateFrequency: 5s
	EOF
	serve "$1"
	await "bring the images to $1" nsenter --target "${pid[$1]}" --mount \
		ctr --namespace k8s.io images import --snapshotter native "$lab/images.tar"
}

serve() { # serve NODE
	tell "$1" start containerd --config "$lab/etc-$1/containerd"
	# A kubelet that finds a stale socket, which a killed containerd leaves, ends.
	await "wait for the containerd of $1" nsenter --target "${pid[$1]}" --mount ctr version
	tell "$1" start kubelet --kubeconfig="$lab/kubeconfig" --config="$lab/etc-$1/kubelet" \
		--hostname-override="$1" --node-ip="10.77.0.${1#node-}"
}

condition() { # condition NODE STATUS: of its Ready
	[ "$(kubectl get node "$1" -o 'jsonpath={.status.conditions[?(@.type=="Ready")].status}')" = "$2" ]
}

ready() { # ready NODE: and Pods may be scheduled, as its taint goes some seconds later
	condition "$1" True && [ -z "$(kubectl get node "$1" -o 'jsonpath={.spec.taints}')" ]
}

cluster() {
	local node
	set_up
	docker save -o "$lab/images.tar" udsecho-server:latest udsecho-client:latest udsecho-pause:latest
	say "starting etcd, API server, controller manager, scheduler, and ${#nodes[@]} nodes with a containerd and a kubelet each"
	control
	for node in "${nodes[@]}"; do join "$node"; done
	for node in "${nodes[@]}"; do await "wait for $node to be ready" ready "$node"; done
	say "${#nodes[@]} nodes are ready, $SECONDS s after the start"
}

# --- the story

pods() { # lines of a node and its Pod
	k get pods --selector app=udsecho --field-selector status.phase=Running -o 'jsonpath={range .items[*]}{.spec.nodeName} {.metadata.name}{"\n"}{end}'
}

pod() { pods | sed -n "s/^$1 //p" | head -n 1; } # pod NODE
runs() { [ -n "$(pod "$1")" ]; } # runs NODE

workers() { # the nodes that get a Pod, now or once they have recovered: not those with a taint of their owner's
	kubectl get nodes -o 'jsonpath={range .items[*]}{.metadata.name}{range .spec.taints[*]} {.key}:{.effect}{end}{"\n"}{end}' |
		sed 's# node.kubernetes.io/[^ ]*##g' | grep -v ':No' | cut -d ' ' -f 1
}

# collect follows the logs of the clients, as those of a deleted Pod are deleted
# with it.
collect() { # collect NODE
	local node pod
	while read -r node pod; do
		[ "$node" != "$1" ] || [ -e "$logs/$node.$pod" ] || follow "$pod" client "$logs/$node.$pod"
	done < <(pods)
}

follow() { # follow POD CONTAINER FILE
	: >"$3"
	while kubectl get namespace udsecho-demo && k get pod "$1"; do
		k logs --follow --timestamps "$1" --container "$2" >>"$3" || :
		sleep 0.5
	done </dev/null >/dev/null 2>&1 &
}

deployed() {
	k rollout status daemonset/udsecho --timeout=90s >/dev/null 2>&1 && return
	k get pods >&2
	die "the Pods do not start: $(k get events --field-selector type=Warning --sort-by=.lastTimestamp -o 'jsonpath={.items[-1:].message}')"
}

identity() { # identity NODE: who says that it received the messages of its client
	k logs "$(pod "$1")" --container server |
		sed -n "s/.*\"identity\":\"\([^\"]*\)\".*\"message\":\"received '$1'\".*/\1/p" | sort -u
}

server_pid() { # server_pid NODE: not that of a health check, which has an argument
	local proc
	for proc in /proc/[1-9]*; do
		[ "$(tr -c '\0' x <"$proc/cmdline" | tr '\0' ' ' | wc -w)" = 1 ] && [ "$(<"$proc/comm")" = server ] &&
			grep -q "/$group/$1/" "$proc/cgroup" && echo "${proc#/proc/}"
	done 2>/dev/null || :
}

restarts() { # restarts NODE: of its server, and whether it is ready
	k get pod "$(pod "$1")" -o 'jsonpath={.status.initContainerStatuses[0].restartCount} {.status.initContainerStatuses[0].ready}'
}

restarted() { # restarted NODE TIMES: its server has been, and is ready
	local now
	now=$(restarts "$1")
	[ "${now% *}" -gt "$2" ] && [ "${now#* }" = true ]
}

links() { # bytes that have passed between the nodes, and between them and the control plane
	awk '/^ *node-/ { sum += $2 + $10 } END { print sum }' /proc/net/dev
}

failed=0
report() { # report WHAT "ECHOES FAILURES" [may fail]
	echo "$1: ${2% *} echoes meanwhile, ${2#* } failed"
	[ "${2#* }" = 0 ] || [ $# -gt 2 ] || failed=1
}

# fault signals a node's server, and waits until it is restarted.
fault() { # fault NODE SIGNAL WHAT [may fail]
	local before begin id times
	say "$3"
	times=$(restarts "$1")
	before=$(count "${nodes[@]}") begin=$SECONDS id=$(server_pid "$1")
	kill -"$2" "$id"
	await 'wait for the restart of the server' restarted "$1" "${times% *}"
	begin=$((SECONDS - begin))
	more 5 "$1"
	report "$3, restarted after $begin s" "$(since "$before" "${nodes[@]}")" "${@:4}" >>"$logs/report"
}

faults() {
	local victim=node-3 before begin bytes node id pumps=()
	fault node-1 KILL 'the server of node-1 is killed'
	fault node-2 STOP 'the server of node-2 is stopped' 'may fail' # until the liveness probe has it restarted

	say "kubelet and containerd of $victim are killed"
	before=$(count node-1 node-2) id=$(count $victim) begin=$SECONDS
	tell $victim crash kubelet containerd
	await "wait for the control plane to miss $victim" condition $victim Unknown
	more 5 node-1 node-2
	report "kubelet and containerd of $victim are killed for $((SECONDS - begin)) s, on the other nodes" "$(since "$before" node-1 node-2)" >>"$logs/report"
	begin=$SECONDS
	serve $victim
	await "wait for $victim to be ready" ready $victim
	more 5 $victim
	report "$victim has made 5 echoes more $((SECONDS - begin)) s after they came back, there since the kill" "$(since "$id" $victim)" >>"$logs/report"

	say 'each client sends 256 MiB and gets them back'
	bytes=$(links)
	for node in "${nodes[@]}"; do
		k exec "$(pod "$node")" --container client -- sh -c 'head -c 268435456 /dev/zero | client - | wc -c' >"$logs/pump.$node" &
		pumps+=($!)
	done
	wait "${pumps[@]}"
	echo "$(awk '{ sum += $1 } END { print 2 * sum }' "$logs"/pump.*) bytes through the sockets, $(($(links) - bytes)) on the links of the nodes meanwhile" >>"$logs/report"
}

# deletion deletes a node's Pod and checks in which order its containers ended. The
# Pod's status has whole seconds; if two are equal, a lab's containerd knows more.
deletion() { # deletion NODE
	local name client server end watch patience=60
	name=$(pod "$1")
	read -r client server < <(k get pod "$name" -o 'jsonpath={.status.containerStatuses[0].containerID} {.status.initContainerStatuses[0].containerID}{"\n"}')
	[ -z "${pid[$1]-}" ] || { nsenter --target "${pid[$1]}" --mount ctr --namespace k8s.io events >"$logs/events" & }
	k get pod "$name" --watch -o 'jsonpath={.status.containerStatuses[0].state.terminated.finishedAt} {.status.initContainerStatuses[0].state.terminated.finishedAt} {.status.containerStatuses[0].state.terminated.exitCode} and {.status.initContainerStatuses[0].state.terminated.exitCode}{"\n"}' >"$logs/ends" 2>/dev/null &
	watch=$!
	await "watch the Pod of $1" test -s "$logs/ends"
	[ -z "${pid[$1]-}" ] || await "watch containerd's events" test -s "$logs/events" # a probe's, at the latest
	k delete pod "$name" >/dev/null
	await "wait for both to end with exit status 0" grep ' 0 and 0$' "$logs/ends"
	kill "$watch" || :
	read -r -a end < <(grep ' 0 and 0$' "$logs/ends")
	[[ ! "${end[0]}" > "${end[1]}" ]] || die "the server ended at ${end[1]}, the client at ${end[0]}"
	[ -z "${pid[$1]-}" ] || [ "$(exits "$client" "$server")" = "$client $server" ] || die "the server ended before the client: $(cat "$logs/events")"
}

exits() { # exits ID...: those of containers, in the order of their ends
	sed -n 's#.*/tasks/exit .*,"id":"\([^"]*\)".*#containerd://\1#p' "$logs/events" | grep -xF "${@/#/-e}" | paste -s -d ' '
}

# story is told on any cluster; faults only in a lab.
story() { # story [faults]
	local before begin node
	say "kubectl apply -f deploy/kubernetes.yaml, in the namespace udsecho-demo, whose Pods have to be restricted"
	begin=$SECONDS
	kubectl create namespace udsecho-demo >/dev/null
	[ $# -gt 0 ] || trap 'k delete namespace udsecho-demo >/dev/null 2>&1; rm -r "$logs"' EXIT
	kubectl label namespace udsecho-demo pod-security.kubernetes.io/enforce=restricted >/dev/null
	k apply -f deploy/kubernetes.yaml >/dev/null
	deployed
	[ $# -gt 0 ] || mapfile -t nodes < <(workers | sort -V)
	for node in "${nodes[@]}"; do await "wait for a Pod on $node" runs "$node"; done
	echo "${#nodes[@]} Pods are ready $((SECONDS - begin)) s after kubectl apply" >>"$logs/report"
	more 5 "${nodes[@]}"
	for node in "${nodes[@]}"; do server[$node]=$(identity "$node"); done
	"${@:-:}"

	say 'rolling update, node by node'
	before=$(count "${nodes[@]}") begin=$SECONDS
	k rollout restart daemonset/udsecho >/dev/null
	deployed
	begin=$((SECONDS - begin))
	more 5 "${nodes[@]}"
	report "rolling update of ${#nodes[@]} Pods in $begin s" "$(since "$before" "${nodes[@]}")" >>"$logs/report"

	node=${nodes[0]}
	say "the Pod of $node is deleted"
	before=$(count "$node")
	deletion "$node"
	deployed
	more 5 "$node"
	report "the Pod of $node is deleted, first the client ended, then the server, both with exit status 0" "$(since "$before" "$node")" >>"$logs/report"

	row node server client echoes failures
	for node in "${nodes[@]}"; do
		# shellcheck disable=SC2046 # two numbers
		row "$node" "${server[$node]}" "$(pod "$node")" $(count "$node")
		[ "${server[$node]}" = "$node" ] || failed=1
	done
	cat "$logs/report"
	[ "$failed" = 0 ] || die 'echoes failed that must not, or were of another node: see above'
}

# --- nodes that KWOK plays

rss() { awk '/^VmRSS/ { printf "%d", $2 / 1024 }' "/proc/$(pidof "$1")/status"; } # MiB
requests() { kubectl get --raw /metrics | awk '/^apiserver_request_total/ { sum += $2 } END { printf "%d", sum }'; }
all_ready() { [ "$(kubectl get nodes --no-headers | grep -cw Ready)" = "$1" ]; }

now() { echo "${EPOCHREALTIME//[!0-9]/}"; } # in µs
spent() { awk -v from="$1" -v to="$(now)" 'BEGIN { printf "%.1f", (to - from) / 1e6 }'; }

updated() { # updated AT_A_TIME: prints the seconds, or how many were done within the bound
	local begin
	begin=$(now)
	k patch daemonset udsecho --type merge -p "{\"spec\": {
		\"updateStrategy\": {\"rollingUpdate\": {\"maxUnavailable\": $1}},
		\"template\": {\"metadata\": {\"annotations\": {\"begin\": \"$begin\"}}}}}" >/dev/null
	if k rollout status daemonset/udsecho --timeout="${bound}s" >/dev/null 2>&1; then
		spent "$begin"
	else
		echo "$(k get daemonset udsecho -o 'jsonpath={.status.updatedNumberScheduled}') in $bound"
	fi
}

scale() { # scale NODES
	local qps=500 grace=60s bound=${BOUND-120} begin all memory idle i
	set_up
	say "$1 nodes, played by KWOK"
	control
	(stages) >"$lab/stages"
	start kwok --kubeconfig="$KUBECONFIG" --manage-all-nodes=true --config="$lab/stages" --node-lease-duration-seconds=40
	for ((i = 1; i <= $1; i++)); do
		printf -- '---\napiVersion: v1\nkind: Node\nmetadata: {name: node-%d, labels: {kubernetes.io/hostname: node-%d}}\n' $i $i
	done | kubectl create -f - >/dev/null
	patience=900
	await 'wait for the nodes' all_ready "$1"
	say "deploying"
	kubectl create namespace udsecho-demo >/dev/null
	begin=$(now)
	k apply -f deploy/kubernetes.yaml >/dev/null
	k rollout status daemonset/udsecho --timeout=15m >/dev/null
	all=$(spent "$begin")
	say "watching it idle"
	sleep 15 # for what the start has left to do
	idle=$(requests)
	sleep 30
	idle=$((($(requests) - idle + 15) / 30))
	memory=$(rss kube-apiserver),$(rss etcd)
	say "updating"
	echo "$1,$all,$(updated '"100%"'),$(updated '"10%"'),$(updated 1),$memory,$idle"
}

stages() { # what KWOK plays: nodes that are ready and renew their leases, Pods that start at once
	local file
	cd "$(cd deploy/lab/kwok && GOWORK=off go list -m -f '{{.Dir}}' sigs.k8s.io/kwok)/kustomize/stage"
	for file in node/fast/node-*.yaml node/heartbeat-with-lease/node-*.yaml pod/fast/pod-*.yaml; do
		echo --- && cat "$file"
	done
}

declare -A server
case "${1-}:${UDSECHO_LAB-}" in
demo:1) cluster && story faults ;;
shell:1) cluster && env -u UDSECHO_LAB "${@:2}" ;;
scale:1) scale "$2" ;;
existing:)
	need kubectl kubectl
	context=$(kubectl config current-context) || die 'kubectl has no cluster: set KUBECONFIG; or, as root, take three nodes of this machine: sudo make kubernetes-demo'
	logs=$(mktemp -d)
	case $context in
	kind-*) tools/images.sh && kind load docker-image --name "${context#kind-}" udsecho-server:latest udsecho-client:latest ;;
	minikube) tools/images.sh && minikube image load udsecho-server:latest udsecho-client:latest ;;
	*) say "$context: its nodes need the images that deploy/kubernetes.yaml names, from a registry or loaded" ;;
	esac
	trap 'rm -r "$logs"' EXIT
	story
	;;
scale:)
	root "$instead"
	install
	enter "$instead" "$self" "$@"
	;;
demo: | shell:)
	root "$instead"
	[ -c /dev/kmsg ] || die "the kubelet needs /dev/kmsg: in a container docker run --privileged gives it; $instead"
	install
	tools/images.sh
	printf 'FROM udsecho-client:latest\nENTRYPOINT ["sleep", "1000000000"]\n' | docker build -q -t udsecho-pause:latest - >/dev/null 2>&1
	enter "$instead" "$self" "$@"
	;;
*) die 'demo, existing, shell or scale: see its first lines' ;;
esac
