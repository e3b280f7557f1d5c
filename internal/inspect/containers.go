package inspect

import (
	"cmp"
	"context"
	"os"
	"regexp"
	"strings"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/client"

	"github.com/udsecho/udsecho/internal/logtext"
)

// A Container is the container of a process. What is unknown is empty.
type Container struct {
	ID   string `json:"id"`   // 64 hexadecimal digits
	Name string `json:"name"` // as the engine knows it
	Pod  string `json:"pod"`  // NAMESPACE/NAME, or its uid
}

// String returns the name, or the id as engines shorten it, with the Pod.
func (c Container) String() string {
	name := cmp.Or(c.Name, c.ID[:12])
	if c.Pod != "" {
		return c.Pod + "/" + name
	}
	return name
}

// Engines name a container's control group after its id, for example:
//
//	/docker/ID                              cgroupfs
//	/system.slice/docker-ID.scope           systemd; libpod-ID, crio-ID, nerdctl-ID
//	/kubepods/burstable/podUID/ID           Kubernetes
//	/kubepods-podUID.slice:cri-containerd:ID
//	/../ID                                  seen from the control group namespace of another
//
// A container in a container has both ids, the inner one last. The process
// conmon watches over a container and is outside of it.
var (
	idOf  = regexp.MustCompile(`^.*[/:-]([0-9a-f]{64})(?:\.scope)?(?:/.*)?$`)
	podOf = regexp.MustCompile(`pod([0-9a-f]{8}(?:[-_][0-9a-f]{4}){3}[-_][0-9a-f]{12}|[0-9a-f]{32})`)
)

// containerOf returns the container that a control group belongs to, or nil.
func containerOf(cgroup string) *Container {
	at := idOf.FindStringSubmatchIndex(cgroup)
	if at == nil || strings.HasSuffix(cgroup[:at[2]], "conmon-") {
		return nil
	}
	c := &Container{ID: cgroup[at[2]:at[3]]}
	if pod := podOf.FindStringSubmatch(cgroup[:at[2]]); pod != nil {
		c.Pod = strings.ReplaceAll(pod[1], "_", "-")
	}
	return c
}

// names has what is known about containers, by id.
type names map[string]Container

// complete adds what is known to the containers of processes. It asks for each
// container once.
func (n names) complete(ctx context.Context, processes []*Process) {
	unknown := false
	for _, p := range processes {
		if p.Container == nil {
			continue
		}
		if _, ok := n[p.Container.ID]; !ok {
			n[p.Container.ID], unknown = Container{}, true
		}
	}
	if unknown {
		n.kubernetes("/var/log/containers")
		n.kubernetes("/host/var/log/containers") // kubectl debug node/NAME
		n.engine(ctx)
	}
	for _, p := range processes {
		if c := p.Container; c != nil {
			c.Name, c.Pod = n[c.ID].Name, cmp.Or(n[c.ID].Pod, c.Pod)
		}
	}
}

// kubernetes reads the names of the logs for which the kubelet makes links.
func (n names) kubernetes(dir string) {
	logs, _ := os.ReadDir(dir)
	for _, log := range logs { // POD_NAMESPACE_CONTAINER-ID.log
		of := strings.Split(strings.TrimSuffix(log.Name(), ".log"), "_")
		if len(of) != 3 {
			continue
		}
		if i := strings.LastIndexByte(of[2], '-'); i >= 0 {
			n[of[2][i+1:]] = Container{Name: logtext.Escape(of[2][:i]), Pod: logtext.Escape(of[1] + "/" + of[0])}
		}
	}
}

// engine asks Docker, or the engine at DOCKER_HOST. Names are worth a second.
func (n names) engine(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	c, err := client.NewClientWithOpts(client.FromEnv, client.WithAPIVersionNegotiation())
	if err != nil {
		return
	}
	defer func() { _ = c.Close() }()
	list, err := c.ContainerList(ctx, container.ListOptions{})
	if err != nil {
		return
	}
	for _, found := range list {
		if known := n[found.ID]; known.Name == "" && len(found.Names) > 0 {
			known.Name = logtext.Escape(strings.TrimPrefix(found.Names[0], "/"))
			n[found.ID] = known
		}
	}
}
