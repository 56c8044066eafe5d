#!/bin/sh
# Generates the Go code of tbot's protocol for the reporter: generate.sh PYTHON [OUTPUT_FOLDER].
# PYTHON needs grpcio-tools; go.mod has the versions of the generators for Go.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
python=$1
case $python in */*) python=$(cd "$(dirname "$python")" && pwd)/$(basename "$python") ;; esac
output=${2:-$here}
mkdir -p "$output"
output=$(cd "$output" && pwd)
plugins=$(mktemp -d)
trap 'rm -rf "$plugins"' EXIT

cd "$here"
go build -o "$plugins/" google.golang.org/protobuf/cmd/protoc-gen-go connectrpc.com/connect/cmd/protoc-gen-connect-go
cd ../..
proto=otel_tbot/tbot/prehog/tbot.proto
package="M$proto=otel-tbot.test/reporter/prehog"
module=module=otel-tbot.test/reporter
PATH="$plugins:$PATH" "$python" -m grpc_tools.protoc -I. \
  --go_out="$output" --go_opt="$module,$package" \
  --connect-go_out="$output" --connect-go_opt="$module,$package" "$proto"
