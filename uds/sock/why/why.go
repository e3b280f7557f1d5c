//go:build linux

// Package why finds out why a socket at a path does not work: a mount, a file
// system, permissions, an access control list, a user namespace, labels. Each
// reason comes with its cure. The errors of package uds and `uds inspect`
// both take their reasons from here.
//
// It looks at files, and asks sock_diag(7); it connects to nothing.
package why

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Path returns what stops the file at path from working as a socket, now or
// later, and whether it is on a read-only mount. If the socket is served, its
// file system carries sockets, whatever its type.
func Path(path string, served bool) (why []string, readOnly bool) {
	add := func(text string) {
		if text != "" {
			why = append(why, text)
		}
	}
	add(Denied(path))
	fd, st, err := open(path)
	if err != nil {
		add(namespaces(nil))
		return why, false
	}
	defer func() { _ = unix.Close(fd) }()
	if st.Mode&unix.S_IFMT != unix.S_IFSOCK {
		if st.Mode&unix.S_IFMT == unix.S_IFDIR {
			add(directory(fd))
		}
		return why, false
	}
	m, itself := mountOf(fd)
	add(m.itself(itself))
	if !served {
		add(m.carries())
	}
	add(namespaces(st))
	add(labels(fd))
	return why, slices.Contains(strings.Split(m.options, ","), "ro")
}

// Refused explains why connect(2) to path was refused, unless the file is a
// socket like others: then it returns "".
func Refused(path string) string {
	fd, st, err := open(path)
	if err != nil {
		return ""
	}
	defer func() { _ = unix.Close(fd) }()
	switch {
	case st.Mode&unix.S_IFMT == unix.S_IFDIR:
		return path + " is a directory, not a socket; use the path of a server's socket" + Empty(path)
	case st.Mode&unix.S_IFMT != unix.S_IFSOCK:
		return fmt.Sprintf("%s is a %s, not a socket; use the path of a server's socket", path, Kind(st.Mode))
	case IsOpenSocket(fd):
		return fmt.Sprintf("%s is an open socket of a process, not a socket file; use the path to which it is bound", path)
	}
	m, itself := mountOf(fd)
	if text := m.itself(itself); text != "" {
		return text
	}
	return m.carries()
}

func open(path string) (fd int, st *unix.Stat_t, err error) {
	if fd, err = unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0); err != nil {
		return -1, nil, err
	}
	st = new(unix.Stat_t)
	if err = unix.Fstat(fd, st); err != nil {
		_ = unix.Close(fd)
	}
	return fd, st, err
}

// IsOpenSocket reports whether a descriptor leads to an open socket, as
// /proc/PID/fd/N does, and not to a socket file.
func IsOpenSocket(fd int) bool {
	var fs unix.Statfs_t
	return unix.Fstatfs(fd, &fs) == nil && fs.Type == unix.SOCKFS_MAGIC
}

// directory explains an empty directory where a socket is expected; "" if the
// directory is not empty, or cannot be read.
func directory(fd int) string {
	names, err := os.ReadDir(fmt.Sprintf("/proc/self/fd/%d", fd))
	if err != nil || len(names) > 0 {
		return ""
	}
	return "it is an empty directory. If a socket was to be mounted here, the socket was missing when the container was created, and the engine made a directory in its place, on the host too. " +
		"Remove the directory, start the server, and create this container again; better, mount the socket's directory"
}

// Empty returns what else to say about a directory that is in the place of a
// socket: something if it is empty, otherwise "".
func Empty(path string) string {
	fd, _, err := open(path)
	if err != nil {
		return ""
	}
	defer func() { _ = unix.Close(fd) }()
	if text := directory(fd); text != "" {
		return ". " + strings.ToUpper(text[:1]) + text[1:]
	}
	return ""
}

// Mounted explains a file that is itself a mount; "" if it is not.
func Mounted(fd int) string {
	m, itself := mountOf(fd)
	return m.itself(itself)
}

