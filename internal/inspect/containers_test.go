package inspect

import (
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
)

func TestContainerOfAControlGroup(t *testing.T) {
	t.Parallel()
	id, outer := strings.Repeat("0123456789abcdef", 4), strings.Repeat("f", 64)
	const pod, static = "3f9b6c1e-7d2a-4c5b-8e1f-0a1b2c3d4e5f", "5d41402abc4b2a76b9719d911017c592"
	slice := "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod" + strings.ReplaceAll(pod, "-", "_") + ".slice"
	for cgroup, want := range map[string]Container{
		"/docker/" + id:                                    {ID: id},
		"/system.slice/docker-" + id + ".scope":            {ID: id},
		"/system.slice/nerdctl-" + id + ".scope":           {ID: id},
		"/system.slice/docker-" + id + ".scope/init.scope": {ID: id}, // systemd in a container
		"/../" + id:                          {ID: id}, // seen from another container
		"/../docker-" + id + ".scope":        {ID: id},
		"/docker/" + outer + "/docker/" + id: {ID: id}, // a container in a container
		"/docker/" + outer + "/kubelet/kubepods/besteffort/pod" + pod + "/" + id:                       {ID: id, Pod: pod}, // kind
		"/kubepods/burstable/pod" + pod + "/" + id:                                                     {ID: id, Pod: pod},
		"/kubepods/pod" + static + "/" + id:                                                            {ID: id, Pod: static},
		slice + "/cri-containerd-" + id + ".scope":                                                     {ID: id, Pod: pod},
		slice + "/crio-" + id + ".scope":                                                               {ID: id, Pod: pod},
		slice + "/docker-" + id + ".scope":                                                             {ID: id, Pod: pod},
		"/kubepods-besteffort-pod" + strings.ReplaceAll(pod, "-", "_") + ".slice:cri-containerd:" + id: {ID: id, Pod: pod},
		"/machine.slice/libpod-" + id + ".scope/container":                                             {ID: id},
		"/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-" + id + ".scope":             {ID: id},
		"/libpod_parent/libpod-" + id:                                                                  {ID: id},
		"/machine.slice/libpod-conmon-" + id + ".scope":                                                {}, // the watcher, outside
		slice + "/crio-conmon-" + id + ".scope":                                                        {},
		"/":                                                                                            {},
		"/../..":                                                                                       {},
		"/system.slice/docker.service":                                                                 {},
		"/user.slice/user-1000.slice/session-2.scope":                                                  {},
		"/build/" + id[:32]:                                                                            {},
		"/build/" + id + "0":                                                                           {},
		"/kubepods/pod" + pod:                                                                          {},
		"/system.slice/containerd.service/kubepods-pod" + slice:                                        {},
	} {
		got := containerOf(cgroup)
		if got == nil {
			got = &Container{}
		}
		if *got != want {
			t.Errorf("%s: %+v, not %+v", cgroup, *got, want)
		}
	}
}

// withID are processes in containers whose ids begin with these letters.
func withID(letters ...string) (all []*Process) {
	for _, l := range letters {
		all = append(all, &Process{Container: &Container{ID: strings.Repeat(l, 64), Pod: "uid"}})
	}
	return append(all, &Process{})
}

func TestContainersAreNamedByTheEngineAndByTheKubelet(t *testing.T) {
	d := t.TempDir()
	for _, name := range []string{
		"web-7c9f_shop_nginx-" + strings.Repeat("b", 64) + ".log",
		"a.log", "a_b_c.log", "evil\x1b_a_b-" + strings.Repeat("c", 64) + ".log",
	} {
		if err := os.WriteFile(d+"/"+name, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	asked := engine(t, func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write([]byte(`[{"Id":"` + strings.Repeat("a", 64) + `","Names":["/stack-server-1"]},{"Id":"` + strings.Repeat("b", 64) + `","Names":["/k8s_nginx"]}]`))
	})
	n := names{}
	n.kubernetes(d)
	delete(n, strings.Repeat("c", 64))
	n.kubernetes(d + "/missing")
	all := withID("a", "b", "d")
	n.complete(t.Context(), all)
	n.complete(t.Context(), all)
	for i, want := range []string{"uid/stack-server-1", "shop/web-7c9f/nginx", "uid/dddddddddddd"} {
		if got := all[i].Container.String(); got != want {
			t.Errorf("%s, not %s", got, want)
		}
	}
	if *asked != 1 {
		t.Errorf("the engine was asked %d times for the same containers", *asked)
	}
	n.kubernetes(d)
	if name := n[strings.Repeat("c", 64)].Pod; name != `a/evil\x1b` {
		t.Errorf("a name is %q", name)
	}
}

func TestAnEngineThatDoesNotAnswerLeavesTheID(t *testing.T) {
	gone := make(chan struct{})
	engine(t, func(_ http.ResponseWriter, r *http.Request) {
		<-r.Context().Done() // the client gives up
		close(gone)
	})
	all := withID("a")
	names{}.complete(t.Context(), all)
	<-gone
	if got := all[0].Container.String(); got != "uid/aaaaaaaaaaaa" {
		t.Errorf("the container is %s", got)
	}
}

// engine answers like a container engine, at DOCKER_HOST. It counts the
// requests for lists.
func engine(t *testing.T, list http.HandlerFunc) (asked *int) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	asked = new(int)
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, "/_ping") {
			w.Header().Set("API-Version", "1.41")
			return
		}
		*asked++
		w.Header().Set("Content-Type", "application/json")
		list(w, r)
	})}
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	t.Cleanup(func() { _, _ = s.Close(), <-served })
	t.Setenv("DOCKER_HOST", "tcp://"+l.Addr().String())
	return asked
}
