package inspect

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// explain finds what stops a socket from working now or later: a mount, a file
// system, permissions, a user namespace, labels. Each comes with its cure.
func (in *Result) explain() {
	because := func(format string, args ...any) { in.Why = append(in.Why, fmt.Sprintf(format, args...)) }
	if text := keepsOut(in.Path); text != "" {
		because("%s", text)
	}
	var st unix.Stat_t
	if fd, err := unix.Open(in.Path, unix.O_PATH|unix.O_CLOEXEC, 0); err == nil {
		defer func() { _ = unix.Close(fd) }()
		if unix.Fstat(fd, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFSOCK {
			return
		}
		m, itself := mountOf(fd)
		in.ReadOnly = slices.Contains(strings.Split(m.options, ","), "ro")
		switch _, deleted := strings.CutSuffix(m.root, "//deleted"); {
		case itself && deleted:
			because("it is itself a mount, and the file that was mounted is deleted: its server has started again and made a new one. Mount the directory, not the file, and create this container again")
		case itself:
			because("it is itself a mount: when its server starts again and makes a new file, this one stays the old. Mount the directory, not the file")
		}
		if in.State != Live && in.State != Private && reachesNoOther(m.fstype) {
			because("it is on %s (%s): a socket there works only for processes that see it through the same mount of the same kernel as its server. Use a volume, or a directory of this kernel's own; from another machine, TCP and client forward", m.fstype, m.source)
		}
		if text := namespaces(&st); text != "" {
			because("%s", text)
		}
		if text := labels(fd); text != "" {
			because("%s", text)
		}
	} else if text := namespaces(nil); text != "" {
		because("%s", text)
	}
}

// A mount is a line of proc_pid_mountinfo(5).
type mount struct{ root, options, fstype, source string }

// mountOf returns the mount that a file is on, and whether the file is the
// root of the mount. m is empty if the kernel (before 5.8) or a missing /proc
// does not report it.
func mountOf(fd int) (m mount, itself bool) {
	var st unix.Statx_t
	err := unix.Statx(fd, "", unix.AT_EMPTY_PATH, unix.STATX_MNT_ID, &st)
	text, readErr := os.ReadFile("/proc/self/mountinfo")
	if err != nil || readErr != nil || st.Mask&unix.STATX_MNT_ID == 0 {
		return m, false
	}
	plain := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		end := slices.Index(f, "-")
		if len(f) < 6 || end < 6 || len(f) < end+3 || f[0] != strconv.FormatUint(st.Mnt_id, 10) {
			continue
		}
		return mount{plain.Replace(f[3]), f[5], f[end+1], plain.Replace(f[end+2])}, st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0
	}
	return m, false
}

// reachesNoOther reports whether a file system may show sockets of another
// kernel, or of files beneath it, as names that no process serves. Engines on
// desktops mount the host's directories with such file systems.
func reachesNoOther(fstype string) bool {
	name, _, _ := strings.Cut(fstype, ".")
	return slices.Contains([]string{"9p", "virtiofs", "nfs", "nfs4", "cifs", "smb3", "fuse", "fuseblk", "fakeowner", "osxfs", "vboxsf", "prl_fs"}, name)
}

// keepsOut describes the first part of a path that denies access to this
// process, and what would grant it; "" if no part does.
func keepsOut(path string) string {
	rest, err := filepath.Abs(path)
	if err != nil {
		return ""
	}
	links := 0
	for at := "/"; ; {
		if text := refuses(at, unix.X_OK); text != "" {
			return text
		}
		name, after, more := strings.Cut(strings.TrimLeft(rest, "/"), "/")
		next := filepath.Join(at, name)
		if to, err := os.Readlink(next); err == nil && links < 40 { // the kernel's limit
			links++
			if filepath.IsAbs(to) {
				at = "/"
			}
			rest = to + "/" + after
			continue
		}
		if !more || strings.Trim(after, "/") == "" {
			return refuses(next, unix.W_OK)
		}
		at, rest = next, after
	}
}