// itself explains a file that is the root of its mount.
func (m mount) itself(isRoot bool) string {
	switch _, deleted := strings.CutSuffix(m.root, "//deleted"); {
	case isRoot && deleted:
		return "it is itself a mount, and the file that was mounted is deleted: its server has started again and made a new one. Mount the directory, not the file, and create this container again"
	case isRoot:
		return "it is itself a mount: when its server starts again and makes a new file, this one stays the old. Mount the directory, not the file"
	default:
		return ""
	}
}

// carries explains a file system that may not carry sockets.
func (m mount) carries() string {
	if !reachesNoOther(m.fstype) {
		return ""
	}
	return fmt.Sprintf("it is on %s (%s): a socket there works only for processes that see it through the same mount of the same kernel as its server. Use a volume, or a directory of this kernel's own; from another machine, TCP and uds forward", m.fstype, m.source)
}

// Kind returns the file type of a file mode in words, inode(7).
func Kind(mode uint32) string {
	switch mode & unix.S_IFMT {
	case unix.S_IFREG:
		return "regular file"
	case unix.S_IFDIR:
		return "directory"
	case unix.S_IFLNK:
		return "symbolic link"
	case unix.S_IFIFO:
		return "named pipe"
	case unix.S_IFCHR:
		return "character device"
	case unix.S_IFBLK:
		return "block device"
	default:
		return "socket"
	}
}

// A mount is a line of proc_pid_mountinfo(5).
type mount struct {
	dev                           uint64 // of the file system, see [IsFile]
	root, options, fstype, source string
}

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
		var major, minor uint32
		_, _ = fmt.Sscanf(f[2], "%d:%d", &major, &minor)
		return mount{unix.Mkdev(major, minor), plain.Replace(f[3]), f[5], f[end+1], plain.Replace(f[end+2])}, st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0
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

// Denied describes the first part of a path that denies this process
// permission to connect, and what would grant it; "" if no part does.
func Denied(path string) string {
	return walk(path, func(last string) string {
		var st unix.Stat_t
		if unix.Lstat(last, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFSOCK {
			return ""
		}
		return refuses(last, unix.W_OK)
	})
}

// DeniedFile does the same for a file that is to be made at path, or removed.
func DeniedFile(path string) string {
	return walk(path, func(last string) string { return refuses(filepath.Dir(last), unix.W_OK) })
}

// walk looks for a directory that cannot be searched, and at last calls end
// with the path that is left when symbolic links have been followed.
func walk(path string, end func(last string) string) string {
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
			return end(next)
		}
		at, rest = next, after
	}
}

// refuses explains why this process cannot search a directory (unix.X_OK), or
// write to a directory or a socket (unix.W_OK); "" if it can, or if the file
// is missing.
func refuses(path string, bit uint32) string {
	if !errors.Is(unix.Faccessat(unix.AT_FDCWD, path, bit, unix.AT_EACCESS), unix.EACCES) {
		return ""
	}
	var st unix.Stat_t
	if unix.Lstat(path, &st) != nil {
		return ""
	}
	what, letter := "write to", "w"
	switch {
	case bit == unix.X_OK:
		what, letter = "search", "x"
	case st.Mode&unix.S_IFMT == unix.S_IFSOCK:
		what = "connect to"
	}
	text := fmt.Sprintf("%s denies this process permission to %s it: its %s. ", path, what, WhoMay(&st))
	list := accessList(path)
	owner := int(st.Uid) == os.Geteuid()
	groups, _ := os.Getgroups()
	member := int(st.Gid) == os.Getegid() || slices.Contains(groups, int(st.Gid))
	switch {
	case strings.HasPrefix(path, "/proc/"): // its modes cannot be changed
		return text + "Run it as root; in a container, with CAP_SYS_PTRACE"
	case owner && st.Mode&(bit<<6) == 0:
		return text + fmt.Sprintf("chmod u+%s gives its owner permission", letter)
	case !owner && list != nil:
		return text + list.cure(path, &st, uint16(bit), letter)
	case !owner && member && st.Mode&(bit<<3) == 0:
		return text + fmt.Sprintf("chmod g+%s gives permission to its group, which this process has", letter)
	case !owner && !member && st.Mode&(bit<<3) != 0:
		return text + mayJoin(st.Gid)
	case !owner && !member && st.Mode&bit == 0:
		return text + fmt.Sprintf("Group %d with chmod g+%s has permission, or user %d", st.Gid, letter, st.Uid)
	default:
		return text + "The mode gives permission; what denies it is not known: a security module, for example"
	}
}

