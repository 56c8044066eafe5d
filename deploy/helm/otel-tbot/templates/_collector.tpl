{{/* What the chart lays over agent.yaml: the destination, and metrics that Prometheus can reach. */}}
{{- define "otel-tbot.collectorConfig" -}}
{{- $isGrpc := eq .Values.destination.protocol "grpc" -}}
{{- $isPlain := hasPrefix "http://" .Values.destination.endpoint -}}
{{- $exporter := ternary "otlp_grpc/gateway" "otlp_http/gateway" $isGrpc -}}
exporters:
  {{ $exporter }}:
    {{- if not $isGrpc }}
    endpoint: "${env:TBOT_GATEWAY}"
    {{- /* The delivery of agent.yaml, over HTTP. */}}
    {{- $agent := .Files.Get "files/agent.yaml" | fromYaml }}
    {{- pick (index $agent.exporters "otlp_grpc/gateway") "retry_on_failure" "sending_queue" | toYaml | nindent 4 }}
    {{- end }}
    tls:
      insecure: {{ $isPlain }}
      {{- if .Values.destination.caSecretName }}
      ca_file: /run/secrets/otel-tbot-ca/ca.crt
      {{- end }}
  {{- if not $isGrpc }}
  # No pipeline has it, but the collector checks its endpoint, and a URL for HTTP need not be one for gRPC.
  otlp_grpc/gateway: {endpoint: "localhost:4317"}
  {{- end }}
service:
  telemetry:
    metrics:
      readers:
        - pull:
            exporter:
              prometheus: {host: "", port: "${env:TBOT_TELEMETRY_PORT}"}
  {{- if not $isGrpc }}
  pipelines:
    logs/tbot: {exporters: [{{ $exporter }}]}
    traces/tbot: {exporters: [{{ $exporter }}]}
  {{- end }}
{{- end -}}

{{/* A string as a block of a ConfigMap, without spaces at the ends of lines. */}}
{{- define "otel-tbot.block" -}}
{{- regexReplaceAll "(?m) +$" (trim . | nindent 4) "" -}}
{{- end -}}