// refuses explains why this process cannot search a directory (unix.X_OK), or
// write to a socket (unix.W_OK); "" if it can, or if the file is missing.
func refuses(path string, bit uint32) string {
	if !errors.Is(unix.Faccessat(unix.AT_FDCWD, path, bit, unix.AT_EACCESS), unix.EACCES) {
		return ""
	}
	var st unix.Stat_t
	if unix.Lstat(path, &st) != nil || bit == unix.W_OK && st.Mode&unix.S_IFMT != unix.S_IFSOCK {
		return ""
	}
	groups, _ := os.Getgroups()
	what, letter := "connect to", "w"
	if bit == unix.X_OK {
		what, letter = "search", "x"
	}
	text := fmt.Sprintf("%s denies this process permission to %s it: its mode is %04o, of user %s, group %s, and this process is user %s, group %s, groups %v. ",
		path, what, fs.FileMode(st.Mode).Perm(), Named(st.Uid, UserName), Named(st.Gid, GroupName),
		Named(uint32(os.Geteuid()), UserName), Named(uint32(os.Getegid()), GroupName), groups)
	owner := int(st.Uid) == os.Geteuid()
	member := int(st.Gid) == os.Getegid() || slices.Contains(groups, int(st.Gid))
	switch {
	case owner && st.Mode&(bit<<6) == 0:
		return text + fmt.Sprintf("chmod u+%s gives its owner permission", letter)
	case !owner && member && st.Mode&(bit<<3) == 0:
		return text + fmt.Sprintf("chmod g+%s gives permission to its group, which this process has", letter)
	case !owner && !member && st.Mode&(bit<<3) != 0:
		return text + fmt.Sprintf("Group %d has permission: use group_add in Compose, --group-add with docker run", st.Gid)
	case !owner && !member && st.Mode&bit == 0:
		return text + fmt.Sprintf("Group %d with chmod g+%s has permission, or user %d", st.Gid, letter, st.Uid)
	default:
		return text + "The mode gives permission, but an access control list or a security module denies it"
	}
}

// namespaces describes how the ids of a file's owner and of this process are
// mapped by its user namespace, user_namespaces(7); "" if every id maps to
// itself. st is nil if the file cannot be seen.
func namespaces(st *unix.Stat_t) string {
	uids, gids := idMap("uid_map"), idMap("gid_map")
	if uids.identity() && gids.identity() {
		return ""
	}
	text := fmt.Sprintf("a user namespace maps ids: this process is %s", pair(uids, gids, uint32(os.Geteuid()), uint32(os.Getegid())))
	if st != nil {
		text += fmt.Sprintf("; the socket's owner is %s", pair(uids, gids, st.Uid, st.Gid))
	}
	return text + ". Permission is by the ids outside; map the owner, or the socket's group, into the namespace"
}

func pair(uids, gids ids, uid, gid uint32) string {
	return fmt.Sprintf("user %d, group %d here, and %s, %s outside", uid, gid, uids.outside("user", uid), gids.outside("group", gid))
}

// ids are lines of a map: the first id inside, the first outside, the count.
type ids [][3]uint32

func idMap(name string) (m ids) {
	text, err := os.ReadFile("/proc/self/" + name)
	if err != nil {
		return ids{{0, 0, 1<<32 - 1}} // a kernel without user namespaces
	}
	for line := range strings.Lines(string(text)) {
		var l [3]uint32
		if _, err := fmt.Sscan(line, &l[0], &l[1], &l[2]); err == nil {
			m = append(m, l)
		}
	}
	return m
}

func (m ids) identity() bool { return len(m) == 1 && m[0] == [3]uint32{0, 0, 1<<32 - 1} }

func (m ids) outside(what string, id uint32) string {
	for _, l := range m {
		if id >= l[0] && id-l[0] < l[2] {
			return fmt.Sprintf("%s %d", what, l[1]+id-l[0])
		}
	}
	return "a " + what + " that is not mapped"
}

// labels returns the SELinux labels of a socket and of this process; "" if the
// file has none.
func labels(fd int) string {
	buf := make([]byte, 1024)
	n, err := unix.Getxattr(fmt.Sprintf("/proc/self/fd/%d", fd), "security.selinux", buf)
	if err != nil || n == 0 {
		return ""
	}
	mine, err := os.ReadFile("/proc/self/attr/selinux/current")
	if err != nil {
		mine, err = os.ReadFile("/proc/self/attr/current")
	}
	own := strings.TrimRight(string(mine), "\x00\n")
	if err != nil || own == "" {
		own = "none"
	}
	return fmt.Sprintf("SELinux: the socket's label is %s, this process's %s. If a rule keeps them apart (ausearch -m avc), mount the directory with :z", strings.TrimRight(string(buf[:n]), "\x00"), own)
}

// Named returns a number with its name, if it has one.
func Named(id uint32, name func(uint32) string) string {
	n := strconv.FormatUint(uint64(id), 10)
	if s := name(id); s != n {
		n += " (" + s + ")"
	}
	return n
}