func mayJoin(gid uint32) string {
	return fmt.Sprintf("Group %d has permission: use group_add in Compose, --group-add with docker run", gid)
}

// WhoMay describes a file's mode and owner, and this process.
func WhoMay(st *unix.Stat_t) string {
	groups, _ := os.Getgroups()
	return fmt.Sprintf("mode is %04o, of user %d, group %d, and this process is user %d, group %d, groups %v",
		st.Mode&0o7777, st.Uid, st.Gid, os.Geteuid(), os.Getegid(), groups)
}

// An acl is the access control list of a file, acl(5).
type acl []struct {
	tag, perm uint16
	id        uint32
}

// Tags of entries, from linux/posix_acl.h.
const (
	aclUser     = 0x02
	aclGroupObj = 0x04
	aclGroup    = 0x08
	aclMask     = 0x10
)

// accessList returns the list of a file that has one; nil if the mode says
// everything.
func accessList(path string) (list acl) {
	buf := make([]byte, 64<<10) // the largest value, xattr(7)
	n, err := unix.Getxattr(path, "system.posix_acl_access", buf)
	const header, entry = 4, 8
	if err != nil || n < header || binary.LittleEndian.Uint32(buf) != 2 { // the version
		return nil
	}
	for b := buf[header:n]; len(b) >= entry; b = b[entry:] {
		list = append(list, struct {
			tag, perm uint16
			id        uint32
		}{binary.LittleEndian.Uint16(b), binary.LittleEndian.Uint16(b[2:]), binary.LittleEndian.Uint32(b[4:])})
	}
	return list
}

// cure names a group to which the list gives permission, or how to change the
// list. The mode's bits for the group are the list's mask: they may show a
// permission that the group does not have.
func (a acl) cure(path string, st *unix.Stat_t, bit uint16, letter string) string {
	mask := ^uint16(0)
	for _, e := range a {
		if e.tag == aclMask {
			mask = e.perm
		}
	}
	listed := false // an entry for this user precedes those for groups
	for _, e := range a {
		listed = listed || e.tag == aclUser && int(e.id) == os.Geteuid()
		if (e.tag == aclGroupObj || e.tag == aclGroup) && e.perm&mask&bit != 0 && !listed {
			if e.tag == aclGroupObj {
				e.id = st.Gid
			}
			return mayJoin(e.id)
		}
	}
	return fmt.Sprintf("Its access control list (getfacl) decides, not the mode, and gives no group permission that would help: setfacl -m u:%d:%s %s", os.Geteuid(), map[string]string{"w": "rw", "x": "rx"}[letter], path)
}

// namespaces describes how the ids of a file's owner and of this process are
// mapped by its user namespace, user_namespaces(7); "" if every id maps to
// itself. st is nil if the file cannot be seen.
func namespaces(st *unix.Stat_t) string {
	uids, uidErr := idMap("uid_map")
	gids, gidErr := idMap("gid_map")
	if uidErr != nil || gidErr != nil || uids.identity() && gids.identity() {
		return "" // a kernel without user namespaces has no maps
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

func idMap(name string) (ids, error) {
	text, err := os.ReadFile("/proc/self/" + name)
	return parseMap(string(text)), err
}

func parseMap(text string) (m ids) {
	for line := range strings.Lines(text) {
		var l [3]uint32
		if _, err := fmt.Sscan(line, &l[0], &l[1], &l[2]); err == nil {
			m = append(m, l)
		}
	}
	return m
}

// MapsAllUsers reports whether every user has a number in this process's user
// namespace; false if /proc does not tell.
func MapsAllUsers() bool {
	m, err := idMap("uid_map")
	return err == nil && m.all()
}

// all reports whether the map holds all 2^32-1 ids: -1 is none.
func (m ids) all() bool {
	mapped := uint64(0)
	for _, l := range m {
		mapped += uint64(l[2])
	}
	return mapped == 1<<32-1
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
