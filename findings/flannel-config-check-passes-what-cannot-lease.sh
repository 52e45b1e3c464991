#!/usr/bin/env bash
# flannel v0.28.9, ParseConfig and CheckNetworkConfig of its package pkg/subnet: what passes although no host can use it.
#
# - SubnetMin above SubnetMax passes. A daemon finds out when it asks for a lease ("out of subnets").
# - EnableIPv4 false without EnableIPv6 passes: a network with no address family.
# - A member given twice passes; the last one counts. Names of members are compared without regard to case.
# - An IPv4 network under IPv6Network is not refused as such: the complaint is about the alignment of a subnet that was
#   computed from the IPv4 address mapped into IPv6.
#
# So "upstream accepts this config" says nothing about whether it works. Needs Go 1.24 or newer.
set -euo pipefail
work=$(mktemp -d)
trap 'chmod -R u+w "$work" && rm -rf "$work"' EXIT
export GOMODCACHE=$work/modules GOCACHE=$work/cache GOFLAGS=-mod=mod
mkdir "$work/observe"
cd "$work/observe"
printf 'module observe\n\ngo 1.24\n' >go.mod
cat >main.go <<'GO'
package main

import (
	"fmt"

	"github.com/flannel-io/flannel/pkg/subnet"
)

func main() {
	for _, text := range []string{
		`{"Network":"10.5.0.0/16","SubnetMin":"10.5.200.0","SubnetMax":"10.5.100.0"}`,
		`{"Network":"10.5.0.0/16","EnableIPv4":false}`,
		`{"Network":"10.5.0.0/16","network":"10.6.0.0/16"}`,
		`{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"10.5.0.0/16"}`,
	} {
		config, err := subnet.ParseConfig(text)
		if err == nil {
			err = subnet.CheckNetworkConfig(config)
		}
		if err != nil {
			fmt.Println(text, "->", err)
			continue
		}
		fmt.Println(text, "-> valid, network", config.Network, "subnets", config.SubnetMin, "to", config.SubnetMax)
	}
}
GO
go get github.com/flannel-io/flannel/pkg/subnet@v0.28.9 2>get.log || { cat get.log >&2; exit 1; }
go run . | tee "$work/seen"

cat >"$work/expected" <<'TEXT'
{"Network":"10.5.0.0/16","SubnetMin":"10.5.200.0","SubnetMax":"10.5.100.0"} -> valid, network 10.5.0.0/16 subnets 10.5.200.0 to 10.5.100.0
{"Network":"10.5.0.0/16","EnableIPv4":false} -> valid, network 10.5.0.0/16 subnets 0.0.0.0 to 0.0.0.0
{"Network":"10.5.0.0/16","network":"10.6.0.0/16"} -> valid, network 10.6.0.0/16 subnets 10.6.1.0 to 10.6.255.0
{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"10.5.0.0/16"} -> IPv6SubnetMin is not on a SubnetLen boundary: ::1:0:ffff:a05:0
TEXT
diff "$work/expected" "$work/seen" || { echo "flannel no longer behaves as described above" >&2; exit 1; }
echo "as described: flannel v0.28.9 passes configs that no host can lease from"
