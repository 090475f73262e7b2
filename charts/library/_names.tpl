{{- /*
Names and labels.

"library.fullname" .                                     the name every object starts with
"library.labels" (dict "context" . "component" "server" "version" "1.2")
    the standard labels of an object; "version" is for a component with a version of its own
"library.podLabels" (dict ... "extra" .Values.x.podLabels)
    the same for a pod, without the chart's version: a new chart alone must not restart pods
"library.selectorLabels" (dict "context" . "component" "server")
    the three labels that never change
*/ -}}

{{- define "library.fullname" -}}
{{- $name := .Values.fullnameOverride -}}
{{- if not $name -}}
{{- $name = ternary .Release.Name (printf "%s-%s" .Release.Name .Chart.Name) (contains .Chart.Name .Release.Name) -}}
{{- end -}}
{{- if gt (len $name) 40 -}}
{{- fail (printf "fullnameOverride: the name '%s' has more than 40 characters, and longer names are made of it; set a shorter one" $name) -}}
{{- end -}}
{{- $name -}}
{{- end -}}

{{- define "library.selectorLabels" -}}
app.kubernetes.io/name: {{ .context.Chart.Name }}
app.kubernetes.io/instance: {{ .context.Release.Name | quote }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{- define "library.podLabels" -}}
{{ include "library.selectorLabels" . }}
app.kubernetes.io/part-of: fairlead
app.kubernetes.io/version: {{ .version | default .context.Chart.AppVersion | trunc 63 | trimSuffix "-" | trimSuffix "." | trimSuffix "_" | quote }}
app.kubernetes.io/managed-by: {{ .context.Release.Service }}
{{- with .extra }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "library.labels" -}}
{{ include "library.podLabels" (omit . "extra") }}
helm.sh/chart: {{ printf "%s-%s" .context.Chart.Name .context.Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{- end -}}
