module otel-tbot.test/otelcli

go 1.26.0

require github.com/equinix-labs/otel-cli v0.4.5
