{{- /*
Images.

"library.image" (dict "context" . "image" .Values.x.image)   the whole reference; the digest wins
"library.imageVersion" (same)                                the version for the labels
"library.imagePullSecrets" .                                 the pod's field, or nothing
*/ -}}

{{- define "library.image" -}}
{{- $registry := .context.Values.global.imageRegistry | default .image.registry -}}
{{- $name := ternary (printf "%s/%s" $registry .image.repository) .image.repository (ne $registry "") -}}
{{- if .image.digest -}}
{{- printf "%s@%s" $name .image.digest -}}
{{- else -}}
{{- printf "%s:%s" $name (include "library.imageVersion" .) -}}
{{- end -}}
{{- end -}}

{{- define "library.imageVersion" -}}
{{- .image.tag | default .context.Chart.AppVersion -}}
{{- end -}}

{{- define "library.imagePullSecrets" -}}
{{- with .Values.global.imagePullSecrets -}}
imagePullSecrets:
{{- range . }}
  - name: {{ . | quote }}
{{- end }}
{{- end -}}
{{- end -}}
