# The first process of a host of tests/hosts.py, in fresh namespaces: lays out its file system, then reaps its orphans.
# Arguments: name, folder that becomes /tmp, the lines for /etc/hosts, lines "bind SOURCE TARGET".
set -e
name=$1 tmp=$2 table=$3 binds=$4
# /proc is still the outer one: this is the process id that others know.
read -r pid _ </proc/self/stat

mount --make-rprivate /
layers=$(mktemp -d "$tmp/XXXXXX")
mount -t tmpfs -o mode=755 layers "$layers"
mkdir "$layers/upper" "$layers/work" "$layers/root"
mount -t overlay -o "lowerdir=/,upperdir=$layers/upper,workdir=$layers/work" overlay "$layers/root"
root=$layers/root

mount -t proc proc "$root/proc"
mount -t sysfs -o ro sysfs "$root/sys"
[ ! -d /sys/fs/cgroup ] || mount --rbind -o ro /sys/fs/cgroup "$root/sys/fs/cgroup"
mount --rbind /dev "$root/dev"
mkdir -p "$root/dev/shm"
mount -t tmpfs -o mode=1777 shm "$root/dev/shm"
mount -t tmpfs -o mode=755 run "$root/run"
chmod 1777 "$tmp"
mount --bind "$tmp" "$root/tmp"

# What is to lie below a folder that was just covered finds its place in the covering one.
bind() {
    if [ -d "$1" ]; then
        mkdir -p "$root$2"
    else
        mkdir -p "$(dirname "$root$2")"
        [ -e "$root$2" ] || touch "$root$2"
    fi
    mount --rbind "$1" "$root$2"
}
eval "$binds"

printf '127.0.0.1 localhost\n%s' "$table" >"$root/etc/hosts"
echo "$name" >"$root/etc/hostname"
hostname "$name"
cd "$root"
pivot_root . .
umount -l .
cd /

echo "$pid"
sleep infinity &
wait
