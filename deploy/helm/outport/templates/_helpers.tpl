{{- define "outport.name" -}}
{{- printf "%s-%s" .Release.Name .Values.role | trunc 52 | trimSuffix "-" -}}
{{- end -}}

{{- define "outport.selector" -}}
app.kubernetes.io/name: outport
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: {{ .Values.role }}
{{- end -}}

{{- define "outport.labels" -}}
{{ include "outport.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- with .Values.site }}
outport.site: {{ . }}
{{- end }}
{{- end -}}

{{- define "outport.adminSecret" -}}
{{- .Values.admin.existingSecret | default (printf "%s-admin" (include "outport.name" .)) -}}
{{- end -}}

{{/* Whether sites connect here. */}}
{{- define "outport.listens" -}}
{{- if or (eq .Values.role "primary") .Values.replication.relayTo -}}true{{- end -}}
{{- end -}}

{{/* A text as TOML, or a list of them; JSON's escapes are TOML's. */}}
{{- define "outport.toml" -}}
{{- if kindIs "slice" . -}}[{{ range $index, $one := . }}{{ if $index }}, {{ end }}{{ $one | toJson }}{{ end }}]{{- else -}}{{ . | toJson }}{{- end -}}
{{- end -}}

{{/* What cannot work is said here and not by a pod that does not start. */}}
{{- define "outport.check" -}}
{{- $https := .Values.registry.https -}}
{{- $ways := 0 -}}
{{- range list $https.existingSecret $https.insecure $https.fromJoin -}}{{- if . -}}{{- $ways = add1 $ways -}}{{- end -}}{{- end -}}
{{- if ne (int $ways) 1 -}}{{- fail "registry.https: set one of existingSecret, insecure and fromJoin" -}}{{- end -}}
{{- if eq .Values.role "primary" -}}
{{- if not .Values.registry.publicUrl -}}{{- fail "registry.publicUrl: the primary needs the URL that clients know it by" -}}{{- end -}}
{{- if not .Values.node.existingSecret -}}{{- fail "node.existingSecret: the primary needs a certificate (outport cert issue primary)" -}}{{- end -}}
{{- if or .Values.site .Values.join.existingSecret $https.fromJoin .Values.replication.relayTo -}}{{- fail "site, join, registry.https.fromJoin and replication.relayTo are for secondaries" -}}{{- end -}}
{{- else -}}
{{- if not .Values.site -}}{{- fail "site: a secondary needs its name" -}}{{- end -}}
{{- if not .Values.primary.address -}}{{- fail "primary.address: a secondary needs to know whom it follows" -}}{{- end -}}
{{- if and .Values.node.existingSecret .Values.join.existingSecret -}}{{- fail "set one of node.existingSecret and join.existingSecret" -}}{{- end -}}
{{- if not (or .Values.node.existingSecret .Values.join.existingSecret) -}}{{- fail "set node.existingSecret or join.existingSecret: a secondary needs a certificate, or a token to get one" -}}{{- end -}}
{{- if and $https.fromJoin (not .Values.join.existingSecret) -}}{{- fail "registry.https.fromJoin needs join.existingSecret" -}}{{- end -}}
{{- end -}}
{{- if and .Values.ingress.enabled (not .Values.ingress.host) -}}{{- fail "ingress.host: which name?" -}}{{- end -}}
{{- if and .Values.gateway.enabled (not (and .Values.gateway.hostname .Values.gateway.parentRefs)) -}}{{- fail "gateway needs hostname and parentRefs" -}}{{- end -}}
{{- end -}}

{{- define "outport.config" -}}
data_dir = "/var/lib/outport"
{{- if eq .Values.role "secondary" }}
site = {{ include "outport.toml" .Values.site }}
{{- end }}

[registry]
listen = {{ printf "%s:5000" $.Values.listenAddress | toJson }}
{{- with .Values.registry.publicUrl }}
public_url = {{ include "outport.toml" . }}
{{- end }}
{{- $https := .Values.registry.https }}
{{- if $https.insecure }}
insecure = true
{{- else }}

[registry.tls]
{{- if $https.fromJoin }}
certificate = "/var/lib/outport/identity/https.crt"
key = "/var/lib/outport/identity/https.key"
renew = true
{{- else }}
certificate = "/etc/outport/https/tls.crt"
key = "/etc/outport/https/tls.key"
{{- end }}
{{- end }}
{{- with .Values.registry.trustedProxies }}

[registry.proxies]
trusted = {{ include "outport.toml" . }}
{{- end }}
{{ if eq .Values.role "primary" }}
[replication]
listen = {{ printf "%s:5443" $.Values.listenAddress | toJson }}
sites = {{ include "outport.toml" .Values.replication.sites }}
{{- with .Values.replication.publicAddress }}
public_address = {{ include "outport.toml" . }}
{{- end }}
{{- if .Values.replication.authorityKeySecret }}
authority_key = "/etc/outport/authority/authority.key"
{{- end }}

[replication.tls]
certificate = "/etc/outport/node/tls.crt"
key = "/etc/outport/node/tls.key"
authority = "/etc/outport/node/ca.crt"
{{- else }}
[primary]
address = {{ include "outport.toml" .Values.primary.address }}
{{- with .Values.primary.relay }}
relay = {{ include "outport.toml" . }}
{{- end }}

[primary.tls]
{{- if .Values.join.existingSecret }}
certificate = "/var/lib/outport/identity/node.crt"
key = "/var/lib/outport/identity/node.key"
authority = "/var/lib/outport/identity/authority.crt"
renew = true
{{- else }}
certificate = "/etc/outport/node/tls.crt"
key = "/etc/outport/node/tls.key"
authority = "/etc/outport/node/ca.crt"
{{- end }}
{{- with .Values.replication.relayTo }}

[relay]
listen = {{ printf "%s:5443" $.Values.listenAddress | toJson }}
sites = {{ include "outport.toml" . }}
{{- end }}
{{- end }}

[admin]
listen = {{ printf "%s:9000" $.Values.listenAddress | toJson }}
token_file = "/etc/outport/admin/token"

[telemetry]
log_format = "json"
{{- if eq .Values.role "primary" }}

[auth]
{{- if .Values.auth.usersSecret }}
users_file = "/etc/outport/users/users"
{{- end }}
{{ .Values.auth.config | trim }}
{{- end }}
{{- with .Values.config }}

{{ . | trim }}
{{- end }}
{{- end -}}
