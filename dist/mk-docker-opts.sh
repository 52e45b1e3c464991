#!/bin/sh
# Converts the subnet file of flanneld into options for Docker.
#
# Reads FLANNEL_SUBNET, FLANNEL_MTU and FLANNEL_IPMASQ from a file, or else from the environment, and writes a file for
# EnvironmentFile= of Docker's unit: one variable per option, one variable with all options, or both. Adds options from
# variables DOCKER_OPT_* of the environment. On an invalid value the output is not changed.

input=/run/flannel/subnet.env
output=/run/docker_opts.env
name=DOCKER_OPTS
masquerade=yes
single=
combined=

usage() {
    cat >&2 <<END
usage: $0 [-f FILE] [-d FILE] [-i] [-c] [-m] [-k NAME]

  -f  subnet file to read (default /run/flannel/subnet.env)
  -d  file to write (default /run/docker_opts.env)
  -i  write a variable for each option
  -c  write one variable with all options; without -i and -c, both are written
  -m  omit --ip-masq
  -k  name of the variable with all options (default DOCKER_OPTS)
END
    exit 1
}

fail() {
    echo "$1" >&2
    exit 1
}

# Prints the network of the first address of a subnet: 10.1.74.1/24 -> 10.1.74.0/24.
network_of() {
    case $1 in *.*.*.*/*) ;; *) return ;; esac
    echo "$1" | {
        IFS=./ read -r a b c d length
        n=$(((a << 24) + (b << 16) + (c << 8) + d - 1))
        echo "$((n >> 24 & 255)).$((n >> 16 & 255)).$((n >> 8 & 255)).$((n & 255))/$length"
    }
}

while getopts "f:d:icmk:h?" option; do
    case $option in
        f) input=$OPTARG ;;
        d) output=$OPTARG ;;
        i) single=yes ;;
        c) combined=yes ;;
        m) masquerade= ;;
        k) name=$OPTARG ;;
        *) usage ;;
    esac
done
if [ -z "$single$combined" ]; then
    single=yes
    combined=yes
fi
case $name in
    '' | [0-9]* | *[!A-Za-z0-9_]*) fail "Invalid name of a variable: $name" ;;
esac

if [ -f "$input" ]; then
    # Without a slash the shell would search PATH.
    case $input in */*) ;; *) input=./$input ;; esac
    # shellcheck source=/dev/null
    . "$input"
fi

# `set` below finds these variables.
# shellcheck disable=SC2034
if [ -n "$FLANNEL_SUBNET" ]; then
    DOCKER_OPT_BIP="--bip=$FLANNEL_SUBNET"
fi
# shellcheck disable=SC2034
if [ -n "$FLANNEL_MTU" ]; then
    DOCKER_OPT_MTU="--mtu=$FLANNEL_MTU"
fi
# Either flanneld masquerades or Docker does.
# shellcheck disable=SC2034
if [ -n "$FLANNEL_IPMASQ" ] && [ -n "$masquerade" ]; then
    case $FLANNEL_IPMASQ in
        true) DOCKER_OPT_IPMASQ=--ip-masq=false ;;
        false) DOCKER_OPT_IPMASQ=--ip-masq=true ;;
        *) fail "Invalid value of FLANNEL_IPMASQ: $FLANNEL_IPMASQ" ;;
    esac
fi

eval "all=\${$name:+\$$name }"
text=
newline='
'
for variable in $(set | sed -n 's/^\(DOCKER_OPT_[A-Za-z0-9_]*\)=.*/\1/p' | LC_ALL=C sort -u); do
    eval "value=\$$variable"
    # shellcheck disable=SC2154
    all="$all $value"
    if [ -n "$single" ]; then
        text="$text$variable=\"$value\"$newline"
    fi
done
if [ -n "$combined" ]; then
    text="$text$name=\"$all\"$newline"
fi
printf %s "$text" >"$output" || exit 1

# With a route to the subnet via another host, Docker fails to create its bridge.
subnet=$(network_of "$FLANNEL_SUBNET")
if [ -n "$subnet" ] && command -v ip >/dev/null; then
    route=$(ip route show | while read -r destination via rest; do
        if [ "$destination $via" = "$subnet via" ]; then
            echo "$destination $via $rest"
        fi
    done)
    if [ -n "$route" ]; then
        fail "Your routing table already contains the subnet: $route"
    fi
fi
