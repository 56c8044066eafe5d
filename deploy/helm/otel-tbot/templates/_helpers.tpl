{{- define "otel-tbot.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- $fullname := ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) -}}
{{- $fullname = default $fullname .Values.fullnameOverride -}}
{{- /* A release's name may have dots or begin with a digit; a Service's may not. */ -}}
{{- if not (regexMatch "^[a-z][-a-z0-9]*$" $fullname) -}}
{{- fail (printf "%s is not a name for a Service: set fullnameOverride, of lower-case letters, digits and -" $fullname) -}}
{{- end -}}
{{- $fullname -}}
{{- end -}}

{{- define "otel-tbot.bridge" -}}
{{- include "otel-tbot.fullname" . | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- define "otel-tbot.collector" -}}
{{- printf "%s-collector" (include "otel-tbot.fullname" . | trunc 42 | trimSuffix "-") -}}
{{- end -}}

{{/* Labels by which a component's pods are selected: (list ROOT COMPONENT). They cannot change after installation. */}}
{{- define "otel-tbot.selector" -}}
app.kubernetes.io/name: {{ default (index . 0).Chart.Name (index . 0).Values.nameOverride }}
app.kubernetes.io/instance: {{ (index . 0).Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}

{{- define "otel-tbot.labels" -}}
{{ include "otel-tbot.selector" . }}
app.kubernetes.io/version: {{ (index . 0).Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ (index . 0).Release.Service }}
helm.sh/chart: {{ printf "%s-%s" (index . 0).Chart.Name (index . 0).Chart.Version | replace "+" "_" }}
{{- end -}}

{{/* The reference of an image: (list IMAGE DEFAULT-TAG). */}}
{{- define "otel-tbot.image" -}}
{{- $image := index . 0 -}}
{{- if $image.digest -}}
{{- printf "%s@%s" $image.repository $image.digest -}}
{{- else -}}
{{- printf "%s:%s" $image.repository (default (index . 1) $image.tag) -}}
{{- end -}}
{{- end -}}

{{- define "otel-tbot.scheme" -}}
{{- if .Values.bridge.tls.secretName }}https{{ else }}http{{ end -}}
{{- end -}}

{{- define "otel-tbot.port" -}}
{{- .Values.service.port | default (ternary 443 80 (ne .Values.bridge.tls.secretName "")) -}}
{{- end -}}

{{/* Where a tbot of this cluster reports to, without the secret path prefix. */}}
{{- define "otel-tbot.address" -}}
{{- $scheme := include "otel-tbot.scheme" . -}}
{{- $port := include "otel-tbot.port" . | int -}}
{{- $host := printf "%s.%s.svc" (include "otel-tbot.bridge" .) .Release.Namespace -}}
{{- printf "%s://%s" $scheme $host -}}
{{- if ne $port (ternary 443 80 (eq $scheme "https")) }}:{{ $port }}{{ end -}}
{{- end -}}

{{/* The settings of a pod that every component shares: (list ROOT VALUES COMPONENT). */}}
{{- define "otel-tbot.pod" -}}
{{- $root := index . 0 -}}
{{- $values := index . 1 -}}
{{- with $root.Values.serviceAccountName }}
serviceAccountName: {{ . }}
{{- end }}
automountServiceAccountToken: false
enableServiceLinks: false
{{- with $root.Values.imagePullSecrets }}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
topologySpreadConstraints:
  - maxSkew: 1
    topologyKey: kubernetes.io/hostname
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels: {{- include "otel-tbot.selector" (list $root (index . 2)) | nindent 8 }}
{{- with $values.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* No user id: the image brings one, and OpenShift's restricted profile assigns one. */}}
{{- define "otel-tbot.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
capabilities: {drop: [ALL]}
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "otel-tbot.isOpenShift" -}}
{{- if .Capabilities.APIVersions.Has "security.openshift.io/v1/SecurityContextConstraints" }}true{{ end -}}
{{- end -}}

{{- define "otel-tbot.dnsEgress" -}}
- to: {{- toYaml .Values.networkPolicy.dns | nindent 4 }}
  ports:
    {{- range list 53 5353 }}
    - {port: {{ . }}, protocol: UDP}
    - {port: {{ . }}, protocol: TCP}
    {{- end }}
{{- end -}}

{{- define "otel-tbot.destinationPort" -}}
{{- $url := urlParse .Values.destination.endpoint -}}
{{- regexFind ":[0-9]+$" $url.host | trimPrefix ":" | default (ternary "443" "80" (eq $url.scheme "https")) -}}
{{- end -}}

{{/* What the collector calls its endpoint: over gRPC it takes no path, and no URL without a port. */}}
{{- define "otel-tbot.collectorEndpoint" -}}
{{- $url := urlParse .Values.destination.endpoint -}}
{{- if eq .Values.destination.protocol "grpc" -}}
{{- printf "%s://%s:%s" $url.scheme (regexReplaceAll ":[0-9]+$" $url.host "") (include "otel-tbot.destinationPort" .) -}}
{{- else -}}
{{- .Values.destination.endpoint -}}
{{- end -}}
{{- end -}}

{{/* A host in `.svc` is in a namespace, which can be named; any other address is only known by its port. */}}
{{- define "otel-tbot.destinationEgress" -}}
{{- $host := (urlParse .Values.destination.endpoint).hostname -}}
{{- $name := regexFind "^[^.]+\\.[^.]+\\.svc(\\.|$)" $host -}}
- ports:
    - {port: {{ include "otel-tbot.destinationPort" . }}, protocol: TCP}
  {{- if $name }}
  to:
    - namespaceSelector:
        matchLabels: {kubernetes.io/metadata.name: {{ index (splitList "." $name) 1 }}}
  {{- end }}
{{- with .Values.networkPolicy.extraEgress }}
{{ toYaml . }}
{{- end }}
{{- end -}}
