{{- /*
"model.name" .    the ServedModel's name
"model.spec" .    the ServedModel's spec; what a value leaves empty is left to the CRD's default
*/ -}}

{{- define "model.name" -}}
{{- $name := .Values.name | default .Release.Name -}}
{{- if not (regexMatch "^[a-z0-9]([-a-z0-9]{0,38}[a-z0-9])?$" $name) -}}
{{- fail (printf "name: '%s' cannot be a model's name in the path: it needs at most 40 lower case letters, digits and dashes; set another" $name) -}}
{{- end -}}
{{- $name -}}
{{- end -}}

{{- define "model.spec" -}}
model: {{ .Values.model | quote }}
registry:
  {{- include "model.filled" .Values.registry | nindent 2 }}
traffic:
  {{- include "model.filled" .Values.traffic | nindent 2 }}
rollout:
  {{- include "model.filled" (omit .Values.rollout "guardrails") | nindent 2 }}
  {{- with include "model.filled" .Values.rollout.guardrails }}
  guardrails:
    {{- . | nindent 4 }}
  {{- end }}
server:
  {{- include "model.filled" .Values.server | nindent 2 }}
{{- end -}}

{{- /* What is given: keys whose value is no empty object, list or text. */ -}}
{{- define "model.filled" -}}
{{- $filled := dict -}}
{{- range $key, $value := . -}}
{{- if not (or (and (or (kindIs "map" $value) (kindIs "slice" $value)) (not $value)) (eq (toString $value) "")) -}}
{{- $_ := set $filled $key $value -}}
{{- end -}}
{{- end -}}
{{- toYaml $filled -}}
{{- end -}}

{{- /* "model.port" URL: the port of a URL, which must not hold an account. */ -}}
{{- define "model.port" -}}
{{- if contains "@" . -}}
{{- fail "training.mlflow.url: must not hold an account; name its Secret in training.mlflow.existingSecret" -}}
{{- end -}}
{{- $url := urlParse . -}}
{{- regexFind ":[0-9]+$" $url.host | trimPrefix ":" | default (ternary "443" "80" (eq $url.scheme "https")) -}}
{{- end -}}
