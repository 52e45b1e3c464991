#!/bin/sh
# Stands for upstream's flanneld v0.28 with the VXLAN backend over etcd v3: what it leaves in the kernel and in etcd, and
# what it takes over from there. It learns of peers when it starts and sleeps then.
set -e
export ETCDCTL_API=3 ETCDCTL_ENDPOINTS="$FLANNELD_ETCD_ENDPOINTS"
prefix=/coreos.com/network/subnets/
public=$(ip -4 -br addr show eth0 | sed 's/.* \([0-9.]*\)\/.*/\1/')
own=$(etcdctl get --prefix "$prefix" | grep -B 1 "\"PublicIP\":\"$public\"" | head -n 1)
own=${own:-${prefix}10.5.201.0-24}
subnet=${own##*/}
base=${subnet%-*}

ip link show flannel.1 >/dev/null 2>&1 ||
    ip link add flannel.1 txqueuelen 0 type vxlan id 1 dev eth0 local "$public" dstport 8472 nolearning
ip addr show dev flannel.1 | grep -q "inet $base/32" || ip addr add "$base/32" dev flannel.1
ip link set flannel.1 mtu 1450 up
mac=$(ip -br link show flannel.1 | awk '{ print $3 }')

lease=$(etcdctl lease grant 86400 | awk '{ print $2 }')
etcdctl put --lease="$lease" "$own" "{\"PublicIP\":\"$public\",\"PublicIPv6\":null,\"BackendType\":\"vxlan\",\"BackendData\":{\"VNI\":1,\"VtepMAC\":\"$mac\"}}"
etcdctl get --prefix "$prefix" | while read -r key && read -r record; do
    [ "$key" != "$own" ] || continue
    peer=$(echo "${key##*/}" | tr - /)
    mac=$(echo "$record" | sed 's/.*"VtepMAC":"\([^"]*\)".*/\1/')
    to=$(echo "$record" | sed 's/.*"PublicIP":"\([^"]*\)".*/\1/')
    ip neigh replace "${peer%/*}" lladdr "$mac" dev flannel.1 nud permanent
    bridge fdb replace "$mac" dst "$to" dev flannel.1 self permanent
    ip route replace "$peer" via "${peer%/*}" dev flannel.1 onlink
done
mkdir -p /run/flannel
printf 'FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=%s1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n' "${base%0}" >/run/flannel/subnet.env
systemd-notify --ready
exec sleep infinity
