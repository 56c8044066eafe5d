#!/bin/sh
# Generates the code of tbot's protocol, for the package and for the reporter: generate_protocol.sh PYTHON OUTPUT_FOLDER.
# PYTHON has what requirements/proto.txt names. `make proto` writes into the checkout, a test into a temporary folder.
set -eu
cd "$(dirname "$0")/.."
python=$1
output=$2
PATH="$(dirname "$python"):$PATH" "$python" -m grpc_tools.protoc -I. \
  --python_out="$output" --pyi_out="$output" \
  otel_tbot/tbot/prehog/tbot.proto
if command -v go >/dev/null; then
  go/reporter/generate.sh "$python" "$output/go/reporter"
else
  echo "Go is not installed: the reporter's code is left as it is" >&2
fi
