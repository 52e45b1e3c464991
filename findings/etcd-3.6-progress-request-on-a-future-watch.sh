#!/usr/bin/env bash
# etcd 3.5.21 and 3.6.5: progress requests on a watch that continues a list.
#
# The usual "list, then watch from the list's revision + 1" leaves a watch that waits for a revision which does not exist
# yet. etcd 3.5 answers a progress request on it at once. etcd 3.6 answers nothing until some write, anywhere in the
# store, reaches that revision. A client that takes progress requests for a sign of life finds a healthy, quiet 3.6 server
# dead. A watch from the list's own revision is answered by both (it may deliver the newest event once more).
#
# Needs Go 1.24 or newer and downloads two etcd servers as Go modules (some 200 MB in a temporary folder).
set -euo pipefail
work=$(mktemp -d)
trap 'chmod -R u+w "$work" && rm -rf "$work"' EXIT
export GOMODCACHE=$work/modules GOCACHE=$work/cache GOFLAGS=-mod=mod

cat >"$work/main.go" <<'GO'
package main

import (
	"context"
	"fmt"
	"net/url"
	"os"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
)

func must[T any](value T, err error) T {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	return value
}

func main() {
	config := embed.NewConfig()
	config.Dir, config.LogLevel = os.Args[1], "error"
	loopback := must(url.Parse("http://127.0.0.1:0"))
	config.ListenClientUrls, config.ListenPeerUrls = []url.URL{*loopback}, []url.URL{*loopback}
	server := must(embed.StartEtcd(config))
	defer server.Close()
	<-server.Server.ReadyNotify()
	client := must(clientv3.New(clientv3.Config{Endpoints: []string{server.Clients[0].Addr().String()}}))
	defer client.Close()
	ctx := context.Background()
	must(client.Put(ctx, "/registry/a", "1"))
	listed := must(client.Get(ctx, "/registry/", clientv3.WithPrefix())).Header.Revision

	for _, start := range []int64{listed, listed + 1} {
		watching, cancel := context.WithCancel(ctx)
		events := client.Watch(watching, "/registry/b", clientv3.WithRev(start), clientv3.WithCreatedNotify())
		<-events
		ask := func() string {
			for range 10 {
				_ = client.RequestProgress(watching)
				select {
				case answer := <-events:
					return fmt.Sprintf("answered, at list%+d", answer.Header.Revision-listed)
				case <-time.After(500 * time.Millisecond):
				}
			}
			return "ten requests within 5 s, no answer"
		}
		fmt.Printf("watch from list%+d, nothing written: %s\n", start-listed, ask())
		if start > listed {
			must(client.Put(ctx, "/elsewhere", "1"))
			fmt.Printf("watch from list%+d, after a write elsewhere: %s\n", start-listed, ask())
		}
		cancel()
	}
}
GO

for version in v3.5.21 v3.6.5; do
    mkdir "$work/$version"
    cp "$work/main.go" "$work/$version"
    (
        cd "$work/$version"
        printf 'module observe\n\ngo 1.24\n' >go.mod
        go get "go.etcd.io/etcd/server/v3@$version" "go.etcd.io/etcd/client/v3@$version" 2>get.log || { cat get.log >&2; exit 1; }
        go build -o observe .
        echo "etcd $version"
        # What the embedded server logs when it is closed is of no interest.
        timeout 60 ./observe data 2>stderr.log || { cat stderr.log >&2; exit 1; }
    )
done | tee "$work/seen"

cat >"$work/expected" <<'TEXT'
etcd v3.5.21
watch from list+0, nothing written: answered, at list+0
watch from list+1, nothing written: answered, at list+0
watch from list+1, after a write elsewhere: answered, at list+1
etcd v3.6.5
watch from list+0, nothing written: answered, at list+0
watch from list+1, nothing written: ten requests within 5 s, no answer
watch from list+1, after a write elsewhere: answered, at list+1
TEXT
diff "$work/expected" "$work/seen" || { echo "etcd no longer behaves as described above" >&2; exit 1; }
echo "as described: etcd 3.6.5 leaves progress requests on a future watch unanswered, 3.5.21 does not"
