# Install the system packages that tests use: Fashion-MNIST's files, a browser, PostgreSQL, OpenSSH. The tests start the
# servers themselves.
need=()
[ -d /usr/share/datasets/fashion-mnist ] || need+=(dataset-fashion-mnist)
command -v chromium >/dev/null || need+=(chromium)
[ -n "$(find /usr/lib/postgresql -name initdb 2>/dev/null)" ] || need+=(postgresql)
[ -x /usr/sbin/sshd ] || need+=(openssh-server)
if [ ${#need[@]} -gt 0 ] && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${need[@]}"
fi
