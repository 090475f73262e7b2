{{- /*
"fairlead.namespaces" .        the watched namespaces, as a JSON list
"fairlead.namespaceReader" .   the name of the ClusterRole, unlike that of any other release
"fairlead.mlflowPort" .        the port in `mlflow.url`
"fairlead.apiServerEgress" .   one egress rule: the cluster's API server
"fairlead.servingImage" .      the image of a model that names none
"fairlead.gatewayScheme" .     `http`, or with a certificate `https`; the name of the gateway's port too
"fairlead.gatewayPort" .       the port of the gateway's Service
"fairlead.settings" .          the controller's settings, as JSON
*/ -}}

{{- define "fairlead.namespaces" -}}
{{- .Values.watchNamespaces | default (list .Release.Namespace) | toJson -}}
{{- end -}}

{{- define "fairlead.namespaceReader" -}}
{{- printf "%s:%s" .Release.Namespace (include "fairlead.fullname" .) -}}
{{- end -}}

{{- define "fairlead.mlflowPort" -}}
{{- $url := urlParse .Values.mlflow.url -}}
{{- $port := regexFind ":[0-9]+$" $url.host | trimPrefix ":" -}}
{{- $port | default (ternary "443" "80" (eq $url.scheme "https")) -}}
{{- end -}}

{{- define "fairlead.apiServerEgress" -}}
- to:
  {{- range .Values.networkPolicy.apiServer.cidrs }}
    - ipBlock: {cidr: {{ . | quote }}}
  {{- end }}
  ports:
  {{- range .Values.networkPolicy.apiServer.ports }}
    - {protocol: TCP, port: {{ . }}}
  {{- end }}
{{- end -}}

{{- define "fairlead.gatewayScheme" -}}
{{- ternary "https" "http" (ne .Values.gateway.tls.secretName "") -}}
{{- end -}}

{{- define "fairlead.gatewayPort" -}}
{{- ternary .Values.gateway.service.httpsPort .Values.gateway.service.port (ne .Values.gateway.tls.secretName "") -}}
{{- end -}}

{{- define "fairlead.servingImage" -}}
{{- $image := .Values.serving.image -}}
{{- $tag := $image.tag | default (printf "%s-sklearn" .Chart.AppVersion) -}}
{{- include "fairlead.image" (dict "context" . "image" (merge (dict "tag" $tag) $image)) -}}
{{- end -}}

{{- define "fairlead.settings" -}}
{{- if contains "@" .Values.mlflow.url -}}
{{- fail "mlflow.url: must not hold an account; name its Secret in mlflow.credentials.existingSecret" -}}
{{- end -}}
{{- $monitoring := .Values.networkPolicy.monitoring -}}
{{- $gateway := dict
      "namespaceSelector" (dict "matchLabels" (dict "kubernetes.io/metadata.name" .Release.Namespace))
      "podSelector" (dict "matchLabels" (include "fairlead.selectorLabels" (dict "context" . "component" "gateway") | fromYaml)) -}}
{{- $dns := include "fairlead.dnsEgress" .Values.networkPolicy.dns | fromYamlArray -}}
{{- $mlflow := dict
      "to" .Values.mlflow.networkPeers
      "ports" (list (dict "protocol" "TCP" "port" (include "fairlead.mlflowPort" . | int))) -}}
{{- $experiments := dict
      "to" (list (dict
        "namespaceSelector" (dict "matchLabels" (dict "kubernetes.io/metadata.name" .Release.Namespace))
        "podSelector" (dict "matchLabels" (include "fairlead.selectorLabels" (dict "context" . "component" "experiments") | fromYaml))))
      "ports" (list (dict "protocol" "TCP" "port" "http")) -}}
{{- $name := include "fairlead.fullname" . -}}
{{- dict
      "namespaces" (include "fairlead.namespaces" . | fromJsonArray)
      "identity" (dict "namespace" .Release.Namespace "lease" (printf "%s-controller" $name))
      "mlflow" (dict "url" .Values.mlflow.url)
      "experiments" (dict "url" (printf "http://%s-experiments.%s.svc:%v" $name .Release.Namespace .Values.experiments.service.port))
      "gateway" (dict "namespace" .Release.Namespace "service" (printf "%s-gateway-agents" $name))
      "serving" (dict
        "image" (include "fairlead.servingImage" .)
        "imagePullPolicy" .Values.serving.image.pullPolicy
        "imagePullSecrets" .Values.global.imagePullSecrets
        "mlflowUrl" .Values.mlflow.url
        "credentialsSecret" .Values.serving.credentialsSecret
        "resources" .Values.serving.resources
        "networkPolicy" (dict
          "enabled" .Values.networkPolicy.enabled
          "ingressFrom" (concat (list $gateway) $monitoring)
          "egress" (concat $dns (list $mlflow $experiments))))
    | toPrettyJson -}}
{{- end -}}
