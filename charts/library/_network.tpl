{{- /*
NetworkPolicies.

"library.dnsEgress" .Values.networkPolicy.dns      one egress rule: the cluster's DNS servers
"library.peer" (dict "context" . "component" "server")
    one peer: the pods of a component of this release
*/ -}}

{{- define "library.dnsEgress" -}}
- to:
    {{- toYaml .to | nindent 4 }}
  ports:
  {{- range .ports }}
    - {protocol: UDP, port: {{ . }}}
    - {protocol: TCP, port: {{ . }}}
  {{- end }}
{{- end -}}

{{- define "library.peer" -}}
- podSelector:
    matchLabels:
      {{- include "library.selectorLabels" . | nindent 6 }}
{{- end -}}
